"""Accuracy against the radius: typed in one go, never rising, warm-started."""

import pytest
import torch
from torch import Tensor, nn

from robustkit.attacks import PGD, AttackResult, Points, Warm
from robustkit.errors import UsageError
from robustkit.threat import LinfBall, parse_radii, parse_range


@pytest.mark.parametrize(
    ("text", "radii"),
    [("0.3", [0.3]), ("0.2,0.1,0.2", [0.1, 0.2]), ("0.1, 8/255,", [8 / 255, 0.1]), ("0,1", [0.0, 1.0])],
)
def test_radii_are_sorted_and_taken_once(text: str, radii: list[float]) -> None:
    assert parse_radii(text) == radii


@pytest.mark.parametrize("text", ["", ",", " "])
def test_no_radius_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected one eps or more, like 0.1 or 0.1,0.2, got '"):
        parse_radii(text)


def test_a_range_has_its_ends_and_equal_distances() -> None:
    assert parse_range("0:0.4:9") == [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4]
    assert parse_range("0:8/255:2") == [0.0, round(8 / 255, 12)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0:0.4", "START:STOP:COUNT"),
        ("0:0.4:1", "2 radii or more"),
        ("0:0.4:2.5", "START:STOP:COUNT"),
        ("0.4:0:9", "that rises, got '0.4:0:9'; swap its ends"),
        ("0:8:9", r"expected eps in \[0, 1\]"),
    ],
)
def test_ranges_that_are_none_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_range(text)


def linear() -> nn.Module:
    """Class 0 is right where ``x_0 - x_1 > 0``."""
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
        model.bias.zero_()
    return model.eval()


class Idle:
    """An attack that gives the samples back."""

    name = "idle"
    seen = 0

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None
    ) -> AttackResult:
        self.seen += len(x)
        return AttackResult(x, torch.full((len(x),), 1.0, dtype=torch.float64))


def test_a_warm_start_breaks_before_the_attack_itself_is_run() -> None:
    """Two samples with margins 0.1 and 0.5; in a ball of 0.1 the first falls from the corner, the other stands."""
    x, y, index = torch.tensor([[0.5, 0.4], [0.75, 0.25]]), torch.tensor([0, 0]), torch.tensor([7, 9])
    idle = Idle()
    points = Points(0.025, {7: x[0] + torch.tensor([-0.025, 0.025]), 9: x[1].clone()})
    found = Warm(idle, points)(linear(), x, y, LinfBall(0.1), index)
    assert idle.seen == 1
    assert found.margin[0] == pytest.approx(-0.1, abs=1e-6)
    assert LinfBall(0.1).contains(found.x_adv, x).all()
    assert found.margin[1] == pytest.approx(0.3, abs=1e-6), "the warm start is kept where the attack finds less"


def test_a_warm_start_leaves_samples_without_a_point_to_the_attack() -> None:
    x, y = torch.tensor([[0.5, 0.4]]), torch.tensor([0])
    warm, cold = Warm(PGD(), Points(0.05)), PGD()
    assert torch.equal(warm(linear(), x, y, LinfBall(0.1)).x_adv, cold(linear(), x, y, LinfBall(0.1)).x_adv)
    assert repr(warm) == repr(cold)
    assert warm.name == "pgd"
