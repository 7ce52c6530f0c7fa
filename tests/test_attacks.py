import copy
import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from robustkit.attacks import (
    ATTACKS,
    CW,
    FGSM,
    PGD,
    Attack,
    AttackResult,
    Examples,
    IntervalGradient,
    TargetedPGD,
    TorchAttacksPGD,
    attack_batches,
    load_examples,
    make_attack,
    save_examples,
)
from robustkit.attacks.base import evaluating
from robustkit.attacks.pgd import cross_entropy, pgd_steps
from robustkit.attacks.starts import corner_start, random_start
from robustkit.errors import RobustkitError, UsageError
from robustkit.margins import correct, logit_margins, worst_margin
from robustkit.results import COLUMNS, Subject
from robustkit.threat import LinfBall
from robustkit.verdict import Verdict

FAST = [
    PGD(steps=10, rel_step_size=0.25),
    PGD(steps=10, rel_step_size=0.25, restarts=3, loss="margin"),
    PGD(steps=10, rel_step_size=0.25, random_start=False),
    PGD(steps=10, rel_step_size=1.0, rel_last_step=0.1),
    CW(steps=10, rel_step_size=0.25),
    TargetedPGD(steps=10, restarts=2),
    FGSM(),
    FGSM(random_start=True),
]
SLOWER = [
    IntervalGradient(steps=5, rel_step_size=0.25),
    IntervalGradient(inner="cw", steps=5, rel_step_size=0.25, move="small", bound_batch=3),
    IntervalGradient(steps=5, rel_step_size=1.0, rel_last_step=0.1, widths_at_once=4),
    TorchAttacksPGD(steps=10, rel_step_size=0.25),
]
TRAINING = [
    PGD(steps=10, rel_step_size=0.25, early_stop=False),
    PGD(steps=10, rel_step_size=0.25, early_stop=False, loss="margin"),
]
every_attack = pytest.mark.parametrize("attack", [*FAST, *SLOWER, *TRAINING], ids=repr)
stopping_attack = pytest.mark.parametrize("attack", [*FAST, *SLOWER], ids=repr)
BALL = LinfBall(0.1)
SUBJECT = Subject("toy", "abc", "natural", math.nan, "digits", 0)


@dataclass(frozen=True)
class Samples:
    x: Tensor
    y: Tensor
    index: Tensor


def mlp(classes: int = 3) -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, classes))


def conv() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3))


def samples(model: nn.Module, *shape: int, wrong: int = 2) -> Samples:
    """Inputs labelled with what the model says, but for the last ``wrong``."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with evaluating(model), torch.no_grad():
        logits = model(x)
    y = logits.argmax(dim=1)
    if wrong:
        y[-wrong:] = (y[-wrong:] + 1) % logits.shape[1]
    return Samples(x, y, 100 + 7 * torch.arange(len(x)))


def margin_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with evaluating(model), torch.no_grad():
        return worst_margin(logit_margins(model(x), y), y)


def rank(model: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
    """What an attack wants low at ``x``: the margin, or minus the loss that training asks for."""
    if getattr(attack, "early_stop", True) or getattr(attack, "loss", "") == "margin":
        return margin_of(model, x, y)
    with evaluating(model), torch.no_grad():
        return -cross_entropy(model(x), y)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp-2": (lambda: mlp(2), (12, 6)),
    "mlp-3": (mlp, (12, 6)),
    "conv": (conv, (8, 1, 6, 6)),
}


@every_attack
@pytest.mark.parametrize("network", NETWORKS)
def test_contract(attack: Attack, network: str) -> None:
    make, shape = NETWORKS[network]
    model = make().train()
    model[0].eval()  # a frozen layer must stay frozen
    data = samples(model, *shape)
    x, y, modes = data.x.clone(), data.y.clone(), [one.training for one in model.modules()]
    weights, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with torch.no_grad():
        found = attack(model, x, y, BALL)
    assert torch.equal(x, data.x), "the input was changed"
    assert torch.equal(y, data.y), "the labels were changed"
    assert [one.training for one in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state), "the global random state was touched"
    assert all(one.grad is None for one in model.parameters())
    assert all(torch.equal(one, weights[name]) for name, one in model.state_dict().items())
    assert found.x_adv.shape == x.shape
    assert found.x_adv.dtype == x.dtype
    assert not found.x_adv.requires_grad
    assert BALL.contains(found.x_adv, x).all()
    torch.testing.assert_close(found.margin.float(), margin_of(model, found.x_adv, y), atol=1e-5, rtol=0)
    assert (rank(model, found.x_adv, y, attack) <= rank(model, x, y, attack) + 1e-6).all(), "worse than the start"


@stopping_attack
def test_misclassified_samples_come_back_unchanged(attack: Attack) -> None:
    model = mlp()
    data = samples(model, 6, 6, wrong=6)
    assert torch.equal(attack(model, data.x, data.y, BALL).x_adv, data.x)


@every_attack
def test_eps_zero_gives_the_sample(attack: Attack) -> None:
    model = mlp()
    data = samples(model, 5, 6)
    assert torch.equal(attack(model, data.x, data.y, LinfBall(0.0)).x_adv, data.x)


@every_attack
def test_same_seed_same_points(attack: Attack) -> None:
    model = conv()
    data = samples(model, 8, 1, 6, 6)
    first = attack(model, data.x, data.y, BALL, data.index)
    torch.manual_seed(99)
    second = attack(model, data.x, data.y, BALL, data.index)
    assert torch.equal(first.x_adv, second.x_adv)
    assert torch.equal(first.margin, second.margin)


@pytest.mark.parametrize("attack", [*FAST, *SLOWER[:-1], *TRAINING, TorchAttacksPGD(random_start=False)], ids=repr)
def test_results_do_not_depend_on_batches_or_order(attack: Attack) -> None:
    model = mlp()
    data = samples(model, 12, 6)
    whole = attack(model, data.x, data.y, BALL, data.index)
    order = torch.tensor([7, 3, 11, 0, 5, 1, 9, 2, 10, 4, 8, 6])
    parts = [attack(model, data.x[one], data.y[one], BALL, data.index[one]) for one in order.split(5)]
    torch.testing.assert_close(torch.cat([one.x_adv for one in parts]), whole.x_adv[order], atol=1e-5, rtol=0)
    assert torch.equal(torch.cat([one.margin for one in parts]) > 0, whole.margin[order] > 0)


# one step of eps does not cross the ball from a random start
@pytest.mark.parametrize("attack", [*FAST[:-1], *SLOWER, *TRAINING], ids=repr)
def test_linear_model_is_attacked_to_its_exact_optimum(attack: Attack) -> None:
    """The least margin of ``w.x + b`` over an L-inf ball is ``w.x + b - eps |w|_1``: steps must reach the corner."""
    model = nn.Linear(6, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.3, -0.2, 0.5, 0.1, -0.4, 0.2], [0.0] * 6]))
        model.bias.copy_(torch.tensor([1.0, 0.0]))
    x, y = torch.full((4, 6), 0.5) + torch.arange(4).unsqueeze(1) * 0.01, torch.zeros(4, dtype=torch.long)
    optimum = margin_of(model, x, y) - BALL.eps * model.weight[0].abs().sum()
    torch.testing.assert_close(attack(model, x, y, BALL).margin.float(), optimum.detach(), atol=1e-5, rtol=0)


# auto-LiRPA 0.3, behind the interval gradient, works in float32
@pytest.mark.parametrize("attack", [*FAST, SLOWER[-1], *TRAINING], ids=repr)
def test_double_precision_and_inference_mode(attack: Attack) -> None:
    model = mlp().double()
    data = samples(mlp(), 5, 6)
    with torch.inference_mode():
        x = data.x.double()
        found = attack(model, x, data.y, BALL)
    assert found.x_adv.dtype == torch.float64
    assert BALL.contains(found.x_adv, data.x.double()).all()


def test_restarts_never_hurt() -> None:
    model = mlp()
    data = samples(model, 12, 6)
    attacks = [PGD(steps=3, restarts=restarts) for restarts in (1, 2, 5, 20)]
    margins = [attack(model, data.x, data.y, BALL).margin for attack in attacks]
    for fewer, more in itertools.pairwise(margins):
        assert (more <= fewer).all()


def test_other_seeds_and_samples_draw_other_starts() -> None:
    x, ball = torch.full((2, 50), 0.5), LinfBall(0.3)
    first = random_start(x, ball, torch.tensor([3, 4]), seed=0, restart=0)
    again = random_start(x[:1], ball, torch.tensor([4]), seed=0, restart=0)
    assert torch.equal(first[1], again[0])
    assert not torch.equal(first[0], first[1])
    for seed, restart in ((1, 0), (0, 1)):
        assert not torch.equal(first, random_start(x, ball, torch.tensor([3, 4]), seed=seed, restart=restart))
    spread = random_start(torch.full((40, 500), 0.5), ball, torch.arange(40), seed=0, restart=0) - 0.5
    assert spread.abs().max() <= 0.3 + 1e-6
    assert abs(float(spread.std()) - 0.3 / math.sqrt(3)) < 0.003


@pytest.mark.parametrize("shape", [(7,), (2, 9, 6)])
def test_corner_starts_are_the_best_of_the_corners_drawn(shape: tuple[int, ...]) -> None:
    x, ball, index = torch.rand((5, *shape)), LinfBall(0.2), torch.arange(30, 35)
    box, seen = ball.inner_box(x), list[Tensor]()

    def score(points: Tensor) -> Tensor:
        seen.append(points)
        return points.flatten(1).sum(dim=1)

    best = corner_start(x, box, index, score, seed=1, restart=2, corners=9)
    assert len(seen) == 9
    assert all(((one == box[0]) | (one == box[1])).all() for one in seen)
    assert len(torch.stack(seen).unique(dim=0)) == 9
    sums = torch.stack([one.flatten(1).sum(dim=1) for one in seen])
    assert torch.equal(best, torch.stack(seen)[sums.argmin(dim=0), torch.arange(5)])
    alone = corner_start(x[3:4], (box[0][3:4], box[1][3:4]), index[3:4], score, seed=1, restart=2, corners=9)
    assert torch.equal(alone, best[3:4]), "independent of the batch"
    for seed, restart in ((0, 2), (1, 3)):
        assert not torch.equal(best, corner_start(x, box, index, score, seed=seed, restart=restart, corners=9))


def test_blocks_of_a_corner_share_their_sign() -> None:
    x, seen = torch.full((3, 1, 28, 28), 0.5), list[Tensor]()

    def score(points: Tensor) -> Tensor:
        seen.append(points)
        return points.flatten(1).sum(dim=1)

    corner_start(x, LinfBall(0.1).inner_box(x), torch.arange(3), score, seed=0, restart=0, corners=4)
    for points, side in zip(seen, (7, 4, 2, 1), strict=True):
        blocks = points.reshape(3, 28 // side, side, 28 // side, side).transpose(2, 3).flatten(3)
        assert (blocks == blocks[..., :1]).all()
        assert 0.2 < (blocks[..., 0] > 0.5).double().mean() < 0.8


class Counting(nn.Module):
    """Counts the rows that pass through a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.rows = network, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        logits: Tensor = self.network(x)
        return logits


def test_fooled_samples_leave_the_batch() -> None:
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0], [0.0]]))
        model.bias.copy_(torch.tensor([-0.5, 0.0]))
    x, y = torch.tensor([[0.505], [0.555], [0.9], [0.1]]), torch.zeros(4, dtype=torch.long)
    counting = Counting(model)
    PGD(steps=10, rel_step_size=0.1, random_start=False)(counting, x, y, BALL)
    # 4 clean rows; then the three that are right at first: broken after 1 and 6 steps, and never in 10 steps
    assert counting.rows == 4 + (1 + 1) + (1 + 6) + (1 + 10)
    counting.rows = 0
    PGD(steps=10, rel_step_size=0.1, random_start=False, early_stop=False)(counting, x, y, BALL)
    assert counting.rows == 4 + 4 * 11


def test_without_early_stop_misclassified_samples_are_pushed_on() -> None:
    model = mlp()
    data = samples(model, 10, 6, wrong=5)
    plain = PGD(steps=10, rel_step_size=0.25, early_stop=False)
    x_adv = plain(model, data.x, data.y, BALL).x_adv
    gain = rank(model, data.x, data.y, plain) - rank(model, x_adv, data.y, plain)
    assert (gain > 0).all()


def test_steps_take_a_box_and_a_step_size_of_each_sample() -> None:
    model = nn.Linear(2, 2)
    x, y = torch.full((3, 2), 0.5), torch.zeros(3, dtype=torch.long)
    radius = torch.tensor([[0.0], [0.1], [0.3]])
    with evaluating(model):
        worst, last = pgd_steps(
            model, x, y, x - radius, x + radius, steps=4, step_size=radius.flatten() / 2, loss=cross_entropy
        )
    assert torch.equal(worst.x_adv[0], x[0])
    torch.testing.assert_close((last - x).abs(), radius.expand(3, 2) * (last != x))


def test_steps_shrink_by_an_equal_factor_to_the_last() -> None:
    """Of a rising line every step is taken up: 0.1 + 0.01 + 0.001 with a hundredth at last."""
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0], [0.0]]))
    x = torch.zeros(1, 1, dtype=torch.double)
    with evaluating(model.double()):
        _, last = pgd_steps(
            model,
            x,
            torch.tensor([1]),
            x - 1,
            x + 1,
            steps=3,
            step_size=0.1,
            loss=lambda logits, aims: logits.gather(1, aims.unsqueeze(1)).squeeze(1),
            aims=torch.tensor([0]),
            rel_last_step=0.01,
            early_stop=False,
        )
    torch.testing.assert_close(last, torch.tensor([[0.111]], dtype=torch.double))


def test_every_wrong_class_is_aimed_at_in_turn() -> None:
    """Class 1 leads all over the ball but cannot win; class 2, behind, can: PGD on the margin follows the first.

    With u = x - 0.5 in [-0.1, 0.1] the logits are 1, 0.8 + u and 1.1 - 6 |u + 0.08|: the last beats the label only
    within 1/60 of u = -0.08, and is the greatest wrong one only below -0.03; from 0 on every gradient leads upward.
    """

    class Hidden(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            u = x[:, 0] - 0.5
            return torch.stack([torch.ones_like(u), 0.8 + u, 1.1 - 6 * (u + 0.08).abs()], dim=1)

    x, y = torch.full((1, 1), 0.5), torch.tensor([0])
    assert PGD(loss="margin", random_start=False)(Hidden(), x, y, BALL).margin.item() == pytest.approx(0.1)
    assert TargetedPGD(restarts=1, targets=1)(Hidden(), x, y, BALL).margin.item() > 0
    assert TargetedPGD(restarts=1, targets=2)(Hidden(), x, y, BALL).margin.item() <= 0


def test_large_logits_mask_cross_entropy_and_not_the_margin() -> None:
    network = mlp()
    masked = nn.Sequential(network, nn.Linear(3, 3, bias=False))
    with torch.no_grad():
        masked[1].weight.copy_(1e6 * torch.eye(3))
    data = samples(network, 40, 6, wrong=0)
    ball = LinfBall(0.3)
    broken = {
        attack: int((attack(masked, data.x, data.y, ball).margin <= 0).sum())
        for attack in (PGD(random_start=False), PGD(random_start=False, loss="margin"))
    }
    by_entropy, by_margin = broken.values()
    assert by_margin > by_entropy


def test_the_model_is_restored_after_an_exception() -> None:
    model = nn.Sequential(nn.Linear(6, 3), nn.Dropout(), nn.BatchNorm1d(4)).train()
    model[2].eval()
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError):
        PGD()(model, torch.rand(2, 6, generator=torch.Generator()), torch.tensor([0, 1]), BALL)
    assert [one.training for one in model.modules()] == [True, True, True, False]
    assert torch.equal(torch.get_rng_state(), state)


class Strange(nn.Module):
    """A model that answers with whatever it is told to."""

    def __init__(self, answer: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> object:
        return self.answer(x)


@pytest.mark.parametrize("attack", [PGD(), FGSM(), TorchAttacksPGD(), IntervalGradient()], ids=repr)
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: (x, x), "expected the model to give a tensor of logits, got tuple"),
        (lambda x: x.sum(dim=1), r"expected logits of shape \(2, K\) with K >= 2, got \(2,\)"),
        (lambda x: x[:, :1], r"got \(2, 1\)"),
        (lambda x: x * math.nan, "got NaN"),
    ],
)
def test_unusable_models_are_refused(attack: Attack, answer: Callable[[Tensor], object], message: str) -> None:
    with pytest.raises(RobustkitError, match=message):
        attack(Strange(answer), torch.full((2, 3), 0.5), torch.tensor([0, 1]), BALL)


def test_a_model_without_a_gradient_is_refused() -> None:
    constant = Strange(lambda x: torch.tensor([[1.0, 0.0]]).expand(len(x), 2))
    with pytest.raises(RobustkitError, match="depend on x by differentiable operations"):
        PGD()(constant, torch.full((2, 3), 0.5), torch.tensor([0, 0]), BALL)


def test_a_nan_met_on_the_way_is_refused() -> None:
    beyond = Strange(lambda x: torch.stack([x[:, 0] + 1, torch.where(x[:, 0] < 0.45, math.nan, x[:, 1])], dim=1))
    with pytest.raises(RobustkitError, match="got NaN"):
        PGD(random_start=False)(beyond, torch.full((2, 3), 0.5), torch.tensor([0, 0]), BALL)


def test_ties_and_infinite_logits_are_misclassified() -> None:
    x, y = torch.full((1, 2), 0.5), torch.tensor([0])
    for answer in (lambda x: x, lambda x: x * math.inf):
        found = PGD()(Strange(answer), x, y, BALL)
        assert found.margin.tolist() == [0.0]
        assert torch.equal(found.x_adv, x)


@every_attack
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.full((2, 6), 2.6), [0, 1], r"expected x in \[0, 1\], got max 2.6; put normalisation inside the model"),
        (torch.full((2, 6), -0.5), [0, 1], "got min -0.5"),
        (torch.full((2, 6), math.nan), [0, 1], "got min nan"),
        (torch.full((2, 6), 0.5), [0, 3], r"expected labels y in \[0, 2\] for a model of 3 classes, got 3"),
        (torch.full((2, 6), 0.5), [-1, 1], "got -1"),
        (torch.full((2, 6), 0.5), [0], "expected y as 2 integer labels"),
        (torch.ones((2, 6), dtype=torch.uint8), [0, 1], "divide grey levels by 255"),
        (torch.ones((0, 6)), [], "expected at least one sample"),
    ],
)
def test_bad_inputs_are_refused(attack: Attack, x: Tensor, y: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        attack(mlp(), x, torch.tensor(y, dtype=torch.long), BALL)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(steps=0), "expected steps of at least 1, got 0"),
        (lambda: PGD(rel_step_size=0.0), "rel_step_size above 0"),
        (lambda: PGD(rel_last_step=2.0), r"rel_last_step in \(0, 1\], got 2.0"),
        (lambda: PGD(restarts=0), "restarts of at least 1"),
        (lambda: PGD(loss="hinge"), "loss as one of ce, margin, got 'hinge'"),  # type: ignore[arg-type]
        (lambda: PGD(restarts=2, random_start=False), "all would be alike"),
        (lambda: CW(steps=0), "steps of at least 1"),
        (lambda: TargetedPGD(targets=0), "targets of at least 1, got 0"),
        (lambda: TargetedPGD(rel_last_step=0.0), r"rel_last_step in \(0, 1\], got 0.0"),
        (lambda: TorchAttacksPGD(steps=0), "steps of at least 1"),
        (lambda: IntervalGradient(inner="blob"), "inner as one of pgd, cw"),  # type: ignore[arg-type]
        (lambda: IntervalGradient(rel_widening=0.7), r"rel_widening in \(0, 0.5\]"),
        (lambda: IntervalGradient(hopeless="pray"), "hopeless as one of redraw, stay"),  # type: ignore[arg-type]
        (lambda: IntervalGradient(bound_batch=0), "bound_batch of at least 1"),
        (lambda: IntervalGradient(widths_at_once=0), "widths_at_once of at least 1"),
        (lambda: IntervalGradient(rel_last_step=0.0), "rel_last_step in"),
        (lambda: make_attack("pdg"), "unknown attack 'pdg'; did you mean pgd"),
        (lambda: make_attack("pgd", {"step": 3}), "unknown option of attack.options.pgd 'step'; did you mean steps"),
        (lambda: make_attack("pgd", {"steps": "many"}), "expected attack.options.pgd.steps as int, got 'many'"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(make: Callable[[], Attack], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_one_index_per_sample() -> None:
    model = mlp()
    data = samples(model, 4, 6)
    with pytest.raises(UsageError, match="expected one index per sample"):
        PGD()(model, data.x, data.y, BALL, torch.arange(3))


@pytest.mark.parametrize("name", ATTACKS)
def test_every_registered_attack_has_its_name_and_a_telling_repr(name: str) -> None:
    attack = make_attack(name, {"seed": 3})
    assert attack.name == name
    assert "seed=3" in repr(attack)
    assert attack == ATTACKS[name](seed=3)  # type: ignore[call-arg]


def test_torchattacks_is_imported_only_when_used() -> None:
    code = "import sys, robustkit.attacks; sys.exit('torchattacks' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], check=False).returncode == 0


def test_torchattacks_agrees_with_our_pgd(capfd: pytest.CaptureFixture[str]) -> None:
    model = mlp()
    data = samples(model, 30, 6, wrong=0)
    ours = PGD(random_start=False)(model, data.x, data.y, BALL)
    theirs = TorchAttacksPGD(random_start=False)(model, data.x, data.y, BALL)
    assert torch.equal(ours.margin <= 0, theirs.margin <= 0)
    assert 0 < (ours.margin <= 0).sum() < 30
    assert capfd.readouterr().out == ""


def test_torchattacks_refuses_another_pixel_range() -> None:
    with pytest.raises(UsageError, match=r"expected pixels in \[0, 1\] for torchattacks, got the range \[-1, 1\]"):
        TorchAttacksPGD()(mlp(), torch.zeros(1, 6), torch.tensor([0]), LinfBall(0.1, lower=-1.0))


def test_torchattacks_missing_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(RobustkitError, match=r"expected torchattacks >= 3.5.1 to be importable"):
        TorchAttacksPGD()(mlp(), torch.zeros(1, 6), torch.tensor([0]), BALL)


def evaluate(attack: Attack, model: nn.Module, data: Samples, batch_size: int = 5) -> tuple[pd.DataFrame, Tensor]:
    tables, points = zip(*attack_batches(attack, model, data, BALL, SUBJECT, batch_size=batch_size), strict=True)
    return pd.concat(tables, ignore_index=True), torch.cat(points)


def test_evaluation_writes_one_row_per_sample() -> None:
    model = mlp()
    data = samples(model, 12, 6)
    table, x_adv = evaluate(PGD(), model.train(), data)
    assert list(table.columns) == list(COLUMNS)
    assert table["index"].tolist() == data.index.tolist()
    assert table["label"].tolist() == data.y.tolist()
    assert set(table["kind"]) == {"attack"}
    assert set(table["settings"]) == {repr(PGD())}
    assert (table["verdict"] == Verdict.MISCLASSIFIED).tolist() == [False] * 10 + [True] * 2
    assert (table["predicted"] == table["label"]).tolist() == [True] * 10 + [False] * 2
    with evaluating(model), torch.no_grad():
        wrong = ~correct(model(x_adv), data.y)
    assert (table["verdict"] != Verdict.UNKNOWN).tolist() == wrong.tolist()
    assert set(table["verdict"]) == {Verdict.MISCLASSIFIED, Verdict.FALSIFIED, Verdict.UNKNOWN}
    np.testing.assert_allclose(table["margin"], margin_of(model, x_adv, data.y), atol=1e-5)
    assert (table["seconds"] > 0).all()


def test_verdicts_do_not_depend_on_the_batch_size() -> None:
    model = conv()
    data = samples(model, 8, 1, 6, 6)
    one, other = (evaluate(PGD(restarts=2), model, data, size)[0]["verdict"] for size in (8, 3))
    assert one.tolist() == other.tolist()


@dataclass(frozen=True)
class Lying:
    """Claims success everywhere, ``shift`` away from the sample."""

    shift: float
    name: str = "lying"

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None
    ) -> AttackResult:
        return AttackResult(x + self.shift, torch.full((len(x),), -5.0))


def test_claimed_success_is_not_believed() -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([1.0, 0.0]))
    data = Samples(torch.full((3, 2), 0.5), torch.zeros(3, dtype=torch.long), torch.arange(3))
    table, _ = evaluate(Lying(0.0), model, data)
    assert set(table["verdict"]) == {Verdict.UNKNOWN}
    assert table["margin"].tolist() == [1.0] * 3


@pytest.mark.parametrize("shift", [0.2, 0.1 + 1e-6, math.nan])
def test_points_outside_the_ball_are_refused(shift: float) -> None:
    data = Samples(torch.full((3, 2), 0.5), torch.zeros(3, dtype=torch.long), torch.arange(3))
    with pytest.raises(RobustkitError, match=r"expected attack 'lying' to stay in the ball of eps 0.1.* 3 of 3 points"):
        evaluate(Lying(shift), nn.Linear(2, 2), data)


def test_evaluation_refuses_normalised_data() -> None:
    data = Samples(torch.full((3, 6), 2.6), torch.zeros(3, dtype=torch.long), torch.arange(3))
    with pytest.raises(UsageError, match=r"expected x in \[0, 1\], got max 2.6; put normalisation inside the model"):
        evaluate(Lying(0.0), mlp(), data)


def test_examples_survive_the_disk_and_replay(tmp_path: Path) -> None:
    model = mlp()
    data = samples(model, 12, 6)
    table, x_adv = evaluate(PGD(), model, data)
    before = Examples.of(table, data.x, x_adv, data.y)
    save_examples(tmp_path / "deep" / "examples.npz", before)
    after = load_examples(tmp_path / "deep" / "examples.npz")
    assert len(after.y) == (table["verdict"] == Verdict.FALSIFIED).sum() > 0
    assert after.eps == BALL.eps
    for name in ("x", "x_adv", "y", "index"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    x, replayed, y = (torch.from_numpy(one) for one in (after.x, after.x_adv, after.y))
    assert BALL.contains(replayed, x).all()
    assert (margin_of(model, replayed, y) <= 0).all()


def test_no_example_is_a_file_as_well(tmp_path: Path) -> None:
    data = samples(mlp(), 3, 6, wrong=3)
    table, x_adv = evaluate(FGSM(), mlp(), data)
    save_examples(tmp_path / "none.npz", Examples.of(table, data.x, x_adv, data.y))
    assert load_examples(tmp_path / "none.npz").x.shape == (0, 6)


def test_bad_example_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "examples.npz"
    with pytest.raises(RobustkitError, match="found none; run attack first"):
        load_examples(path)
    x, y = np.zeros((4, 9), dtype=np.float32), np.zeros(4, dtype=np.int64)
    save_examples(path, Examples(x, x, y, y, y, 0.1))
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not an archive"):
        path.write_bytes(damaged)
        with pytest.raises(RobustkitError, match=r"could not read them .* delete the file and attack again"):
            load_examples(path)
    np.savez(path, x=x)
    with pytest.raises(RobustkitError, match="could not read them"):
        load_examples(path)
    np.savez(path, x=np.array([{}], dtype=object), x_adv=x, y=y, index=y, eps=0.1)
    with pytest.raises(RobustkitError, match="could not read them"):
        load_examples(path)
    with pytest.raises(UsageError, match="of one length"):
        Examples(x, x[:2], y, y, y, 0.1)
