"""What a certificate claims of a network: nothing unsafe over a box, or a sample's label over a ball."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustkit.errors import UsageError

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Disjunct:
    """One part of the unsafe set: outputs ``y`` with ``rows @ y + offsets <= 0`` in all rows.

    Attributes:
        rows: float64, shape ``(R, K)``.
        offsets: float64, shape ``(R,)``.
    """

    rows: Array
    offsets: Array

    def __post_init__(self) -> None:
        expect_array("rows", self.rows, np.float64, 2)
        expect_array("offsets", self.offsets, np.float64, 1)
        if len(self.rows) != len(self.offsets):
            raise UsageError(f"expected one offset per row, got {len(self.offsets)} for {len(self.rows)} rows")


@dataclass(frozen=True, eq=False)
class Ball:
    """The claim that every input within ``eps`` of a sample and in the pixel range is given the sample's label.

    Attributes:
        x: the sample, float32, shape ``(C, H, W)`` or ``(n,)``.
        eps: radius, at least 0.
        label: class that wins strictly.
        lower: least value a pixel can take.
        upper: greatest value a pixel can take.
    """

    x: Array
    eps: float
    label: int
    lower: float = 0.0
    upper: float = 1.0

    def __post_init__(self) -> None:
        expect_array("x", self.x, np.float32)
        if not 0.0 <= self.eps < np.inf or not -np.inf < self.lower < self.upper < np.inf or self.label < 0:
            raise UsageError(
                f"expected eps >= 0, a label >= 0 and a pixel range, got eps {self.eps}, label {self.label} and "
                f"[{self.lower}, {self.upper}]; correct the claim"
            )

    @property
    def summary(self) -> str:
        """What is claimed, in a few words."""
        return f"label {self.label} within eps {self.eps:.6g} of a sample of shape {self.x.shape}"


@dataclass(frozen=True, eq=False)
class Box:
    """The claim that no point of a box has an unsafe output.

    Attributes:
        lb: least inputs, float64, shape of a sample without the batch.
        ub: greatest inputs, the same.
        disjuncts: the unsafe set.
    """

    lb: Array
    ub: Array
    disjuncts: tuple[Disjunct, ...]

    def __post_init__(self) -> None:
        expect_array("lb", self.lb, np.float64)
        expect_array("ub", self.ub, np.float64)
        if self.lb.shape != self.ub.shape or not (self.lb <= self.ub).all():
            raise UsageError("expected lb <= ub of one shape, got a box that is empty; give a box that holds points")

    @property
    def summary(self) -> str:
        """What is claimed, in a few words."""
        return f"none of {len(self.disjuncts)} unsafe disjuncts over a box of {self.lb.size} inputs"


def claim_digest(claim: Ball | Box) -> str:
    """Give the SHA-256 of all that a claim says, in hexadecimal digits."""
    if isinstance(claim, Ball):
        numbers = (float(one).hex() for one in (claim.eps, claim.lower, claim.upper))
        return array_digest({"x": claim.x}, f"ball {claim.label} {' '.join(numbers)}")
    arrays = {"lb": claim.lb, "ub": claim.ub}
    for number, one in enumerate(claim.disjuncts):
        arrays |= {f"{number}.rows": one.rows, f"{number}.offsets": one.offsets}
    return array_digest(arrays, "box")


def array_digest(arrays: dict[str, Array], text: str) -> str:
    """Give the SHA-256 of a text and of the names, types, shapes and bytes of arrays, in hexadecimal digits."""
    sha = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        sha.update(f"\n{name} {arrays[name].dtype.str} {arrays[name].shape}\n".encode())
        sha.update(np.ascontiguousarray(arrays[name]).tobytes())
    return sha.hexdigest()


def expect_array(name: str, found: object, dtype: type, dimensions: int | None = None, size: int | None = None) -> None:
    """Refuse an array of another type or shape, or with numbers that are not finite.

    Args:
        name: what it is called in a message.
        found: what should be the array.
        dtype: its type, exactly.
        dimensions: how many, at least 1; None for any.
        size: of the first; None for any.

    Raises:
        UsageError: it is another; the message says what was expected.
    """
    wanted = f"{name} as {np.dtype(dtype)} array of {dimensions or 'some'} dimensions"
    if not isinstance(found, np.ndarray):
        raise UsageError(f"expected {wanted}, got {type(found).__name__}; convert it")
    if found.dtype != dtype or not found.ndim or dimensions not in (None, found.ndim):
        raise UsageError(f"expected {wanted}, got {found.dtype} of shape {found.shape}; convert it")
    if size not in (None, len(found)):
        raise UsageError(f"expected {size} entries in {name}, got {len(found)}; give one for each")
    if not np.isfinite(found).all():
        raise UsageError(f"expected finite numbers in {name}, got NaN or infinity; replace them")
