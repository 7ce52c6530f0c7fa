"""Branch and bound decides rightly: held against an exact oracle on tiny networks, and every proof checked again."""

import itertools
import re
import time
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from robustkit.attacks import PGD
from robustkit.bounds import BoundedNetwork, BoundMethod
from robustkit.bounds.branches import Branches
from robustkit.bounds.graph import trace
from robustkit.bounds.split_network import SplitNetwork
from robustkit.errors import UnsupportedLayerError, UsageError
from robustkit.margins import logit_margins, margin_specification, worst_margin
from robustkit.models import load_weights, make_model
from robustkit.threat import LinfBall
from robustkit.verdict import Verdict
from robustkit.verifiers import Complete, branch_and_bound, make_verifier
from robustkit.verifiers import search as search_module
from robustkit.verifiers.base import Outcome
from robustkit.verifiers.certificate import Certificate
from robustkit.verifiers.checker import Checked, check, check_file
from robustkit.verifiers.claims import Ball, Box, Disjunct
from robustkit.verifiers.search import Limits, search
from robustkit.verifiers.search_proof import hidden_slopes


def tiny(seed: int, inputs: int = 3, hidden: tuple[int, int] = (4, 3), classes: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(inputs, hidden[0]), nn.ReLU(), nn.Linear(*hidden), nn.ReLU(), nn.Linear(hidden[1], classes)]
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


def exact_minimum(model: nn.Sequential, row: Tensor, lb: Tensor, ub: Tensor) -> float:
    """Minimise a row of the outputs over a box, by a linear programme for each pattern of signs."""
    weights = [
        (one.weight.detach().double().numpy(), one.bias.detach().double().numpy())
        for one in model
        if isinstance(one, nn.Linear)
    ]
    box = list(zip(lb.double().tolist(), ub.double().tolist(), strict=True))
    best = np.inf
    for pattern in itertools.product([0.0, 1.0], repeat=sum(len(bias) for _, bias in weights[:-1])):
        matrix, shift, left, limits, right = np.eye(len(box)), np.zeros(len(box)), list(pattern), [], []
        for weight, bias in weights[:-1]:
            matrix, shift = weight @ matrix, weight @ shift + bias
            on = np.array([left.pop(0) for _ in bias])
            sign = 1.0 - 2.0 * on  # on: -z <= 0; off: z <= 0
            limits.append(sign[:, None] * matrix)
            right.append(-sign * shift)
            matrix, shift = on[:, None] * matrix, on * shift
        weight, bias = weights[-1]
        c = row.double().numpy() @ weight
        found = linprog(c @ matrix, np.vstack(limits), np.concatenate(right), bounds=box, method="highs")
        if found.status == 0:
            best = min(best, float(found.fun + c @ shift + row.double().numpy() @ bias))
    return best


@torch.no_grad()
def decide(model: nn.Sequential, x: Tensor, ball: LinfBall, row: Tensor, offset: float) -> tuple[str, bool]:
    """Search for ``row @ f + offset <= 0`` in a ball: what was found, and whether the checker agrees with a proof."""
    network = SplitNetwork(trace(model, x), *ball.box(x), tighten=5)

    def look(points: Tensor) -> Tensor | None:
        points = ball.project(points, x)
        broken = model(points) @ row + offset <= 0
        return points[broken][:1] if bool(broken.any()) else None

    found = search(network, row[None], torch.tensor([offset]), look, Limits(time.monotonic() + 60, batch=16))
    if found.x is not None:
        return "broken", False
    return ("unknown", False) if found.reason else ("proved", found.lower > 0)


@pytest.mark.parametrize("seed", range(8))
def test_thresholds_just_beside_the_exact_minimum_are_never_decided_wrongly(seed: int) -> None:
    model, ball = tiny(seed), LinfBall(0.3)
    x, row = torch.full((1, 3), 0.5), torch.tensor([1.0, -1.0, 0.0])
    lb, ub = ball.box(x)
    least = exact_minimum(model, row, lb[0], ub[0])
    for gap in (1e-3, 1e-1):
        assert decide(model, x, ball, row, -least + gap)[0] == "proved"
        assert decide(model, x, ball, row, -least - gap)[0] == "broken"


@pytest.mark.parametrize("kind", ["mlp", "conv", "batch_norm", "residual", "average_pool", "leaky_relu"])
def test_verdicts_hold_against_attacks_and_every_proof_is_checked_again(kind: str) -> None:
    model, x = networks.make(kind), networks.inputs(12)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    verify = Complete(timeout=20.0, bounds=(BoundMethod.IBP,)).prepare(model, x[:1])
    seen = set()
    for eps in (0.02, 0.06, 0.3):
        ball = LinfBall(eps)
        outcome = verify(x, y, ball)
        attacked = PGD(steps=60, restarts=3)(model, x, y, ball)
        for row, verdict in enumerate(outcome.verdicts()):
            seen.add(verdict)
            assert verdict is not Verdict.VERIFIED_FLOAT, "the checker reads a forward of one's own too"
            if verdict is Verdict.VERIFIED:
                assert attacked.margin[row] > 0
                assert 0 < outcome.margin[row] <= attacked.margin[row] + 1e-4
            elif verdict is Verdict.FALSIFIED:
                point = outcome.x_adv[row : row + 1]
                assert ball.contains(point, x[row : row + 1]).all()
                with torch.no_grad():
                    assert worst_margin(logit_margins(model(point), y[row : row + 1]), y[row : row + 1]) <= 0
            else:
                assert outcome.reason[row]
    assert Verdict.VERIFIED in seen
    assert Verdict.FALSIFIED in seen or kind in ("conv", "residual", "average_pool"), "those are robust"


def test_splits_prove_what_the_root_does_not() -> None:
    gaps = []
    for seed in range(8):
        model, x, ball, row = tiny(seed), torch.full((1, 3), 0.5), LinfBall(0.3), torch.tensor([1.0, -1.0, 0.0])
        lb, ub = ball.box(x)
        least = exact_minimum(model, row, lb[0], ub[0])
        with torch.no_grad():
            crown = BoundedNetwork(model, x).output_bounds(lb, ub, row[None, None], BoundMethod.ALPHA_CROWN)[0].item()
        gaps.append(least - crown)
        assert decide(model, x, ball, row, -least + max(1e-3, 0.2 * gaps[-1]))[0] == "proved"
    assert min(gaps) > -1e-4, "no bound exceeds the exact minimum"
    assert max(gaps) > 0.05, "there was something to split for"


def test_a_certificate_of_the_search_is_refused_for_another_eps() -> None:
    model, x = networks.make("mlp"), networks.inputs(1)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
        ball = LinfBall(0.002)
        network = SplitNetwork(trace(model, x), *ball.box(x), tighten=5)
        rows = margin_specification(y, 4)[0][torch.arange(4) != y]
        found = search(network, rows, torch.zeros(3), lambda points: None, Limits(time.monotonic() + 20))
    assert not found.reason and found.lower > 0
    trees, hidden = found.proof.trees(network), hidden_slopes(network)
    sample = x[0].numpy()
    assert check(Certificate.build(model, Ball(sample, 0.002, int(y)), trees, hidden), model).proved
    assert not check(Certificate.build(model, Ball(sample, 0.5, int(y)), trees, hidden), model).proved
    assert not check(Certificate.build(model, Ball(sample, 0.002, (int(y) + 1) % 4), trees, hidden), model).proved


def test_a_time_limit_leaves_unknown_with_its_reason() -> None:
    model, x = networks.make("mlp"), networks.inputs(12)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    verify, reasons = Complete(timeout=1e-6, bounds=(BoundMethod.IBP,)).prepare(model, x[:1]), []
    for eps in (0.03, 0.05, 0.07, 0.09, 0.11, 0.13):
        outcome = verify(x, y, LinfBall(eps))
        verdicts = zip(outcome.verdicts(), outcome.reason, strict=True)
        reasons += [reason for verdict, reason in verdicts if verdict is Verdict.UNKNOWN]
    assert reasons
    assert all(reason.startswith("time limit; ") and "branches, bound -" in reason for reason in reasons)


def test_a_memory_limit_leaves_unknown_with_its_reason() -> None:
    model, x, row = tiny(1, inputs=4, hidden=(12, 10)), torch.full((1, 4), 0.5), torch.tensor([1.0, -1.0, 0.0])
    network = SplitNetwork(trace(model, x), *LinfBall(0.4).box(x))
    least = network.bounded(network.whole(row[None], torch.zeros(1)), iterations=50).lower
    limits = Limits(time.monotonic() + 60, batch=4, memory=1.0)
    found = search(network, row[None], -least - 0.01, lambda points: None, limits)
    assert found.reason == "memory limit of 1e-09 GB"


def test_a_search_tells_how_far_it_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "TELL_EVERY", 0.0)
    model, x, row, told = tiny(5), torch.full((1, 3), 0.5), torch.eye(3)[0], []
    lb, ub = LinfBall(0.3).box(x)
    network = SplitNetwork(trace(model, x), lb, ub)
    offset = torch.tensor([1e-2 - exact_minimum(model, row, lb[0], ub[0])])
    found = search(network, row[None], offset, lambda _: None, Limits(time.monotonic() + 60, batch=4), tell=told.append)
    assert not found.reason
    assert told
    assert all(re.fullmatch(r"[\d,]+ branches, [\d,]+ open, bound -\S+", text) for text in told)


def test_running_out_of_memory_halves_the_batch_and_the_proof_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, ball, row = tiny(5), torch.full((1, 3), 0.5), LinfBall(0.3), torch.eye(3)[0]
    lb, ub = ball.box(x)
    network, bounded, sizes = SplitNetwork(trace(model, x), lb, ub), SplitNetwork.bounded, []

    def scarce(self: SplitNetwork, branches: Branches, **settings: Any) -> Branches:
        sizes.append(len(branches))
        if len(branches) > 8:
            raise torch.OutOfMemoryError("out of memory")
        return bounded(self, branches, **settings)

    monkeypatch.setattr(SplitNetwork, "bounded", scarce)
    offset = torch.tensor([1e-2 - exact_minimum(model, row, lb[0], ub[0])])
    found = search(network, row[None], offset, lambda points: None, Limits(time.monotonic() + 60, batch=64))
    assert max(sizes) > 8
    assert not found.reason
    assert found.lower > 0
    claim = Box(
        lb[0].double().numpy(), ub[0].double().numpy(), (Disjunct(row[None].double().numpy(), offset.double().numpy()),)
    )
    assert check(Certificate.build(model, claim, found.proof.trees(network), hidden_slopes(network)), model).proved


def test_proofs_are_kept_for_the_check_command(tmp_path: Path) -> None:
    model, x = networks.make("mlp"), networks.inputs(4)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    verify = Complete(certificates=str(tmp_path), bounds=(BoundMethod.IBP,)).prepare(model, x[:1])
    outcome = verify(x, y, LinfBall(0.01), torch.tensor([7, 8, 9, 10]))
    proved = [row for row, one in enumerate(outcome.verdicts()) if one is Verdict.VERIFIED]
    assert proved
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(f"sample-{7 + row}-eps0.01.npz" for row in proved)
    kept = tmp_path / f"sample-{7 + proved[0]}-eps0.01.npz"
    assert check_file(kept, model).proved
    with torch.no_grad():
        model[1].weight[0, 0] += 1e-6
    assert not check_file(kept, model).proved


def test_unchecked_proofs_are_told_apart() -> None:
    model, x = networks.make("mlp"), networks.inputs(4)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    outcome = Complete(recheck=False).prepare(model, x[:1])(x, y, LinfBall(0.001))
    verdicts = zip(outcome.verdicts(), outcome.settled_by, outcome.reason, strict=True)
    proved = [rest for one, *rest in verdicts if one is not Verdict.FALSIFIED]
    assert Verdict.VERIFIED not in outcome.verdicts()
    assert all(by.endswith(" (float)") and why == "not checked again: recheck is off" for by, why in proved)


def test_a_refused_certificate_is_verified_in_float_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branch_and_bound, "check", lambda *_, **__: Checked(False, float("nan"), 1, 0.0, "not proved"))
    model, x = networks.make("mlp"), networks.inputs(1)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    prepared = Complete().prepare(model, x)
    outcome = Outcome.begin(model, x, y)
    prepared.go_on(outcome, x, y, LinfBall(0.001), 0, until=time.monotonic() + 60)
    assert outcome.verdicts() == [Verdict.VERIFIED_FLOAT]
    assert (outcome.settled_by, outcome.reason) == (["alpha-crown (float)"], ["not proved"])


def test_what_it_cannot_carry_and_options_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(UnsupportedLayerError, match="branch and bound cannot carry Sigmoid with its settings at '2'"):
        Complete().prepare(networks.make("sigmoid"), networks.inputs(1))
    with pytest.raises(UsageError, match="expected timeout and total above 0 seconds, got 0"):
        make_verifier("complete", {"timeout": 0.0})
    with pytest.raises(UsageError, match="expected batch of at least 4"):
        make_verifier("complete", {"batch": 2})
    with pytest.raises(UsageError, match="unknown attack"):
        make_verifier("complete", {"attack": "pdg"})


@pytest.mark.slow
def test_the_published_network_of_branch_and_bound(shared: Path) -> None:
    folder = shared / "models" / "sdp"
    x = torch.tensor(np.load(folder / "mnist_X_sdp.npy")).permute(0, 3, 1, 2).float()[:12]
    y = torch.tensor(np.load(folder / "mnist_y_sdp.npy")).long()[:12]
    model = make_model("mnist_small", (1, 28, 28), 10).eval()
    load_weights(model, folder / "mnist_cnn_a_adv.model")
    outcome = Complete(timeout=30.0).prepare(model, x[:1])(x, y, LinfBall(0.3))
    assert outcome.verdicts().count(Verdict.VERIFIED) >= 8
