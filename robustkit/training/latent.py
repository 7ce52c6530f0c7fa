"""A network cut in two, and the attack on its second part within a box of what the first part gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from robustkit.attacks.base import evaluating
from robustkit.errors import UsageError
from robustkit.models.named import Residual

CONNECTED = 0.5
"""Share of the box next to a bound in which the attacked point moves that bound."""


@dataclass(frozen=True)
class Split:
    """A network cut right after a ReLU.

    Attributes:
        model: all of it.
        classifier: what follows the cut; it shares its layers.
        before: ReLUs in front of the cut.
        relus: all ReLUs.
    """

    model: nn.Module
    classifier: nn.Sequential
    before: int
    relus: int

    def latent_box(self, layers: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Give the interval bounds at the cut, from those of the input of every ReLU.

        Raises:
            UsageError: the network has ReLUs that are no modules of their own, so that the cut cannot be found.
        """
        if len(layers) != self.relus:
            raise UsageError(
                f"expected every ReLU as an nn.ReLU of its own, found {self.relus} of them but {len(layers)} in the "
                "graph; write the network with one nn.ReLU for each, or choose another train.method"
            )
        lower, upper = layers[self.before - 1]
        return torch.relu(lower), torch.relu(upper)

    def second_part(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Give the classifier as a function that normalises as the clean batch does, and changes no statistics.

        Args:
            x: the clean batch. Deviation: no gradient goes through its statistics.
        """
        buffers = _clean_statistics(self.model, self.classifier, x)

        def classify(z: Tensor) -> Tensor:
            with evaluating(self.classifier):
                logits: Tensor = functional_call(self.classifier, buffers, (z,))
            return logits

        return classify


def split_network(model: nn.Module, classifier_relus: int, x: Tensor) -> Split:
    """Cut a network right after a ReLU, or a residual block that ends with one, so that a number of ReLUs follows.

    Args:
        model: an ``nn.Sequential``, or a module that does nothing but call its only child, which is one.
        classifier_relus: ReLUs behind the cut, at least 1.
        x: inputs on which a wrapper is checked to be one, shape ``(B, ...)``.

    Raises:
        UsageError: the network is no such thing, or has too few ReLUs.
    """
    layers = _sequential(model, x)
    for place in range(len(layers) - 1, 0, -1):
        classifier = layers[place:]
        if isinstance(layers[place - 1], nn.ReLU | Residual) and _relus(classifier) == classifier_relus:
            return Split(model, classifier, _relus(layers[:place]), _relus(layers))
    raise UsageError(
        f"expected a network with a ReLU layer in front of its last {classifier_relus} (classifier_relus), got one of "
        f"{_relus(layers)} ReLUs without; choose another classifier_relus or a deeper model"
    )


def attacked_margins(
    classify: Callable[[Tensor], Tensor],
    box: tuple[Tensor, Tensor],
    y: Tensor,
    start: Tensor,
    *,
    steps: int,
    rel_step_size: float,
) -> Tensor:
    """Give the least margin that PGD finds in a latent box, for every wrong class an attack of its own.

    Args:
        classify: maps latent points ``(N, ...)`` to logits ``(N, K)``.
        box: corners ``(B, ...)``; the points found carry the gradient on to them, see ``connected``.
        y: labels, shape ``(B,)``.
        start: where in the box each attack starts, in [0, 1], shape ``(B, K, ...)``.
        steps: signed gradient steps.
        rel_step_size: step as a fraction of the radius of the box, neuron by neuron.

    Returns:
        Margins, shape ``(B, K)``, column ``y`` zero; no bound of anything.
    """
    lb, ub = (one.detach().unsqueeze(1) for one in box)
    z = lb + start * (ub - lb)
    worst, least = z, z.new_full(z.shape[:2], torch.inf)
    for step in range(steps + 1):
        z = z.detach().requires_grad_()
        margins = _margins(classify, z, y)
        better = margins.detach() < least
        least = torch.where(better, margins.detach(), least)
        worst = torch.where(better.reshape(*better.shape, *[1] * (z.ndim - 2)), z.detach(), worst)
        if step < steps:
            (slope,) = torch.autograd.grad(margins.sum(), z)
            z = torch.clamp(z.detach() - rel_step_size * (ub - lb) / 2 * slope.sign(), lb, ub)
    lower, upper = (one.unsqueeze(1).expand_as(worst) for one in box)
    return _margins(classify, connected(worst, lower, upper), y)


def connected(point: Tensor, lb: Tensor, ub: Tensor) -> Tensor:
    """Give a point of a box that passes its gradient on to the bounds that it lies near.

    The derivative to the lower bound is ``relu(1 - (point - lb) / (c (ub - lb)))`` with ``c = 0.5``, and likewise to
    the upper one: 1 at the bound, 0 from the middle on. A box without width gives half to each (our own choice).

    Source: Mao et al. 2023, arXiv 2305.04574: the rectified linear gradient connector.
    """
    joined: Tensor = _Connector.apply(point, lb, ub)
    return joined


class _Connector(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, point: Tensor, lb: Tensor, ub: Tensor) -> Tensor:
        ctx.save_for_backward(point, lb, ub)
        return point.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor]:
        point, lb, ub = ctx.saved_tensors
        width = ub - lb
        reach = CONNECTED * torch.where(width > 0, width, 1.0)
        shares = [torch.relu(1.0 - distance / reach) for distance in (point - lb, ub - point)]
        low, high = (gradients[0] * torch.where(width > 0, share, 0.5) for share in shares)
        return None, low, high


def _margins(classify: Callable[[Tensor], Tensor], z: Tensor, y: Tensor) -> Tensor:
    """Give ``logit_y - logit_j`` at the point ``(b, j)`` of ``(B, K, ...)``, shape ``(B, K)``."""
    logits = classify(z.flatten(0, 1)).reshape(*z.shape[:2], -1)
    own = logits.gather(2, y.reshape(-1, 1, 1).expand(-1, z.shape[1], 1)).squeeze(2)
    return own - torch.diagonal(logits, dim1=1, dim2=2)


def _clean_statistics(model: nn.Module, classifier: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Give the buffers that batch norm in the classifier needs to normalise by a batch while in eval mode."""
    norms = {
        name: layer
        for name, layer in classifier.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training
    }
    if not norms:
        return {}
    seen: dict[nn.Module, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda layer, given: seen.update({layer: given[0]})) for layer in norms.values()
    ]
    try:
        with torch.no_grad():
            functional_call(model, {name: one.clone() for name, one in model.named_buffers()}, (x,))
    finally:
        for hook in hooks:
            hook.remove()
    buffers = {}
    for name, layer in norms.items():
        over = [0, *range(2, seen[layer].ndim)]
        buffers[f"{name}.running_mean"] = seen[layer].mean(over)
        buffers[f"{name}.running_var"] = seen[layer].var(over, unbiased=False)
    return buffers


def _relus(module: nn.Module) -> int:
    return sum(isinstance(one, nn.ReLU) for one in module.modules())


def _sequential(model: nn.Module, x: Tensor) -> nn.Sequential:
    if isinstance(model, nn.Sequential):
        return model
    children = list(model.children())
    if len(children) == 1 and isinstance(children[0], nn.Sequential):
        with evaluating(model), torch.no_grad():
            if torch.equal(model(x[:1]), children[0](x[:1])):
                return children[0]
    raise UsageError(
        f"expected an nn.Sequential, or a module that does nothing but call one, got {type(model).__name__}; "
        "write the network so, or choose another train.method"
    )
