"""Bounds of many branches of one box at once: ReLUs split by their sign, lower lines and multipliers optimised."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustkit.bounds.affine import Convolution, Dense, Pool
from robustkit.bounds.branches import Branches, better
from robustkit.bounds.graph import Activation, Graph, Sum

LR_ALPHA, LR_BETA, DECAY = 0.1, 0.1, 0.98
BUDGET = 2**24
"""Numbers that the coefficients of hidden bounds may take at one value."""


@dataclass(frozen=True)
class Unstable:
    """The unstable neurons of one activation.

    Attributes:
        places: in the flattened value, shape ``(m,)``.
        columns: in the list of all.
        lb: least inputs, below zero, shape ``(m,)``.
        ub: greatest inputs, above zero.
        stable: slopes of all neurons where they are stable, shape ``(n,)``; of unstable ones nothing.
        slope: of the activation below zero.
    """

    places: Tensor
    columns: slice
    lb: Tensor
    ub: Tensor
    stable: Tensor
    slope: float


class SplitNetwork:
    """A network over one box, ready to bound its branches.

    The inputs of every activation are bounded by intervals, then linearly with parallel and with adaptive lines, and
    those that stay unstable with lower lines optimised for each of them.

    Args:
        graph: the network.
        lb: lower corner, shape ``(1, ...)``.
        ub: upper corner.
        tighten: gradient steps on the lines of every hidden bound.
        until: by the clock of ``time.monotonic``; no hidden bound is optimised later.

    Source: Wang et al. 2021, arXiv 2103.06624 (beta-CROWN), Sec. 3; Xu et al. 2021, arXiv 2011.13824 (alpha-CROWN).
    """

    def __init__(self, graph: Graph, lb: Tensor, ub: Tensor, *, tighten: int = 0, until: float = math.inf) -> None:
        self.graph, self.tighten, self.until = graph, tighten, until
        self.centre, self.radius = (ub + lb) * 0.5, (ub - lb) * 0.5
        self.unstable: dict[int, Unstable] = {}
        self.slopes: dict[int, tuple[Tensor, Tensor]] = {}
        """Of each activation by its step, neurons ``(m,)`` and the slopes that bound them from below and above,
        ``(2 m, U)`` of all unstable neurons before, in 255ths."""
        self.count = 0
        self._bound_hidden(lb, ub)

    def places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give, of every unstable neuron, its activation (counted from 0) and its flat place there, ``(U,)``."""
        each = [one.places.cpu().numpy() for one in self.unstable.values()]
        layer = np.repeat(np.arange(len(each)), [len(one) for one in each])
        return layer, np.concatenate([*each, np.zeros(0, dtype=np.int64)])

    def with_fixed_signs(self, x: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the network with every activation replaced by what it does in a branch: an affine map.

        Args:
            x: inputs, shape ``(B, ...)``.
            sign: of every unstable neuron, not zero, shape ``(U,)``.

        Returns:
            The inputs of the unstable neurons, shape ``(B, U)``, and the outputs, shape ``(B, K)``.
        """
        choose = {
            at: one.stable.index_copy(0, one.places, torch.where(sign[one.columns] > 0, 1.0, one.slope))
            for at, one in self.unstable.items()
        }
        values = self.graph.values(x, choose)
        seen = [values[self.graph.steps[at].inputs[0]].flatten(1)[:, one.places] for at, one in self.unstable.items()]
        return torch.cat([*seen, x.new_zeros((len(x), 0))], dim=1), values[-1]

    def whole(self, rows: Tensor, offsets: Tensor) -> Branches:
        """Give the box itself as branches, one for each row ``(D, K)`` with its offset ``(D,)``; not bounded yet."""
        size, device = len(rows), rows.device
        alpha = self._adaptive().expand(size, -1).clone()
        none = torch.zeros((size, self.count), device=device)
        lower = torch.full((size,), -torch.inf, device=device)
        worst = self.centre.expand(size, *self.centre.shape[1:]).clone()
        node = torch.arange(size, device=device)
        return Branches(rows, offsets, none.to(torch.int8), alpha, none, lower, none.clone(), worst, node)

    def bounded(
        self, branches: Branches, *, iterations: int, start: int | None = None, until: float = math.inf
    ) -> Branches:
        """Bound branches, optimising alpha and beta from where they are.

        Args:
            branches: to bound.
            iterations: gradient steps; 0 to bound as they are.
            start: number of the value that rows are functions of; the outputs unless given.
            until: by the clock of ``time.monotonic``; no further step is begun later.

        Returns:
            The same branches with the best bound found and what belongs to it.
        """
        alpha, beta = branches.alpha, branches.beta
        split = branches.sign != 0
        moments = [torch.zeros_like(alpha) for _ in range(4)]
        best: Branches | None = None
        for step in range(iterations + 1):
            last = step == iterations or not self.count
            now, gradients = self._bound(branches, alpha, beta, start, ascend=not last)
            best = now if best is None else better(now, best)
            if last or bool((best.lower > 0).all()) or time.monotonic() > until:
                break
            pace = DECAY**step
            alpha = (alpha + LR_ALPHA * pace * _adam(gradients[0], moments[0], moments[1], step)).clamp(0.0, 1.0)
            beta = (beta + LR_BETA * pace * _adam(gradients[1], moments[2], moments[3], step)).clamp(min=0.0) * split
        assert best is not None
        return best

    def _bound(
        self, branches: Branches, alpha: Tensor, beta: Tensor, start: int | None, *, ascend: bool
    ) -> tuple[Branches, tuple[Tensor, ...]]:
        """Bound at fixed slopes and multipliers; and give the gradients to go on from there, if asked."""
        alpha, beta = (one.detach().requires_grad_(ascend) for one in (alpha, beta))
        with torch.set_grad_enabled(ascend):
            lower, looseness, worst = self._lower(branches, alpha, beta, start)
            gradients = torch.autograd.grad(lower.sum(), [alpha, beta]) if ascend else ()
        lower = torch.where(lower.isnan(), -torch.inf, lower.detach())
        found = {"lower": lower, "looseness": looseness, "worst": worst.detach()}
        return replace(branches, alpha=alpha.detach(), beta=beta.detach(), **found), gradients

    def _lower(
        self, branches: Branches, alpha: Tensor, beta: Tensor, start: int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run every row back to the input: its lower bound, what each neuron's lines cost, and the worst point."""
        steps, shapes = self.graph.steps, self.graph.shapes
        start = len(steps) if start is None else start
        given = {start: branches.row.view(-1, *shapes[start])}
        constant = branches.offset
        looseness: dict[int, Tensor] = {}
        for at in reversed(range(start)):
            row = given.pop(at + 1, None)
            if row is None:
                continue
            operation, inputs = steps[at].operation, steps[at].inputs
            if isinstance(operation, Activation):
                row, low, looseness[at] = self._past(self.unstable[at], row, branches.sign, alpha, beta)
                constant = constant + low
            elif not isinstance(operation, Sum):
                constant = constant + row.flatten(1) @ self._shift(at)
                row = operation.back(row)
            for value in inputs:
                given[value] = given[value] + row if value in given else row
        flat = given[0].flatten(1)
        lower = constant + flat @ self.centre.flatten() - flat.abs() @ self.radius.flatten()
        worst = self.centre - self.radius * given[0].sign()
        none = flat.new_zeros((len(flat), 0))
        costs = [looseness.get(at, flat.new_zeros((len(flat), len(one.places)))) for at, one in self.unstable.items()]
        return lower, torch.cat([*costs, none], dim=1), worst

    def _past(
        self, one: Unstable, given: Tensor, sign: Tensor, alpha: Tensor, beta: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape, flat = given.shape, given.flatten(1)
        split, slope, multiplier = (each[:, one.columns] for each in (sign, alpha, beta))
        chord = (one.ub - one.slope * one.lb) / (one.ub - one.lb)
        on, free = torch.where(split > 0, 1.0, one.slope), split == 0
        upper = torch.where(free, chord, on)
        lower = torch.where(free, slope.clamp(min=one.slope) if one.slope else slope, on)
        offset = torch.where(free, one.lb * (one.slope - chord), 0.0)
        mine = flat[:, one.places]
        positive, negative = mine.clamp(min=0.0), mine.clamp(max=0.0)
        cost = negative * offset
        through = positive * lower + negative * upper - split * multiplier
        back = (flat * one.stable).index_copy(1, one.places, through)
        gap = torch.minimum(-one.lb * (lower - one.slope), one.ub * (1.0 - lower))
        return back.view(shape), cost.sum(1), (torch.where(free, positive * gap, 0.0) - cost).detach()

    def _shift(self, at: int) -> Tensor:
        """Give what an affine step adds, flat."""
        if at not in self._shifts:
            operation = self.graph.steps[at].operation
            assert not isinstance(operation, Activation | Sum)
            shape = self.graph.shapes[self.graph.steps[at].inputs[0]]
            self._shifts[at] = operation(self.centre.new_zeros((1, *shape))).flatten()
        return self._shifts[at]

    def _adaptive(self) -> Tensor:
        """Give the slopes 1 where ``u > -l``, else 0, shape ``(1, U)``."""
        each = [(one.ub > -one.lb).to(one.ub) for one in self.unstable.values()]
        return torch.cat([*each, self.centre.new_zeros(0)])[None]

    def _parallel(self) -> Tensor:
        """Give the slopes of the upper lines, shape ``(1, U)``."""
        each = [(one.ub - one.slope * one.lb) / (one.ub - one.lb) for one in self.unstable.values()]
        return torch.cat([*each, self.centre.new_zeros(0)])[None]

    @torch.no_grad()
    def _bound_hidden(self, lb: Tensor, ub: Tensor) -> None:
        """Bound the inputs of every activation, in order."""
        self._shifts: dict[int, Tensor] = {}
        boxes = [(lb, ub)]
        for at, step in enumerate(self.graph.steps):
            given, operation = [boxes[one] for one in step.inputs], step.operation
            if isinstance(operation, Sum):
                boxes.append((given[0][0] + given[1][0], given[0][1] + given[1][1]))
            elif isinstance(operation, Activation):
                low, high = self._refined(at, step.inputs[0], *given[0])
                self._note(at, low, high, operation.slope)
                boxes.append((torch.maximum(low, operation.slope * low), torch.maximum(high, operation.slope * high)))
            else:
                ((low, high),) = given
                centre, radius = operation((high + low) * 0.5), operation.spread((high - low) * 0.5)
                boxes.append((centre - radius, centre + radius))

    def _note(self, at: int, lb: Tensor, ub: Tensor, slope: float) -> None:
        low, high = lb.flatten(), ub.flatten()
        places = ((low < 0) & (high > 0)).nonzero().flatten()
        columns = slice(self.count, self.count + len(places))
        stable = torch.where(low >= 0, 1.0, slope)
        self.unstable[at] = Unstable(places, columns, low[places], high[places], stable, slope)
        self.count += len(places)

    def _refined(self, at: int, value: int, lb: Tensor, ub: Tensor) -> tuple[Tensor, Tensor]:
        """Bound the unstable neurons of an activation's input linearly."""
        before = [one.operation for one in self.graph.steps[:value]]
        if not self.unstable and sum(isinstance(one, Dense | Convolution | Pool) for one in before) <= 1:
            return lb, ub  # the intervals of one layer are exact
        low, high = lb.flatten().clone(), ub.flatten().clone()
        unstable = ((low < 0) & (high > 0)).nonzero().flatten()
        widest = max(math.prod(one) for one in self.graph.shapes[: value + 1])
        parts = torch.split(unstable, max(1, BUDGET // (2 * widest)))
        kept = [self._refine(value, places, low, high) for places in parts]
        if any(len(one[0]) for one in kept):
            self.slopes[at] = torch.cat([one[0] for one in kept]), torch.cat([one[1] for one in kept])
        # Rounding makes the bounds of tiny boxes cross; in order they hold.
        return torch.minimum(low, high).view(lb.shape), torch.maximum(low, high).view(ub.shape)

    def _refine(self, value: int, places: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Bound some neurons of a value, flat, in place; give those whose lines were optimised, and their slopes."""

        def take(rows: Branches, at: Tensor) -> None:
            below, above = rows.lower.chunk(2)
            low[at], high[at] = torch.maximum(low[at], below), torch.minimum(high[at], -above)

        rows = self._rows(value, places)
        for alpha in (self._parallel(), self._adaptive()):
            take(self.bounded(replace(rows, alpha=alpha.expand(len(rows), -1)), iterations=0, start=value), places)
        places = places[(low[places] < 0) & (high[places] > 0)]
        late = time.monotonic() > self.until
        if not self.tighten or not self.unstable or not len(places) or late:
            return places[:0], torch.zeros((0, self.count), dtype=torch.uint8, device=low.device)
        best = self.bounded(self._rows(value, places), iterations=self.tighten, start=value)
        slopes = (best.alpha * 255.0).round()
        take(self.bounded(replace(best, alpha=slopes / 255.0), iterations=0, start=value), places)
        return places, slopes.to(torch.uint8)

    def _rows(self, value: int, places: Tensor) -> Branches:
        """Write neurons of a value as rows: all of them, then all of their negatives."""
        size, count = math.prod(self.graph.shapes[value]), len(places)
        rows = torch.zeros((2 * count, size), device=places.device)
        every = torch.arange(count, device=places.device)
        rows[every, places], rows[every + count, places] = 1.0, -1.0
        return self.whole(rows, rows.new_zeros(2 * count))


def _adam(gradient: Tensor, first: Tensor, second: Tensor, step: int) -> Tensor:
    """Give the step of Adam, and keep its moments."""
    first.lerp_(gradient, 0.1)
    second.lerp_(gradient.square(), 0.001)
    return (first / (1.0 - 0.9 ** (step + 1))) / ((second / (1.0 - 0.999 ** (step + 1))).sqrt() + 1e-8)
