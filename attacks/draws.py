"""Draws of a library that knows no sample: made to depend on the seed and on the sample, never on its batch mates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from robustkit.attacks.base import derived_seed

_OF_A_SHAPE: tuple[object, ...] = (torch.rand, torch.randn)
_OF_A_TENSOR: tuple[object, ...] = (
    torch.rand_like,
    torch.randn_like,
    torch.Tensor.uniform_,
    torch.Tensor.normal_,
    torch.Tensor.bernoulli_,
)
_OF_A_BATCH: tuple[object, ...] = (torch.randint, torch.bernoulli, torch.randperm)


class RepeatableDraws(TorchFunctionMode):
    """Within it, what is drawn for a batch of images is drawn for each image from its own seed.

    A draw of four dimensions whose first is the number of samples is one of images; every other one, such as the place
    of a square that the whole batch shares, depends on the seed and on how many draws came before. Own design: it needs
    nothing of the library but that it draws by torch. It seeds the global generators: use it where they are put back.

    Attributes:
        seed: parts of the seed.
        index: positions of the samples in their test set.
        device: where the samples are.
        asleep: leave draws alone, as while the attacked model itself is called.
    """

    def __init__(self, seed: tuple[int, ...], index: list[int], device: torch.device) -> None:
        super().__init__()
        self.seed, self.index, self.device = seed, index, device
        self.asleep, self._count = False, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answer any call of torch; only draws are answered otherwise than by torch itself."""
        kwargs = kwargs or {}
        if self.asleep or func not in (*_OF_A_SHAPE, *_OF_A_TENSOR, *_OF_A_BATCH):
            return func(*args, **kwargs)
        self._count += 1
        seed_generators(derived_seed(*self.seed, self._count), self.device)
        drawn: Tensor = func(*args, **kwargs)
        if drawn.ndim == 4 and len(drawn) == len(self.index) and func not in _OF_A_BATCH:
            self._draw_again(drawn, func, args, kwargs)
        return drawn

    def _draw_again(self, drawn: Tensor, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> None:
        """Put in the place of each image of a draw one from a seed of its own."""
        for row, index in enumerate(self.index):
            seed_generators(derived_seed(*self.seed, self._count, index), self.device)
            if func in _OF_A_SHAPE:
                drawn[row] = func(tuple(drawn.shape[1:]), **kwargs)
            else:
                own = args[0].narrow(0, row, 1)
                drawn[row] = func(own, *args[1:], **kwargs)[0]


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators of the CPU and of one device, and no other device as ``torch.manual_seed`` would."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
