"""The formulas of VNN-LIB 1.0: linear constraints in exact arithmetic, and their alternatives."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from robustkit.vnnlib.text import Atom, Form, Group, Text

NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE](?P<exponent>[+-]?[0-9]+))?")
LONGEST_NUMBER = 400
DEEPEST = 100


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear term: the constant, and a factor other than zero for every variable."""

    constant: Fraction
    factors: Mapping[str, Fraction]

    def plus(self, other: Linear) -> Linear:
        """Add another term."""
        names = {**self.factors, **other.factors}
        sums = {name: self.factors.get(name, 0) + other.factors.get(name, Fraction(0)) for name in names}
        return Linear(self.constant + other.constant, {name: one for name, one in sums.items() if one})

    def times(self, factor: Fraction) -> Linear:
        """Multiply by a number."""
        return Linear(self.constant * factor, {name: one * factor for name, one in self.factors.items() if factor})


@dataclass(frozen=True, slots=True)
class Constraint:
    """A term that must not be above zero.

    Attributes:
        below_zero: the term.
        on_input: whether it bounds a single input, instead of holding outputs only.
        at: where it was read.
    """

    below_zero: Linear
    on_input: bool
    at: int


Conjunction = tuple[Constraint, ...]


def alternatives(form: Form, text: Text, declared: Mapping[str, int], most: int, depth: int = 0) -> list[Conjunction]:
    """Read a formula as a disjunction of conjunctions.

    Args:
        form: the formula.
        text: where it stands.
        declared: the constants that it may use.
        most: how many alternatives it may come to.
        depth: how deep it stands in another.

    Returns:
        The conjunctions, any one of which may hold.

    Raises:
        RobustkitError: with line and column: it is no formula, or comes to more alternatives, or is nested too deeply.
    """
    if depth > DEEPEST:
        raise text.error(form.at, f"expected a formula at most {DEEPEST} deep, got a deeper one; flatten it")
    head = form.head if isinstance(form, Group) else ""
    if isinstance(form, Group) and head in ("<=", ">="):
        return [(_comparison(form, text, declared),)]
    if not isinstance(form, Group) or head not in ("and", "or"):
        raise text.error(form.at, f"expected and, or, <= or >=, got {_name(form)}; rewrite it with these")
    if len(form.items) < 2:
        raise text.error(form.at, f"expected a formula in ({head} ...), got none; remove it")
    parts = [alternatives(one, text, declared, most, depth + 1) for one in form.items[1:]]
    if head == "or":
        found = list(itertools.chain.from_iterable(parts))
    else:
        several = [part for part in parts if len(part) > 1]
        _limit(math.prod(map(len, several)), most, text, form)
        alone = tuple(itertools.chain.from_iterable(part[0] for part in parts if len(part) == 1))
        found = [(*alone, *itertools.chain.from_iterable(chosen)) for chosen in itertools.product(*several)]
    _limit(len(found), most, text, form)
    return found


def _limit(count: int, most: int, text: Text, form: Form) -> None:
    if count > most:
        raise text.error(form.at, f"expected at most {most} alternatives, got {count}; split the property into several")


def _comparison(form: Group, text: Text, declared: Mapping[str, int]) -> Constraint:
    if len(form.items) != 3:
        raise text.error(form.at, f"expected two terms in ({form.head} ...), got {len(form.items) - 1}")
    left, right = (_term(one, text, declared) for one in form.items[1:])
    if form.head == ">=":
        left, right = right, left
    term = left.plus(right.times(Fraction(-1)))
    kinds = {name[0] for name in term.factors}
    if not kinds:
        raise text.error(form.at, "expected a constraint on an input or an output, got numbers only; remove it")
    if kinds == {"X", "Y"}:
        raise text.error(form.at, "expected inputs or outputs in a constraint, got both; only bounds may hold inputs")
    if kinds == {"X"} and len(term.factors) > 1:
        names = ", ".join(sorted(term.factors))
        raise text.error(form.at, f"expected a bound of one input, got one of {names}; only boxes are searched")
    return Constraint(term, kinds == {"X"}, form.at)


def _term(form: Form, text: Text, declared: Mapping[str, int], depth: int = 0) -> Linear:
    if depth > DEEPEST:
        raise text.error(form.at, f"expected a term at most {DEEPEST} deep, got a deeper one; flatten it")
    if isinstance(form, Atom):
        return _atom(form, text, declared)
    if form.head not in ("+", "-", "*") or len(form.items) < 2:
        raise text.error(form.at, f"expected a number, X_i, Y_i, or +, - or * of such, got {_name(form)}")
    first, *others = (_term(one, text, declared, depth + 1) for one in form.items[1:])
    if form.head == "-":
        if not others:
            return first.times(Fraction(-1))
        others = [one.times(Fraction(-1)) for one in others]
    for one in others:
        first = first.plus(one) if form.head != "*" else _product(first, one, text, form)
    return first


def _product(one: Linear, other: Linear, text: Text, form: Group) -> Linear:
    if one.factors and other.factors:
        raise text.error(form.at, "expected a number times a variable, got two variables multiplied; it is not linear")
    return one.times(other.constant) if one.factors else other.times(one.constant)


def _atom(form: Atom, text: Text, declared: Mapping[str, int]) -> Linear:
    if form.text in declared:
        return Linear(Fraction(0), {form.text: Fraction(1)})
    number = NUMBER.fullmatch(form.text)
    if number is None:
        raise text.error(form.at, f"expected a number or a declared constant, got {form.text!r}; declare it before use")
    exponent = number["exponent"] or "0"
    if len(form.text) > LONGEST_NUMBER or abs(int(exponent)) > LONGEST_NUMBER:
        raise text.error(form.at, f"expected a number that float64 can hold, got {form.text[:40]}; scale the property")
    return Linear(Fraction(form.text), {})


def _name(form: Form) -> str:
    if isinstance(form, Atom):
        return repr(form.text)
    return repr(form.head) if form.head else "'()'" if not form.items else "'(('"
