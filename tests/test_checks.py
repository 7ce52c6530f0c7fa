"""Checks must flag networks that hide their gradients, and leave ordinary ones alone."""

import pytest
import torch
from torch import Tensor, nn

from robustkit.attacks import ATTACKS, PGD, Attack, Check, Square, make_attack, run_checks
from robustkit.attacks.checks import at_most
from robustkit.attacks.planted import plant
from robustkit.attacks.random_search import random_search
from robustkit.errors import UsageError
from robustkit.threat import LinfBall

BALL = LinfBall(0.15)


def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network that tells whether the left or the right half of twelve pixels is brighter."""
    torch.manual_seed(0)
    x = torch.rand(400, 12)
    y = (x[:, :6].sum(dim=1) < x[:, 6:].sum(dim=1)).long()
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 2))
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval(), x[:50], y[:50]


class Changed(nn.Module):
    """A network whose logits are changed."""

    def __init__(self, model: nn.Module, how: str) -> None:
        super().__init__()
        self.model, self.how = model, how

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        if self.how == "scaled":
            return 1000 * logits
        if self.how == "noisy":
            return logits + 0.1 * torch.randn_like(logits)
        return logits.detach() if self.how == "detached" else logits.softmax(dim=1)


def warned(how: str = "") -> dict[str, Check]:
    model, x, y = trained()
    judged = Changed(model, how) if how else model
    broken = PGD(steps=80)(judged, x, y, BALL).margin <= 0  # 40 steps do not cross a ball of so few pixels
    checks = run_checks(judged, x, y, BALL, broken, [PGD()])
    return {check.name: check for check in checks if not check.passed}


def test_an_ordinary_network_passes_every_check() -> None:
    assert warned() == {}


def test_logits_times_a_thousand_are_flagged() -> None:
    found = warned("scaled")
    assert {"zero-gradient", "saturated", "margin-loss", "black-box", "random-corners"} <= set(found)
    assert found["zero-gradient"].value > 0.5


def test_random_predictions_are_flagged() -> None:
    assert "randomised" in warned("noisy")


def test_probabilities_are_flagged() -> None:
    assert warned("softmax")["softmax"].value == 1.0


def test_a_network_without_gradients_is_flagged_by_what_needs_none() -> None:
    model, x, y = trained()
    checks = run_checks(
        Changed(model, "detached"), x, y, BALL, torch.zeros(50, dtype=torch.bool), [Square(n_queries=50)]
    )
    values = {one.name: one.value for one in checks}
    assert values["zero-gradient"] == 1.0 and values["black-box"] > 0.05
    assert not {"margin-loss", "more-steps"} & set(values)


def test_a_weak_attack_is_told_what_others_break() -> None:
    model, x, y = trained()
    checks = {one.name: one for one in run_checks(model, x, y, BALL, torch.zeros(50, dtype=torch.bool), [])}
    for name in ("margin-loss", "single-step", "more-steps"):
        assert not checks[name].passed
        assert checks[name].value > 0.2


def test_checking_leaves_the_random_state_and_the_model() -> None:
    model, x, y = trained()
    model.train()
    state = torch.get_rng_state()
    run_checks(model, x, y, BALL, torch.zeros(50, dtype=torch.bool), [PGD()])
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(one.grad is None or bool(one.grad.isfinite().all()) for one in model.parameters())


def test_only_the_attack_is_checked_where_nothing_is_classified_rightly() -> None:
    model, x, y = trained()
    right = model(x).argmax(dim=1) == y
    checks = run_checks(model, x[right], 1 - y[right], BALL, torch.zeros(int(right.sum()), dtype=torch.bool), [PGD()])
    assert [check.name for check in checks] == ["planted"]


def test_eps_0_is_refused() -> None:
    model, x, y = trained()
    with pytest.raises(UsageError, match=r"expected eps above 0 to check attacks at, got 0; leave .* --no-checks"):
        run_checks(model, x, y, LinfBall(0.0), torch.zeros(50, dtype=torch.bool))


def test_a_number_that_is_none_does_not_pass() -> None:
    assert not at_most("any", float("nan"), 1.0, "of it").passed
    assert at_most("any", 1.0, 1.0, "of it") == Check("any", True, 1.0, "at most 1 of it")


@pytest.mark.parametrize("shape", [(1, 6), (1, 1, 8, 8)], ids=str)
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_finds_the_planted_example(name: str, shape: tuple[int, ...]) -> None:
    passed, value, expected = plant(torch.zeros(shape), 0.1).tried(make_attack(name))
    assert passed
    assert -1.001 <= value < 0
    assert expected == f"below 0 by {name}, where -1 is planted"


@pytest.mark.parametrize("attack", [PGD(10, 0.02, random_start=False), PGD(1, 0.25, random_start=False)], ids=repr)
def test_an_attack_that_cannot_reach_it_is_told(attack: Attack) -> None:
    passed, value, _ = plant(torch.zeros(1, 6), 0.1).tried(attack)
    assert not passed
    assert value > 0


def test_the_planted_example_is_where_the_formula_says() -> None:
    """Margin (0.3 - 1) * eps * ||w||_1 at the corner, where ||w||_1 * eps is a mean of magnitudes in [0.5, 1.5]."""
    problem = plant(torch.zeros(1, 400), 0.1)
    assert problem.ball.contains(problem.x_adv, problem.x).all()
    logits = torch.cat([problem.model(problem.x), problem.model(problem.x_adv)])
    inside, corner = (logits[:, 0] - logits[:, 1]).tolist()
    assert inside == pytest.approx(0.3, abs=0.03)
    assert corner == pytest.approx(-7 / 3 * inside, rel=1e-3)


def test_the_search_without_gradients_finds_the_best_corner_of_two_pixels() -> None:
    """Margin x_0 - x_1 over a ball of 0.1 around (0.5, 0.3) is least, 0, at its corner (0.4, 0.4)."""
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
        model.bias.zero_()
    x, y = torch.tensor([[0.5, 0.3]]), torch.tensor([0])
    for anew in (True, False):
        margin = random_search(model, x, y, LinfBall(0.1), queries=60, anew=anew)
        assert margin.item() == pytest.approx(0.0, abs=1e-6)
