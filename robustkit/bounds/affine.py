"""Affine maps as branch and bound needs them: forward, backward on coefficients, and on radii."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

Shape = tuple[int, ...]


class Affine(Protocol):
    """``z = W x + b`` on a batch."""

    def __call__(self, x: Tensor) -> Tensor:
        """Map values ``(B, ...)``."""

    def back(self, given: Tensor) -> Tensor:
        """Turn coefficients of the outputs ``(B, ...)`` into those of the inputs, ``W^T c``; differentiable."""

    def spread(self, radius: Tensor) -> Tensor:
        """Map radii of inputs ``(B, ...)``, ``|W| r``."""


@dataclass(frozen=True, eq=False)
class Dense:
    """A fully connected layer."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """Map values."""
        return functional.linear(x, self.weight, self.bias)

    def back(self, given: Tensor) -> Tensor:
        """Turn coefficients of the outputs into those of the inputs."""
        return given @ self.weight

    def spread(self, radius: Tensor) -> Tensor:
        """Map radii."""
        return functional.linear(radius, self.weight.abs())


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution with zero padding, for images ``before``."""

    layer: nn.Conv2d
    before: Shape

    def __call__(self, x: Tensor) -> Tensor:
        """Map values."""
        return self._with(x, self.layer.weight, self.layer.bias)

    def back(self, given: Tensor) -> Tensor:
        """Turn coefficients of the outputs into those of the inputs."""
        one, size = self.layer, (len(given), *self.before)
        setting = (one.stride, one.padding, one.dilation, one.groups)
        found: Tensor = conv2d_input(size, one.weight, given, *setting)  # type: ignore[no-untyped-call]
        return found

    def spread(self, radius: Tensor) -> Tensor:
        """Map radii."""
        return self._with(radius, self.layer.weight.abs(), None)

    def _with(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        one = self.layer
        return functional.conv2d(x, weight, bias, one.stride, one.padding, one.dilation, one.groups)


@dataclass(frozen=True, eq=False)
class Scaling:
    """``z = scale x + shift``, element by element; both ``(1, ...)``."""

    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, layer: Callable[[Tensor], Tensor], shape: Shape, like: Tensor) -> Scaling:
        """Read the numbers of a layer that acts on each element apart."""
        zero = torch.zeros((1, *shape)).to(like)
        shift = layer(zero)
        return cls(layer(zero + 1.0) - shift, shift)

    def __call__(self, x: Tensor) -> Tensor:
        """Map values."""
        return torch.addcmul(self.shift, x, self.scale)

    def back(self, given: Tensor) -> Tensor:
        """Turn coefficients of the outputs into those of the inputs."""
        return given * self.scale

    def spread(self, radius: Tensor) -> Tensor:
        """Map radii."""
        return radius * self.scale.abs()


@dataclass(frozen=True, eq=False)
class Pool:
    """Average pooling of images ``before``: linear, no weight below zero."""

    layer: nn.AvgPool2d
    before: Shape

    def __call__(self, x: Tensor) -> Tensor:
        """Map values."""
        out: Tensor = self.layer(x)
        return out

    def back(self, given: Tensor) -> Tensor:
        """Turn coefficients of the outputs into those of the inputs."""
        with torch.enable_grad():
            x = torch.zeros((len(given), *self.before), device=given.device, requires_grad=True)
            (back,) = torch.autograd.grad(self.layer(x), x, given, create_graph=given.requires_grad)
        return back

    def spread(self, radius: Tensor) -> Tensor:
        """Map radii."""
        return self(radius)


@dataclass(frozen=True)
class Reshape:
    """The same numbers in another shape, from ``before`` to ``after``."""

    before: Shape
    after: Shape

    def __call__(self, x: Tensor) -> Tensor:
        """Map values."""
        return x.reshape(-1, *self.after)

    def back(self, given: Tensor) -> Tensor:
        """Turn coefficients of the outputs into those of the inputs."""
        return given.reshape(-1, *self.before)

    def spread(self, radius: Tensor) -> Tensor:
        """Map radii."""
        return self(radius)
