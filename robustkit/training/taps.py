"""Intervals through the first part of a network and an attack through the second: TAPS, and STAPS on small boxes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from robustkit.bounds import BoundMethod
from robustkit.errors import UsageError
from robustkit.margins import margin_specification, robust_loss
from robustkit.training.latent import Split, attacked_margins, split_network
from robustkit.training.method import Moment, Trainee
from robustkit.training.regularisers import Start, check_regularisation, penalty_at_zero, warm_up
from robustkit.training.sabr import small_boxes
from robustkit.training.schedules import EpochMetrics, EpsRamp


@dataclass(frozen=True)
class _Partial(ABC):
    """The network is cut right after a ReLU; it must be an ``nn.Sequential`` with every ReLU a module of its own.

    Of each sample, the loss is the product of two: with the margins that PGD finds in the latent box, and with those
    that intervals prove for the whole network. The former are no bounds. Batch norm behind the cut normalises by the
    clean batch. Deviations: the latent attack's steps are signed, of constant size relative to the box, and the worst
    point seen is taken; the paper's weight between the gradients of the two factors is one half. While eps grows, the
    regularisers of ``fast-ibp`` are added; over a share of a batch they are those of the share.

    Attributes:
        classifier_relus: ReLUs behind the cut, at least 1.
        steps: gradient steps of the latent attack.
        rel_step_size: its step as a fraction of the latent box's radius.
        regularisation: weight of the regularisers at the start; it falls to zero as eps reaches its target.
        initialisation: how the weights are drawn: ``"ibp"`` as for ``fast-ibp``, or ``"default"``.
    """

    classifier_relus: int = 1
    steps: int = 20
    rel_step_size: float = 0.25
    regularisation: float = 0.5
    initialisation: Start = "ibp"

    def __post_init__(self) -> None:
        for name in ("classifier_relus", "steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if not self.rel_step_size > 0:
            raise UsageError(f"expected rel_step_size above 0, got {self.rel_step_size}")
        check_regularisation(self.regularisation)

    @property
    def validation_bound(self) -> BoundMethod | None:
        """Interval bounds of the whole ball; tighter bounds prove more."""
        return BoundMethod.IBP

    def weight(self, ramp: EpsRamp, time: float, history: Sequence[EpochMetrics]) -> float:
        """Give one: the product is all there is."""
        return 1.0

    def loss(self, trainee: Trainee, x: Tensor, y: Tensor, moment: Moment) -> Tensor:
        """Give the product of both losses, or the natural loss while eps is zero.

        Raises:
            UsageError: the network cannot be cut.
        """
        split = split_network(trainee.model, self.classifier_relus, x)
        natural = functional.cross_entropy(trainee.bounds(x), y)  # sets the statistics that batch norm bounds with
        if moment.ball.eps == 0.0:
            return natural + penalty_at_zero(trainee, x, y, moment, regularisation=self.regularisation)
        box = self.box(trainee, x, y, moment)
        proved, layers = trainee.bounds.interval_pass(*box, margin_specification(y, trainee.bounds.classes))
        seen = self._seen(split, split.latent_box(layers), x, y, moment, proved.shape[1])
        product = robust_loss(seen, y, "none") * robust_loss(proved, y, "none")
        return product.mean() + warm_up(box, layers, moment, regularisation=self.regularisation)

    def _seen(
        self, split: Split, latent: tuple[Tensor, Tensor], x: Tensor, y: Tensor, moment: Moment, classes: int
    ) -> Tensor:
        start = moment.uniform(latent[0].detach().unsqueeze(1).expand(-1, classes, *latent[0].shape[1:]))
        classify = split.second_part(x)
        return attacked_margins(classify, latent, y, start, steps=self.steps, rel_step_size=self.rel_step_size)

    @abstractmethod
    def box(self, trainee: Trainee, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """Give the corners of the box that intervals start from, each of the shape of ``x``."""


@dataclass(frozen=True)
class TAPS(_Partial):
    """Minimise ``CE(-attacked margins) * CE(-margins)``: intervals to a latent box, PGD from there for each class.

    Source: Mao et al. 2023, arXiv 2305.04574. What is our own stands in docs/methods.md.
    """

    name: ClassVar[str] = "taps"
    formula: ClassVar[str] = "CE(-margins by PGD in the latent box) * CE(-margins by intervals)"

    def box(self, trainee: Trainee, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """Give the whole ball."""
        return moment.ball.box(x)


@dataclass(frozen=True)
class STAPS(_Partial):
    """Minimise what TAPS does, over the small box of SABR around a point attacked in the input.

    Attributes:
        subselection: the small box's radius as a fraction of eps, in (0, 1].
        attack_steps: gradient steps of the attack in the input.
        attack_rel_step_size: their size as a fraction of eps.

    Source: Mao et al. 2023, arXiv 2305.04574. What is our own stands in docs/methods.md.
    """

    name: ClassVar[str] = "staps"
    formula: ClassVar[str] = (
        "CE(-margins by PGD in the latent box) * CE(-margins by intervals), over a box of subselection * eps around x'"
    )
    subselection: float = 0.4
    attack_steps: int = 8
    attack_rel_step_size: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.subselection <= 1.0:
            raise UsageError(f"expected subselection in (0, 1], got {self.subselection}")
        if self.attack_steps < 1:
            raise UsageError(f"expected attack_steps of at least 1, got {self.attack_steps}")
        if not self.attack_rel_step_size > 0:
            raise UsageError(f"expected attack_rel_step_size above 0, got {self.attack_rel_step_size}")

    def box(self, trainee: Trainee, x: Tensor, y: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """Give the small box around the point that PGD finds."""
        return small_boxes(
            trainee,
            x,
            y,
            moment,
            subselection=self.subselection,
            steps=self.attack_steps,
            rel_step_size=self.attack_rel_step_size,
        )
