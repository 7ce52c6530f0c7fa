"""Own passes against the engine: the same training step, the same values, and what each takes of time and memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from benchmarks import networks, steps
from benchmarks.memory import Peak, meter
from benchmarks.timing import side_by_side
from robustkit.bounds import BoundMethod
from robustkit.errors import RobustkitError
from robustkit.margins import robust_loss
from robustkit.training import EpochMetrics, EpsRamp, Moment, Trainee, TrainingMethod
from robustkit.training.ibp import IBP
from robustkit.training.method import Initialisation

TOLERANCE, NEXT_TO_NOTHING = 1e-3, 1e-6
"""How far the two may lie apart by rounding, relative to the greatest entry of each gradient; and at any size."""


@dataclass(frozen=True)
class Symbolic:
    """The natural loss of a batch and the robust loss of its first ``k`` samples, every neuron bounded symbolically.

    MixTrain's step but for its draws, and for intervals that go first: engine and own passes do that differently.
    """

    name: ClassVar[str] = "symbolic"
    formula: ClassVar[str] = "CE(f(x), y) + CE(-margins) of the first k samples, margins by symbolic bounds"
    initialisation: ClassVar[Initialisation] = "default"
    validation_bound: ClassVar[BoundMethod | None] = None
    k: int

    def weight(self, ramp: EpsRamp, time: float, history: Sequence[EpochMetrics]) -> float:
        """Give one."""
        return 1.0

    def loss(self, trainee: Trainee, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Give the sum of both losses."""
        natural = functional.cross_entropy(trainee.bounds(x), y)
        margins = trainee.bounds.lower_margins(
            x[: self.k], y[: self.k], moment.ball, BoundMethod.SYMBOLIC, intervals_first=False
        )
        return natural + moment.weight * robust_loss(margins, y[: self.k])


METHODS: dict[str, TrainingMethod] = {"IBP": IBP(), "symbolic k=1": Symbolic(1), "symbolic k=5": Symbolic(5)}


def table(rounds: int) -> list[str]:
    """Hold both against each other on fresh and on trained weights."""
    data, (name, model) = networks.dataset(), networks.robust()
    lines = [
        "| network | step | own ms | engine ms | faster by | own MiB | engine MiB | smaller by |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    with meter() as peak:
        for subject, weights in (("fresh", networks.fresh()), (name, model)):
            for row, method in METHODS.items():
                lines.append(f"| {subject} | {row} | {_compared(method, weights, rounds, peak)} |")
    setting = f"{data.model} on {data.name}, batch {steps.BATCH}, eps {data.eps:.3g}"
    note = "equal loss and gradients; MiB are the peak of loss and backward"
    return [f"Own passes against the engine, {setting}; {note}:", "", *lines]


def bench(method: TrainingMethod, model: nn.Module, engine: bool) -> steps.Bench:
    """Make a step that bounds by own passes, or by the engine.

    Raises:
        RobustkitError: the network has no passes of its own to compare.
    """
    made = steps.Bench(method, model, steps.BATCH)
    bounds = made.loop.trainee.bounds
    if not bounds._symbolic:
        raise RobustkitError("expected a network that own passes carry, got one for the engine; take a plain stack")
    if engine:
        bounds._layers, bounds._symbolic = None, False
    return made


def check_equal(own: Sequence[Tensor], engine: Sequence[Tensor], what: str) -> None:
    """Refuse to compare the times of two steps that compute different things.

    Args:
        own: loss and gradients by own passes.
        engine: those by the engine.
        what: the step, for the message.

    Raises:
        RobustkitError: they differ by more than rounding.
    """
    for place, (one, other) in enumerate(zip(own, engine, strict=True)):
        gap, scale = (one - other).abs().max().item(), other.abs().max().item()
        if not gap <= TOLERANCE * scale + NEXT_TO_NOTHING:
            entry = "losses" if place == 0 else f"gradients of parameter {place - 1}"
            raise RobustkitError(
                f"expected equal {entry} of {what} by own passes and by the engine, got {gap:.3g} apart of "
                f"{scale:.3g}; one of them is wrong: run tests/test_chain.py"
            )


def _compared(method: TrainingMethod, model: nn.Module, rounds: int, peak: Peak) -> str:
    own, engine = bench(method, model, False), bench(method, model, True)
    check_equal(own.result(), engine.result(), method.name)
    seconds = side_by_side({"own": own.step, "engine": engine.step}, rounds, least=steps.LEAST)
    mine, theirs = (peak(_gradients, method, model, one) for one in (False, True))
    return (
        f"{1000 * seconds['own']:.1f} | {1000 * seconds['engine']:.1f} | {seconds['engine'] / seconds['own']:.1f} | "
        f"{mine:.0f} | {theirs:.0f} | {theirs / mine:.1f}"
    )


def _gradients(method: TrainingMethod, model: nn.Module, engine: bool) -> Callable[[], list[Tensor]]:
    return bench(method, model, engine).result  # the optimiser takes the same for both
