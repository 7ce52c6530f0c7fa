"""A network prepared for bound propagation: plain stacks by their own two passes, everything else by the engine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robustkit._process import use_full_precision
from robustkit.bounds.autolirpa import Engine
from robustkit.bounds.chain import Statistics, chain_of, forward, intervals, plain_layers, shapes_of
from robustkit.bounds.layers import check_box, check_layers, check_weights
from robustkit.bounds.method import BoundMethod
from robustkit.bounds.symbolic import Backward, carries
from robustkit.errors import RobustkitError, UnsupportedLayerError
from robustkit.margins import margin_specification
from robustkit.models.modes import in_eval_mode
from robustkit.threat import LinfBall

BUDGET = {"cpu": 2**23, "cuda": 2**27}
"""Numbers that one coefficient matrix may hold outside training, by device; larger batches are split.

On a CPU smaller parts stay in the caches: a quarter of the memory, and no more time.
"""

LayerBounds = list[tuple[Tensor, Tensor]]


class BoundedNetwork:
    """A network prepared for bound propagation; it shares its parameters and buffers.

    Calling it computes the logits as the network does. In train mode batch norm bounds with the statistics of the
    last such call, so call it on the clean batch first. Plain stacks of layers are bounded by intervals and
    symbolically without the engine: the same bounds to rounding, symbolic ones in about half the time.

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
        self._engine = Engine(model, self._example)
        self._statistics = Statistics()
        self._layers = chain_of(model, self._example)
        self._symbolic = self._layers is not None and carries(self._layers)
        if self._layers is not None:
            _hold_against(self._layers, model, self._example)
        last = self._layers[-1] if self._layers else None
        self._classes = last.out_features if isinstance(last, nn.Linear) else self._engine.outputs
        self._largest = self._largest_matrix()

    @property
    def classes(self) -> int:
        """Number of classes ``K``."""
        return self._classes

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the logits of inputs ``(B, ...)``, shape ``(B, K)``; differentiable."""
        self._refuse_dropout()
        with _full_precision(x):
            if self._layers is not None:
                return forward(self._layers, x, self._statistics)
            return self._engine(x, self._statistics)

    @contextmanager
    def whole_batch(self, x: Tensor) -> Iterator[None]:
        """Let batch norm in train mode use the statistics of a whole batch while parts of it are worked on.

        The gradient is that of the whole batch: it flows through the statistics as well. Only plain stacks can do this;
        in other networks each part has its own statistics.

        Args:
            x: the clean batch, shape ``(B, ...)``.
        """
        if self._layers is None:
            yield
            return
        self(x)
        with self._statistics.held():
            yield

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
                well; symbolic bounds become two to four times faster, no looser on average, but no longer those of the
                published algorithm. The other methods bound so anyway, or not at all.

        Returns:
            ``lower, upper``, each ``(B, R)``; infinite where the bound is NaN or bounds cross.

        Raises:
            RobustkitError: a parameter or a corner is not finite.
            UnsupportedLayerError: the method cannot carry a layer of this network.
        """
        self._refuse_dropout()
        self._refuse_unusable(lb, ub)
        parts = zip(*(torch.split(one, self._chunk(len(lb))) for one in (lb, ub, specification)), strict=True)
        with _full_precision(lb):
            bounds = [
                _settle(*self._bounds(low, high, rows, method, upper, intervals_first)) for low, high, rows in parts
            ]
        return torch.cat([one[0] for one in bounds]), torch.cat([one[1] for one in bounds])

    def interval_pass(self, lb: Tensor, ub: Tensor, specification: Tensor) -> tuple[Tensor, LayerBounds]:
        """Bound ``C @ logits`` from below by intervals, and the inputs of every ReLU on the way.

        Args:
            lb: lower corners, shape ``(B, ...)``.
            ub: upper corners, of the same shape.
            specification: ``C``, shape ``(B, R, K)``.

        Returns:
            The lower bounds, shape ``(B, R)``, and lower and upper bounds of the input of each ReLU, in the order of
            the network; all differentiable.

        Raises:
            RobustkitError: a parameter or a corner is not finite.
        """
        self._refuse_dropout()
        self._refuse_unusable(lb, ub)
        with _full_precision(lb):
            if self._layers is None:
                lower, hidden = self._engine.interval_pass(lb, ub, specification, self._statistics)
            else:
                hidden = []
                lower, _ = self._by_intervals(lb, ub, specification, hidden)
        return _settle(lower, None)[0], hidden

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
        parts = zip(*(torch.split(one, self._chunk(len(lb))) for one in (lb, ub, specification)), strict=True)
        with _full_precision(lb):
            found = [self._coefficients(low, high, rows) for low, high, rows in parts]
        return torch.cat([one[0] for one in found]), torch.cat([one[1] for one in found])

    def _bounds(
        self, lb: Tensor, ub: Tensor, specification: Tensor, method: BoundMethod, upper: bool, intervals_first: bool
    ) -> tuple[Tensor, Tensor | None]:
        if method is BoundMethod.IBP and self._layers is not None:
            low, high = self._by_intervals(lb, ub, specification, None)
        elif method is BoundMethod.SYMBOLIC and self._symbolic:
            low, high = self._backward(lb, ub, unstable_only=intervals_first).bounds(specification)
        else:
            return self._engine.bounds(lb, ub, specification, method, upper, intervals_first, self._statistics)
        return low, high if upper else None

    def _by_intervals(
        self, lb: Tensor, ub: Tensor, specification: Tensor, hidden: LayerBounds | None
    ) -> tuple[Tensor, Tensor]:
        """Propagate a box, the last layer merged with the specification."""
        assert self._layers is not None
        last = self._layers[-1]
        assert isinstance(last, nn.Linear)
        centre, radius = intervals(self._layers[:-1], _box(lb, ub), self._statistics, hidden)
        rows = specification @ last.weight
        middle = torch.bmm(rows, centre.unsqueeze(2)).squeeze(2)
        spread = torch.bmm(rows.abs(), radius.unsqueeze(2)).squeeze(2)
        if last.bias is not None:
            middle = middle + specification @ last.bias
        return middle - spread, middle + spread

    def _coefficients(self, lb: Tensor, ub: Tensor, specification: Tensor) -> tuple[Tensor, Tensor]:
        if not self._symbolic:
            return self._engine.coefficients(lb, ub, specification, self._statistics)
        backward = self._backward(lb, ub, unstable_only=True)
        rows = backward.to_input(specification)
        return rows.coefficients, backward.concretised(rows)[1]

    def _backward(self, lb: Tensor, ub: Tensor, *, unstable_only: bool) -> Backward:
        assert self._layers is not None
        return Backward(self._layers, _box(lb, ub), self._statistics, unstable_only=unstable_only)

    def _largest_matrix(self) -> int:
        """Give how many coefficients a sample takes at most: those of the widest hidden layer at the largest one."""
        widths = [layer.weight.shape[0] for layer in self.model.modules() if isinstance(layer, nn.Linear)]
        if self._layers is None:
            return max(widths, default=1) * max(self._engine.sizes, default=1)
        return max(widths) * max(map(math.prod, shapes_of(self._layers, self._example)))

    def _chunk(self, batch: int) -> int:
        """Give how many samples can be bounded at once within the budget; in training all of them."""
        if torch.is_grad_enabled() and self.model.training:
            return batch
        return max(1, min(batch, BUDGET.get(self._example.device.type, BUDGET["cpu"]) // self._largest))

    def _refuse_dropout(self) -> None:
        for name, layer in self.model.named_modules():
            if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.training and layer.p > 0:
                raise UnsupportedLayerError(
                    f"cannot bound Dropout at {name!r} in train mode; remove it, or train without bounds"
                )

    def _refuse_unusable(self, lb: Tensor, ub: Tensor) -> None:
        if torch.is_grad_enabled() and self.model.training:
            return  # the training loop finds out from the loss, without waiting for the device at every step
        if self._layers is not None and plain_layers(self.model) != self._layers:
            raise RobustkitError(
                "expected the layers that bounds were prepared for, got others; prepare the model again"
            )
        if lb.dtype != torch.float32:
            raise RobustkitError(f"expected float32 inputs and weights, got {lb.dtype}; convert with .float()")
        check_weights(self.model)
        check_box(lb, ub)


def _box(lb: Tensor, ub: Tensor) -> tuple[Tensor, Tensor]:
    return (ub + lb) * 0.5, (ub - lb) * 0.5


@torch.no_grad()
def _hold_against(layers: Sequence[nn.Module], model: nn.Module, example: Tensor) -> None:
    """Refuse a stack of layers that computes something else than the network."""
    draw = torch.Generator().manual_seed(0)
    x = torch.cat([example, torch.rand((3, *example.shape[1:]), generator=draw).to(example)])
    with in_eval_mode(model):
        expected, computed = model(x), forward(layers, x, Statistics())
    apart = (computed - expected).abs() > 1e-3 * (1.0 + expected.abs().amax())
    if bool(torch.isfinite(expected).all()) and bool(apart.any()):
        raise UnsupportedLayerError(
            "cannot bound this network: its layers one after the other give other logits than the network itself; "
            "remove what was patched into it"
        )


def _full_precision(like: Tensor) -> torch.autocast:
    """Bounds are never computed in mixed precision."""
    return torch.autocast(like.device.type, enabled=False)


def _settle(lower: Tensor, upper: Tensor | None) -> tuple[Tensor, Tensor]:
    """Turn what cannot be a bound into no bound at all."""
    if upper is None:
        return torch.where(lower.isnan(), -torch.inf, lower), torch.full_like(lower, torch.inf)
    slack = 1e-5 * (1.0 + torch.maximum(lower.abs(), upper.abs()))
    broken = lower.isnan() | upper.isnan() | (lower > upper + slack)
    least, most = torch.minimum(lower, upper), torch.maximum(lower, upper)
    return torch.where(broken, -torch.inf, least), torch.where(broken, torch.inf, most)
