"""The threat model: an L-infinity ball of radius eps, cut to the range that pixels can take."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit.errors import UsageError


def parse_eps(text: str | float) -> float:
    """Read a radius written as ``0.3`` or ``8/255``.

    Args:
        text: a decimal number or a fraction, in pixel units of [0, 1].

    Returns:
        The radius as a float in [0, 1].

    Raises:
        UsageError: the text is no number, divides by zero, or lies outside [0, 1].
    """
    head, slash, tail = str(text).partition("/")
    try:
        eps = float(head) / float(tail) if slash else float(head)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"expected eps as a number like 0.3 or a fraction like 8/255, got {text!r}") from None
    if not math.isfinite(eps) or not 0.0 <= eps <= 1.0:
        raise UsageError(f"expected eps in [0, 1] (pixel units), got {text!r}; for 8 grey levels write 8/255")
    return eps


def parse_radii(text: str) -> list[float]:
    """Read one radius, or several with commas between them.

    Args:
        text: such as ``0.3`` or ``8/255,0.1``.

    Returns:
        The radii, ascending, each once.

    Raises:
        UsageError: there is none, or one is no radius.
    """
    parts = [part for part in text.split(",") if part.strip()]
    if not parts:
        raise UsageError(f"expected one eps or more, like 0.1 or 0.1,0.2, got {text!r}; leave it out for the default")
    return sorted({parse_eps(part) for part in parts})


def parse_range(text: str) -> list[float]:
    """Read radii at equal distances.

    Args:
        text: ``START:STOP:COUNT`` such as ``0:0.4:9`` for 0, 0.05, ..., 0.4.

    Returns:
        The radii, ascending.

    Raises:
        UsageError: not three parts, radii that are none or do not rise, or fewer than two of them.
    """
    parts = text.split(":")
    if len(parts) != 3 or not parts[2].strip().isdecimal() or int(parts[2]) < 2:
        raise UsageError(f"expected an eps range as START:STOP:COUNT with 2 radii or more, like 0:0.4:9, got {text!r}")
    start, stop, count = parse_eps(parts[0]), parse_eps(parts[1]), int(parts[2])
    if start >= stop:
        raise UsageError(f"expected an eps range that rises, got {text!r}; swap its ends")
    return [round(start + (stop - start) * place / (count - 1), 12) for place in range(count)]


@dataclass(frozen=True)
class LinfBall:
    """All inputs within ``eps`` of a sample in every pixel and inside the pixel range.

    Attributes:
        eps: radius in pixel units, in [0, 1].
        lower: least value a pixel can take.
        upper: greatest value a pixel can take.
    """

    eps: float
    lower: float = 0.0
    upper: float = 1.0

    def __post_init__(self) -> None:
        parse_eps(self.eps)
        if not self.lower < self.upper:
            raise UsageError(f"expected a pixel range with lower < upper, got [{self.lower}, {self.upper}]")

    def box(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give the corners of the ball around each sample; the one place where ``x +- eps`` meets the pixel range.

        The sum is formed in float64 and rounded outward to the type of ``x``, so the box never loses a point of the
        real ball: float32 arithmetic alone shrinks two boxes in five (docs/methods.md).

        Args:
            x: inputs of any shape, within the pixel range.

        Returns:
            ``lb, ub`` of the shape and type of ``x``, ``lb <= x <= ub``.
        """
        lb, ub = (
            _clamp(bound, self) for bound in (_exact_sum(x, -self.eps, up=False), _exact_sum(x, self.eps, up=True))
        )
        return _round_down(lb, x.dtype), _round_up(ub, x.dtype)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Move each point to the nearest point of the ball around its sample.

        Unlike ``box`` this rounds inward: what it returns lies within ``eps`` of ``x`` in real arithmetic.

        Args:
            x_adv: points of any shape.
            x: the samples, of the same shape.

        Returns:
            The projected points; differentiable in ``x_adv``.
        """
        lb, ub = self.inner_box(x)
        return torch.minimum(torch.maximum(x_adv, lb), ub)

    def inner_box(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give the box rounded inward: every representable point of it lies in the real ball.

        Args:
            x: inputs of any shape, within the pixel range.

        Returns:
            ``lb, ub`` of the shape and type of ``x``, ``lb <= x <= ub``.
        """
        lb, ub = (
            _clamp(bound, self) for bound in (_exact_sum(x, -self.eps, up=True), _exact_sum(x, self.eps, up=False))
        )
        lb, ub = _round_up(lb, x.dtype), _round_down(ub, x.dtype)
        return torch.minimum(lb, x.detach()), torch.maximum(ub, x.detach())

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw one uniform point of the ball around each sample.

        Args:
            x: inputs of any shape, within the pixel range.
            generator: the source of randomness, on the device of ``x``; the global one if none is given.

        Returns:
            Points of the shape and type of ``x``.
        """
        lb, ub = self.inner_box(x)
        noise = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return torch.minimum(torch.maximum(lb + noise * (ub - lb), lb), ub)

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Say for each sample whether its point lies in the ball, decided in float64.

        Args:
            x_adv: points, shape ``(B, ...)``.
            x: the samples, of the same shape.

        Returns:
            Booleans, shape ``(B,)``.
        """
        lb, ub = self.inner_box(x.double())
        wide = x_adv.detach().double()
        return ((wide >= lb) & (wide <= ub)).flatten(1).all(dim=1)

    def shrunk(self, eps: float) -> LinfBall:
        """Give the ball of another radius in the same pixel range."""
        return LinfBall(eps, self.lower, self.upper)


def _clamp(bound: Tensor, ball: LinfBall) -> Tensor:
    return bound.clamp(ball.lower, ball.upper)


def _exact_sum(x: Tensor, shift: float, *, up: bool) -> Tensor:
    """Give the float64 next to ``x + shift`` on the asked side, by Knuth's error-free two-sum."""
    wide = x.detach().double()
    total = wide + shift
    moved = total - wide
    error = (wide - (total - moved)) + (shift - moved)
    outward = torch.nextafter(total, torch.full_like(total, math.inf if up else -math.inf))
    return torch.where(error > 0 if up else error < 0, outward, total)


def _round_down(wide: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = wide.to(dtype)
    return torch.where(narrow.double() > wide, torch.nextafter(narrow, torch.full_like(narrow, -math.inf)), narrow)


def _round_up(wide: Tensor, dtype: torch.dtype) -> Tensor:
    return -_round_down(-wide, dtype)
