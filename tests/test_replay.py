"""A counterexample must be wrong in the model and in float64, strictly, and inside the ball."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustkit.attacks import AttackResult, Examples, attack_batches, replay_examples
from robustkit.attacks.replay import Look, Replay
from robustkit.data import Split
from robustkit.errors import RobustkitError
from robustkit.results import Subject
from robustkit.threat import LinfBall
from robustkit.verdict import Verdict
from robustkit.verifiers import Complete, Outcome, make_verifier
from robustkit.verifiers.cascade import apply_attack


def flat(weight: list[list[float]], bias: list[float]) -> nn.Sequential:
    layer = nn.Linear(len(weight[0]), len(bias))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))
    return nn.Sequential(layer).eval()


DIFFERENCE = flat([[1.0], [0.0]], [0.0, 0.25])
"""Class 0 is right for x > 0.25, class 1 below; at 0.25 they tie."""

ROUNDED = nn.Sequential(flat([[1.0]], [1e8]), flat([[1.0]], [-1e8]), flat([[-1.0], [0.0]], [0.5, 0.125])).eval()
"""The margin of class 0 is ``0.375 - x`` in real arithmetic; float32 swallows x and says 0.375."""


class Pointing:
    """An attack that gives points it was told."""

    name = "pointing"

    def __init__(self, *points: float) -> None:
        self.points = torch.tensor(points).unsqueeze(1)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None
    ) -> AttackResult:
        return AttackResult(self.points, torch.zeros(len(x)))


def attacked(model: nn.Module, x: float, point: float, eps: float) -> Outcome:
    sample, label = torch.tensor([[x]]), torch.tensor([0])
    outcome = Outcome.begin(model, sample, label)
    apply_attack(outcome, Replay.prepare(model), Pointing(point), sample, label, LinfBall(eps), None)
    return outcome


def test_a_strict_violation_inside_the_ball_is_falsified() -> None:
    outcome = attacked(DIFFERENCE, 0.5, 0.125, 0.375)
    assert outcome.verdicts() == [Verdict.FALSIFIED]
    assert outcome.x_adv.item() == 0.125
    assert outcome.tie == [""]


def test_a_point_outside_the_ball_is_nothing() -> None:
    outcome = attacked(DIFFERENCE, 0.5, 0.125, 0.25)
    assert outcome.verdicts() == [Verdict.UNKNOWN]
    assert outcome.tie == [""]
    assert outcome.least.item() == 0.25


def test_a_tie_is_told_apart() -> None:
    outcome = attacked(DIFFERENCE, 0.5, 0.25, 0.25)
    assert outcome.verdicts() == [Verdict.UNKNOWN]
    outcome.give_up(0, "no bound proves it")
    assert outcome.reason == [
        "a tie: a point of the ball has margin 0 in the model and 0 in float64, and only below 0 in both would be a "
        "counterexample; no bound proves it"
    ]


def test_a_violation_in_one_arithmetic_alone_is_a_tie() -> None:
    outcome = attacked(ROUNDED, 0.125, 0.625, 0.5)
    assert outcome.verdicts() == [Verdict.UNKNOWN]
    assert outcome.tie[0].startswith("a tie: a point of the ball has margin 0.375 in the model and -0.25 in float64")


@pytest.mark.parametrize("name", ["cascade", "complete"])
def test_verifiers_leave_a_ball_that_touches_the_boundary_unknown(name: str) -> None:
    x, y = torch.tensor([[0.5], [0.5]]), torch.tensor([0, 0])
    outcome = make_verifier(name).prepare(DIFFERENCE, x[:1])(x, y, LinfBall(0.25))
    assert outcome.verdicts() == [Verdict.UNKNOWN] * 2
    assert all(reason.startswith("a tie: ") for reason in outcome.reason)
    nearer = make_verifier(name).prepare(DIFFERENCE, x[:1])(x, y, LinfBall(0.25 - 2**-20))
    assert nearer.verdicts() == [Verdict.VERIFIED] * 2
    farther = make_verifier(name).prepare(DIFFERENCE, x[:1])(x, y, LinfBall(0.25 + 2**-20))
    assert farther.verdicts() == [Verdict.FALSIFIED] * 2


def test_a_tied_clean_sample_is_misclassified() -> None:
    x, y = torch.tensor([[0.25]]), torch.tensor([0])
    assert Complete().prepare(DIFFERENCE, x)(x, y, LinfBall(0.1)).verdicts() == [Verdict.MISCLASSIFIED]


def test_a_look_gives_the_first_counterexample_and_remembers_a_tie() -> None:
    x, y = torch.tensor([[0.5]]), torch.tensor([0])
    look = Look(Replay.prepare(DIFFERENCE), x, y, LinfBall(0.25))
    assert look(torch.tensor([[0.5], [0.25]])) is None
    assert look.tie.startswith("a tie: a point of the ball has margin 0 ")
    look = Look(Replay.prepare(DIFFERENCE), x, y, LinfBall(0.375))
    found = look(torch.tensor([[0.5], [0.0], [0.2]]))
    assert found is not None
    assert found.item() == 0.125, "moved into the ball"


def test_a_look_follows_the_gradient_from_what_it_is_shown() -> None:
    look = Look(Replay.prepare(DIFFERENCE), torch.tensor([[0.5]]), torch.tensor([0]), LinfBall(0.375))
    found = look(torch.tensor([[0.7], [0.5], [0.4]]))
    assert found is not None
    assert 0.125 <= found.item() < 0.25
    assert look(torch.zeros(0, 1)) is None


def judged(model: nn.Module, x: float, point: float, eps: float) -> tuple[str, str]:
    split = Split(torch.tensor([[x]]), torch.tensor([0]), torch.tensor([7]))
    subject = Subject("toy", "abc", "natural", 0.1, "digits", 0)
    ((rows, _),) = attack_batches(Pointing(point), model, split, LinfBall(eps), subject)
    return str(rows["verdict"][0]), str(rows["reason"][0])


def test_an_evaluated_attack_breaks_only_what_is_wrong_in_both() -> None:
    assert judged(DIFFERENCE, 0.5, 0.125, 0.375) == (Verdict.FALSIFIED, "")
    assert judged(DIFFERENCE, 0.5, 0.375, 0.25) == (Verdict.UNKNOWN, "")
    verdict, reason = judged(DIFFERENCE, 0.5, 0.25, 0.25)
    assert verdict == Verdict.UNKNOWN
    assert reason.startswith("a tie: a point of the ball has margin 0 in the model and 0 in float64")


def test_rounding_in_the_model_alone_breaks_nothing() -> None:
    """Float32 has whole numbers only above 2^23, so this model rounds x to 0 or 1."""
    model = nn.Sequential(flat([[1.0]], [2.0**23]), flat([[1.0]], [-(2.0**23)]), flat([[1.0], [0.0]], [0.0, 0.125]))
    assert model(torch.tensor([[0.75], [0.25]])).tolist() == [[1.0, 0.125], [0.0, 0.125]]
    verdict, reason = judged(model.eval(), 0.75, 0.25, 0.5)
    assert verdict == Verdict.UNKNOWN
    assert reason.startswith("a tie: a point of the ball has margin -0.125 in the model and 0.125 in float64")
    assert judged(model, 0.75, 0.0625, 0.75) == (Verdict.FALSIFIED, "")


def test_a_clean_tie_counts_as_misclassified() -> None:
    assert judged(DIFFERENCE, 0.25, 0.25, 0.1) == (Verdict.MISCLASSIFIED, "")


class Casting(nn.Module):
    """Runs in float32 whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = DIFFERENCE

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.float())  # type: ignore[no-any-return]


def test_a_model_without_float64_is_judged_alone(caplog: pytest.LogCaptureFixture) -> None:
    assert judged(Casting().eval(), 0.5, 0.125, 0.375) == (Verdict.FALSIFIED, "")
    assert "it does not run in float64" in caplog.text


def test_the_copy_leaves_the_model_as_it_was() -> None:
    model = flat([[1.0], [0.0]], [0.0, 0.25]).train()
    replay = Replay.prepare(model)
    assert model.training and not replay.wide.training
    assert next(model.parameters()).dtype == torch.float32
    assert next(replay.wide.parameters()).dtype == torch.float64


def saved(*points: float, label: int = 0) -> Examples:
    x_adv = np.array(points, dtype=np.float32).reshape(-1, 1)
    y = np.full(len(points), label)
    return Examples(np.full_like(x_adv, 0.5), x_adv, y, 1 - y, np.arange(len(points)), 0.375)


def test_saved_examples_are_run_again_one_by_one() -> None:
    """Broken, a tie, right, outside the ball: only the first holds."""
    seen = replay_examples(DIFFERENCE, saved(0.125, 0.25, 0.3125, 0.0625), batch_size=3)
    assert seen.broken.tolist() == [True, False, False, False]
    assert seen.tied.tolist() == [False, True, False, False]
    assert seen.inside.tolist() == [True, True, True, False]
    assert not len(replay_examples(DIFFERENCE, saved()).broken)


def test_examples_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RobustkitError, match=r"got some of shape \(1,\) that do not fit .*--run or --checkpoint"):
        replay_examples(flat([[1.0, 1.0], [0.0, 0.0]], [0.0, 0.0]), saved(0.125))
