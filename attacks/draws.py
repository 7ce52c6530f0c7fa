"""Draws of a library that knows no sample: made to depend on the seed and on the sample, never on its batch mates."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from robustkit.attacks.base import derived_seed

_OF_A_SHAPE = ("rand", "randn")
_OF_A_TENSOR = ("rand_like", "randn_like")
_IN_PLACE = ("uniform_", "normal_", "bernoulli_")
_OF_A_BATCH = ("randint", "bernoulli", "randperm")
_DRAWS: tuple[tuple[Any, str], ...] = (
    *((torch, one) for one in (*_OF_A_SHAPE, *_OF_A_TENSOR, *_OF_A_BATCH)),
    *((Tensor, one) for one in _IN_PLACE),
)


class RepeatableDraws:
    """Within it, what is drawn for a batch of images is drawn for each image from its own seed.

    A draw of four dimensions whose first is the number of samples is one of images; every other one, such as the place
    of a square that the whole batch shares, depends on the seed and on how many draws came before. Own design: it needs
    nothing of the library but that it draws by torch, whose functions it stands in for meanwhile (a mode that sees all
    calls of torch slows an attack down by a fifth). It seeds the global generators: use it where they are put back, and
    not beside other threads that draw.

    Attributes:
        seed: parts of the seed.
        index: positions of the samples in their test set.
        device: where the samples are.
        asleep: leave draws alone, as while the attacked model itself is called.
    """

    def __init__(self, seed: tuple[int, ...], index: list[int], device: torch.device) -> None:
        self.seed, self.index, self.device = seed, index, device
        self.asleep, self._count = False, 0
        self._before: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> RepeatableDraws:
        for owner, name in _DRAWS:
            self._before.append((owner, name, vars(owner).get(name)))
            setattr(owner, name, self._answering(name, getattr(owner, name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._before:
            owner, name, own = self._before.pop()
            if own is None:  # inherited
                delattr(owner, name)
            else:
                setattr(owner, name, own)

    def _answering(self, name: str, draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Stand in for a function of torch that draws."""

        def answer(*args: Any, **kwargs: Any) -> Tensor:
            if self.asleep:
                return draw(*args, **kwargs)
            self._count += 1
            seed_generators(derived_seed(*self.seed, self._count), self.device)
            drawn = draw(*args, **kwargs)
            if drawn.ndim == 4 and len(drawn) == len(self.index) and name not in _OF_A_BATCH:
                self._draw_again(drawn, name, draw, args, kwargs)
            return drawn

        return answer

    def _draw_again(self, drawn: Tensor, name: str, draw: Callable[..., Tensor], args: Any, kwargs: Any) -> None:
        """Put in the place of each image of a draw one from a seed of its own."""
        for row, index in enumerate(self.index):
            seed_generators(derived_seed(*self.seed, self._count, index), self.device)
            if name in _OF_A_SHAPE:
                drawn[row] = draw(tuple(drawn.shape[1:]), **kwargs)
            else:
                drawn[row] = draw(args[0].narrow(0, row, 1), *args[1:], **kwargs)[0]


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators of the CPU and of one device, and no other device as ``torch.manual_seed`` would."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
