"""The one place that knows auto-LiRPA: a network prepared for bound propagation."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustkit._process import use_full_precision
from robustkit.bounds._repairs import import_auto_lirpa, quiet
from robustkit.bounds.layers import check_layers, check_operations
from robustkit.bounds.method import BoundMethod
from robustkit.errors import RobustkitError, UnsupportedLayerError
from robustkit.margins import margin_specification
from robustkit.threat import LinfBall

BUDGET = {"cpu": 2**23, "cuda": 2**27}
"""Numbers that one coefficient matrix may hold outside training, by device; larger batches are split.

On a CPU smaller parts stay in the caches: a quarter of the memory, and no more time.
"""

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


class BoundedNetwork:
    """A network prepared for bound propagation; it shares its parameters and buffers.

    Calling it computes the logits as the network does. In train mode batch norm bounds with the statistics of the
    last such call, so call it on the clean batch first.

    Args:
        model: on its device; its mode may change later, its layers may not.
        example: one input, shape ``(1, ...)``.

    Raises:
        UnsupportedLayerError: a layer cannot be bounded soundly; the layer is named.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        check_layers(model)
        use_full_precision()
        self.model = model
        self._example = example[:1].detach().clone()
        self._engines: dict[str, Any] = {}
        self._classes = int(self._engine(ADAPTIVE).final_shape[-1])

    @property
    def classes(self) -> int:
        """Number of classes ``K``."""
        return self._classes

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the logits of inputs ``(B, ...)``, shape ``(B, K)``; differentiable."""
        self._refuse_dropout()
        with self._working(ADAPTIVE) as engine:
            logits: Tensor = engine(x)
        return logits

    def lower_margins(
        self, x: Tensor, y: Tensor, ball: LinfBall, method: BoundMethod, *, intervals_first: bool = False
    ) -> Tensor:
        """Bound the margin matrix over the ball around each sample from below.

        Args:
            x: inputs, shape ``(B, ...)``, in the pixel range.
            y: labels, shape ``(B,)``.
            ball: the ball around each input.
            method: the bound method.
            intervals_first: see ``output_bounds``.

        Returns:
            Shape ``(B, K)``, column ``y`` zero, minus infinity where nothing is proved. Differentiable in the
            parameters, except for alpha-CROWN.

        Raises:
            RobustkitError: a parameter is not finite.
            UnsupportedLayerError: the method cannot carry a layer of this network.
        """
        lb, ub = ball.box(x)
        specification = margin_specification(y, self.classes)
        lower, _ = self.output_bounds(lb, ub, specification, method, upper=False, intervals_first=intervals_first)
        own = nn.functional.one_hot(y, self.classes).bool()
        return lower.masked_fill(own, 0.0)

    def output_bounds(
        self,
        lb: Tensor,
        ub: Tensor,
        specification: Tensor,
        method: BoundMethod,
        *,
        upper: bool = True,
        intervals_first: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Bound ``C @ logits`` over a box of inputs.

        Args:
            lb: lower corners, shape ``(B, ...)``.
            ub: upper corners, of the same shape, ``lb <= ub``.
            specification: ``C``, shape ``(B, R, K)``.
            method: the bound method.
            upper: also bound from above; without, the upper bounds are infinite.
            intervals_first: let intervals say which neurons are stable and bound only the others linearly. Sound as
                well; symbolic bounds become two to four times faster and a few percent looser in their loss, which
                suits training. The other methods bound so anyway, or not at all.

        Returns:
            ``lower, upper``, each ``(B, R)``; infinite where the engine gave NaN or bounds that cross.

        Raises:
            RobustkitError: a parameter or a corner is not finite.
            UnsupportedLayerError: the method cannot carry a layer of this network.
        """
        self._refuse_dropout()
        self._refuse_unusable(lb, ub)
        size = len(lb) if torch.is_grad_enabled() and self.model.training else self._chunk(len(lb))
        parts = zip(*(torch.split(one, size) for one in (lb, ub, specification)), strict=True)
        bounds = [_settle(*self._bounds(low, high, rows, method, upper, intervals_first)) for low, high, rows in parts]
        return torch.cat([one[0] for one in bounds]), torch.cat([one[1] for one in bounds])

    @torch.no_grad()
    def input_coefficients(self, lb: Tensor, ub: Tensor, specification: Tensor) -> tuple[Tensor, Tensor]:
        """Give the symbolic upper bound of ``C @ logits`` over a box: its input coefficients, and its greatest value.

        Intervals say first which neurons are stable (see ``output_bounds``): on small boxes that loses next to nothing.

        Args:
            lb: lower corners, shape ``(B, ...)``.
            ub: upper corners, of the same shape.
            specification: ``C``, shape ``(B, R, K)``.

        Returns:
            The coefficients, shape ``(B, R, ...)``, and the upper bounds, shape ``(B, R)``.

        Source: Wang et al. 2019, arXiv 1906.02282: the interval gradient.
        """
        self._refuse_dropout()
        self._refuse_unusable(lb, ub)
        size = self._chunk(len(lb))
        parts = zip(*(torch.split(one, size) for one in (lb, ub, specification)), strict=True)
        found = [self._coefficients(low, high, rows) for low, high, rows in parts]
        return torch.cat([one[0] for one in found]), torch.cat([one[1] for one in found])

    def _bounds(
        self, lb: Tensor, ub: Tensor, specification: Tensor, method: BoundMethod, upper: bool, intervals_first: bool
    ) -> tuple[Tensor, Tensor | None]:
        relaxation = RELAXATION[method]
        with self._working(relaxation, method) as engine:
            inputs = (_box(lb, ub),)
            if method is BoundMethod.ALPHA_CROWN:
                return _optimised(engine, inputs, specification, upper)
            with _intervals_first(engine) if intervals_first else contextlib.nullcontext():
                lower, above = engine.compute_bounds(
                    x=inputs, C=specification, method=CALLED[method], bound_lower=True, bound_upper=upper
                )
            return lower, above if upper else None

    def _coefficients(self, lb: Tensor, ub: Tensor, specification: Tensor) -> tuple[Tensor, Tensor]:
        with self._working(PARALLEL, BoundMethod.SYMBOLIC) as engine:
            source, final = engine.input_name[0], engine.final_name
            with _intervals_first(engine):
                _, upper, coefficients = engine.compute_bounds(
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

    def _engine(self, relaxation: str) -> Any:
        """Build the library's module for one relaxation, or give the one that stands."""
        if relaxation not in self._engines:
            self._engines[relaxation] = self._build(relaxation)
        return self._engines[relaxation]

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
            shell = _without_dropout(copy.deepcopy(self.model).eval())
            with torch.random.fork_rng(devices=[]), quiet():
                engine = library.BoundedModule(shell, self._example, bound_opts=options)
        except Exception as error:
            named = _seen(error, "unsupported_ops")
            names = dict.fromkeys(node.op.removeprefix("onnx::") for node in named or ())
            what = ", ".join(names) or _first_line(error)
            raise UnsupportedLayerError(f"cannot trace the network for bounds: {what}") from error
        check_operations(engine._modules.values())
        if relaxation == ADAPTIVE:
            _hold_against(engine, shell, self._example)
        _share_state(engine, self.model)
        return engine

    @contextlib.contextmanager
    def _working(self, relaxation: str, method: BoundMethod | None = None) -> Iterator[Any]:
        """Lend an engine in the network's own mode; one that broke off is thrown away, for it is left half-done."""
        engine = self._engine(relaxation)
        engine.train(self.model.training)
        if relaxation != ADAPTIVE and self.model.training:
            _copy_batch_statistics(self._engines.get(ADAPTIVE), engine)
        try:
            with _parameters_as_they_were(self.model), quiet():
                yield engine
        except (torch.OutOfMemoryError, KeyboardInterrupt, RobustkitError):
            self._engines.pop(relaxation, None)
            raise
        except Exception as error:
            self._engines.pop(relaxation, None)
            asked = f"{method.value} bounds" if method else "the bound engine"
            where = _culprit(error)
            raise UnsupportedLayerError(
                f"{asked} cannot carry this network{where}: {_first_line(error)}; try another bound method"
            ) from error

    def _chunk(self, batch: int) -> int:
        """Give how many samples can be bounded at once within the budget."""
        widths = [math.prod(layer.weight.shape[:1]) for layer in self.model.modules() if isinstance(layer, nn.Linear)]
        engine = self._engine(ADAPTIVE)
        shapes = [getattr(node, "output_shape", None) for node in engine._modules.values()]
        largest = max((math.prod(shape[1:]) for shape in shapes if shape is not None and len(shape) > 1), default=1)
        return max(
            1, min(batch, BUDGET.get(self._example.device.type, BUDGET["cpu"]) // (max(widths, default=1) * largest))
        )

    def _refuse_dropout(self) -> None:
        if self.model.training:
            for name, layer in self.model.named_modules():
                if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.training and layer.p > 0:
                    raise UnsupportedLayerError(
                        f"cannot bound Dropout at {name!r} in train mode; remove it, or train without bounds"
                    )

    def _refuse_unusable(self, lb: Tensor, ub: Tensor) -> None:
        for name, value in self.model.state_dict(keep_vars=True).items():
            if value.is_floating_point() and not bool(torch.isfinite(value.detach()).all()):
                raise RobustkitError(
                    f"expected finite weights, but {name!r} holds NaN or infinity; train or load again"
                )
        if not bool((torch.isfinite(lb) & torch.isfinite(ub) & (lb <= ub)).all()):
            raise RobustkitError("expected a box with finite corners and lb <= ub; check the inputs for NaN")


def _hold_against(engine: Any, shell: nn.Module, example: Tensor) -> None:
    """Refuse a graph that computes something else than the network, or that CROWN does not bound exactly at a point."""
    draw = torch.Generator().manual_seed(0)
    x = torch.cat([example, torch.rand(3, *example.shape[1:], generator=draw).to(example)])
    with torch.no_grad(), quiet():
        expected, computed = shell(x), engine(x)
        if not bool(torch.isfinite(expected).all()):
            return  # every bound is refused for that, by a clearer message
        lower, upper = engine.compute_bounds(x=(_box(x, x),), method="backward")
    allowed = 1e-2 * (1.0 + expected.abs().amax())
    if not all(bool(((one - expected).abs() <= allowed).all()) for one in (computed, lower, upper)):
        raise UnsupportedLayerError(
            "cannot bound this network: the traced graph gives other logits than the network itself; a layer is traced "
            "or bounded wrongly, an option of a pooling layer perhaps"
        )


def _without_dropout(shell: nn.Module) -> nn.Module:
    """Put identities where dropout stands: in eval mode it is nothing else, and 0.7 cannot trace it."""
    for name, layer in list(shell.named_modules()):
        if isinstance(layer, nn.modules.dropout._DropoutNd) and name:
            parent, _, own = name.rpartition(".")
            setattr(shell.get_submodule(parent), own, nn.Identity())
    return shell


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


def _settle(lower: Tensor, upper: Tensor | None) -> tuple[Tensor, Tensor]:
    """Turn what cannot be a bound into no bound at all."""
    if upper is None:
        return torch.where(lower.isnan(), -torch.inf, lower), torch.full_like(lower, torch.inf)
    slack = 1e-5 * (1.0 + torch.maximum(lower.abs(), upper.abs()))
    broken = lower.isnan() | upper.isnan() | (lower > upper + slack)
    least, most = torch.minimum(lower, upper), torch.maximum(lower, upper)
    return torch.where(broken, -torch.inf, least), torch.where(broken, torch.inf, most)


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
        if "param" in node._parameters:
            node._parameters["param"] = parameters[node.ori_name]
        if "buffer" in node._buffers:
            node._buffers["buffer"] = buffers.get(node.ori_name, parameters.get(node.ori_name))


def _copy_batch_statistics(source: Any, target: Any) -> None:
    """Carry the statistics of the last clean batch from one engine of the network to another."""
    pairs = zip(source._modules.values(), target._modules.values(), strict=True) if source is not None else ()
    for given, taking in pairs:
        if type(given).__name__ == "BoundBatchNormalization":
            if not hasattr(given, "current_mean"):
                raise RobustkitError("expected a call on the clean batch before bounds of batch norm in train mode")
            taking.current_mean, taking.current_var = given.current_mean, given.current_var


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
