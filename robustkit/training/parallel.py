"""One training by several processes: each works on its share of every batch, and gradients are averaged."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes that train together, as ``torchrun`` starts them.

    Attributes:
        rank: number of this process.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: torch.device) -> World:
        """Meet the other processes, if ``torchrun`` started any; NCCL joins GPUs, gloo CPUs."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(distributed.get_rank(), size)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and tells."""
        return self.rank == 0

    def from_first(self, make: Callable[[], T]) -> T:
        """Let the first process make something, and give it to all."""
        if self.size == 1:
            return make()
        made = [make() if self.first else None]
        distributed.broadcast_object_list(made)
        return made[0]  # type: ignore[return-value]

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


ALONE = World()
"""A training by one process."""
