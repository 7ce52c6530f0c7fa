"""Branches of a box, and what is known of them.

A branch says of some unstable neurons whether their input is at least or at most zero. Its constraints enter the bound
with Lagrange multipliers beta; the lower lines of the neurons that are not split have slopes alpha.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Branches:
    """Branches of one box, and what is known of them; ``U`` counts the neurons that are unstable in the whole box.

    Attributes:
        row: linear function of the outputs that is bounded, shape ``(D, K)``.
        offset: added to it, shape ``(D,)``.
        sign: 1 where a neuron's input is at least zero, -1 at most zero, 0 not split; shape ``(D, U)``, int8.
        alpha: slopes of the lower lines, in [0, 1], shape ``(D, U)``.
        beta: multipliers, at least 0, zero where not split, shape ``(D, U)``.
        lower: lower bound of the row, shape ``(D,)``.
        looseness: how much each neuron's lines may have cost the bound, shape ``(D, U)``; zero where split.
        worst: the point of the box where the linear bound is least, shape ``(D, ...)``.
        node: number of the branch in the tree of all, shape ``(D,)``.
    """

    row: Tensor
    offset: Tensor
    sign: Tensor
    alpha: Tensor
    beta: Tensor
    lower: Tensor
    looseness: Tensor
    worst: Tensor
    node: Tensor

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, chosen: Tensor | slice) -> Branches:
        """Give some of the branches."""
        return Branches(*(getattr(self, one.name)[chosen] for one in fields(self)))

    @classmethod
    def together(cls, parts: Sequence[Branches]) -> Branches:
        """Join several sets of branches."""
        return cls(*(torch.cat([getattr(part, one.name) for part in parts]) for one in fields(cls)))

    def to(self, device: torch.device | str) -> Branches:
        """Move them to a device."""
        return Branches(*(getattr(self, one.name).to(device) for one in fields(self)))

    @property
    def bytes(self) -> int:
        """Memory that they take."""
        return sum(getattr(self, one.name).nbytes for one in fields(self))

    def split(self, neuron: Tensor) -> Branches:
        """Split each branch at a neuron ``(D,)``: first all with its input at least zero, then all with it at most."""
        children = Branches.together([self, self])
        sign, beta = children.sign.clone(), children.beta.clone()
        both = torch.arange(len(children), device=neuron.device), neuron.repeat(2)
        sign[both] = torch.tensor([1, -1], dtype=torch.int8, device=neuron.device).repeat_interleave(len(self))
        beta[both] = 0.0
        return replace(children, sign=sign, beta=beta)


def better(one: Branches, other: Branches) -> Branches:
    """Take of each branch the one with the greater bound."""
    first = one.lower > other.lower

    def choose(name: str) -> Tensor:
        mine, theirs = getattr(one, name), getattr(other, name)
        return torch.where(first.view(-1, *[1] * (mine.ndim - 1)), mine, theirs)

    return Branches(*(choose(each.name) for each in fields(Branches)))
