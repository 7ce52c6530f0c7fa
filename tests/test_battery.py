"""Batteries of attacks, the standard one among them; attacks of the library by name; and models that make trouble."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from robustkit.attacks import (
    APGDT,
    FAB,
    PGD,
    AttackResult,
    AutoAttack,
    Battery,
    Square,
    TorchAttack,
    attack_batches,
    compose_attack,
    library_attacks,
    make_attack,
)
from robustkit.attacks.autoattack import _say_what_is_left_out
from robustkit.attacks.draws import RepeatableDraws
from robustkit.cli import cli
from robustkit.errors import RobustkitError, UsageError
from robustkit.results import Subject
from robustkit.threat import LinfBall

BALL = LinfBall(0.1)
SUBJECT = Subject("toy", "abc", "natural", math.nan, "digits", 0)


@dataclass(frozen=True)
class Samples:
    x: Tensor
    y: Tensor
    index: Tensor


def line() -> nn.Module:
    """Two classes of one pixel: below 0.5 is class 1."""
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0], [0.0]]))
        model.bias.copy_(torch.tensor([-0.5, 0.0]))
    return model


def images(n: int = 9, channels: int = 1) -> tuple[nn.Module, Samples]:
    """A network of four classes and images that it gets right, of all classes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(25 * channels, 12), nn.ReLU(), nn.Linear(12, 4))
    x = torch.rand(n, channels, 5, 5)
    with torch.no_grad():
        model[3].bias -= model(x).mean(dim=0)
        return model, Samples(x, model(x).argmax(dim=1), torch.arange(n))


@dataclass(frozen=True)
class Step:
    """Moves every pixel down by so much, and writes down how many samples it was given."""

    size: float
    name: str
    given: list[int] = field(default_factory=list)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None
    ) -> AttackResult:
        self.given.append(len(x))
        return AttackResult(x - self.size, torch.full((len(x),), -9.0))  # it claims too much


def test_each_attack_gets_what_is_left_and_nothing_it_claims_is_believed() -> None:
    x, y = torch.tensor([[0.4], [0.53], [0.58], [0.9]]), torch.zeros(4, dtype=torch.long)
    small, large = Step(0.04, "small"), Step(0.5, "large")  # the large one leaves the ball and is put back
    found = Battery((small, large))(line(), x, y, BALL)
    assert (small.given, large.given) == ([3], [2])
    assert found.found_by == ("", "small", "large", "")
    torch.testing.assert_close(found.margin, torch.tensor([-0.1, -0.01, -0.02, 0.3]).double(), atol=1e-6, rtol=0)


def test_rows_say_which_attack_broke_a_sample() -> None:
    x, y = torch.tensor([[0.4], [0.53], [0.58], [0.9]]), torch.zeros(4, dtype=torch.long)
    battery = Battery((Step(0.04, "small"), Step(0.5, "large")))
    ((rows, _),) = attack_batches(battery, line(), Samples(x, y, torch.arange(4)), BALL, SUBJECT)
    assert rows["method"].unique().tolist() == ["small+large"]
    assert rows["verdict"].tolist() == ["misclassified", "falsified", "falsified", "unknown"]
    assert rows["proved_by"].tolist() == ["", "small", "large", ""]


def test_a_battery_is_composed_of_names_and_each_name_has_its_options() -> None:
    battery = compose_attack("pgd+square", {"pgd": {"steps": 7}, "square": {"n_queries": 9}, "cw": {"steps": 3}})
    assert battery == Battery((PGD(steps=7), Square(n_queries=9)))
    assert battery.name == "pgd+square"
    assert compose_attack("pgd", {"pgd": {"steps": 7}}) == PGD(steps=7)
    with pytest.raises(UsageError, match="each attack of a battery once, got pgd twice"):
        compose_attack("pgd+cw+pgd", {})
    with pytest.raises(UsageError, match="unknown attack 'sqare'; did you mean square"):
        compose_attack("pgd+sqare", {})


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (2, ["apgd-ce", "fab", "square"]),
        (3, ["apgd-ce", "apgd-dlr", "fab", "square"]),
        (4, ["apgd-ce", "apgd-t", "fab", "square"]),
        (100, ["apgd-ce", "apgd-t", "fab", "square"]),
    ],
)
def test_autoattack_is_the_standard_and_says_what_few_classes_leave_out(
    classes: int, names: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    _say_what_is_left_out.cache_clear()
    for _ in range(2):
        parts = AutoAttack().parts(classes)
    assert [one.name for one in parts] == names
    assert [getattr(one, "steps", None) or getattr(one, "n_queries", None) for one in parts] == [100] * (
        len(names) - 1
    ) + [5000]
    assert [record.message for record in caplog.records if "needs 4" in record.message][1:] == [], "said once"
    assert bool(caplog.records) == (classes < 4)


def test_autoattack_finds_all_that_its_parts_find_and_says_which() -> None:
    model, data = images(40)
    attack, ball = AutoAttack(steps=10, n_queries=50), LinfBall(0.06)
    found = attack(model, data.x, data.y, ball)
    broken = found.margin <= 0
    assert 0 < broken.sum() < 40
    assert [name != "" for name in found.found_by] == broken.tolist()
    for part in attack.parts(4):
        alone = part(model, data.x, data.y, ball).margin <= 0
        assert not (alone & ~broken).any()
    first = attack.parts(4)[0](model, data.x, data.y, ball).margin <= 0
    assert [name == "apgd-ce" for name in found.found_by] == first.tolist()


@pytest.mark.parametrize("attack", [APGDT(steps=2, targets=4), FAB(steps=2, targets=4)], ids=repr)
def test_more_targets_than_wrong_classes_are_refused(attack: APGDT | FAB) -> None:
    model, data = images()
    with pytest.raises(UsageError, match="expected targets of at most 3 for a model of 4 classes, got 4"):
        attack(model, data.x, data.y, BALL)


def test_every_l_infinity_attack_of_the_library_runs_by_its_name() -> None:
    model, data = images(4, channels=3)  # some take no others
    names = library_attacks()
    assert {"DIFGSM", "SPSA", "PIFGSMPP"} <= set(names)
    assert not {"CW", "PGDL2", "JSMA", "VANILA", "MultiAttack"} & set(names)
    few = {"APGD": {"steps": 2}, "Square": {"n_queries": 5}, "AutoAttack": {}, "SPSA": {"nb_iter": 1, "nb_sample": 2}}
    for name in names:
        if name == "AutoAttack":  # its 5,000 queries cannot be set
            continue
        attack = make_attack(f"torchattacks:{name}", few.get(name, {}))
        found = attack(model, data.x, data.y, BALL)
        assert BALL.contains(found.x_adv, data.x).all(), name
        assert torch.equal(attack(model, data.x, data.y, BALL).x_adv, found.x_adv), name


def test_a_default_step_of_the_library_grows_with_eps() -> None:
    """BIM by default steps 2/255 at 8/255, ten times: at eps 0.4 the steps of 2/255 would end at 0.078."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0] * 4, [0.0] * 4]))
        model[1].bias.copy_(torch.tensor([5.0, 0.0]))
    x, y = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0])
    found = make_attack("torchattacks:BIM")(model, x, y, LinfBall(0.4))
    torch.testing.assert_close(found.margin, torch.tensor([5.4]).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("torchattacks:CW", {}, "expected an attack of the L-infinity norm, got torchattacks:CW, which is for L2"),
        ("torchattacks:VANILA", {}, "which is for none"),
        ("torchattacks:DIFGMS", {}, "unknown attack 'torchattacks:DIFGMS'; did you mean torchattacks:DIFGSM"),
        ("torchattacks:DIFGSM", {"step": 3}, "unknown option of attack.options.torchattacks:DIFGSM 'step'; did you"),
        ("torchattacks:DIFGSM", {"eps": 0.3}, "unknown option of attack.options.torchattacks:DIFGSM 'eps'"),
        ("torchattacks:DIFGSM", {"steps": "many"}, "expected attack.options.torchattacks:DIFGSM.steps as int, got"),
        ("torchattacks:DIFGSM", {"seed": 0.5}, "DIFGSM.seed as int, got 0.5"),
    ],
)
def test_mistakes_with_attacks_of_the_library_are_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_attack(name, options)


def test_an_attack_that_fails_inside_the_library_is_one_line() -> None:
    model = nn.Linear(6, 3)
    attack = TorchAttack("DIFGSM", (("diversity_prob", 1.0), ("resize_rate", 0.5)))
    with pytest.raises(RobustkitError, match=r"DIFGSM failed inside the library on inputs of shape \(2, 6\)"):
        attack(model, torch.full((2, 6), 0.5), model(torch.full((2, 6), 0.5)).argmax(dim=1), BALL)


def test_draws_belong_to_samples() -> None:
    def draw(index: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with torch.random.fork_rng(()), RepeatableDraws((3,), index, torch.device("cpu")):
            one = torch.rand((len(index), 1, 2, 2))
            place = torch.rand([1])
            two = torch.zeros(len(index), 1, 2, 2).uniform_(-5, 5)
            return one, place, two, torch.randn_like(one)

    whole, parts = draw([8, 2, 5]), [draw([5]), draw([2, 8])]
    for drawn, (last, first) in zip(whole, zip(*parts, strict=True), strict=True):
        expected = drawn if drawn.ndim == 1 else torch.cat([last, first])
        torch.testing.assert_close(drawn if drawn.ndim == 1 else drawn[[2, 1, 0]], expected, atol=0, rtol=0)
        assert drawn.ndim == 1 or len(drawn.unique()) == 12, "no two samples alike"
    assert whole[2].abs().max() > 1


class Small(nn.Module):
    """A device that holds so many samples at once."""

    def __init__(self, network: nn.Module, most: int) -> None:
        super().__init__()
        self.network, self.most = network, most

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        logits: Tensor = self.network(x)
        return logits


@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "square", "torchattacks-pgd", "torchattacks:PGD"])
def test_out_of_memory_halves_the_batch_and_changes_nothing(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model, data = images(11)
    short = {"steps": 3} if name != "square" else {"n_queries": 20}
    attack = make_attack(name, short)

    def rows(network: nn.Module) -> Iterator[pd.DataFrame]:
        for table, _ in attack_batches(attack, network, data, LinfBall(0.05), SUBJECT, batch_size=8):
            yield table

    parts = list(rows(Small(model, 3)))
    assert [len(one) for one in parts] == [2, 2, 2, 2, 2, 1]
    caplog.clear()
    small, whole = pd.concat(parts), pd.concat(rows(model))
    assert small["index"].tolist() == list(range(11))
    assert small["verdict"].tolist() == whole["verdict"].tolist()
    assert small["margin"].tolist() == pytest.approx(whole["margin"].tolist(), abs=1e-5)


def test_one_sample_too_much_for_the_memory_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    model, data = images(3)
    with pytest.raises(RobustkitError, match="expected memory for an attack on one sample, got none"):
        list(attack_batches(PGD(steps=1), Small(model, 0), data, BALL, SUBJECT))
    assert "out of memory with 3 samples together; going on with 1" in caplog.text


def test_a_model_that_gives_probabilities_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model, data = images()
    with caplog.at_level(logging.WARNING):
        list(attack_batches(PGD(steps=1), model, data, BALL, SUBJECT))
        assert caplog.text == ""
        list(attack_batches(PGD(steps=1), nn.Sequential(model, nn.Softmax(1)), data, BALL, SUBJECT, batch_size=2))
    assert caplog.text.count("the model gives probabilities") == 1


def test_a_battery_of_ones_own_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def robustkit(*arguments: str) -> str:
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == 0, done.output
        return done.stdout

    robustkit("train", "--method", "natural", "--epochs", "1", "--eps", "0.1", "--out", "run")
    few = "--set", 'attack.options."torchattacks:DIFGSM".steps=2', "--set", "attack.options.square.n_queries=5"
    shown = robustkit("attack", "--run", "run", "--n", "30", "--methods", "fgsm,torchattacks:DIFGSM,square", *few)
    assert "fgsm+torchattacks:DIFGSM+square" in shown
    (file,) = Path("run/results").glob("*.csv")
    table = pd.read_csv(file, keep_default_na=False)
    assert ":" not in file.name
    assert "('steps', 2)" in table["settings"][0]
    broken = table["verdict"] == "falsified"
    assert broken.any()
    assert (table["proved_by"] != "").tolist() == broken.tolist()
    assert set(table["proved_by"][broken]) <= {"fgsm", "torchattacks:DIFGSM", "square"}
