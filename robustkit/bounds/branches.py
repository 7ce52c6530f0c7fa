"""Bounds of many branches of one box at once: ReLUs split by their sign, lower lines and multipliers optimised.

A branch says of some unstable neurons whether their input is at least or at most zero. Its constraints enter the bound
with Lagrange multipliers beta; the lower lines of the neurons that are not split have slopes alpha.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from robustkit.bounds.chain import Statistics
from robustkit.bounds.symbolic import Backward

LR_ALPHA, LR_BETA, DECAY = 0.1, 0.05, 0.98


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

    def split(self, neuron: Tensor) -> Branches:
        """Split each branch at a neuron ``(D,)``: first all with its input at least zero, then all with it at most."""
        children = Branches.together([self, self])
        sign, beta = children.sign.clone(), children.beta.clone()
        both = torch.arange(len(children), device=neuron.device), neuron.repeat(2)
        sign[both] = torch.tensor([1, -1], dtype=torch.int8, device=neuron.device).repeat_interleave(len(self))
        beta[both] = 0.0
        return replace(children, sign=sign, beta=beta)


@dataclass(frozen=True)
class _Unstable:
    """The unstable neurons of one ReLU layer: their places in it, in the list of all, and their bounds."""

    places: Tensor
    columns: slice
    lb: Tensor
    ub: Tensor
    active: Tensor


class SplitNetwork:
    """A chain over one box, ready to bound its branches.

    Args:
        layers: of the chain.
        backward: hidden bounds over the box of one sample.
        statistics: of batch norm.

    Source: Wang et al. 2021, arXiv 2103.06624 (beta-CROWN), Sec. 3.
    """

    def __init__(self, layers: Sequence[nn.Module], backward: Backward, statistics: Statistics) -> None:
        self.layers, self.statistics, self.shapes = layers, statistics, backward.shapes
        self.centre, self.radius = backward.box[0], backward.box[1]
        self.unstable: dict[int, _Unstable] = {}
        count = 0
        for at, (lb, ub) in backward.hidden.items():
            low, high = lb.flatten(), ub.flatten()
            places = ((low < 0) & (high > 0)).nonzero().flatten()
            columns = slice(count, count + len(places))
            self.unstable[at] = _Unstable(places, columns, low[places], high[places], (low >= 0).to(low))
            count += len(places)
        self.count = count

    def places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give, of every unstable neuron, its layer (counted among the ReLUs) and its flat place there, ``(U,)``."""
        each = [one.places.cpu().numpy() for one in self.unstable.values()]
        layer = np.repeat(np.arange(len(each)), [len(one) for one in each])
        return layer, np.concatenate([*each, np.zeros(0, dtype=np.int64)])

    def with_fixed_signs(self, x: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the network with every ReLU replaced by what it does in a branch: an affine map.

        Args:
            x: inputs, shape ``(B, ...)``.
            sign: of every unstable neuron, not zero, shape ``(U,)``.

        Returns:
            The inputs of the unstable neurons, shape ``(B, U)``, and the outputs, shape ``(B, K)``.
        """
        seen: list[Tensor] = []
        for place, layer in enumerate(self.layers):
            if isinstance(layer, nn.ReLU):
                one, flat = self.unstable[place], x.flatten(1)
                seen.append(flat[:, one.places])
                on = one.active.index_copy(0, one.places, (sign[one.columns] > 0).to(one.active))
                x = (flat * on).view_as(x)
            else:
                x = layer(x)
        return torch.cat([*seen, x.new_zeros((len(x), 0))], dim=1), x

    def whole(self, rows: Tensor, offsets: Tensor) -> Branches:
        """Give the box itself as branches, one for each row ``(D, K)`` with its offset ``(D,)``; not bounded yet."""
        size, device = len(rows), rows.device
        slopes = [(one.ub > -one.lb).to(rows) for one in self.unstable.values()]
        alpha = torch.cat([*slopes, rows.new_zeros(0)]).expand(size, -1).clone()
        none = torch.zeros((size, self.count), device=device)
        lower = torch.full((size,), -torch.inf, device=device)
        worst = self.centre.expand(size, *self.centre.shape[1:]).clone()
        node = torch.arange(size, device=device)
        return Branches(rows, offsets, none.to(torch.int8), alpha, none, lower, none.clone(), worst, node)

    def bounded(self, branches: Branches, *, iterations: int) -> Branches:
        """Bound branches, optimising alpha and beta from where they are.

        Args:
            branches: to bound.
            iterations: gradient steps; 0 to bound as they are.

        Returns:
            The same branches with the best bound found and what belongs to it.
        """
        alpha, beta = branches.alpha, branches.beta
        split = branches.sign != 0
        moments = [torch.zeros_like(alpha) for _ in range(4)]
        best: Branches | None = None
        for step in range(iterations + 1):
            last = step == iterations or not self.count
            now, gradients = self._bound(branches, alpha, beta, ascend=not last)
            best = now if best is None else _better(now, best)
            if last or bool((best.lower > 0).all()):
                break
            pace = DECAY**step
            alpha = (alpha + LR_ALPHA * pace * _adam(gradients[0], moments[0], moments[1], step)).clamp(0.0, 1.0)
            beta = (beta + LR_BETA * pace * _adam(gradients[1], moments[2], moments[3], step)).clamp(min=0.0) * split
        assert best is not None
        return best

    def _bound(
        self, branches: Branches, alpha: Tensor, beta: Tensor, *, ascend: bool
    ) -> tuple[Branches, tuple[Tensor, ...]]:
        """Bound at fixed slopes and multipliers; and give the gradients to go on from there, if asked."""
        alpha, beta = (one.detach().requires_grad_(ascend) for one in (alpha, beta))
        with torch.set_grad_enabled(ascend):
            lower, looseness, worst = self._lower(branches, alpha, beta)
            gradients = torch.autograd.grad(lower.sum(), [alpha, beta]) if ascend else ()
        lower = torch.where(lower.isnan(), -torch.inf, lower.detach())
        found = {"lower": lower, "looseness": looseness, "worst": worst.detach()}
        return replace(branches, alpha=alpha.detach(), beta=beta.detach(), **found), gradients

    def _lower(self, branches: Branches, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run every row back to the input: its lower bound, what each neuron's lines cost, and the worst point."""
        given, constant = branches.row, branches.offset
        looseness: list[Tensor] = []
        for place in reversed(range(len(self.layers))):
            layer = self.layers[place]
            if isinstance(layer, nn.ReLU):
                given, low, loose = self._past_relu(self.unstable[place], given, branches.sign, alpha, beta)
                constant = constant + low
                looseness.insert(0, loose)
            else:
                given, shift = self._past_affine(layer, place, given)
                constant = constant + shift
        flat = given.flatten(1)
        lower = constant + flat @ self.centre.flatten() - flat.abs() @ self.radius.flatten()
        worst = self.centre - self.radius * given.sign().view(-1, *self.centre.shape[1:])
        return lower, torch.cat(looseness, dim=1) if looseness else flat[:, :0], worst

    def _past_relu(
        self, one: _Unstable, given: Tensor, sign: Tensor, alpha: Tensor, beta: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape, flat = given.shape, given.flatten(1)
        split, slope, multiplier = (each[:, one.columns] for each in (sign, alpha, beta))
        chord = one.ub / (one.ub - one.lb)
        on, free = (split > 0).to(flat), split == 0
        upper, lower = torch.where(free, chord, on), torch.where(free, slope, on)
        offset = torch.where(free, -one.lb * chord, 0.0)
        mine = flat[:, one.places]
        positive, negative = mine.clamp(min=0.0), mine.clamp(max=0.0)
        cost = negative * offset
        through = positive * lower + negative * upper - split * multiplier
        back = (flat * one.active).index_copy(1, one.places, through)
        gap = torch.where(free, positive * torch.minimum(-one.lb * slope, one.ub * (1.0 - slope)), 0.0)
        return back.view(shape), cost.sum(1), (gap - cost).detach()

    def _past_affine(self, layer: nn.Module, place: int, given: Tensor) -> tuple[Tensor, Tensor]:
        shape = self.shapes[place]
        if isinstance(layer, nn.Flatten):
            return given.view(-1, *shape), given.new_zeros(())
        if isinstance(layer, nn.Linear):
            return given @ layer.weight, given @ layer.bias if layer.bias is not None else given.new_zeros(())
        if isinstance(layer, nn.Conv2d):
            shift = given.sum((2, 3)) @ layer.bias if layer.bias is not None else given.new_zeros(())
            return _transposed(layer, shape, given), shift
        affine = self.statistics.affine(layer)
        shift = (given.flatten(2).sum(2) if given.ndim > 2 else given) @ affine.shift
        return given * affine.scale.view(-1, *[1] * (given.ndim - 2)), shift


def _transposed(layer: nn.Conv2d, shape: tuple[int, ...], given: Tensor) -> Tensor:
    assert not isinstance(layer.padding, str)
    geometry = zip(shape[1:], given.shape[2:], layer.stride, layer.padding, layer.kernel_size, strict=True)
    height, width = (size - ((out - 1) * step - 2 * pad + reach) for size, out, step, pad, reach in geometry)
    stride, padding = (layer.stride[0], layer.stride[1]), (layer.padding[0], layer.padding[1])
    return functional.conv_transpose2d(given, layer.weight, None, stride, padding, (height, width))


def _adam(gradient: Tensor, first: Tensor, second: Tensor, step: int) -> Tensor:
    """Give the step of Adam, and keep its moments."""
    first.lerp_(gradient, 0.1)
    second.lerp_(gradient.square(), 0.001)
    return (first / (1.0 - 0.9 ** (step + 1))) / ((second / (1.0 - 0.999 ** (step + 1))).sqrt() + 1e-8)


def _better(one: Branches, other: Branches) -> Branches:
    """Take of each branch the one with the greater bound."""
    first = one.lower > other.lower

    def choose(name: str) -> Tensor:
        mine, theirs = getattr(one, name), getattr(other, name)
        return torch.where(first.view(-1, *[1] * (mine.ndim - 1)), mine, theirs)

    return Branches(*(choose(each.name) for each in fields(Branches)))
