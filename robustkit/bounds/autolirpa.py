"""The one place that knows auto-LiRPA."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustkit.bounds._repairs import import_auto_lirpa, quiet
from robustkit.bounds.chain import Statistics, altered
from robustkit.bounds.layers import check_operations
from robustkit.bounds.method import BoundMethod
from robustkit.errors import RobustkitError, UnsupportedLayerError
from robustkit.models.architectures import Normalize
from robustkit.models.modes import in_eval_mode

PARALLEL = "same-slope"
ADAPTIVE = "adaptive"
RELAXATION = {method: PARALLEL if method is BoundMethod.SYMBOLIC else ADAPTIVE for method in BoundMethod}
CALLED = {
    BoundMethod.IBP: "IBP",
    BoundMethod.CROWN_IBP: "CROWN-IBP",
    BoundMethod.SYMBOLIC: "backward",
    BoundMethod.CROWN: "backward",
    BoundMethod.ALPHA_CROWN: "CROWN-Optimized",
}


class Engine:
    """auto-LiRPA's modules of one network, one for each kind of lines, built when they are first needed.

    Args:
        model: on its device; its mode may change later, its layers may not.
        example: one input, shape ``(1, ...)``.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.model = model
        self._example = example
        self._modules: dict[str, Any] = {}
        self._norms = {
            id(one.weight): one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)
        }

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return int(self._module(ADAPTIVE).final_shape[-1])

    @property
    def sizes(self) -> list[int]:
        """Sizes of what the operations of the graph give for one input."""
        shapes = [getattr(node, "output_shape", None) for node in self._module(ADAPTIVE)._modules.values()]
        return [math.prod(shape[1:]) for shape in shapes if shape is not None and len(shape) > 1]

    def __call__(self, x: Tensor, statistics: Statistics) -> Tensor:
        """Compute the outputs; batch norm in train mode leaves the statistics that it will bound with."""
        with self._working(ADAPTIVE) as module:
            logits: Tensor = module(x)
        for node, layer in self._norms_in(module):
            if layer.training:
                statistics[layer] = node.current_mean, node.current_var
        return logits

    def bounds(
        self,
        lb: Tensor,
        ub: Tensor,
        specification: Tensor,
        method: BoundMethod,
        upper: bool,
        intervals_first: bool,
        statistics: Statistics,
    ) -> tuple[Tensor, Tensor | None]:
        """Bound ``C @ outputs`` over a box; see ``BoundedNetwork.output_bounds``."""
        with self._working(RELAXATION[method], method, statistics) as module:
            inputs = (_box(lb, ub),)
            if method is BoundMethod.ALPHA_CROWN:
                return _optimised(module, inputs, specification, upper)
            with _intervals_first(module) if intervals_first else contextlib.nullcontext():
                lower, above = module.compute_bounds(
                    x=inputs, C=specification, method=CALLED[method], bound_lower=True, bound_upper=upper
                )
            return lower, above if upper else None

    def interval_pass(
        self, lb: Tensor, ub: Tensor, specification: Tensor, statistics: Statistics
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Bound ``C @ outputs`` and the input of every ReLU; see ``BoundedNetwork.interval_pass``."""
        with self._working(ADAPTIVE, BoundMethod.IBP, statistics) as module:
            lower, _ = module.compute_bounds(x=(_box(lb, ub),), C=specification, method="IBP", bound_upper=False)
            relus = [node for node in module._modules.values() if type(node).__name__ == "BoundRelu"]
            return lower, [tuple(node.inputs[0].interval) for node in relus]

    def coefficients(
        self, lb: Tensor, ub: Tensor, specification: Tensor, statistics: Statistics
    ) -> tuple[Tensor, Tensor]:
        """Give symbolic upper bounds and their input coefficients; see ``BoundedNetwork.input_coefficients``."""
        with self._working(PARALLEL, BoundMethod.SYMBOLIC, statistics) as module:
            source, final = module.input_name[0], module.final_name
            with _intervals_first(module):
                _, upper, coefficients = module.compute_bounds(
                    x=(_box(lb, ub),),
                    C=specification,
                    method="backward",
                    bound_lower=False,
                    bound_upper=True,
                    return_A=True,
                    needed_A_dict={final: {source}},
                )
            found: Tensor = coefficients[final][source]["uA"]
            return found.reshape(*specification.shape[:2], *lb.shape[1:]), upper

    def _module(self, relaxation: str) -> Any:
        """Build the library's module for one relaxation, or give the one that stands."""
        if relaxation not in self._modules:
            self._modules[relaxation] = self._build(relaxation)
        return self._modules[relaxation]

    def _norms_in(self, module: Any) -> Iterator[tuple[Any, nn.Module]]:
        """Give each batch norm of the graph with the layer it stands for."""
        for node in module._modules.values():
            if type(node).__name__ == "BoundBatchNormalization":
                yield node, self._norms[id(node.inputs[1].param)]

    def _build(self, relaxation: str) -> Any:
        library = import_auto_lirpa()
        options = {
            "relu": relaxation,
            "activation_bound_option": relaxation,
            "conv_mode": "patches",
            "sparse_intermediate_bounds": relaxation == ADAPTIVE,
            "minimum_sparsity": 1.0,
            "optimize_bound_args": {"init_alpha": False, "iteration": 20, "lr_alpha": 0.25},
        }
        try:
            shell = _simplified(copy.deepcopy(self.model).eval(), self._example.shape[1])
            with torch.random.fork_rng(devices=[]), quiet():
                engine = library.BoundedModule(shell, self._example, bound_opts=options)
        except UnsupportedLayerError:
            raise
        except Exception as error:
            named = _seen(error, "unsupported_ops")
            names = dict.fromkeys(node.op.removeprefix("onnx::") for node in named or ())
            what = ", ".join(names) or _first_line(error)
            raise UnsupportedLayerError(f"cannot trace the network for bounds: {what}") from error
        check_operations(engine._modules.values())
        if relaxation == ADAPTIVE:
            _hold_against(engine, self.model, self._example)
        return engine

    @contextlib.contextmanager
    def _working(
        self, relaxation: str, method: BoundMethod | None = None, statistics: Statistics | None = None
    ) -> Iterator[Any]:
        """Lend a module in the network's own mode; one that broke off is thrown away, for it is left half-done."""
        module = self._module(relaxation)
        _share_state(module, self.model)
        module.train(self.model.training)
        for node, layer in self._norms_in(module):
            node.train(layer.training)
            if layer.training and statistics is not None:
                node.current_mean, node.current_var = statistics[layer]
        try:
            with _parameters_as_they_were(self.model), quiet():
                yield module
        except (torch.OutOfMemoryError, KeyboardInterrupt, RobustkitError):
            self._modules.pop(relaxation, None)
            raise
        except Exception as error:
            self._modules.pop(relaxation, None)
            asked = f"{method.value} bounds" if method else "the bound engine"
            where = _culprit(error)
            raise UnsupportedLayerError(
                f"{asked} cannot carry this network{where}: {_first_line(error)}; try another bound method"
            ) from error


def _hold_against(engine: Any, model: nn.Module, example: Tensor) -> None:
    """Refuse a graph that computes something else than the network, or that CROWN does not bound exactly at a point."""
    draw = torch.Generator().manual_seed(0)
    x = torch.cat([example, torch.rand(3, *example.shape[1:], generator=draw).to(example)])
    with torch.no_grad(), in_eval_mode(model), torch.random.fork_rng(devices=[]), quiet():
        expected, computed = model(x), engine(x)
        if not bool(torch.isfinite(expected).all()):
            return  # every bound is refused for that, by a clearer message
        lower, upper = engine.compute_bounds(x=(_box(x, x),), method="backward")
    allowed = 1e-2 * (1.0 + expected.abs().amax())
    if not all(bool(((one - expected).abs() <= allowed).all()) for one in (computed, lower, upper)):
        raise UnsupportedLayerError(
            "cannot bound this network: the traced graph gives other logits than the network itself; a layer is traced "
            "or bounded wrongly, an option of a pooling layer perhaps"
        )


def _simplified(shell: nn.Module, channels: int) -> nn.Module:
    """Write layers as others that do the same in eval mode and that every version of the library carries.

    Dropout is nothing. A ``Normalize`` layer is a convolution of single pixels: the library divides wrongly shaped
    patches where a batch has several samples.
    """
    for name, layer in list(shell.named_modules()):
        if isinstance(layer, nn.modules.dropout._DropoutNd) and name:
            if altered(layer):
                raise UnsupportedLayerError(
                    f"cannot bound Dropout at {name!r}: something is hooked into it; remove that"
                )
            _replace(shell, name, nn.Identity())
        elif (
            name
            and not altered(layer)
            and type(layer) is Normalize
            and layer.mean.numel() == layer.std.numel() == channels
        ):
            _replace(shell, name, _as_convolution(layer))
    return shell


def _replace(shell: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(shell.get_submodule(parent), own, layer)


def _as_convolution(layer: Normalize) -> nn.Conv2d:
    channels = layer.mean.numel()
    convolution = nn.Conv2d(channels, channels, 1, device=layer.mean.device).requires_grad_(False)
    convolution.weight.copy_(_pixel_wise(layer)["weight"])
    assert convolution.bias is not None
    convolution.bias.copy_(_pixel_wise(layer)["bias"])
    return convolution


def _pixel_wise(layer: Normalize) -> dict[str, Tensor]:
    """Give the parameters of the convolution that a ``Normalize`` layer is."""
    scale = 1.0 / layer.std.flatten()
    return {"weight": torch.diag(scale)[:, :, None, None], "bias": -layer.mean.flatten() * scale}


def _box(lb: Tensor, ub: Tensor) -> Any:
    library = import_auto_lirpa()
    return library.BoundedTensor(lb, library.PerturbationLpNorm(norm=np.inf, x_L=lb, x_U=ub))


def _optimised(engine: Any, inputs: tuple[Any], specification: Tensor, upper: bool) -> tuple[Tensor, Tensor | None]:
    """Run CROWN once for the hidden layers, then optimise the slopes of the last bounds only."""
    current = hasattr(engine, "init_alpha")  # 0.7 has other names for the same
    begin, given = ("init_alpha", "interm_bounds") if current else ("init_slope", "intermediate_layer_bounds")
    with torch.enable_grad():
        lower, above, *_ = getattr(engine, begin)(inputs, c=specification, method="backward", bound_upper=upper)
        if not engine.optimizable_activations:
            return lower, above
        hidden = {
            node.name: [node.lower.detach(), node.upper.detach()]
            for activation in engine._modules.values()
            if any(getattr(activation, mark, False) for mark in ("nonlinear", "requires_input_bounds"))
            or activation in engine.optimizable_activations
            for node in activation.inputs
            if getattr(node, "lower", None) is not None and node.perturbed
        }
        better = engine.compute_bounds(
            x=inputs,
            C=specification,
            method="CROWN-Optimized",
            bound_lower=True,
            bound_upper=upper,
            **{given: hidden},
        )
    lower = torch.fmax(lower, better[0]).detach()
    return lower, torch.fmin(above, better[1]).detach() if upper else None


@contextlib.contextmanager
def _intervals_first(engine: Any) -> Iterator[None]:
    """Let intervals say which neurons are stable, so that only the others are bounded linearly."""
    before = engine.bound_opts["sparse_intermediate_bounds"]
    engine.bound_opts["sparse_intermediate_bounds"] = True
    try:
        yield
    finally:
        engine.bound_opts["sparse_intermediate_bounds"] = before


@contextlib.contextmanager
def _parameters_as_they_were(model: nn.Module) -> Iterator[None]:
    """Put back which parameters ask for gradients: the library switches them with the mode."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _share_state(engine: Any, model: nn.Module) -> None:
    """Let the engine read and train the network's own parameters and buffers instead of the copies it was built on."""
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    for node in engine._modules.values():
        if "param" in node._parameters and node.ori_name in parameters:
            node._parameters["param"] = parameters[node.ori_name]
        elif "param" in node._parameters:
            where, _, kind = node.ori_name.rpartition(".")
            layer = model.get_submodule(where)
            assert isinstance(layer, Normalize)  # all that is written as another layer with parameters
            node._parameters["param"] = nn.Parameter(_pixel_wise(layer)[kind], requires_grad=False)
        if "buffer" in node._buffers:
            node._buffers["buffer"] = buffers.get(node.ori_name, parameters.get(node.ori_name))


def _culprit(error: BaseException) -> str:
    """Name the graph node in which the library broke off, if the traceback knows it."""
    node = _seen(error, "self", "auto_LiRPA.operators")
    return f" (at {type(node).__name__.removeprefix('Bound')} {getattr(node, 'name', '')})" if node is not None else ""


def _seen(error: BaseException, name: str, package: str = "") -> Any:
    """Give the innermost value that a traceback holds under a name, of a type from ``package``."""
    found, trace = None, error.__traceback__
    while trace is not None:
        value = trace.tb_frame.f_locals.get(name)
        if value is not None and type(value).__module__.startswith(package):
            found = value
        trace = trace.tb_next
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
