import functools
import logging
import math
import re
from typing import Any

import networks
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from robustkit.attacks import ATTACKS, PGD
from robustkit.bounds import BoundedNetwork, BoundMethod
from robustkit.data import Split
from robustkit.errors import RobustkitError, SoundnessError, UnsupportedLayerError, UsageError
from robustkit.margins import correct, fold
from robustkit.results import COLUMNS, Subject
from robustkit.threat import LinfBall
from robustkit.verdict import Verdict
from robustkit.verifiers import (
    VERIFIERS,
    BoundVerifier,
    Cascade,
    Outcome,
    make_verifier,
    verify_batches,
)

PROVED = (Verdict.VERIFIED, Verdict.VERIFIED_FLOAT)
SUBJECT = Subject("run", "code", "ibp", 0.1, "toy", 0)
SETTLED = {
    **{key: {*BoundMethod, "branch-and-bound"} for key in PROVED},
    Verdict.FALSIFIED: {"pgd", "branch-and-bound"},
    Verdict.UNKNOWN: {""},
}


def balanced(kind: str) -> nn.Sequential:
    """A random network that gives no class more than its share, so that its margins are small."""
    model = networks.make(kind)
    with torch.no_grad():
        model[-1].bias -= model(networks.inputs(64)).mean(dim=0)
    return model


def samples(model: nn.Module, count: int = 24, wrong: int = 3) -> tuple[Tensor, Tensor]:
    """Inputs with the labels the network gives them, but for a few at the end."""
    x = networks.inputs(count)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    y[count - wrong :] = (y[count - wrong :] + 1) % networks.CLASSES
    return x, y


@functools.cache
def broken_samples(kind: str, eps: float) -> list[bool]:
    """Say for which samples of a balanced network a hard search finds a wrongly classified point."""
    model = balanced(kind)
    return violated(model, *samples(model), LinfBall(eps)).tolist()


def violated(model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall) -> Tensor:
    """Say for which samples a hard search finds a wrongly classified point, shape ``(B,)``."""
    found = torch.zeros(len(y), dtype=torch.bool)
    for attack in (PGD(60, 0.1, restarts=4, seed=11), PGD(40, 0.3, restarts=2, loss="margin", seed=12)):
        x_adv = attack(model, x, y, ball).x_adv
        with torch.no_grad():
            found |= ~correct(model(x_adv), y) & ball.contains(x_adv, x)
    return found


def lying(monkeypatch: pytest.MonkeyPatch, value: float = 1.0) -> None:
    def margins(self: BoundedNetwork, x: Tensor, y: Tensor, ball: LinfBall, method: BoundMethod) -> Tensor:
        return torch.full((len(y), networks.CLASSES), value).scatter(1, y.unsqueeze(1), 0.0)

    monkeypatch.setattr(BoundedNetwork, "lower_margins", margins)


def scaled(kind: str, factor: float) -> nn.Sequential:
    """A network whose logits are a multiple of another's."""
    model = balanced(kind)
    with torch.no_grad():
        model[-1].weight.mul_(factor)
        model[-1].bias.mul_(factor)
    return model


@pytest.mark.parametrize(
    ("flags", "verdict"),
    [
        ((False, False, False, False), Verdict.MISCLASSIFIED),
        ((False, True, False, False), Verdict.MISCLASSIFIED),
        ((True, True, False, False), Verdict.FALSIFIED),
        ((True, False, False, False), Verdict.UNKNOWN),
        ((True, False, True, False), Verdict.VERIFIED_FLOAT),
        ((True, False, True, True), Verdict.VERIFIED),
    ],
)
def test_what_is_known_folds_into_one_verdict(flags: tuple[bool, bool, bool, bool], verdict: Verdict) -> None:
    outcome = Outcome.begin(nn.Flatten(), torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    for name, flag in zip(("clean", "falsified", "verified", "checked"), flags, strict=True):
        getattr(outcome, name)[0] = flag
    assert outcome.verdicts() == [verdict] == [fold(*flags)]


@pytest.mark.parametrize("flags", [(False, False, True), (True, True, True), (False, True, True)])
def test_verified_and_broken_stops_everything(flags: tuple[bool, bool, bool]) -> None:
    outcome = Outcome.begin(nn.Flatten(), torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    for name, flag in zip(("clean", "falsified", "verified"), flags, strict=True):
        getattr(outcome, name)[0] = flag
    with pytest.raises(SoundnessError, match="no result of this run may be used"):
        outcome.verdicts()


def test_an_outcome_begins_with_the_predictions_and_a_tie_is_wrong() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0], [math.nan, 0.0]])
    outcome = Outcome.begin(nn.Flatten(), logits, torch.tensor([0, 0, 0, 0]))
    assert outcome.clean.tolist() == [True, False, False, False]
    assert outcome.settled_by == ["", "prediction", "prediction", "prediction"]
    assert outcome.left().tolist() == [0]
    assert outcome.predicted[:3].tolist() == [0, 1, 0]
    assert outcome.margin.isnan().all()
    assert outcome.least[:3].tolist() == [2.0, -2.0, 0.0]


def test_proofs_are_kept_where_they_are_best() -> None:
    outcome = Outcome.begin(nn.Flatten(), torch.tensor([[2.0, 0.0]] * 3), torch.tensor([0, 0, 0]))
    outcome.prove(torch.tensor([0, 1, 2]), torch.tensor([-3.0, -torch.inf, 0.0]))
    assert outcome.verified.tolist() == [False, False, False], "a proved tie is no proof"
    outcome.prove(torch.tensor([0, 1]), torch.tensor([-5.0, 0.5]))
    assert outcome.verified.tolist() == [False, True, False]
    torch.testing.assert_close(outcome.margin, torch.tensor([-3.0, 0.5, 0.0]))
    outcome.prove(torch.tensor([0]), torch.tensor([-torch.inf]))
    assert outcome.margin[0] == -3.0
    with pytest.raises(SoundnessError, match=r"a margin of 2\.5 is proved for a ball that holds a point of margin 2 "):
        outcome.prove(torch.tensor([2]), torch.tensor([2.5]))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind in networks.KINDS
        for name in sorted(VERIFIERS)
        if name != "complete" or kind in ("mlp", "conv", "batch_norm")
    ],
)
def test_nothing_is_verified_where_a_point_is_wrong(kind: str, name: str) -> None:
    model = balanced(kind)
    x, y = samples(model)
    verify = make_verifier(name).prepare(model, x[:1])
    for eps in (0.0, 0.01, 0.1):
        ball = LinfBall(eps)
        outcome = verify(x, y, ball)
        verdicts = outcome.verdicts()
        for verdict, wrong in zip(verdicts, broken_samples(kind, eps), strict=True):
            assert not (wrong and verdict in PROVED), f"{name} verifies a broken sample of {kind} at {eps}"
        assert verdicts[-3:] == [Verdict.MISCLASSIFIED] * 3
        assert (outcome.seconds > 0).all()
        if eps == 0.0:
            unread = kind in ("sigmoid", "tanh")
            assert verdicts[:-3].count(Verdict.VERIFIED_FLOAT if unread else Verdict.VERIFIED) >= 20
            assert (Verdict.VERIFIED in verdicts) is not unread


def test_verdicts_agree_with_what_the_outcome_says_of_each_sample() -> None:
    model = balanced("conv")
    x, y = samples(model)
    verify = Cascade().prepare(model, x[:1])
    seen: set[Verdict] = set()
    for eps in (0.01, 0.05, 0.1):
        ball = LinfBall(eps)
        outcome = verify(x, y, ball)
        broken = ~correct(model(outcome.x_adv), y)
        assert ball.contains(outcome.x_adv, x).all()
        for row, verdict in enumerate(outcome.verdicts()):
            seen.add(verdict)
            assert outcome.settled_by[row].removesuffix(" (float)") in SETTLED.get(verdict, {"prediction"})
            assert outcome.settled_by[row].endswith(" (float)") == (verdict is Verdict.VERIFIED_FLOAT)
            assert (outcome.margin[row] > 0).item() == (verdict in PROVED)
            assert bool(outcome.reason[row]) == (verdict in (Verdict.UNKNOWN, Verdict.VERIFIED_FLOAT))
            assert broken[row].item() == (verdict in (Verdict.FALSIFIED, Verdict.MISCLASSIFIED))
            if verdict is not Verdict.FALSIFIED:
                assert torch.equal(outcome.x_adv[row], x[row])
    assert seen >= {Verdict.VERIFIED, Verdict.FALSIFIED, Verdict.MISCLASSIFIED}


def test_a_later_bound_sees_only_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    model = balanced("conv")
    x, y = samples(model, count=40)
    asked: list[tuple[BoundMethod, Tensor]] = []
    original = BoundedNetwork.lower_margins

    def margins(self: BoundedNetwork, x: Tensor, y: Tensor, ball: LinfBall, method: BoundMethod) -> Tensor:
        asked.append((method, x))
        return original(self, x, y, ball, method)

    monkeypatch.setattr(BoundedNetwork, "lower_margins", margins)
    outcome = Cascade().prepare(model, x[:1])(x, y, LinfBall(0.03))
    left = torch.tensor([by not in ("prediction", "pgd") for by in outcome.settled_by])
    for method, given in asked:
        assert torch.equal(given, x[left]), method
        left &= torch.tensor([by != method.value for by in outcome.settled_by])
    assert [method for method, _ in asked] == list(Cascade().bounds)[: len(asked)]
    assert len({by for by in outcome.settled_by if by in set(BoundMethod)}) >= 2, "more than one bound had its share"


def refusing(monkeypatch: pytest.MonkeyPatch, *refused: BoundMethod) -> list[BoundMethod]:
    original, asked = BoundedNetwork.lower_margins, []

    def margins(self: BoundedNetwork, x: Tensor, y: Tensor, ball: LinfBall, method: BoundMethod) -> Tensor:
        asked.append(method)
        if method in refused:
            raise UnsupportedLayerError(f"no {method.value} for this layer")
        return original(self, x, y, ball, method)

    monkeypatch.setattr(BoundedNetwork, "lower_margins", margins)
    return asked


def test_a_bound_that_refuses_is_left_out_and_the_reason_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = balanced("conv")
    x, y = samples(model)
    asked = refusing(monkeypatch, BoundMethod.CROWN)
    verify = make_verifier("cascade", {"bounds": ["crown", "ibp"], "split": False}).prepare(model, x[:1])
    with caplog.at_level(logging.WARNING):
        outcome = verify(x, y, LinfBall(0.05))
        verify(x, y, LinfBall(0.05))
    assert asked == [BoundMethod.CROWN, BoundMethod.IBP, BoundMethod.IBP], "it is asked once"
    unknown = [reason for reason, one in zip(outcome.reason, outcome.verdicts(), strict=True) if one is Verdict.UNKNOWN]
    assert unknown
    expected = "no bound proves a margin above 0; crown left out: no crown for this layer"
    assert set(unknown) == {expected}
    assert [record.getMessage() for record in caplog.records] == [
        "cascade goes on without crown: no crown for this layer"
    ]


def test_all_bounds_refusing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = balanced("conv")
    x, y = samples(model)
    refusing(monkeypatch, *BoundMethod)
    with pytest.raises(UnsupportedLayerError, match=r"no bound of the cascade .*: no ibp for this layer; no crown"):
        make_verifier("cascade", {"bounds": ["ibp", "crown"], "split": False}).prepare(model, x[:1])(
            x, y, LinfBall(0.01)
        )
    with pytest.raises(UnsupportedLayerError, match="no ibp for this layer"):
        make_verifier("ibp").prepare(model, x[:1])(x, y, LinfBall(0.01))


@pytest.mark.parametrize("name", sorted(VERIFIERS))
def test_a_layer_without_bounds_is_refused_by_name(name: str) -> None:
    model = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(9, 4)).eval()
    with pytest.raises(UnsupportedLayerError, match=r"MaxPool2d .*at '0'"):
        make_verifier(name).prepare(model, networks.inputs(1))


@pytest.mark.parametrize("name", sorted(set(VERIFIERS) - {"complete"}))
def test_a_bound_that_lies_about_the_sample_itself_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = scaled("conv", 0.1)  # every margin lies below 1
    x, y = samples(model)
    verify = make_verifier(name).prepare(model, x[:1])
    lying(monkeypatch)
    with pytest.raises(SoundnessError, match="a margin of 1 is proved for a ball that holds a point of margin 0"):
        verify(x, y, LinfBall(0.001))


def test_a_bound_that_lies_about_what_the_attack_saw_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).eval()
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[0] = 1.0
        model[1].bias.copy_(torch.tensor([-15.0, 0.0, 0.0, 0.0]))
    x, y = torch.full((1, 1, 6, 6), 0.5), torch.tensor([0])  # margin 3; with eps 0.05 at least 3 - 36 * 0.05 = 1.2
    verify = Cascade().prepare(model, x)
    assert verify(x, y, LinfBall(0.05)).verdicts() == [Verdict.VERIFIED]
    lying(monkeypatch, 1.5)
    with pytest.raises(SoundnessError, match=r"a margin of 1.5 is proved .* a point of margin 1\.[234]"):
        verify(x, y, LinfBall(0.05))


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_any_attack_can_go_first(attack: str) -> None:
    model = balanced("conv")
    x, y = samples(model)
    outcome = Cascade(attack=attack, bounds=(BoundMethod.IBP,)).prepare(model, x[:1])(x, y, LinfBall(0.1))
    assert outcome.falsified.any()
    assert {attack, "prediction"} <= set(outcome.settled_by)


@pytest.mark.parametrize("name", ["crown", "cascade"])
def test_a_tie_is_wrong(name: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).eval()
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    x = networks.inputs(3)
    verdicts = make_verifier(name).prepare(model, x[:1])(x, torch.tensor([0, 1, 2]), LinfBall(0.1)).verdicts()
    assert verdicts == [Verdict.MISCLASSIFIED] * 3


@pytest.mark.parametrize("name", sorted(VERIFIERS))
def test_a_batch_with_nothing_left_needs_no_bound(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = balanced("mlp")
    x, y = samples(model, count=4, wrong=4)
    asked = refusing(monkeypatch, *BoundMethod)
    outcome = make_verifier(name).prepare(model, x[:1])(x, y, LinfBall(0.1))
    assert outcome.verdicts() == [Verdict.MISCLASSIFIED] * 4
    assert asked == []


def test_every_verifier_is_made_by_its_name() -> None:
    assert {name: make_verifier(name).name for name in VERIFIERS} == {name: name for name in VERIFIERS}
    assert make_verifier("crown") == BoundVerifier(BoundMethod.CROWN)
    assert make_verifier("ibp", {"recheck": False}) == BoundVerifier(BoundMethod.IBP, recheck=False)
    made = make_verifier("cascade", {"bounds": ["ibp", "crown"], "attack": "fgsm"})
    assert made == Cascade("fgsm", (BoundMethod.IBP, BoundMethod.CROWN))
    assert make_verifier("cascade", {"bounds": "crown"}) == Cascade(bounds=(BoundMethod.CROWN,))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("crwn", {}, "unknown verifier 'crwn'; did you mean crown"),
        ("cascad", {}, "did you mean cascade?"),
        ("cascade", {"bound": ["ibp"]}, "unknown option of verify.options.cascade 'bound'; did you mean bounds?"),
        ("cascade", {"bounds": ["ibpp"]}, "unknown value for verify.options.cascade.bounds 'ibpp'; did you mean ibp"),
        ("cascade", {"bounds": []}, "expected bounds as one bound method or more, each once, got []"),
        ("cascade", {"bounds": ["ibp", "ibp"]}, "expected bounds as one bound method or more, each once"),
        ("cascade", {"attack": "pdg"}, "unknown attack 'pdg'; did you mean pgd"),
        (
            "ibp",
            {"bound": "crown"},
            "expected no bound for verifier 'ibp', which is one; remove verify.options.ibp.bound",
        ),
        ("ibp", {"steps": 1}, "unknown option of verify.options.ibp 'steps'"),
    ],
)
def test_a_verifier_that_cannot_be_meant_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        make_verifier(name, options)


def split(model: nn.Module, count: int = 24) -> Split:
    x, y = samples(model, count)
    return Split(x, y, torch.arange(100, 100 + count))


@pytest.mark.parametrize("name", ["ibp", "crown", "cascade"])
def test_results_do_not_depend_on_the_batch_size(name: str) -> None:
    model = balanced("residual")
    found = []
    for size in (24, 7, 1):
        parts = list(verify_batches(make_verifier(name), model, split(model), LinfBall(0.03), SUBJECT, size))
        assert [len(rows) for rows, _ in parts] == [len(x_adv) for _, x_adv in parts]
        tables = [rows for rows, _ in parts]
        found.append(
            (
                [verdict for rows in tables for verdict in rows["verdict"]],
                torch.tensor([margin for rows in tables for margin in rows["margin"]]),
                torch.cat([x_adv for _, x_adv in parts]),
            )
        )
    for verdicts, margins, points in found[1:]:
        assert verdicts == found[0][0]
        torch.testing.assert_close(margins, found[0][1], equal_nan=True, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(points, found[0][2])


def test_rows_say_all_that_is_known() -> None:
    model = balanced("conv")
    data = split(model, 10)
    parts = list(verify_batches(Cascade(bounds=(BoundMethod.IBP,)), model, data, LinfBall(0.05), SUBJECT))
    rows, points = pd.concat([one[0] for one in parts]), torch.cat([one[1] for one in parts])
    assert len(parts) > 1, "what is left by bounds is yielded one by one"
    places = [int(number) - 100 for number in rows["index"]]
    rows, points = rows.sort_values("index"), points[torch.tensor(places).argsort()]
    assert list(rows.columns) == list(COLUMNS)
    assert rows["index"].tolist() == list(range(100, 110))
    assert rows["label"].tolist() == data.y.tolist()
    assert set(rows["kind"]) == {"verify"}
    assert set(rows["method"]) == {"cascade"}
    assert set(rows["settings"]) == {repr(Cascade(bounds=(BoundMethod.IBP,)))}
    assert set(rows["run"]) == {"run"}
    assert set(rows["eps"]) == {0.05}
    assert (rows["seconds"] > 0).all()
    assert rows["predicted"].tolist() == model(data.x).argmax(dim=1).tolist()
    assert points.shape == data.x.shape
    assert (rows["verdict"].isin(PROVED) == (rows["margin"] > 0)).all()
    assert (rows["verdict"] == "verified").any()


def test_no_time_for_all_samples_leaves_the_last_ones_unknown() -> None:
    model = balanced("conv")
    verifier = Cascade(bounds=(BoundMethod.IBP,), total=1e-9)
    rows = pd.concat([one[0] for one in verify_batches(verifier, model, split(model, 12), LinfBall(0.05), SUBJECT)])
    late = rows[rows["reason"].str.contains("the 1e-09 s for all samples were over before its turn")]
    assert len(late) > 0
    assert set(late["verdict"]) == {"unknown"}


def test_no_samples_give_no_rows() -> None:
    model = balanced("mlp")
    empty = Split(torch.zeros(0, 1, 6, 6), torch.zeros(0).long(), torch.zeros(0).long())
    assert list(verify_batches(Cascade(), model, empty, LinfBall(0.1), SUBJECT)) == []


@pytest.mark.parametrize("name", ["crown", "cascade"])
def test_a_network_in_train_mode_is_verified_in_eval_mode_and_left_as_it_was(name: str) -> None:
    model = balanced("batch_norm")
    data = split(model)
    ((expected, _),) = verify_batches(make_verifier(name), model, data, LinfBall(0.01), SUBJECT)
    model.train()
    before = model[1].running_mean.clone()
    ((rows, _),) = verify_batches(make_verifier(name), model, data, LinfBall(0.01), SUBJECT)
    assert rows["verdict"].tolist() == expected["verdict"].tolist()
    assert model.training
    assert torch.equal(model[1].running_mean, before)


def test_inputs_that_cannot_be_judged_are_refused() -> None:
    model = balanced("mlp")
    data = split(model)
    with pytest.raises(UsageError, match=r"expected x in \[0, 1\]"):
        list(verify_batches(Cascade(), model, Split(data.x * 3, data.y, data.index), LinfBall(0.1), SUBJECT))
    with pytest.raises(UsageError, match="expected labels"):
        list(verify_batches(Cascade(), model, Split(data.x, data.y + 4, data.index), LinfBall(0.1), SUBJECT))
    with torch.no_grad():
        model[1].weight[0, 0] = torch.nan
    with pytest.raises(RobustkitError, match="NaN"):
        list(verify_batches(Cascade(), model, data, LinfBall(0.1), SUBJECT))
