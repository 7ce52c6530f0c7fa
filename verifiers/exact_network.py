"""A network as a list of operations with float64 parameters, for the proof checker; independent of all bounds.

The checker reasons about the network in real arithmetic: its parameters are taken as the exact numbers they are stored
as. Where an operation's weights are no floating-point numbers themselves (``1 / std``, the scale of batch norm, the
share of average pooling), ``doubt`` says how far the stored ones may be off. Values are flattened samples, in the order
of ``Tensor.flatten``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from torch import Tensor
from torch.nn import functional

Shape = tuple[int, ...]


class Semantics(StrEnum):
    """Which outputs of a network a proof is about, of the parameters as they are stored.

    ``REAL``: those in real arithmetic, at every real point. ``FLOAT32``: those of an execution in float32, at every
    float32 point; what that allows for is described in ``execution_error``.
    """

    REAL = "real"
    FLOAT32 = "float32"


@dataclass(frozen=True, eq=False)
class Dense:
    """``z = W x + b``.

    Attributes:
        weight: float64, shape ``(n_out, n_in)``.
        bias: float64, shape ``(n_out,)``.
        bias_size: at least the magnitude of every number that the bias was computed from, shape ``(n_out,)``.
        terms: most products that one sum has, in ``times`` or in ``transpose``.
        doubt: relative error of the weights, and of the bias relative to ``bias_size``, in units of 2^-53.
    """

    weight: Tensor
    bias: Tensor
    bias_size: Tensor
    terms: int
    doubt: int = 0

    def times(self, weight: Tensor, x: Tensor) -> Tensor:
        """Apply weights to values ``(B, n_in)``, without the bias."""
        return x @ weight.T

    def transpose(self, coefficients: Tensor) -> Tensor:
        """Turn coefficients of the outputs ``(B, n_out)`` into those of the inputs."""
        return coefficients @ self.weight


@dataclass(frozen=True, eq=False)
class Scale(Dense):
    """``z = w * x + b``, entry by entry; ``weight`` has shape ``(n,)``."""

    def times(self, weight: Tensor, x: Tensor) -> Tensor:
        """Apply weights to values ``(B, n)``, without the bias."""
        return x * weight

    def transpose(self, coefficients: Tensor) -> Tensor:
        """Turn coefficients of the outputs ``(B, n)`` into those of the inputs."""
        return coefficients * self.weight


@dataclass(frozen=True, eq=False)
class Convolution(Dense):
    """A convolution with zero padding; ``weight`` has shape ``(out, in / groups, kh, kw)``.

    Attributes:
        before: shape ``(C, H, W)`` of its input.
        after: shape of its output.
        stride: down and across.
        padding: down and across.
        groups: of channels.
    """

    before: Shape = ()
    after: Shape = ()
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1

    def times(self, weight: Tensor, x: Tensor) -> Tensor:
        """Apply weights to values ``(B, n_in)``, without the bias."""
        images = x.reshape(-1, *self.before)
        return functional.conv2d(images, weight, None, self.stride, self.padding, 1, self.groups).flatten(1)

    def transpose(self, coefficients: Tensor) -> Tensor:
        """Turn coefficients of the outputs ``(B, n_out)`` into those of the inputs."""
        images = coefficients.reshape(-1, *self.after)
        sides = zip(self.before[1:], self.after[1:], self.weight.shape[2:], self.stride, self.padding, strict=True)
        # what no kernel reaches at the lower right edge, fewer rows and columns than the stride
        rest = tuple(b - ((a - 1) * stride + k - 2 * pad) for b, a, k, stride, pad in sides)
        arguments = (self.stride, self.padding, rest, self.groups)
        return functional.conv_transpose2d(images, self.weight, None, *arguments).flatten(1)


@dataclass(frozen=True)
class Activation:
    """``z -> max(z, slope z)``: ReLU for slope 0, leaky ReLU above.

    Attributes:
        slope: in [0, 1].
        number: which activation of the network it is, from 0.
    """

    slope: float
    number: int


@dataclass(frozen=True)
class Sum:
    """The sum of its inputs; of one input, such as ``Flatten`` has, the same numbers in another shape."""


@dataclass(frozen=True)
class Step:
    """An operation and the values it takes; step ``i`` gives value ``i + 1``, value 0 is the input.

    Attributes:
        operation: what is done.
        inputs: numbers of the values it takes.
        in_place: the program writes the result over the first of them.
    """

    operation: Dense | Activation | Sum
    inputs: tuple[int, ...]
    in_place: bool = False


@dataclass
class ExactNetwork:
    """The operations of a network, in order.

    Attributes:
        steps: the operations.
        shapes: of every value, without the batch.
        semantics: which outputs are to be proved right. Bounds of values are those of real arithmetic all the same.
    """

    steps: list[Step] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    semantics: Semantics = Semantics.REAL

    def add(
        self, operation: Dense | Activation | Sum, inputs: tuple[int, ...], shape: Shape, *, in_place: bool = False
    ) -> int:
        """Append an operation and give the number of its value."""
        self.steps.append(Step(operation, inputs, in_place))
        self.shapes.append(shape)
        return len(self.steps)

    def add_activation(self, slope: float, value: int, *, in_place: bool) -> int:
        """Append an activation of a value, numbered after those before, and give the number of its value."""
        activation = Activation(slope, len(self.activations()))
        return self.add(activation, (value,), self.shapes[value], in_place=in_place)

    def size(self, value: int) -> int:
        """Count the numbers in a value."""
        return math.prod(self.shapes[value])

    def overwritten(self) -> int | None:
        """Give the first step that takes a value whose memory the program has written over before; None without any.

        Another shape of a value (a ``Sum`` of one) may share its memory, and an operation in place does.
        """
        memory, stale = [0], set[int]()
        for at, step in enumerate(self.steps):
            if stale & set(step.inputs):
                return at
            home = memory[step.inputs[0]]
            if step.in_place:
                stale |= {value for value, one in enumerate(memory) if one == home}
            shared = step.in_place or (isinstance(step.operation, Sum) and len(step.inputs) == 1)
            memory.append(home if shared else at + 1)
        return None

    def activations(self) -> list[tuple[Activation, int]]:
        """Give each activation, in order, with the number of the value that goes into it."""
        return [(one.operation, one.inputs[0]) for one in self.steps if isinstance(one.operation, Activation)]
