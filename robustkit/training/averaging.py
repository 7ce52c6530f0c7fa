"""Averages of the weights along training, which are judged and kept in place of the last ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

Numbers = list[Tensor] | tuple[Tensor, ...]
Rule = Callable[[Numbers, Numbers, Tensor | int], None]

Averaging = Literal["none", "ema", "swa"]


@dataclass
class Average:
    """A running average of a network's weights and buffers.

    Attributes:
        averaged: the average.
        start: epoch, fractional, before which it just follows the network.
    """

    averaged: AveragedModel
    start: float

    @classmethod
    def of(cls, model: nn.Module, kind: Averaging, *, decay: float, start: float) -> Average | None:
        """Make one of a kind, or none.

        Args:
            model: the network.
            kind: ``"ema"``, exponential from the start on; ``"swa"``, all steps from ``start`` on alike.
            decay: of the exponential average.
            start: epoch.

        Source: Izmailov et al. 2018, arXiv 1803.05407, for ``"swa"``.
        """
        if kind == "none":
            return None
        rule = get_ema_multi_avg_fn(decay) if kind == "ema" else get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]
        averaged = AveragedModel(model, multi_avg_fn=_of_numbers(rule), use_buffers=True)
        averaged.module.eval()
        return cls(averaged, 0.0 if kind == "ema" else start)

    @property
    def model(self) -> nn.Module:
        """The network with averaged weights, in eval mode."""
        return self.averaged.module

    def follow(self, model: nn.Module, time: float) -> None:
        """Take the weights after a step into the average."""
        self.averaged.update_parameters(model)
        if time < self.start:
            self.averaged.n_averaged.zero_()

    def state(self) -> dict[str, Any]:
        """Give what ``restore`` takes."""
        return self.averaged.state_dict()

    def restore(self, state: dict[str, Any]) -> None:
        """Take up an earlier state."""
        self.averaged.load_state_dict(state)


def _of_numbers(rule: Rule) -> Rule:
    """Average numbers; what counts, such as the batches that batch norm has seen, is copied."""

    @torch.no_grad()
    def update(averages: Numbers, currents: Numbers, count: Tensor | int) -> None:
        if averages[0].is_floating_point():
            rule(averages, currents, count)
        else:
            for average, current in zip(averages, currents, strict=True):
                average.copy_(current)

    return update
