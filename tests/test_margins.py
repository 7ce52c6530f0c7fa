import math

import pytest
import torch

from robustkit.errors import SoundnessError
from robustkit.margins import certified, correct, fold, logit_margins, margin_specification, robust_loss, worst_margin
from robustkit.verdict import Verdict

LOGITS = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 5.0]])
LABELS = torch.tensor([0, 1])


def test_margins_by_hand() -> None:
    margins = logit_margins(LOGITS, LABELS)
    assert margins.tolist() == [[0.0, 2.0, 1.0], [5.0, 0.0, 0.0]]
    assert worst_margin(margins, LABELS).tolist() == [1.0, 0.0]
    assert certified(margins, LABELS).tolist() == [True, False]


def test_specification_gives_the_margins() -> None:
    by_matrix = torch.einsum("bjk,bk->bj", margin_specification(LABELS, 3), LOGITS)
    assert torch.equal(by_matrix, logit_margins(LOGITS, LABELS))


def test_a_tie_and_a_nan_count_as_wrong() -> None:
    assert correct(torch.tensor([[1.0, 1.0], [math.nan, 0.0], [2.0, 1.0]]), torch.tensor([0, 0, 0])).tolist() == [
        False,
        False,
        True,
    ]


def test_robust_loss_of_exact_margins_is_the_cross_entropy() -> None:
    loss = robust_loss(logit_margins(LOGITS, LABELS), LABELS)
    assert torch.allclose(loss, torch.nn.functional.cross_entropy(LOGITS, LABELS))


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
def test_fold(flags: tuple[bool, bool, bool, bool], verdict: Verdict) -> None:
    assert fold(*flags) is verdict


@pytest.mark.parametrize("proof", [(True, False), (True, True), (False, True)])
@pytest.mark.parametrize(("clean", "falsified"), [(True, True), (False, False), (False, True)])
def test_verified_and_wrong_stops_the_run(clean: bool, falsified: bool, proof: tuple[bool, bool]) -> None:
    with pytest.raises(SoundnessError, match="unsound"):
        fold(clean, falsified, *proof)
