"""Many balls at once: the margins proved hold at points, and no less is proved than by certificates without splits."""

import numpy as np
import pytest
import torch
from networks import inputs
from proofs import KINDS, network_of, root_only, shape_of
from torch import Tensor, nn

from robustkit.errors import UsageError
from robustkit.verifiers import ball_margins
from robustkit.verifiers.activation_lines import adaptive
from robustkit.verifiers.checker import check, check_balls
from robustkit.verifiers.claims import Ball
from robustkit.verifiers.network_reader import read_network
from robustkit.verifiers.proof_tree import ProofError
from robustkit.verifiers.sound_bounds import intervals, lower_bound


def balls(model: nn.Module, x: Tensor, eps: float, label: int | None = None) -> list[Ball]:
    with torch.no_grad():
        labels = model(x).argmax(dim=1).tolist()
    found = zip(x.numpy(), labels, strict=True)
    return [Ball(one, eps, own if label is None else label) for one, own in found]


def test_margins_are_those_counted_by_hand() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 1.0]]))
        model[0].bias.zero_()
        model[2].weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        model[2].bias.copy_(torch.tensor([0.0, 0.25]))
    network = read_network(model, (2,))
    sample = np.array([0.75, 0.5], dtype=np.float32)  # relu(x - y) + relu(y) - 0.25, all neurons active
    exact = check_balls(network, [Ball(sample, 0.0, 0), Ball(sample, 0.0, 1)])
    assert exact.tolist() == pytest.approx([0.5, -0.5], abs=1e-12)
    assert exact[0] < 0.5, "rounding is accounted for"
    (by_intervals,) = check_balls(network, [Ball(sample, 0.0625, 0)]).tolist()
    assert by_intervals == pytest.approx(0.125 + 0.4375 - 0.25, abs=1e-12), "proved, and no dearer bound tried"
    (by_lines,) = check_balls(network, [Ball(sample, 0.125, 0)]).tolist()  # intervals: 0 + 0.375 - 0.25
    assert by_lines == pytest.approx(0.125, abs=1e-12)
    (wide,) = check_balls(network, [Ball(sample, 0.25, 1)]).tolist()
    assert wide <= 0.25 - 1.0, "the best that label 1 can have at the worst point of the ball"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.03])
def test_no_point_of_a_ball_undercuts_its_margin(kind: str, eps: float) -> None:
    model, x = network_of(kind), inputs(6)
    network = read_network(model, shape_of(kind))
    claims = balls(model, x, eps)
    margins = check_balls(network, claims)
    labels = torch.tensor([one.label for one in claims])
    draw = torch.Generator().manual_seed(0)
    for sign in (False, True):
        noise = 2 * torch.rand(40, *x.shape, generator=draw) - 1
        points = (x + eps * (noise.sign() if sign else noise)).clamp(0, 1)
        with torch.no_grad():
            logits = model(points.flatten(0, 1)).double().view(40, 6, -1)
        own = torch.nn.functional.one_hot(labels, 4).bool()
        seen = logits[:, own].amin(0) - logits.masked_fill(own, -torch.inf).amax((0, 2))
        assert (margins <= (logits[:, own] - logits.masked_fill(own, -torch.inf).amax(2)).amin(0) + 1e-5).all(), seen
    assert (margins > 0).sum() >= (0 if eps > 1e-3 else 3), "the claims are not empty"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_proved_by_lines_is_what_the_root_of_a_certificate_proves(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = network_of(kind), inputs(8)
    claims = [one for eps in (1e-3, 0.03, 0.1, 0.5) for one in balls(model, x, eps)]
    network = read_network(model, shape_of(kind))
    whole = check_balls(network, claims)
    proved = torch.tensor([check(root_only(model, one, 3), model).proved for one in claims])
    assert ((whole > 0) | ~proved).all(), "two kinds of lines prove at least what one proves"
    assert proved.any() and not (whole > 0).all()
    monkeypatch.setattr(ball_margins, "BUDGET", 1)  # one box, and one row, at a time
    alone = check_balls(network, claims)  # neurons unstable in another box alone are bounded by intervals only
    assert (alone <= whole + 1e-9).all() and (alone >= whole - 0.01).all()


def test_wrong_labels_are_never_proved() -> None:
    model, x = network_of("mlp"), inputs(8)
    network = read_network(model, (1, 6, 6))
    right = [one.label for one in balls(model, x, 0.0)]
    wrong = [Ball(one, 0.0, (label + 1) % 4) for one, label in zip(x.numpy(), right, strict=True)]
    assert not (check_balls(network, wrong) > 0).any()


def test_claims_of_another_network_are_refused() -> None:
    network = read_network(network_of("mlp"), (1, 6, 6))
    sample = inputs(1)[0].numpy()
    with pytest.raises(ProofError, match="expected samples of shape"):
        check_balls(network, [Ball(sample[0], 0.1, 0)])
    with pytest.raises(ProofError, match="labels below 4"):
        check_balls(network, [Ball(sample, 0.1, 4)])
    with pytest.raises(ProofError, match="got one outside"):
        check_balls(network, [Ball(sample + 1, 0.1, 0)])
    assert check_balls(network, []).shape == (0,)


def test_a_single_class_proves_nothing() -> None:
    network = read_network(nn.Sequential(nn.Linear(2, 1)).eval(), (2,))
    assert check_balls(network, [Ball(np.zeros(2, dtype=np.float32), 0.1, 0)]).tolist() == [-np.inf]


def test_a_pass_stops_only_where_nothing_leads_around() -> None:
    network = read_network(network_of("residual_named"), (1, 6, 6))
    box = torch.full((1, 36), 0.5, dtype=torch.float64)
    region = intervals(network, box, box)
    rows = torch.eye(4, dtype=torch.float64).unsqueeze(0)
    inside = next(
        one for one in range(1, len(network.steps)) if any(i < one for s in network.steps[one:] for i in s.inputs)
    )
    lines = [adaptive(kind, region.lower[value], region.upper[value]) for kind, value in network.activations()]
    with pytest.raises(UsageError, match=f"expected value {inside} to cut the network, got a path around it"):
        lower_bound(network, len(network.steps), rows, region, lines, stop=inside)
