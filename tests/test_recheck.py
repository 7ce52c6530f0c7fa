"""Only what the float64 checker confirms is verified; what floating point alone proves is told apart."""

import logging

import networks
import pytest
import torch
from torch import Tensor, nn

from robustkit.errors import SoundnessError
from robustkit.models.mixture import Mixture
from robustkit.threat import LinfBall
from robustkit.verdict import Verdict
from robustkit.verifiers import make_verifier, recheck
from robustkit.verifiers.base import Outcome


def swallowing(w: float = 1e8) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A network that float32 swallows: ``relu(x + w) - w - 0.5`` is x - 0.5, but -0.5 after rounding.

    Its second logit is ``0.25 + that``, its first 0: class 0 is right for x < 0.25 alone, and seems right everywhere.
    """
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.Linear(1, 2)).eval()
    with torch.no_grad():
        for place, bias in ((0, w), (2, -w)):
            model[place].weight.fill_(1.0)
            model[place].bias.fill_(bias)
        model[3].weight.copy_(torch.tensor([[0.0], [1.0]]))
        model[3].bias.copy_(torch.tensor([0.0, -0.25]))
    return model, torch.tensor([[0.125]]), torch.tensor([0])


@pytest.mark.parametrize("name", ["ibp", "cascade"])
def test_a_proof_that_rounding_made_is_never_verified(name: str) -> None:
    model, x, y = swallowing()
    outcome = make_verifier(name).prepare(model, x)(x, y, LinfBall(0.5))
    assert float(model(torch.tensor([[0.625]])).argmax()) == 0, "float32 sees nothing wrong"
    assert outcome.verdicts() == [Verdict.VERIFIED_FLOAT]
    assert outcome.settled_by == ["ibp (float)"]
    assert outcome.reason == ["the float64 checker proves a margin of -0.375 only"]


def test_the_same_network_is_verified_where_it_is_right() -> None:
    model, x, y = swallowing()
    outcome = make_verifier("ibp").prepare(model, x)(x, y, LinfBall(0.0625))
    assert outcome.verdicts() == [Verdict.VERIFIED]
    assert outcome.settled_by == ["ibp"]
    assert outcome.reason == [""]


@pytest.mark.parametrize("name", ["crown", "cascade"])
def test_a_network_that_the_checker_cannot_read_is_verified_in_float_only(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    x = networks.inputs(8)
    natural = networks.make("mlp", 1)
    for model in (networks.make("tanh"), Mixture(natural, networks.make("mlp"), 0.99).eval()):
        y = model(x).argmax(dim=1)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            verify = make_verifier(name).prepare(model, x[:1])
            outcome = verify(x, y, LinfBall(0.001))
            verify(x, y, LinfBall(0.001))
        proved = [row for row, one in enumerate(outcome.verdicts()) if one is Verdict.VERIFIED_FLOAT]
        assert len(proved) >= 3
        assert Verdict.VERIFIED not in outcome.verdicts()
        assert all(outcome.settled_by[row].endswith(" (float)") for row in proved)
        assert all("the proof checker cannot carry" in outcome.reason[row] for row in proved)
        (said,) = [record.getMessage() for record in caplog.records]
        assert said.startswith("every proof will count as verified (float): the proof checker cannot carry")


@pytest.mark.parametrize("name", ["ibp", "crown", "cascade"])
def test_without_recheck_everything_is_float(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recheck, "check_balls", lambda *_: pytest.fail("it was checked all the same"))
    model, x = networks.make("mlp"), networks.inputs(8)
    y = model(x).argmax(dim=1)
    outcome = make_verifier(name, {"recheck": False}).prepare(model, x[:1])(x, y, LinfBall(1e-4))
    assert Verdict.VERIFIED_FLOAT in outcome.verdicts()
    assert Verdict.VERIFIED not in outcome.verdicts()
    assert {"not checked again: recheck is off"} >= set(outcome.reason)


def test_a_checker_that_proves_too_much_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recheck, "check_balls", lambda _, claims: torch.full((len(claims),), 1e3))
    model, x = networks.make("mlp"), networks.inputs(8)
    y = model(x).argmax(dim=1)
    with pytest.raises(SoundnessError, match="a margin of 1000 is proved for a ball that holds a point"):
        make_verifier("ibp").prepare(model, x[:1])(x, y, LinfBall(1e-4))


def test_samples_that_no_claim_can_be_made_of_are_float() -> None:
    model, x = networks.make("mlp"), networks.inputs(2)
    y = model(x).argmax(dim=1)
    check = recheck.Recheck.prepare(model, x[:1], wanted=True)
    outcome = Outcome.begin(model, x, y)
    outcome.prove(torch.tensor([0, 1]), outcome.least / 2)
    check(outcome, x.double(), y, LinfBall(0.0))
    assert outcome.verdicts() == [Verdict.VERIFIED_FLOAT] * 2
    assert outcome.reason[0].startswith("not checked again: expected x as float32 array")


def test_what_the_checker_refuses_of_a_bound_branch_and_bound_proves_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = networks.make("mlp"), networks.inputs(1)
    y = model(x).argmax(dim=1)
    monkeypatch.setattr(recheck, "check_balls", lambda _, claims: torch.full((len(claims),), -1.0, dtype=torch.float64))
    alone = make_verifier("cascade", {"split": False}).prepare(model, x[:1])(x, y, LinfBall(0.001))
    assert set(alone.verdicts()) == {Verdict.VERIFIED_FLOAT}
    split = make_verifier("cascade").prepare(model, x[:1])(x, y, LinfBall(0.001))
    assert set(split.verdicts()) == {Verdict.VERIFIED}
    assert set(split.settled_by) == {"alpha-crown"}
    late = make_verifier("cascade", {"total": 1e-9}).prepare(model, x[:1])(x, y, LinfBall(0.001))
    assert set(late.verdicts()) == {Verdict.VERIFIED_FLOAT}, "what a bound has proved is not lost"
