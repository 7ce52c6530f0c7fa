"""Bounds through robustkit against auto-LiRPA called directly; so too the root of branch and bound.

CROWN through robustkit is auto-LiRPA's: what is timed is the way there, so the bounds must be equal. As for
alpha-CROWN, the library optimises all hidden bounds again in every step, each for the margins; robustkit's keeps the
hidden bounds of CROWN, and the root of branch and bound optimises each hidden bound for itself, once.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import branches, networks
from benchmarks.timing import side_by_side
from robustkit.bounds import BoundedNetwork, BoundMethod
from robustkit.bounds._repairs import import_auto_lirpa, quiet
from robustkit.errors import RobustkitError
from robustkit.margins import margin_specification, worst_margin
from robustkit.threat import LinfBall

SAMPLES, CLOSE = 20, 2
"""Images for CROWN; and for alpha-CROWN, those of them that CROWN comes closest to deciding."""
BROKEN = "breaks off"
"""What auto-LiRPA 0.3 does in alpha-CROWN of some images: it mixes up dense and sparse slopes."""
RESIDUAL_EPS = 0.015
"""Of the residual network: fresh weights prove nothing in a larger ball."""
LEAST = 0.3
"""Seconds that a timing of CROWN lasts at least."""
TOLERANCE = 1e-3
"""How far two bounds may lie apart by rounding, relative to the greatest."""

Bound = Callable[[], Tensor]
"""Gives the least margin of each image, shape ``(B,)``."""


@dataclass(frozen=True)
class Images:
    """What is bounded.

    Attributes:
        x: inputs, shape ``(B, ...)``.
        y: what the network says of each, right or wrong, shape ``(B,)``: margins are those of this class.
        ball: around each.
    """

    x: Tensor
    y: Tensor
    ball: LinfBall

    @classmethod
    def of(cls, model: nn.Module, eps: float) -> Images:
        """Take the first of the test set."""
        x = networks.dataset().test.x[:SAMPLES].to(networks.device())
        with torch.no_grad():
            return cls(x, model(x).argmax(1), LinfBall(eps))

    def take(self, count: int) -> Images:
        """Give the first few."""
        return Images(self.x[:count], self.y[:count], self.ball)

    def closest(self, least: Tensor) -> Images:
        """Give the few whose least margin ``(B,)`` is nearest to zero."""
        chosen = least.abs().argsort()[:CLOSE]
        return Images(self.x[chosen], self.y[chosen], self.ball)


def table(rounds: int) -> list[str]:
    """Compare on a certifiably trained network, and on a residual one with fresh weights in a smaller ball."""
    data, (name, model) = networks.dataset(), networks.robust()
    crown = ["| network | eps | images | robustkit | auto-LiRPA | ratio |", "| --- " + "| ---: " * 5 + "|"]
    alpha = ["| network | alpha-CROWN | ms an image | ratio | mean margin |", "| --- | --- | ---: | ---: | ---: |"]
    for label, network, eps in ((name, model, data.eps), ("residual", networks.residual(), RESIDUAL_EPS)):
        images = Images.of(network, eps)
        crown += [f"| {label} | {_crown(label, network, some, rounds)} |" for some in (images.take(1), images)]
        close = images.closest(through(network, images, BoundMethod.CROWN)())
        alpha += [f"| {label} | {row} |" for row in _alpha(network, close, max(1, rounds // 2))]
    few = f"alpha-CROWN of the {CLOSE} that CROWN comes closest to deciding, ratios to auto-LiRPA"
    return [f"CROWN, ms an image of {data.name}, bounded together:", "", *crown, "", f"{few}:", "", *alpha]


def through(model: nn.Module, images: Images, method: BoundMethod) -> Bound:
    """Bound as a verifier of robustkit does."""
    network = BoundedNetwork(model, images.x[:1])

    def bound() -> Tensor:
        with torch.no_grad():
            return worst_margin(network.lower_margins(images.x, images.y, images.ball, method), images.y)

    return bound


def direct(model: nn.Module, images: Images, method: str) -> Bound:
    """Call auto-LiRPA as its own examples do, with convolutions as patches; repaired for this torch, where it is old.

    Args:
        model: copied.
        images: what to bound.
        method: ``backward``, which is CROWN, or ``CROWN-Optimized``.
    """
    library = import_auto_lirpa()
    options = {"conv_mode": "patches", "minimum_sparsity": 1.0}  # the default breaks where most neurons are unstable
    with quiet():
        module = library.BoundedModule(copy.deepcopy(model), images.x[:1], bound_opts=options)
        lb, ub = images.ball.box(images.x)
        specification = margin_specification(images.y, int(module(images.x).shape[1]))

    def bound() -> Tensor:
        with quiet(), torch.set_grad_enabled(method != "backward"):
            box = library.BoundedTensor(images.x, library.PerturbationLpNorm(norm=np.inf, x_L=lb, x_U=ub))
            lower, _ = module.compute_bounds(x=(box,), C=specification, method=method, bound_upper=False)
        return worst_margin(lower.detach(), images.y)

    return bound


def root(model: nn.Module, images: Images) -> Bound:
    """Bound as the root of branch and bound does, but never stop early: image after image, hidden bounds and all."""

    def bound() -> Tensor:
        least = [branches.Start.at(model, x[None], images.ball).root().lower.amin() for x in images.x]
        return torch.stack(least) + branches.HELD

    return bound


def check_equal(own: Tensor, engine: Tensor, what: str) -> None:
    """Refuse to compare the times of two bounds that differ.

    Args:
        own: margins through robustkit.
        engine: margins by auto-LiRPA.
        what: the network, for the message.

    Raises:
        RobustkitError: they differ by more than rounding.
    """
    gap, scale = (own - engine).abs().max().item(), engine.abs().max().item()
    if not gap <= TOLERANCE * (1.0 + scale):
        raise RobustkitError(
            f"expected equal CROWN margins of {what} through robustkit and by auto-LiRPA, got {gap:.3g} apart of "
            f"{scale:.3g}; one of them is wrong: run tests/test_bounds.py"
        )


def _crown(label: str, model: nn.Module, images: Images, rounds: int) -> str:
    ways = {"own": through(model, images, BoundMethod.CROWN), "peer": direct(model, images, "backward")}
    check_equal(ways["own"](), ways["peer"](), label)
    own, peer = side_by_side(ways, rounds, least=LEAST).values()
    each = 1000 / len(images.y)
    return f"{images.ball.eps:.3g} | {len(images.y)} | {each * own:.1f} | {each * peer:.1f} | {own / peer:.2f}"


def _alpha(model: nn.Module, images: Images, rounds: int) -> list[str]:
    ways = {
        "auto-LiRPA": direct(model, images, "CROWN-Optimized"),
        "robustkit": through(model, images, BoundMethod.ALPHA_CROWN),
        "root of branch and bound": root(model, images),
    }
    margins = {way: _margin(bound) for way, bound in ways.items()}
    seconds = side_by_side({way: bound for way, bound in ways.items() if margins[way] != BROKEN}, rounds)
    each, peer = 1000 / len(images.y), seconds.get("auto-LiRPA", math.nan)
    return [
        f"{way} | {each * seconds[way]:.0f} | {seconds[way] / peer:.2f} | {margins[way]}"
        if way in seconds
        else f"{way} | - | - | {BROKEN}"
        for way in ways
    ]


def _margin(bound: Bound) -> str:
    """Give the mean margin, or say that the library broke off."""
    try:
        return f"{bound().mean().item():.3f}"
    except (AssertionError, RuntimeError):
        return BROKEN
