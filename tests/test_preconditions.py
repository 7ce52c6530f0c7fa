"""What no verifier, checker or solver may judge: weights, inputs and boxes that are none, and models in train mode."""

import math

import numpy as np
import pytest
import torch
from proofs import root_only
from torch import Tensor, nn

from robustkit.bounds import BoundedNetwork, BoundMethod
from robustkit.errors import RobustkitError, UsageError
from robustkit.threat import LinfBall
from robustkit.verdict import Verdict
from robustkit.verifiers import VERIFIERS, make_verifier
from robustkit.verifiers.checker import check
from robustkit.verifiers.claims import Ball, Box
from robustkit.vnncomp import baseline, complete
from robustkit.vnnlib.queries import Disjunct, Query

BALL, MIDDLE, LABEL = LinfBall(0.1), torch.tensor([[0.25]]), torch.tensor([0])
SOLVERS = {"baseline": baseline.solve, "complete": complete.solve}
PLACES = ("0.weight", "0.bias", "2.weight", "2.bias")
NOT_FINITE = (math.nan, math.inf, -math.inf)


def linear(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight))
    layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
    return layer


def plain() -> nn.Sequential:
    """Logits ``relu(x) + 2`` and ``relu(1/2 - x)``: class 0 wins on [0, 1]."""
    layers = [linear([[1.0], [-1.0]], [0.0, 0.5]), nn.ReLU(), linear([[1.0, 0.0], [0.0, 1.0]], [2.0, 0.0])]
    return nn.Sequential(*layers).eval()


def asked(low: float, high: float) -> Query:
    """Whether class 1 can be level or ahead."""
    ahead = Disjunct(np.array([[1.0, -1.0]]), np.zeros(1))
    return Query(np.array([low]), np.array([high]), (ahead,), input_shape=(1,))


def claim(x: Tensor) -> Ball:
    return Ball(x[0].numpy(), BALL.eps, 0)


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("place", PLACES)
def test_weights_that_are_not_finite_prove_nothing(verifier: str, value: float, place: str) -> None:
    model = plain()
    verify = make_verifier(verifier).prepare(model, MIDDLE)
    assert verify(MIDDLE, LABEL, BALL).verdicts() == [Verdict.VERIFIED]
    model.get_parameter(place).data.view(-1)[0] = value
    try:
        assert verify(MIDDLE, LABEL, BALL).verdicts() == [Verdict.MISCLASSIFIED]
    except RobustkitError as error:
        assert f"expected finite weights, but '{place}' holds NaN or infinity" in str(error)


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_proved_or_answered_with_weights_that_are_not_finite(value: float, place: str) -> None:
    model = plain()
    model.get_parameter(place).data.view(-1)[0] = value
    checked = check(root_only(model, claim(MIDDLE), 1), model)
    assert not checked.proved
    assert "expected finite real parameters" in checked.reason
    for solve in SOLVERS.values():
        with pytest.raises(RobustkitError, match=f"expected finite weights, but '{place}' holds NaN or infinity"):
            solve(model, asked(0.0, 1.0), 5.0)


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("value", [*NOT_FINITE, -0.5, 1.5])
def test_samples_outside_the_pixel_range_are_refused(verifier: str, value: float) -> None:
    verify = make_verifier(verifier).prepare(plain(), MIDDLE)
    with pytest.raises(UsageError, match=r"expected x in \[0, 1\], got"):
        verify(torch.tensor([[value]]), LABEL, BALL)


def test_no_claim_is_about_samples_outside_the_pixel_range() -> None:
    for value in NOT_FINITE:
        with pytest.raises(UsageError, match="expected finite numbers in x"):
            claim(torch.tensor([[value]]))
    for value in (-0.5, 1.5):
        checked = check(root_only(plain(), claim(torch.tensor([[value]])), 1), plain())
        assert not checked.proved
        assert "expected a sample in [0.0, 1.0], got one outside" in checked.reason


@pytest.mark.parametrize(
    ("low", "high"), [(0.5, 0.2), (math.nan, 1.0), (0.0, math.nan), (-math.inf, 1.0), (0.0, math.inf), (0.0, 1e300)]
)
def test_boxes_that_are_none_are_refused(low: float, high: float) -> None:
    query, refused = asked(low, high), "expected a box with finite corners and lb <= ub"
    for solve in SOLVERS.values():
        with pytest.raises(RobustkitError, match=refused):
            solve(plain(), query, 5.0)
    if high != 1e300:  # which float64 holds
        with pytest.raises(UsageError, match="expected"):
            Box(query.lower, query.upper, ())
    network, rows = BoundedNetwork(plain(), MIDDLE), torch.tensor([[[1.0, -1.0]]])
    for method in BoundMethod:
        with pytest.raises(RobustkitError, match=refused):
            network.output_bounds(torch.tensor([[low]]), torch.tensor([[high]]), rows, method)


def normed(*, one_dimension: bool) -> nn.Sequential:
    first = [nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3)]
    if not one_dimension:
        first = [nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3)]
    return nn.Sequential(*first, nn.ReLU(), nn.Flatten(), nn.Linear(3, 2))


def of_two_modes(layer: str) -> nn.Sequential:
    if layer == "Dropout":
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Dropout(0.5), nn.ReLU(), nn.Linear(3, 2))
    return normed(one_dimension=layer == "BatchNorm1d")


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("layer", ["BatchNorm1d", "BatchNorm2d", "Dropout"])
def test_a_model_in_train_mode_is_refused_and_left_as_it_was(verifier: str, layer: str) -> None:
    model, x = of_two_modes(layer).train(), torch.full((1, 1, 2, 2), 0.5)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    refused = f"expected a model in eval mode, got {layer} at '.' in train mode"
    with pytest.raises(UsageError, match=refused):
        make_verifier(verifier).prepare(model, x)
    verify = make_verifier(verifier).prepare(model.eval(), x)
    model.train()
    with pytest.raises(UsageError, match=refused):
        verify(x, LABEL, BALL)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert not check(root_only(model, claim(x), 1), model).proved
