from __future__ import annotations

import gzip
import math
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustkit.errors import RobustkitError
from robustkit.vnnlib import Property, load_property, parse_property

DECLARED = "(declare-const X_0 Real)\n(declare-const X_1 Real)\n(declare-const Y_0 Real)\n(declare-const Y_1 Real)\n"
BOUNDED = DECLARED + "(assert (and (>= X_0 0) (<= X_0 1) (>= X_1 -1) (<= X_1 1)))\n"


def rows_of(found: Property, query: int = 0) -> list[tuple[list[list[float]], list[float]]]:
    return [(one.rows.tolist(), one.offsets.tolist()) for one in found.queries[query].unsafe]


def test_a_plain_property() -> None:
    found = parse_property(BOUNDED + "; a comment (with parentheses\n(assert (<= Y_0 Y_1))\n(assert (>= Y_1 2.5))")
    assert (found.inputs, found.outputs, len(found.queries)) == (2, 2, 1)
    (query,) = found.queries
    assert query.lower.tolist() == [0, -1]
    assert query.upper.tolist() == [1, 1]
    assert rows_of(found) == [([[1, -1], [0, -1]], [0, 2.5])]
    assert query.excess(np.array([0.0, 3.0])) == -0.5
    assert query.excess(np.array([3.0, 2.0])) == 1.0
    assert query.contains(np.array([0.5, 1.0]))
    assert not query.contains(np.array([0.5, 1.1]))
    assert not query.contains(np.array([0.5, math.nan]))
    assert math.isnan(query.excess(np.array([math.nan, 0.0])))


def test_linear_terms() -> None:
    text = "(assert (<= (+ (* 2 Y_0) (- Y_1) 1 (* Y_0 -0.5)) (- 3 Y_1 (* 2 (* 2 0.5)))))"
    assert rows_of(parse_property(BOUNDED + text)) == [([[1.5, 0]], [0.0])]


def test_bounds_may_be_written_either_way_round_and_scaled() -> None:
    text = "(assert (<= -1 X_0)) (assert (>= 4 (* 2 X_0))) (assert (<= (- X_1) 3)) (assert (<= (+ X_1 1) 2))"
    (query,) = parse_property(DECLARED + text + "(assert (<= Y_0 0))").queries
    assert (query.lower.tolist(), query.upper.tolist()) == ([-1, -3], [2, 1])


def test_the_tightest_bound_counts() -> None:
    (query,) = parse_property(BOUNDED + "(assert (<= X_0 2)) (assert (>= X_1 0.5)) (assert (<= Y_0 0))").queries
    assert (query.lower.tolist(), query.upper.tolist()) == ([0, 0.5], [1, 1])


def test_nested_alternatives_of_outputs() -> None:
    text = "(assert (or (<= Y_0 0) (and (<= Y_1 0) (or (>= Y_0 5) (>= Y_0 7)))))(assert (<= Y_1 9))"
    found = parse_property(BOUNDED + text)
    assert rows_of(found) == [
        ([[0, 1], [1, 0]], [-9, 0]),
        ([[0, 1], [0, 1], [-1, 0]], [-9, 0, 5]),
        ([[0, 1], [0, 1], [-1, 0]], [-9, 0, 7]),
    ]


def test_alternatives_of_inputs_give_one_query_for_each_box() -> None:
    one = "(and (>= X_0 0) (<= X_0 1) (>= X_1 0) (<= X_1 1) (<= Y_0 {}))"
    other = "(and (>= X_0 2) (<= X_0 3) (>= X_1 0) (<= X_1 1) (<= Y_1 0))"
    found = parse_property(DECLARED + f"(assert (or {one.format(0)} {other} {one.format('(- Y_1 1)')}))")
    assert [one.lower.tolist() for one in found.queries] == [[0, 0], [2, 0]]
    assert rows_of(found) == [([[1, 0]], [0]), ([[1, -1]], [1])]
    assert rows_of(found, 1) == [([[0, 1]], [0])]


def test_two_disjunctions_are_multiplied_out() -> None:
    boxes = "(assert (or (<= X_0 0.25) (>= X_0 0.75)))"
    found = parse_property(BOUNDED + boxes + "(assert (or (<= Y_0 0) (<= Y_1 0)))")
    assert [(one.lower[0], one.upper[0], len(one.unsafe)) for one in found.queries] == [(0, 0.25, 2), (0.75, 1, 2)]


@pytest.mark.parametrize("number", ["0.1", "-0.1", "0.30000000000000001", "1e-400", "123456789.123456789e-3"])
def test_boxes_are_rounded_outwards(number: str) -> None:
    text = f"(assert (>= X_0 {number})) (assert (<= X_0 {number})) (assert (>= X_1 0)) (assert (<= X_1 1))"
    (query,) = parse_property(DECLARED + text + "(assert (<= Y_0 0))").queries
    exact, low, high = Fraction(number), query.lower[0], query.upper[0]
    assert Fraction(float(low)) <= exact <= Fraction(float(high))
    assert math.nextafter(low, math.inf) >= high


def test_unsafe_sets_are_rounded_outwards() -> None:
    (_, (offset,)), (rows, _) = rows_of(
        parse_property(BOUNDED + "(assert (or (<= Y_0 0.1) (<= (* 0.1 Y_0) (* 0.3 Y_1))))")
    )
    assert Fraction(offset) <= Fraction("-0.1")
    assert rows == [[1, -3]]  # 0.1 is no float64; ten times the constraint is


def test_a_gzipped_file(tmp_path: Path) -> None:
    packed = gzip.compress((BOUNDED + "(assert (<= Y_0 0))").encode())
    (tmp_path / "p.vnnlib.gz").write_bytes(packed)
    assert load_property(tmp_path / "p.vnnlib.gz").inputs == 2
    (tmp_path / "p.vnnlib.gz").write_bytes(packed[:-12])
    with pytest.raises(RobustkitError, match="damaged or cut short"):
        load_property(tmp_path / "p.vnnlib.gz")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(RobustkitError, match="expected a file at"):
        load_property(tmp_path / "none.vnnlib")
    (tmp_path / "bytes.vnnlib").write_bytes(b"(assert\n \xff)")
    with pytest.raises(RobustkitError, match=r"bytes\.vnnlib, line 2, column 2: expected text"):
        load_property(tmp_path / "bytes.vnnlib")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(assert (<= Y_0 1)", r"line 6, column 1: expected '\)' for this '\(', got the end of the file"),
        ("(assert (<= Y_0 1)))", r"line 6, column 20: expected a command, got '\)' that closes nothing"),
        ("hello", "line 6, column 1: expected a command in parentheses, got 'hello'"),
        ('(assert "x")', "line 6, column 9: expected a word or a parenthesis"),
        ("(check-sat)", r"line 6, column 1: expected \(declare-const NAME Real\) or .*, got \(check-sat\)"),
        ("(declare-const Z_0 Real)", r"line 6, column 1: .* got \(declare-const Z_0 Real\); name inputs X_0"),
        ("(declare-const X_01 Real)", r"got \(declare-const X_01 Real\)"),
        ("(declare-const X_2 Int)", r"got \(declare-const X_2 Int\)"),
        ("(declare-const X_1 Real)", "line 6, column 1: expected each constant declared once, got X_1 again"),
        ("(declare-const X_3 Real)", "line 6, column 1: expected X_2 declared as well, got X_3 without it"),
        ("(assert (<= Y_0 1) (<= Y_1 1))", "line 6, column 1: .*assert of other than one formula"),
        ("(assert (<= Y_2 1))", "line 6, column 13: expected a number or a declared constant, got 'Y_2'"),
        ("(assert\n  (<= Y_0 1..5))", "line 7, column 11: expected a number or a declared constant, got '1..5'"),
        ("(assert (<= Y_0 nan))", "line 6, column 17: .* got 'nan'"),
        ("(assert (<= Y_0 1e999999999))", "line 6, column 17: expected a number that float64 can hold"),
        ("(assert (<= Y_0 1e400))", "line 6, column 9: expected numbers that float64 can hold"),
        ("(assert (< Y_0 1))", "line 6, column 9: expected and, or, <= or >=, got '<'"),
        ("(assert (not (<= Y_0 1)))", "line 6, column 9: .* got 'not'"),
        ("(assert Y_0)", "line 6, column 9: .* got 'Y_0'"),
        ("(assert (or))", "line 6, column 9: expected a formula in"),
        ("(assert (<= Y_0 Y_1 1))", "line 6, column 9: expected two terms"),
        ("(assert (<= Y_0 (/ 1 2)))", "line 6, column 17: expected a number, X_i, Y_i"),
        ("(assert (<= (* Y_0 Y_1) 1))", "line 6, column 13: .* it is not linear"),
        ("(assert (<= 1 2))", "line 6, column 9: .* got numbers only"),
        ("(assert (<= Y_0 X_0))", "line 6, column 9: expected inputs or outputs in a constraint, got both"),
        ("(assert (<= X_0 X_1))", "line 6, column 9: expected a bound of one input, got one of X_0, X_1"),
        (
            "(assert (>= X_0 2))",
            r"line 6, column 9: expected a box that is not empty, got X_0 >= 2.0 \(line 6, column 9\) and X_0 <= 1.0 "
            r"\(line 5, column 25\)",
        ),
        ("(assert (>= X_0 1e400))", "got X_0 >= a number beyond float64"),
        ("(assert (or (<= Y_0 1) (and (<= X_1 -2) (<= Y_0 0))))", "line 6, column 29: .* not empty"),
        ("", "line 1, column 1: expected a constraint on the outputs, got none"),
        ("(assert (or (<= X_0 0.5) (and (<= X_0 1) (<= Y_0 0))))", "expected a constraint on the outputs"),
    ],
)
def test_mistakes_are_refused_where_they_stand(text: str, message: str) -> None:
    with pytest.raises(RobustkitError, match=message):
        parse_property(BOUNDED + text)


def test_an_unbounded_input_is_named() -> None:
    text = DECLARED + "(assert (>= X_0 0)) (assert (<= X_0 1)) (assert (>= X_1 0)) (assert (<= Y_0 0))"
    with pytest.raises(RobustkitError, match="line 2, column 1: expected an upper bound of X_1, got none"):
        parse_property(text)


@pytest.mark.parametrize("letter", ["X", "Y"])
def test_missing_declarations(letter: str) -> None:
    lines = [line for line in DECLARED.splitlines() if f"{letter}_" not in line]
    with pytest.raises(RobustkitError, match=f"expected a declaration of {letter}_0"):
        parse_property("\n".join(lines))


def test_explosions_are_refused() -> None:
    pair = "(assert (or (<= Y_0 0) (<= Y_1 0)))"
    with pytest.raises(RobustkitError, match="expected at most 10000 combinations"):
        parse_property(BOUNDED + pair * 40)
    with pytest.raises(RobustkitError, match="expected at most 10000 alternatives"):
        parse_property(BOUNDED + f"(assert (and {pair[8:-1] * 40}))")
    with pytest.raises(RobustkitError, match="at most 100 deep"):
        parse_property(BOUNDED + "(assert " + "(and " * 5000 + "(<= Y_0 0)" + ")" * 5001)
    with pytest.raises(RobustkitError, match="at most 100 deep"):
        parse_property(BOUNDED + "(assert (<= 0 " + "(- " * 5000 + "Y_0" + ")" * 5002)


decimals = st.decimals(min_value=-1000, max_value=1000, allow_nan=False, places=12)


@settings(deadline=None)
@given(st.lists(st.tuples(decimals, decimals), min_size=1, max_size=4), st.lists(decimals, min_size=1, max_size=4))
def test_what_is_written_is_read(box: list[tuple[object, object]], limits: list[object]) -> None:
    sides = [sorted((Fraction(str(one)), str(one)) for one in pair) for pair in box]
    text = "".join(f"(declare-const X_{place} Real)" for place in range(len(sides))) + "(declare-const Y_0 Real)"
    for place, (low, high) in enumerate(sides):
        text += f"(assert (<= X_{place} {high[1]}))(assert (>= X_{place} {low[1]}))"
    found = parse_property(text + f"(assert (or {' '.join(f'(<= Y_0 {one})' for one in limits)}))")
    (query,) = found.queries
    for place, (low, high) in enumerate(sides):
        lower, upper = float(query.lower[place]), float(query.upper[place])
        assert Fraction(lower) <= low[0] < Fraction(math.nextafter(lower, math.inf))
        assert Fraction(math.nextafter(upper, -math.inf)) < high[0] <= Fraction(upper)
    for one, limit in zip(query.unsafe, limits, strict=True):
        offset, exact = float(one.offsets[0]), -Fraction(str(limit))
        assert Fraction(offset) <= exact < Fraction(math.nextafter(offset, math.inf))


WORDS = ["(", ")", "assert", "<=", ">=", "and", "or", "+", "-", "*", "X_0", "Y_0", "Y_9", "1", "0.1", "1e308", '"', ";"]
PHRASES = ["(assert (or (<= Y_0 1)", "(<= Y_0 (* 1e308 1e308))", "(declare-const", "(assert", "\n"]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(WORDS + PHRASES), max_size=25))
def test_any_text_is_read_or_refused(words: list[str]) -> None:
    try:
        found = parse_property(BOUNDED + "(assert (<= Y_0 1))" + " ".join(words))
    except RobustkitError as error:
        assert "line" in str(error)
    else:
        assert all(np.isfinite(one.offsets).all() for query in found.queries for one in query.unsafe)


def test_the_competitions_files_are_read(shared: Path) -> None:
    files = sorted([*shared.glob("vnncomp/*/vnnlib/*.vnnlib*"), *shared.glob("vnncomp/*/*.vnnlib")])
    if not files:
        pytest.skip("needs vnncomp/ in the shared folder")
    sizes = {"2022_acasxu": (5, 5), "2022_mnist_fc": (784, 10), "2022_oval21": (3072, 10)}
    for file in files[::5]:  # every one takes half a minute; the slow run reads them all
        found = load_property(file)
        assert sizes.get(file.parent.parent.name, (found.inputs, found.outputs)) == (found.inputs, found.outputs)
        assert all((one.lower <= one.upper).all() for one in found.queries)


@pytest.mark.slow
def test_all_of_the_competitions_files_are_read(shared: Path) -> None:
    for file in sorted([*shared.glob("vnncomp/*/vnnlib/*.vnnlib*"), *shared.glob("vnncomp/*/*.vnnlib")]):
        assert load_property(file).queries


SECOND = """; a comment (declare-const
(vnnlib-version <2.0>)
(declare-network N
  (declare-input A float32 [1,2])
  (declare-output B float32 [1,2]))
(assert (and (<= A[0,0] 1.0) (>= A[0,0] -0.1)))
(assert (<= A[0,1] 0.1))
(assert (> A[0,1] -1.0))
(assert (or (<= (+ (* 2.0 B[0,0]) (- 3.0)) B[0,1]) (>= B[0,1] 0.5)))
"""
FIRST = """(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)(declare-const Y_1 Real)
(assert (and (<= X_0 1.0) (>= X_0 -0.1)))
(assert (<= X_1 0.1))
(assert (>= X_1 -1.0))
(assert (or (<= (+ (* 2.0 Y_0) (- 3.0)) Y_1) (>= Y_1 0.5)))
"""


def test_version_2_says_what_version_1_does() -> None:
    pytest.importorskip("vnnlib")
    (second,), (first,) = parse_property(SECOND).queries, parse_property(FIRST).queries
    for name in ("lower", "upper"):
        assert np.array_equal(getattr(second, name), getattr(first, name))
    assert second.lower[0] < -0.1 or second.lower[0] == -0.1, "rounded outwards, from the number as it was written"
    for mine, theirs in zip(second.unsafe, first.unsafe, strict=True):
        assert np.array_equal(mine.rows, theirs.rows)
        assert np.array_equal(mine.offsets, theirs.offsets)


def test_indices_of_version_2_count_the_last_one_fastest() -> None:
    pytest.importorskip("vnnlib")
    bounds = "".join(
        f"(assert (and (>= A[{i},{j},{k}] {i}{j}{k}.0) (<= A[{i},{j},{k}] 999.0)))"
        for i in range(2)
        for j in range(1)
        for k in range(3)
    )
    text = "(vnnlib-version <2.0>)(declare-network N (declare-input A float32 [2,1,3]) (declare-output B float32 [1]))"
    (query,) = parse_property(f"{text}{bounds}(assert (== B[0] 0.5))").queries
    assert query.lower.tolist() == [0.0, 1.0, 2.0, 100.0, 101.0, 102.0]
    assert query.unsafe[0].rows.tolist() in ([[1.0], [-1.0]], [[-1.0], [1.0]])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("B[0,1] 0.5", "B[0,9] 0.5", "line 9: .* Index 9 is out of bounds"),
        ("(>= B[0,1] 0.5)", "(!= B[0,1] 0.5)", "expected and, or, and comparisons of terms, got NotEqual"),
        ("(assert (<= A[0,1] 0.1))", "", "rewritten in version 1.0, line .*: expected an upper bound of X_1"),
        ("(assert (<= A[0,1] 0.1))", "(assert", "syntax error at line 8"),
        ("B float32 [1,2])", "B float32 [1,2]) (declare-output C float32 [1])", "expected a network of one input and"),
    ],
)
def test_mistakes_in_version_2_are_told(old: str, new: str, message: str) -> None:
    pytest.importorskip("vnnlib")
    with pytest.raises(RobustkitError, match=message):
        parse_property(SECOND.replace(old, new))


def test_version_2_without_its_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vnnlib", None)
    with pytest.raises(
        RobustkitError, match=r"expected the package vnnlib for the property, .*`uv pip install vnnlib`"
    ):
        parse_property(SECOND)
