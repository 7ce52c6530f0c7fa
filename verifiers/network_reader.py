"""From an ``nn.Module`` to the operations that the proof checker reasons about; what it does not know it refuses.

Stacks and known layers are read as they are built, any other module by following its code (``forward_code``). Neither
sees everything that Python can do, so what has been read must also agree with the module itself: a copy in float64 is
run on random inputs and has to lie where the operations say, and the run must leave the module and the random state as
they were, for code that changes something may compute another function the next time. What no test of the module alone
can show is trusted: code that asks for the time, a file or a global variable.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from robustkit.errors import UnsupportedLayerError
from robustkit.models.named import Residual
from robustkit.verifiers.exact_network import ExactNetwork, Semantics, Shape, Sum
from robustkit.verifiers.execution_error import execution_errors, expect_float32
from robustkit.verifiers.forward_code import follow
from robustkit.verifiers.layer_rules import READERS, read_layer, refused
from robustkit.verifiers.sound_bounds import intervals

POINTS = 8
"""Inputs at which what was read is held against the module: half uniform in [0, 1], half normal."""

UNSEEN = "what they do cannot be checked"


def read_network(model: nn.Module, shape: Shape, semantics: Semantics = Semantics.REAL) -> ExactNetwork:
    """Read a network in eval mode.

    Args:
        model: a stack of ``Linear``, ``Conv2d``, batch norm, ``ReLU``, ``LeakyReLU``, ``AvgPool2d``, ``Flatten``,
            ``Unflatten``, ``Normalize``, ``Elementwise``, ``Residual``, ``Identity``, dropout and further
            ``Sequential``, and of modules with a ``forward`` of their own that calls such layers and does what
            ``forward_code`` has rules for.
        shape: of a sample, without the batch.
        semantics: which of its outputs are to be proved right.

    Returns:
        Its operations, on the CPU.

    Raises:
        UnsupportedLayerError: any other layer or operation, or one with settings that are not carried; it is named.
            Also hooks, code that changes the module, and code that computes something else than was read; and numbers
            that are not for float32 where its executions are to be proved right.
    """
    if any((torch_modules._global_forward_hooks, torch_modules._global_forward_pre_hooks)):
        raise UnsupportedLayerError(f"expected no hooks for all modules, got some: {UNSEEN}")
    network = ExactNetwork(shapes=[tuple(shape)], semantics=Semantics(semantics))
    if network.semantics == Semantics.FLOAT32:
        expect_float32(model)
    last = _read(network, model, 0, "the model")
    late = network.overwritten()
    if late is not None:
        raise refused("the model", model, f"operation {late} takes a value that was overwritten in place before")
    if last != len(network.steps):
        raise refused("the model", model, "an output that is not what is computed last")
    _hold_against(network, model)
    return network


def _read(network: ExactNetwork, layer: nn.Module, value: int, name: str) -> int:
    """Append a layer and give the number of its value."""
    _expect_plain(layer, name)
    if type(layer) is nn.Sequential:
        for key, one in layer._modules.items():  # named_children() would leave out a module that is used twice
            value = _read(network, one or nn.Identity(), value, f"layer {key} of {name}")
        return value
    if type(layer) is Residual:
        parts = {key: f"{key} of {name}" for key in ("long", "short", "relu")}
        paths = tuple(_read(network, getattr(layer, key), value, parts[key]) for key in ("long", "short"))
        if network.shapes[paths[0]] != network.shapes[paths[1]]:
            raise refused(name, layer, "paths of other shapes")
        total = network.add(Sum(), paths, network.shapes[paths[0]])
        return _read(network, layer.relu, total, parts["relu"])
    if type(layer) in READERS or type(layer).__module__.partition(".")[0] == "torch":
        return read_layer(network, layer, value, name)
    return follow(network, layer, value, name, _read)


def _expect_plain(layer: nn.Module, name: str) -> None:
    """Refuse a layer whose call does not simply run the ``forward`` of its type."""
    if layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
        raise UnsupportedLayerError(f"expected {name} without hooks, got some: {UNSEEN}")
    own_call = type(layer).__call__ is not nn.Module.__call__ or type(layer)._call_impl is not nn.Module._call_impl
    if own_call or "parametrizations" in layer._modules or vars(layer).get("_compiled_call_impl"):
        raise refused(name, layer, f"parametrizations, compiled code or a call of its own: {UNSEEN}")


@torch.no_grad()
def _hold_against(network: ExactNetwork, model: nn.Module) -> None:
    """Refuse operations that do not give what the module gives, up to the rounding of both.

    Each output of the module, computed in float64, is off by less than the width of what encloses the exact one: the
    enclosure allows more for every sum than the sum can be off by, and so widens at least as fast. Where executions in
    float32 are to be proved right, one of them must lie within what they are allowed to be off by, too.
    """
    draw = torch.Generator().manual_seed(0)
    shape = (POINTS // 2, *network.shapes[0])
    x = torch.cat([torch.rand(shape, generator=draw), torch.randn(shape, generator=draw)])
    region = intervals(network, x.flatten(1).double(), x.flatten(1).double())
    low, high = region.lower[-1], region.upper[-1]
    runs = [(copy.deepcopy(model).double(), x.double(), high - low)]
    if network.semantics == Semantics.FLOAT32:
        runs.append((copy.deepcopy(model), x, high - low + execution_errors(network, region)[-1]))
    for twin, given, apart in runs:
        y = _output(twin.cpu(), given)
        if not isinstance(y, Tensor) or y.shape != (POINTS, *network.shapes[-1]):
            raise refused("the model", model, f"outputs of another shape than {network.shapes[-1]}")
        if not ((y.flatten(1) >= low - apart) & (y.flatten(1) <= high + apart)).all():
            raise refused("the model", model, "its code computes something else than was read from it")


def _output(twin: nn.Module, x: Tensor) -> object:
    """Run a copy of a module, and refuse one that the run has changed."""
    try:
        kept, before = copy.deepcopy(twin), _random_state()
        y: object = twin(x)
    except Exception as error:  # whatever a user's forward does
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise refused("the model", twin, f"a copy of it fails: {why}") from None
    if not _same(twin, kept, set()) or not _same(before, _random_state(), set()):
        raise refused("the model", twin, "running it changes the module or draws random numbers")
    return y


def _random_state() -> tuple[Tensor, object]:
    return torch.get_rng_state(), random.getstate()


def _same(one: object, other: object, seen: set[int]) -> bool:
    """Say whether two values hold the same, whatever they are; an object that was met before is not entered again."""
    if one is other or id(one) in seen:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and _same_bits(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return list(one) == list(other) and all(_same(one[key], other[key], seen) for key in one)
    if isinstance(one, Sequence) and isinstance(other, Sequence) and not isinstance(one, str | bytes):
        return len(one) == len(other) and all(_same(a, b, seen) for a, b in zip(one, other, strict=True))
    if hasattr(one, "__dict__"):
        seen.add(id(one))
        return _same(vars(one), vars(other), seen)
    return bool(np.all(one == other))


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | ((one != one) & (other != other))).all())
