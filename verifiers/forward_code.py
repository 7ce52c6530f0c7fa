"""The ``forward`` of a user's own module, followed operation by operation; part of the trusted half.

``torch.fx`` runs the code with a stand-in for the input and writes down what is done with it. Only what has a rule here
is carried: calls of the module's own layers, sums of two values of one shape, ReLU and leaky ReLU as functions and
methods, and ``flatten``, ``view`` and ``reshape`` that keep every sample and the order of its elements. All else is
refused by name, a constant or a parameter that is used directly too; and ``fx`` itself raises where code asks what the
values are. Operations are numbered in the order in which the code does them.

What is done to a value in place is noted, for the code may hold the same memory under another name; ``overwritten`` of
``ExactNetwork`` says whether that matters. Automatic casts to other types leave no trace, so they are refused as well.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from robustkit.errors import UnsupportedLayerError
from robustkit.verifiers.exact_network import ExactNetwork, Shape, Sum
from robustkit.verifiers.layer_rules import refused

Read = Callable[[ExactNetwork, nn.Module, int, str], int]
Size = int | str

BATCH = "batch"
"""What stands for the number of samples in a size."""

ADD = {operator.add: False, torch.add: False, "add": False, operator.iadd: True, "add_": True}
RELU = {torch.relu: False, functional.relu: False, "relu": False, torch.relu_: True, "relu_": True}
LEAKY = {functional.leaky_relu: False, functional.leaky_relu_: True}
"""What adds and what activates, as functions and as methods, and whether it does so in place."""

RESHAPE = (torch.reshape, "reshape", "view")
FLATTEN = (torch.flatten, "flatten")


def follow(network: ExactNetwork, module: nn.Module, value: int, name: str, read: Read) -> int:
    """Append what the ``forward`` of a module does.

    Args:
        network: what it is appended to.
        module: of a type of the user's, in eval mode.
        value: number of its input.
        name: what it is called in a message.
        read: appends a layer that it calls.

    Returns:
        Number of its output.

    Raises:
        UnsupportedLayerError: code that cannot be followed, or an operation without a rule, which is named.
    """
    if module.training:
        raise refused(name, module, "training mode")
    try:
        graph = _Tracer().trace(module)
    except UnsupportedLayerError:
        raise
    except Exception as error:  # whatever a user's forward does
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise refused(name, module, f"its code cannot be followed: {why}") from None
    reading = _Reading(network, module, name, read)
    for node in graph.nodes:
        if node.op == "output":
            return reading.value_of(node, node.args[0])
        reading.take(node, value)
    raise refused(name, module, "it returns nothing")


class _Proxy(fx.Proxy):
    """A stand-in that notes ``x += y`` as what it is; that of ``fx`` notes ``x = x + y``."""

    def __iadd__(self, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})


class _Tracer(fx.Tracer):
    """Follows one ``forward``; the layers that it calls are read on their own."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            raise UnsupportedLayerError("the proof checker cannot carry automatic casts (autocast); switch them off")
        return super().create_node(*args, **kwargs)


@dataclass
class _Reading:
    """What is known of the nodes of one ``forward``."""

    network: ExactNetwork
    module: nn.Module
    name: str
    read: Read
    values: dict[fx.Node, int] = field(default_factory=dict)
    sizes: dict[fx.Node, Size | tuple[Size, ...]] = field(default_factory=dict)

    def take(self, node: fx.Node, value: int) -> None:
        """Append the operation of a node; ``value`` is the input of the module."""
        if node.op == "placeholder":
            if not self.values:  # further arguments have no value: whatever uses them is refused
                self.values[node] = value
        elif node.op == "call_module" and len(node.args) == 1 and not node.kwargs:
            layer, called = self.module.get_submodule(str(node.target)), f"{node.target} of {self.name}"
            self.values[node] = self.read(self.network, layer, self.value_of(node, node.args[0]), called)
        elif node.op in ("call_function", "call_method") and not self._take_size(node):
            self.values[node] = self._take_call(node)
        elif node.op not in ("call_function", "call_method"):
            raise self._refused(node)

    def value_of(self, node: fx.Node, argument: object) -> int:
        """Give the number of the value that a node takes."""
        if not isinstance(argument, fx.Node) or argument not in self.values:
            raise self._refused(node)
        return self.values[argument]

    def _take_call(self, node: fx.Node) -> int:
        target: Any = node.target
        if target in ADD and len(node.args) == 2 and not node.kwargs:
            inputs = self.value_of(node, node.args[0]), self.value_of(node, node.args[1])
            shape, other = (self.network.shapes[one] for one in inputs)
            if shape == other:
                return self.network.add(Sum(), inputs, shape, in_place=ADD[target])
        elif target in RELU or target in LEAKY:
            return self._take_activation(node)
        elif target in RESHAPE or target in FLATTEN:
            before = self.value_of(node, node.args[0] if node.args else None)
            shape_after = self._flattened(node, before) if target in FLATTEN else self._reshaped(node, before)
            return self.network.add(Sum(), (before,), shape_after)
        raise self._refused(node)

    def _take_activation(self, node: fx.Node) -> int:
        target: Any = node.target
        names = ("input", "negative_slope", "inplace") if target in LEAKY else ("input", "inplace")
        given: dict[str, Any] = {"negative_slope": 0.01, "inplace": False}
        given |= dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        slope, inplace = given["negative_slope"] if target in LEAKY else 0.0, given["inplace"]
        plain = isinstance(slope, float | int) and 0.0 <= slope <= 1.0 and isinstance(inplace, bool)
        if len(node.args) > len(names) or not {*given} <= {*names, "negative_slope"} or not plain:
            raise self._refused(node)
        in_place = inplace or RELU.get(target, False) or LEAKY.get(target, False)
        return self.network.add_activation(float(slope), self.value_of(node, given.get("input")), in_place=in_place)

    def _flattened(self, node: fx.Node, value: int) -> Shape:
        """Give the shape after ``flatten`` of all dimensions but the first."""
        shape = self.network.shapes[value]
        given = {"start_dim": 0, "end_dim": -1, **node.kwargs}
        given |= dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False))
        whole = given["start_dim"] == 1 and given["end_dim"] in (-1, len(shape))
        if len(node.args) > 3 or len(given) > 2 or not whole:
            raise self._refused(node)
        return (math.prod(shape),)

    def _reshaped(self, node: fx.Node, value: int) -> Shape:
        """Give the shape after ``view`` or ``reshape`` to sizes of which the first is the batch."""
        arguments: tuple[Any, ...] = node.args[1:]
        if len(arguments) == 1 and isinstance(arguments[0], tuple | list):
            arguments = tuple(arguments[0])
        sizes: list[Any] = [self.sizes.get(one) if isinstance(one, fx.Node) else one for one in arguments]
        first, *rest = sizes or [None]
        whole, known = math.prod(self.network.shapes[value]), [one for one in rest if one != -1]
        if node.kwargs or not all(type(one) is int and one > 0 for one in known) or len(known) < len(rest) - 1:
            raise self._refused(node)
        if len(known) < len(rest) and first == BATCH and whole % math.prod(known) == 0:
            return tuple(whole // math.prod(known) if one == -1 else one for one in rest)
        if len(known) < len(rest) or first not in (BATCH, -1) or math.prod(known) != whole:
            raise self._refused(node)
        return tuple(rest)

    def _take_size(self, node: fx.Node) -> bool:
        """Note the sizes of a value where a node asks for them; False where it does something else."""
        target, args = node.target, node.args
        of = args[0] if args and isinstance(args[0], fx.Node) else None
        if of in self.values and (target == "size" or (target is getattr and args[1:] == ("shape",))):
            assert of is not None
            whole: tuple[Size, ...] = (BATCH, *self.network.shapes[self.values[of]])
            if node.kwargs or len(args) > 2:
                raise self._refused(node)
            self.sizes[node] = self._entry(node, whole) if target == "size" and len(args) == 2 else whole
            return True
        sizes = None if of is None else self.sizes.get(of)
        if target is operator.getitem and isinstance(sizes, tuple):
            self.sizes[node] = self._entry(node, sizes)
            return True
        return False

    def _entry(self, node: fx.Node, sizes: tuple[Size, ...]) -> Size:
        """Give the one of some sizes that the second argument of a node names."""
        place = node.args[1]
        if type(place) is not int or not -len(sizes) <= place < len(sizes):
            raise self._refused(node)
        return sizes[place]

    def _refused(self, node: fx.Node) -> UnsupportedLayerError:
        what = getattr(node.target, "__name__", str(node.target))
        return refused(self.name, self.module, f"no rule for {what} as it is used at {node.name!r}")
