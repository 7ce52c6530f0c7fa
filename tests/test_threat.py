from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustkit.errors import UsageError
from robustkit.threat import LinfBall, parse_eps


@pytest.mark.parametrize(("text", "eps"), [("0.3", 0.3), ("8/255", 8 / 255), (0.1, 0.1), ("0", 0.0), ("1", 1.0)])
def test_parse_eps_reads_numbers_and_fractions(text: str | float, eps: float) -> None:
    assert parse_eps(text) == eps


@pytest.mark.parametrize("text", ["-0.1", "1.5", "8/0", "big", "", "nan", "inf", "8/", "/255", "1/2/3"])
def test_parse_eps_refuses_what_is_no_radius(text: str) -> None:
    with pytest.raises(UsageError, match="expected eps"):
        parse_eps(text)


def test_ball_refuses_an_empty_pixel_range() -> None:
    with pytest.raises(UsageError, match="lower < upper"):
        LinfBall(0.1, lower=1.0, upper=0.0)


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20),
    st.floats(0, 1),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_box_holds_the_real_ball_and_inner_box_lies_in_it(pixels: list[float], eps: float, dtype: torch.dtype) -> None:
    x = torch.tensor([pixels], dtype=dtype)
    ball = LinfBall(eps)
    for outward, (lb, ub) in ((True, ball.box(x)), (False, ball.inner_box(x))):
        assert (lb <= x).all()
        assert (x <= ub).all()
        for centre, low, high in zip(x[0].tolist(), lb[0].tolist(), ub[0].tolist(), strict=True):
            real_low = max(Fraction(centre) - Fraction(eps), Fraction(0))
            real_high = min(Fraction(centre) + Fraction(eps), Fraction(1))
            assert (Fraction(low) <= real_low) if outward else (Fraction(low) >= real_low)
            assert (Fraction(high) >= real_high) if outward else (Fraction(high) <= real_high)


def test_projected_and_sampled_points_lie_in_the_ball() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(64, 3, 5, 5, generator=generator)
    ball = LinfBall(0.1)
    assert ball.contains(ball.project(torch.randn(x.shape, generator=generator), x), x).all()
    assert ball.contains(ball.sample(x, generator), x).all()
    assert not ball.contains(x + 0.11, x).any()


def test_eps_zero_gives_the_point_itself() -> None:
    x = torch.rand(4, 7, generator=torch.Generator().manual_seed(0))
    lb, ub = LinfBall(0.0).box(x)
    assert torch.equal(lb, x)
    assert torch.equal(ub, x)
