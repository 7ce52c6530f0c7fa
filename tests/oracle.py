"""An oracle: the exact minimum of outputs of a small network over a box, as a mixed-integer programme in float64.

It shares nothing with the package: affine layers are measured by what they make of unit vectors, and each activation
that intervals leave unstable becomes a binary variable with their bounds as big-M constants. HiGHS holds constraints to
about 1e-6 only; so what counts is the value that the network takes at the minimiser, and the programme's own lower
bound must lie no farther below it than ``TOLERANCE``.

Source: Tjeng et al. 2019, arXiv 1711.07356, Sec. 4.1; for the leaky form the same big-M argument with both lines.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn

from robustkit.models import Normalize
from robustkit.models.named import Residual

Array = NDArray[np.float64]
AFFINE = (nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.AvgPool2d, nn.Flatten, nn.Identity, Normalize)
TOLERANCE = 2e-5
"""Largest gap between a value that is attained and the programme's lower bound, as a share of 1 + its magnitude."""


@dataclass(frozen=True, eq=False)
class Minimum:
    """The least value, and where it is attained.

    Attributes:
        value: that the network takes at ``x`` in float64; no point of the box has one below it by more than
            ``TOLERANCE``.
        x: the minimiser, float64, of the shape of a sample.
        unstable: binary variables that were needed.
    """

    value: float
    x: Array
    unstable: int


@dataclass(frozen=True, eq=False)
class Form:
    """Affine functions ``matrix @ variables + constant``, with the shape of the sample that they stand for."""

    matrix: Array
    constant: Array
    shape: tuple[int, ...]


@dataclass
class Programme:
    """Variables with their ranges, and constraints ``row @ variables <= limit``."""

    lower: list[float]
    upper: list[float]
    binary: list[int] = field(default_factory=list)
    rows: list[Array] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)

    def variable(self, low: float, high: float, *, binary: bool = False) -> int:
        self.lower.append(low)
        self.upper.append(high)
        self.binary += [len(self.lower) - 1] if binary else []
        return len(self.lower) - 1

    def at_most(self, row: Array, limit: float, **terms: tuple[int, float]) -> None:
        """Add ``row @ variables + sum of factor * variable <= limit``."""
        whole = np.zeros(len(self.lower))
        whole[: len(row)] = row
        for place, factor in terms.values():
            whole[place] += factor
        self.rows.append(whole)
        self.limits.append(limit)

    def range_of(self, row: Array, constant: float) -> tuple[float, float]:
        """Bound an affine function by intervals, a little outward."""
        low, high = np.array(self.lower[: len(row)]), np.array(self.upper[: len(row)])
        centre, radius = row @ (low + high) / 2 + constant, np.abs(row) @ (high - low) / 2
        slack = 1e-9 * (1.0 + abs(centre) + radius)
        return float(centre - radius - slack), float(centre + radius + slack)

    def solve(self, objective: int) -> tuple[Array, float]:
        """Minimise a variable: give all variables, and a lower bound of it."""
        count = len(self.lower)
        cost, integral = np.zeros(count), np.zeros(count)
        cost[objective], integral[self.binary] = 1.0, 1.0
        matrix = np.array([np.pad(row, (0, count - len(row))) for row in self.rows])
        limits = LinearConstraint(matrix, -np.inf, np.array(self.limits))
        box = Bounds(np.array(self.lower), np.array(self.upper))
        for presolve in (True, False):  # the presolver fails on some programmes, with an error of HiGHS's own
            options = {"mip_rel_gap": 0, "presolve": presolve}
            found: Any = milp(cost, integrality=integral, bounds=box, constraints=limits, options=options)
            if found.status == 0:
                break
        else:
            raise RuntimeError(f"expected an optimum, got status {found.status}: {found.message}")
        bound = found.mip_dual_bound if self.binary else found.fun
        return np.asarray(found.x), float(bound)


def minimum(model: nn.Module, rows: Tensor, offsets: Tensor, lb: Tensor, ub: Tensor) -> Minimum:
    """Minimise ``max(rows @ f(x) + offsets)`` over a box: a single row, or a conjunction's most violated one.

    Args:
        model: a stack of affine layers, ReLU, leaky ReLU and ``Residual``, in eval mode.
        rows: shape ``(R, K)``.
        offsets: shape ``(R,)``.
        lb: least inputs, of the shape of a sample.
        ub: greatest inputs.

    Returns:
        The least greatest row and its minimiser.
    """
    flat = [one.double().flatten().numpy() for one in (lb, ub)]
    programme = Programme(flat[0].tolist(), flat[1].tolist())
    exact = copy.deepcopy(model).double().eval()
    inputs = len(flat[0])
    outputs = _through(programme, exact, Form(np.eye(inputs), np.zeros(inputs), tuple(lb.shape)))
    weight, shift = rows.double().numpy(), offsets.double().numpy()
    matrix, constant = weight @ outputs.matrix, weight @ outputs.constant + shift
    ranges = [programme.range_of(row, one) for row, one in zip(matrix, constant, strict=True)]
    greatest = programme.variable(min(low for low, _ in ranges), max(high for _, high in ranges))
    for row, one in zip(matrix, constant, strict=True):
        programme.at_most(row, -one, greatest=(greatest, -1.0))
    found, bound = programme.solve(greatest)
    x = np.clip(found[:inputs], *flat).reshape(tuple(lb.shape))
    with torch.no_grad():
        y = exact(torch.from_numpy(x).unsqueeze(0))[0].numpy()
    value = float((weight @ y + shift).max())
    if abs(value - bound) > TOLERANCE * (1.0 + abs(value)):
        raise RuntimeError(f"expected the minimiser to attain {bound}, got {value}: the programme is not exact")
    return Minimum(value, x, len(programme.binary))


def margin(model: nn.Module, y: int, lb: Tensor, ub: Tensor) -> Minimum:
    """Minimise the worst margin of a label over a box: the least one over all other classes."""
    with torch.no_grad():
        classes = model(lb.unsqueeze(0)).shape[1]
    eye, zero = torch.eye(classes), torch.zeros(1)
    others = [one for one in range(classes) if one != y]
    found = [minimum(model, (eye[y] - eye[one]).unsqueeze(0), zero, lb, ub) for one in others]
    return min(found, key=lambda one: one.value)


def _through(programme: Programme, layer: nn.Module, form: Form) -> Form:
    if isinstance(layer, nn.Sequential):
        for one in layer:
            form = _through(programme, one, form)
        return form
    if isinstance(layer, Residual):
        long, short = (_widened(programme, _through(programme, one, form)) for one in (layer.long, layer.short))
        long = _widened(programme, long)
        total = Form(long.matrix + short.matrix, long.constant + short.constant, long.shape)
        return _through(programme, layer.relu, total)
    if isinstance(layer, nn.ReLU | nn.LeakyReLU):
        return _activated(programme, form, getattr(layer, "negative_slope", 0.0))
    if type(layer) not in AFFINE:
        raise TypeError(f"expected a layer that the oracle knows, got {type(layer).__name__}")
    return _mapped(layer, form)


@torch.no_grad()
def _mapped(layer: nn.Module, form: Form) -> Form:
    """Apply an affine layer, measured at zero and at every unit vector."""
    size = math.prod(form.shape)
    units = torch.cat([torch.zeros(1, size), torch.eye(size)]).double().view(-1, *form.shape)
    seen = layer(units)
    zero = seen[:1].flatten(1).numpy()
    matrix = (seen[1:].flatten(1).numpy() - zero).T
    return Form(matrix @ form.matrix, matrix @ form.constant + zero[0], tuple(seen.shape[1:]))


def _widened(programme: Programme, form: Form) -> Form:
    """Give zero coefficients to the variables that came since."""
    more = len(programme.lower) - form.matrix.shape[1]
    return Form(np.pad(form.matrix, ((0, 0), (0, more))), form.constant, form.shape)


def _activated(programme: Programme, form: Form, slope: float) -> Form:
    """Apply ``max(z, slope z)``: by a line where the sign of ``z`` is known, else by a variable of its own."""
    lines, fresh = np.ones(len(form.constant)), {}
    for place, (row, constant) in enumerate(zip(form.matrix, form.constant, strict=True)):
        low, high = programme.range_of(row, constant)
        if high <= 0:
            lines[place] = slope
        elif low < 0:
            lines[place], fresh[place] = 0.0, _unstable(programme, row, constant, (low, high), slope)
    form = _widened(programme, Form(lines[:, None] * form.matrix, lines * form.constant, form.shape))
    for place, variable in fresh.items():
        form.matrix[place, variable] = 1.0
    return form


def _unstable(programme: Programme, row: Array, constant: float, ends: tuple[float, float], slope: float) -> int:
    """Give a variable ``v = max(z, slope z)`` for ``z = row @ variables + constant`` in a range around zero.

    ``v >= z`` and ``v >= slope z``; with a binary ``d``, ``v <= z`` where it is 1 and ``v <= slope z`` where it is 0.
    """
    low, high = ends
    v, d = programme.variable(slope * low, high), programme.variable(0.0, 1.0, binary=True)
    programme.at_most(row, -constant, v=(v, -1.0))
    programme.at_most(slope * row, -slope * constant, v=(v, -1.0))
    slack_on, slack_off = (slope - 1.0) * low, (1.0 - slope) * high
    programme.at_most(-row, constant + slack_on, v=(v, 1.0), d=(d, slack_on))
    programme.at_most(-slope * row, slope * constant, v=(v, 1.0), d=(d, -slack_off))
    return v
