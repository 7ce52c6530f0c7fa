"""One piece of work by several processes, on one host or many, as ``torchrun`` starts them: PyTorch's own engine.

Training works on a share of every batch and averages gradients; an evaluation works on whole batches of its own.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from robustkit.errors import RobustkitError, UsageError

T = TypeVar("T")
NAME = "robustkit"
PATIENCE = timedelta(days=7)
"""How long a process waits for another at work: ``torchrun`` itself tells when one is lost."""


@dataclass(frozen=True)
class World:
    """The processes that work together.

    Attributes:
        rank: number of this process.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: torch.device) -> World:
        """Meet the other processes, if ``torchrun`` started any; NCCL joins GPUs, gloo CPUs.

        Raises:
            UsageError: something else has started several, and does not say where they meet.
        """
        if os.environ.get("WORLD_SIZE", "1") == "1":
            return cls()
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise UsageError(
                f"expected {', '.join(missing)} in the environment beside WORLD_SIZE, found none; "
                "start several processes by torchrun, or unset WORLD_SIZE"
            )
        if not distributed.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            store, rank, size = _meet()
            distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
            atexit.register(distributed.destroy_process_group)  # else its threads may break the exit
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and tells."""
        return self.rank == 0

    def from_first(self, make: Callable[[], T]) -> T:
        """Let the first process make something, and give it to all; where that fails, all of them fail alike.

        Raises:
            RobustkitError: what making it has raised.
        """
        if self.size == 1:
            return make()
        made: list[T | RobustkitError | None] = [None]
        if self.first:
            try:
                made = [make()]
            except RobustkitError as error:
                made = [error]
        distributed.broadcast_object_list(made)
        if isinstance(made[0], RobustkitError):
            raise made[0]
        return made[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """Give what every process has, the first one's first, to all."""
        if self.size == 1:
            return [value]
        gathered: list[T | None] = [None] * self.size
        distributed.all_gather_object(gathered, value)
        return gathered  # type: ignore[return-value]

    def share(self, count: int, batch_size: int) -> Tensor:
        """Deal samples out to the processes by whole batches in turn, so that batches are those of one process.

        Args:
            count: how many samples there are.
            batch_size: of each batch; it is less where there are too few samples for a batch each.

        Returns:
            The places of the samples that are this process's own, ascending.
        """
        places = torch.arange(count)
        size = max(1, min(batch_size, math.ceil(count / self.size)))
        return places[places // size % self.size == self.rank]

    def total(self, values: Tensor) -> Tensor:
        """Add up the values of all processes."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    @torch.no_grad()
    def average(self, buffers: Iterable[Tensor]) -> None:
        """Replace numbers that each process has moved on its own share, such as running statistics, by their mean."""
        if self.size > 1:
            for one in buffers:
                if one.is_floating_point():
                    distributed.all_reduce(one)
                    one /= self.size

    def shared(self, module: nn.Module) -> nn.Module:
        """Let the gradients of a module, computed in its forward and backward, be averaged over the processes."""
        if self.size == 1:
            return module
        return DistributedDataParallel(module, broadcast_buffers=False)


def _meet() -> tuple[Store, int, int]:
    """Give a store that only the processes of this very start write to, the number of this one, and how many there are.

    ``torchrun`` keeps its store when it starts lost processes again: with what those had written there, such as
    addresses where nobody listens any more. So the first process names a fresh place, every other one signs there, and
    takes a place for fresh only where the first has countersigned.
    """
    shared, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    if rank == 0:
        place = uuid.uuid4().hex
        shared.set(f"{NAME}/place", place)
        signed = {other: shared.get(f"{NAME}/{place}/{other}").decode() for other in range(1, size)}
        shared.set(f"{NAME}/{place}/signed", json.dumps(signed))
        return PrefixStore(place, shared), rank, size
    signature = uuid.uuid4().hex
    while True:
        place = shared.get(f"{NAME}/place").decode()
        shared.set(f"{NAME}/{place}/{rank}", signature)
        seen = f"{NAME}/{place}/signed"
        if shared.check([seen]) and json.loads(shared.get(seen)).get(str(rank)) == signature:
            return PrefixStore(place, shared), rank, size
        time.sleep(0.05)


ALONE = World()
"""Work by one process."""
