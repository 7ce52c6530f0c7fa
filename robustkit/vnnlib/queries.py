"""What a property asks of a network: can an input of a box reach an unsafe output?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Disjunct:
    """A set of unsafe outputs: where ``rows @ y + offsets <= 0`` in every row.

    Attributes:
        rows: shape ``(R, n_outputs)``, R at least 1.
        offsets: shape ``(R,)``, never above the exact number, so that the set never shrinks.
    """

    rows: Array
    offsets: Array

    def excess(self, y: Array) -> float:
        """Give the greatest value of a row at outputs ``y`` of shape ``(n_outputs,)``: unsafe where it is <= 0."""
        return float((self.rows @ y + self.offsets).max())


@dataclass(frozen=True, eq=False)
class Query:
    """Does the network map any input of a box into an unsafe set?

    Attributes:
        lower: lower corner, shape ``(n_inputs,)``, never above the exact number.
        upper: upper corner, shape ``(n_inputs,)``, never below the exact number.
        unsafe: the unsafe set is the union of these, at least one.
        inner: the largest box of float64 corners within the exact one, where that is not the same.
        input_shape: of an input as the network takes it; empty for one that is flat.
    """

    lower: Array
    upper: Array
    unsafe: tuple[Disjunct, ...]
    inner: tuple[Array, Array] | None = None
    input_shape: tuple[int, ...] = ()

    def contains(self, x: Array) -> bool:
        """Say whether an input of shape ``(n_inputs,)`` lies in the box."""
        return x.shape == self.lower.shape and bool(((self.lower <= x) & (x <= self.upper)).all())

    def settle(self, x: Array) -> Array:
        """Move an input of shape ``(n_inputs,)`` into the exact box, to float32 values where the box holds any.

        Where no float64 lies between two bounds of an input, it is set to one of them, at most a rounding away.
        """
        low, high = self.inner or (self.lower, self.upper)
        none = low > high
        low, high = np.where(none, self.lower, low), np.where(none, self.upper, high)
        x = np.clip(x, low, high)
        near = x.astype(np.float32)
        near = np.where(near < low, np.nextafter(near, np.float32(np.inf)), near)
        near = np.where(near > high, np.nextafter(near, np.float32(-np.inf)), near).astype(np.float64)
        return np.where((low <= near) & (near <= high), near, x)

    def excess(self, y: Array) -> float:
        """Say how far outputs of shape ``(n_outputs,)`` are from unsafe; they are where this is <= 0; NaN stays NaN."""
        found = [one.excess(y) for one in self.unsafe]
        return math.nan if any(map(math.isnan, found)) else min(found)


@dataclass(frozen=True)
class Property:
    """What a VNN-LIB file asks: ``sat`` if any query is reachable, ``unsat`` if none is.

    Attributes:
        queries: one for each box of inputs, at least one.
    """

    queries: tuple[Query, ...]

    @property
    def inputs(self) -> int:
        """Number of inputs of the network it speaks of."""
        return len(self.queries[0].lower)

    @property
    def outputs(self) -> int:
        """Number of outputs of the network it speaks of."""
        return int(self.queries[0].unsafe[0].rows.shape[1])
