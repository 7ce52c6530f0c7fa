"""A computation graph by the names of ONNX, and how far it has been followed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from robustkit.models.affine import Dense, Part, Scaling

Constants = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Step:
    """An operation of the graph, by the names that ONNX gives it.

    Attributes:
        name: of the operation itself.
        operation: such as ``"Gemm"``.
        inputs: names of the values it reads, empty for one that is left out.
        output: name of the first value it gives.
        attributes: its settings.
    """

    name: str
    operation: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Graph:
    """What a file computes.

    Attributes:
        steps: in an order in which they can be computed.
        constants: the values that are stored, by name.
        source: name of the one input.
        shape: of that input, for a batch of one.
        target: name of the one output.
    """

    steps: tuple[Step, ...]
    constants: Constants
    source: str
    shape: tuple[int, ...]
    target: str


class NoStackError(Exception):
    """The graph is no stack of layers known here; it may still be a network."""


@dataclass
class Walk:
    """How far the graph has been followed.

    Attributes:
        constants: all values known without the input.
        value: name of the value that depends on the input.
        shape: of that value, for a batch of one.
        flat: whether the layers hold it as a vector, whatever its shape in the graph.
    """

    constants: Constants
    value: str
    shape: tuple[int, ...]
    flat: bool
    parts: list[Part] = field(default_factory=list)

    def constant(self, step: Step, place: int) -> npt.NDArray[Any] | None:
        """Give an input of a step that must be stored, None where it is left out."""
        name = step.inputs[place] if place < len(step.inputs) else ""
        if name and name not in self.constants:
            raise NoStackError(f"a computed {step.operation} at {step.name}")
        return self.constants[name] if name else None

    @property
    def held(self) -> tuple[int, ...]:
        """Shape in which the layers hold a sample."""
        return (math.prod(self.shape),) if self.flat else self.shape[1:]

    def flatten(self) -> None:
        """Hold the value as a vector from here on."""
        if not self.flat:
            self.parts.append(nn.Flatten())
            self.flat = True

    def reshape(self, shape: tuple[int, ...]) -> None:
        """Give the value another shape; its elements keep their order."""
        if math.prod(shape) != math.prod(self.shape):
            raise NoStackError(f"{self.shape} is no {shape}")
        if shape != self.shape:
            self.flatten()
            self.shape = shape

    def scale(
        self, factor: npt.NDArray[Any] | float, shift: npt.NDArray[Any] | float, *, rounded: bool = False
    ) -> None:
        """Multiply and add constants that broadcast to the value; ``rounded`` where they are not the exact ones."""
        pair = [np.asarray(one, dtype=np.float64) for one in (factor, shift)]
        try:
            shape = np.broadcast_shapes(self.shape, *(one.shape for one in pair))
        except ValueError:
            raise NoStackError("constants of another shape") from None
        self.reshape(tuple(shape))
        scale, offset = (np.broadcast_to(one, self.shape).reshape(self.held) for one in pair)
        self.parts.append(Scaling(scale, offset, rounded))

    def dense(self, weight: npt.NDArray[Any], bias: npt.NDArray[Any] | float, shape: tuple[int, ...]) -> None:
        """Multiply by a matrix ``(out, in)``."""
        if weight.ndim != 2 or weight.shape[1] != math.prod(self.shape) or not weight.size:
            raise NoStackError("a product of other shapes")
        self.flatten()
        wide = np.broadcast_to(np.asarray(bias, dtype=np.float64).reshape(-1), (len(weight),))
        self.parts.append(Dense(weight.astype(np.float64), wide))
        self.shape = shape
