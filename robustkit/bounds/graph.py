"""A network as a graph of affine maps, sums and piecewise linear activations, traced from its code."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from robustkit.bounds.affine import Affine, Convolution, Dense, Pool, Reshape, Scaling, Shape
from robustkit.bounds.chain import altered
from robustkit.errors import UnsupportedLayerError
from robustkit.models.affine import Elementwise
from robustkit.models.architectures import Normalize
from robustkit.models.modes import in_eval_mode

LEAVES = (Normalize, Elementwise)
ELEMENTWISE = (nn.BatchNorm1d, nn.BatchNorm2d, *LEAVES)
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
RELUS = (torch.relu, functional.relu, "relu", "relu_")
RESHAPES = (torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, "flatten", "view", "reshape", "squeeze")
APART = 1e-4
"""Most that the graph's outputs may differ from the network's, as a share of 1 + the largest."""


@dataclass(frozen=True)
class Activation:
    """``z -> max(z, slope z)``: ReLU for slope 0, leaky ReLU above.

    Attributes:
        slope: in [0, 1].
    """

    slope: float


@dataclass(frozen=True)
class Sum:
    """The sum of two values of one shape."""


@dataclass(frozen=True)
class Step:
    """An operation and the values it takes; step ``i`` gives value ``i + 1``, value 0 is the input."""

    operation: Affine | Activation | Sum
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """The operations of a network, in an order in which they can be computed; the last gives the outputs.

    Attributes:
        steps: the operations.
        shapes: of every value, without the batch.
    """

    steps: tuple[Step, ...]
    shapes: tuple[Shape, ...]

    def activations(self) -> list[int]:
        """Give the step of every activation, in order."""
        return [at for at, one in enumerate(self.steps) if isinstance(one.operation, Activation)]

    def values(self, x: Tensor, choose: dict[int, Tensor] | None = None) -> list[Tensor]:
        """Compute every value of a batch.

        Args:
            x: inputs, shape ``(B, ...)``.
            choose: of each activation by its step, factors ``(n,)`` to multiply by instead.
        """
        values = [x]
        for at, step in enumerate(self.steps):
            given, operation = [values[one] for one in step.inputs], step.operation
            if isinstance(operation, Sum):
                values.append(given[0] + given[1])
            elif isinstance(operation, Activation):
                z = given[0]
                values.append(z * choose[at].view(z.shape[1:]) if choose else torch.maximum(z, operation.slope * z))
            else:
                values.append(operation(given[0]))
        return values


@torch.no_grad()
def trace(model: nn.Module, example: Tensor) -> Graph:
    """Follow the code of a network in eval mode.

    Args:
        model: stacks and sums of ``Linear``, ``Conv2d``, batch norm, ``AvgPool2d``, ``ReLU``, ``LeakyReLU``,
            ``Flatten``, ``Normalize`` and reshapes, as modules or in its own ``forward``.
        example: one input, shape ``(1, ...)``.

    Returns:
        Its operations, sharing its parameters.

    Raises:
        UnsupportedLayerError: any other operation, which is named; or code that cannot be followed.
    """
    with in_eval_mode(model):
        try:
            root = fx.GraphModule(model, _Tracer().trace(model))
        except UnsupportedLayerError:
            raise
        except Exception as error:  # whatever a user's forward does
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise UnsupportedLayerError(f"branch and bound cannot follow the code of this network: {why}") from None
        graph = _Reader(root, example).read()
        _hold_against(graph, model, example)
    return graph


class _Tracer(fx.Tracer):
    """Follows into modules but torch's own and those that are read as a whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if altered(m):
            raise _refused(module_qualified_name, f"{type(m).__name__} with hooks or a patched forward")
        return type(m) in LEAVES or super().is_leaf_module(m, module_qualified_name)


class _Reader(fx.Interpreter):
    """Computes a batch of two and writes down the operations that depend on the input."""

    def __init__(self, root: fx.GraphModule, example: Tensor) -> None:
        super().__init__(root)
        self.extra_traceback = False
        self.example = example[:1].repeat(2, *[1] * (example.ndim - 1))
        self.steps: list[Step] = []
        self.shapes: list[Shape] = [tuple(example.shape[1:])]
        self.number: dict[fx.Node, int] = {}

    def read(self) -> Graph:
        self.run(self.example)
        return Graph(tuple(self.steps), tuple(self.shapes))

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        given = [self.number[one] for one in n.all_input_nodes if one in self.number]
        if n.op == "placeholder":
            self.number[n] = 0
        elif n.op == "output":
            if given != [len(self.steps)] or len(self.shapes[-1]) != 1:
                raise _refused(n.name, f"outputs of shape {self.shapes[-1]}; expected one vector that is computed last")
        elif given and isinstance(found, Tensor):
            if found.shape[:1] != self.example.shape[:1]:
                raise _refused(n.name, f"a batch of 2 that becomes {tuple(found.shape)}")
            self._take(n, given, tuple(found.shape[1:]))
        return found

    def _take(self, n: fx.Node, given: list[int], after: Shape) -> None:
        layer = self.module.get_submodule(str(n.target)) if n.op == "call_module" else None
        if type(layer) in NOTHING:
            self.number[n] = given[0]
            return
        found = self._of_call(n, given, after) if layer is None else self._of_layer(layer, self.shapes[given[0]], after)
        if found is None:
            what = getattr(n.target, "__name__", str(n.target)) if layer is None else type(layer).__name__
            raise _refused(str(n.target) if layer is not None else n.name, f"{what} with its settings")
        self.steps.append(Step(found, tuple(given)))
        self.shapes.append(after)
        self.number[n] = len(self.steps)

    def _of_layer(self, layer: nn.Module, before: Shape, after: Shape) -> Affine | Activation | None:
        kind, images = type(layer), len(before) == 3
        if kind in (nn.Flatten, nn.Unflatten):
            return Reshape(before, after)
        if kind in ELEMENTWISE:
            return Scaling.of(layer, before, self.example)
        if kind is nn.ReLU:
            return Activation(0.0)
        if isinstance(layer, nn.LeakyReLU) and kind is nn.LeakyReLU and 0.0 <= layer.negative_slope <= 1.0:
            return Activation(layer.negative_slope)
        if isinstance(layer, nn.Linear) and kind is nn.Linear:
            return Dense(layer.weight.detach(), None if layer.bias is None else layer.bias.detach())
        if isinstance(layer, nn.AvgPool2d) and kind is nn.AvgPool2d and images:
            return Pool(layer, before)
        if isinstance(layer, nn.Conv2d) and kind is nn.Conv2d and images:
            plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
            return Convolution(layer, before) if plain else None
        return None

    def _of_call(self, n: fx.Node, given: list[int], after: Shape) -> Affine | Activation | Sum | None:
        before = self.shapes[given[0]]
        if n.target in RESHAPES and len(given) == 1:
            return Reshape(before, after)
        if n.target in RELUS:
            return Activation(0.0)
        if n.target in SUMS and len(n.args) == 2 and not n.kwargs:
            given += given if n.args[0] is n.args[1] else []
            if [self.shapes[one] for one in given] == [after, after]:
                return Sum()
        return None


def _refused(name: str, what: str) -> UnsupportedLayerError:
    return UnsupportedLayerError(f"branch and bound cannot carry {what} at {name!r}")


def _hold_against(graph: Graph, model: nn.Module, example: Tensor) -> None:
    """Refuse a graph that computes something else than the network."""
    draw = torch.Generator().manual_seed(0)
    x = torch.cat([example[:1], torch.rand((3, *example.shape[1:]), generator=draw).to(example)])
    expected, found = model(x), graph.values(x)[-1]
    far = bool(((found - expected).abs() > APART * (1.0 + expected.abs().amax())).any())
    if found.shape != expected.shape or (far and bool(expected.isfinite().all())):
        raise UnsupportedLayerError("branch and bound follows this network wrongly: it would give other outputs")
