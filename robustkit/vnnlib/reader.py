"""Reads VNN-LIB 1.0: declarations, assertions, and what they come to."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from robustkit.files import read_maybe_gzipped
from robustkit.vnnlib.queries import Array, Disjunct, Property, Query
from robustkit.vnnlib.terms import Constraint, Linear, alternatives
from robustkit.vnnlib.text import Atom, Form, Group, Text, read_forms
from robustkit.vnnlib.version2 import is_version_2, rewrite

VARIABLE = re.compile(r"([XY])_(0|[1-9][0-9]{0,8})")
MOST_ALTERNATIVES = 10_000


def load_property(path: str | Path) -> Property:
    """Read a VNN-LIB file, plain or gzipped.

    Args:
        path: the file; ``.gz`` files are unpacked.

    Raises:
        RobustkitError: see ``parse_property``; or the file is absent, damaged or no text.
    """
    content = read_maybe_gzipped(Path(path))
    try:
        return parse_property(content.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        message = "expected text, got bytes that are none; check that this is a VNN-LIB file"
        raise Text(content[: error.start].decode("utf-8"), str(path)).error(error.start, message) from None


def parse_property(content: str, name: str = "the property") -> Property:
    """Read a property in the part of VNN-LIB 1.0 that the competition's files use.

    Constants ``X_i`` (inputs) and ``Y_i`` (outputs) of type Real; ``assert`` of ``<=`` and ``>=`` between linear terms
    (``+``, ``-``, ``*`` and numbers), joined by ``and`` and ``or`` to any depth. Inputs are held by bounds alone, each
    from both sides; outputs by any linear constraints. Numbers are read exactly and rounded outwards to float64: no box
    and no unsafe set becomes smaller than written. Version 2.0 is rewritten first (``version2``).

    Args:
        content: the text.
        name: what messages call it.

    Returns:
        The property.

    Raises:
        RobustkitError: with line and column: unbalanced parentheses, another command, an unknown or missing
            constant, a constraint of another kind, an input without a bound, an empty box, no constraint on outputs.
    """
    if is_version_2(content):
        content, name = rewrite(content, name), f"{name}, rewritten in version 1.0"
    text = Text(content, name)
    reader = _Reader(text)
    for form in read_forms(text):
        reader.take(form)
    return reader.property()


@dataclass
class _Reader:
    """What has been read of a file so far."""

    text: Text
    declared: dict[str, int] = field(default_factory=dict)
    common: list[Constraint] = field(default_factory=list)
    choices: list[list[tuple[Constraint, ...]]] = field(default_factory=list)

    def take(self, form: Group) -> None:
        """Take one command."""
        if form.head == "declare-const":
            self._declare(form)
        elif form.head == "assert" and len(form.items) == 2:
            found = alternatives(form.items[1], self.text, self.declared, MOST_ALTERNATIVES)
            if len(found) == 1:
                self.common += found[0]
            else:
                self.choices.append(found)
        else:
            got = "assert of other than one formula" if form.head == "assert" else _shown(form)
            raise self.text.error(form.at, f"expected (declare-const NAME Real) or (assert FORMULA), got {got}")

    def _declare(self, form: Group) -> None:
        words = [one.text if isinstance(one, Atom) else "" for one in form.items[1:]]
        if len(words) != 2 or words[1] != "Real" or not VARIABLE.fullmatch(words[0]):
            message = f"expected (declare-const X_i Real) or (declare-const Y_i Real), got {_shown(form)}"
            raise self.text.error(form.at, f"{message}; name inputs X_0, X_1, ... and outputs Y_0, Y_1, ...")
        if words[0] in self.declared:
            raise self.text.error(form.at, f"expected each constant declared once, got {words[0]} again; remove it")
        self.declared[words[0]] = form.at

    def property(self) -> Property:
        """Put together what was read."""
        inputs, outputs = self._count("X"), self._count("Y")
        count = math.prod(map(len, self.choices))
        if count > MOST_ALTERNATIVES:
            at = self.choices[-1][0][0].at
            raise self.text.error(at, f"expected at most {MOST_ALTERNATIVES} combinations of 'or', got {count}")
        boxes: dict[tuple[bytes, bytes], tuple[_Box, list[Disjunct]]] = {}
        common = _Box(self.text, inputs).within(self.common)
        rows = [one for one in self.common if not one.on_input]
        for chosen in itertools.product(*self.choices):
            extra = tuple(itertools.chain.from_iterable(chosen))
            box = common.within(extra)
            lower, upper = box.corners(self.declared)
            own = boxes.setdefault((lower.tobytes(), upper.tobytes()), (box, []))
            own[1].append(self._disjunct([*rows, *(one for one in extra if not one.on_input)], outputs))
        return Property(tuple(self._query(box, found) for box, found in boxes.values()))

    def _query(self, box: _Box, unsafe: list[Disjunct]) -> Query:
        inner = box.corners(self.declared, outwards=False)
        return Query(*box.corners(self.declared), tuple(unsafe), inner)

    def _count(self, letter: str) -> int:
        numbers = {int(name[2:]): at for name, at in self.declared.items() if name[0] == letter}
        what = "input" if letter == "X" else "output"
        if not numbers:
            raise self.text.error(0, f"expected a declaration of {letter}_0, got no {what}; declare every {what}")
        for place, number in enumerate(sorted(numbers)):
            if number != place:
                message = f"expected {letter}_{place} declared as well, got {letter}_{number} without it; declare it"
                raise self.text.error(numbers[number], message)
        return len(numbers)

    def _disjunct(self, constraints: Sequence[Constraint], outputs: int) -> Disjunct:
        if not constraints:
            at = self.choices[-1][0][0].at if self.choices else 0
            raise self.text.error(
                at, "expected a constraint on the outputs, got none; every input would count as unsafe: assert one"
            )
        rows, offsets = np.zeros((len(constraints), outputs)), np.zeros(len(constraints))
        for place, one in enumerate(constraints):
            scaled = _representable(one.below_zero, self.text, one.at)
            for name, factor in scaled.factors.items():
                rows[place, int(name[2:])] = float(factor)
            offsets[place] = _rounded(scaled.constant, -math.inf, self.text, one.at)
        return Disjunct(rows, offsets)


class _Box:
    """Exact bounds of the inputs, each with the place it was read at."""

    def __init__(self, text: Text, size: int) -> None:
        self.text, self.size = text, size
        self.lower: dict[int, tuple[Fraction, int]] = {}
        self.upper: dict[int, tuple[Fraction, int]] = {}

    def within(self, constraints: Sequence[Constraint]) -> _Box:
        """Give the part of the box in which some constraints hold."""
        if not any(one.on_input for one in constraints):
            return self
        box = _Box(self.text, self.size)
        box.lower, box.upper = dict(self.lower), dict(self.upper)
        for one in constraints:
            if one.on_input:
                box._tighten(one)
        return box

    def _tighten(self, one: Constraint) -> None:
        ((name, factor),) = one.below_zero.factors.items()
        place, limit = int(name[2:]), -one.below_zero.constant / factor
        known = self.upper if factor > 0 else self.lower
        before = known.get(place)
        if before is None or (limit < before[0] if factor > 0 else limit > before[0]):
            known[place] = (limit, one.at)
        low, high = self.lower.get(place), self.upper.get(place)
        if low and high and low[0] > high[0]:
            raise self.text.error(
                one.at,
                f"expected a box that is not empty, got {name} >= {_short(low[0])} ({self.text.place(low[1])}) and "
                f"{name} <= {_short(high[0])} ({self.text.place(high[1])}): no input fulfils both; mend the bounds",
            )

    def corners(self, declared: dict[str, int], *, outwards: bool = True) -> tuple[Array, Array]:
        """Give lower and upper corner in float64, rounded outwards or inwards."""
        corners, sign = [], 1 if outwards else -1
        for known, side, towards in ((self.lower, "a lower", -math.inf), (self.upper, "an upper", math.inf)):
            missing = next((place for place in range(self.size) if place not in known), None)
            if missing is not None:
                raise self.text.error(
                    declared[f"X_{missing}"], f"expected {side} bound of X_{missing}, got none; bound every input"
                )
            exact = [known[place] for place in range(self.size)]
            corners.append(np.array([_rounded(value, sign * towards, self.text, at) for value, at in exact]))
        return corners[0], corners[1]


def _short(value: Fraction) -> str:
    """Write a number for a message."""
    try:
        return str(float(value))
    except OverflowError:
        return "a number beyond float64"


def _rounded(value: Fraction, towards: float, text: Text, at: int) -> float:
    """Give the nearest float64 on one side of an exact number, itself where it is one."""
    try:
        near = float(value)  # correctly rounded
    except OverflowError:
        raise text.error(at, "expected numbers that float64 can hold, got a larger one; scale the property") from None
    wrong = near > value if towards < 0 else near < value
    return math.nextafter(near, towards) if wrong else near


def _representable(term: Linear, text: Text, at: int) -> Linear:
    """Scale a constraint so that float64 holds its factors exactly; the set it describes stays the same."""
    if all(map(_is_float, term.factors.values())):
        return term
    scale = math.lcm(*(one.denominator for one in term.factors.values()))
    scaled = term.times(Fraction(scale))
    if not all(map(_is_float, scaled.factors.values())):
        raise text.error(at, "expected factors that float64 can hold exactly, got finer ones; write fewer digits")
    return scaled


def _is_float(value: Fraction) -> bool:
    try:
        return Fraction(float(value)) == value
    except OverflowError:
        return False


def _shown(form: Form) -> str:
    words: Iterator[str] = (one.text if isinstance(one, Atom) else "(...)" for one in getattr(form, "items", ()))
    return f"({' '.join(itertools.islice(words, 4))})"
