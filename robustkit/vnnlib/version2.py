"""VNN-LIB 2.0, read by the standard's own package and rewritten in version 1.0 for the one reader of properties."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from robustkit.errors import RobustkitError

COMMENT = re.compile(r";.*")
VERSION_2 = re.compile(r"\(\s*(vnnlib-version|declare-network)\b")
SIGNS = {"LessEqual": "<=", "LessThan": "<=", "GreaterEqual": ">=", "GreaterThan": ">="}
"""Strict comparisons become weak ones, so that no unsafe set becomes smaller."""
TERMS = {"Plus": "+", "Minus": "-", "Negate": "-", "Multiply": "*"}


def is_version_2(content: str) -> bool:
    """Say whether a text is written in version 2.0: whether it declares a version or a network."""
    return bool(VERSION_2.search(COMMENT.sub("", content)))


def rewrite(content: str, name: str) -> str:
    """Rewrite a property of one network with one input and one output in version 1.0.

    Args:
        content: the text, in version 2.0.
        name: what messages call it.

    Returns:
        The same property: inputs ``X_i`` and outputs ``Y_i`` are the elements of the two tensors, the last index
        fastest; every number as it was written.

    Raises:
        RobustkitError: the package is missing, it refuses the text, or the property is of another kind.
    """
    try:
        vnnlib: Any = importlib.import_module("vnnlib")
    except ImportError:
        raise RobustkitError(
            f"expected the package vnnlib for {name}, which is written in VNN-LIB 2.0, found none; install it with "
            "`uv pip install vnnlib`, or write it in version 1.0"
        ) from None
    try:
        query = vnnlib.parse_query_string(content)
    except vnnlib.VNNLibException as error:
        raise RobustkitError(f"{name}: {_complaint(str(error))}; mend it") from None
    if len(query.networks) != 1:
        raise RobustkitError(f"{name}: expected one network, got {len(query.networks)}; ask about one at a time")
    network = query.networks[0]
    if len(network.inputs) != 1 or len(network.outputs) != 1 or network.hidden:
        raise RobustkitError(
            f"{name}: expected a network of one input and one output, got {len(network.inputs)}, "
            f"{len(network.outputs)} and {len(network.hidden)} hidden values; write the property for such a network"
        )
    pairs = (("X", network.inputs[0]), ("Y", network.outputs[0]))
    letters = {one.name: letter for letter, one in pairs}
    declared = (
        f"(declare-const {letter}_{place} Real)" for letter, one in pairs for place in range(math.prod(one.shape))
    )
    asserted = (f"(assert {_formula(one.expr, letters, name)})" for one in query.assertions)
    return "\n".join(itertools.chain(declared, asserted))


def _formula(node: Any, letters: dict[str, str], name: str) -> str:
    kind = type(node).__name__
    if kind in ("And", "Or"):
        return f"({kind.lower()} {' '.join(_formula(one, letters, name) for one in node.args)})"
    if kind in SIGNS:
        return f"({SIGNS[kind]} {_term(node.lhs, letters, name)} {_term(node.rhs, letters, name)})"
    if kind == "Equal":
        left, right = (_term(one, letters, name) for one in (node.lhs, node.rhs))
        return f"(and (<= {left} {right}) (>= {left} {right}))"
    raise RobustkitError(f"{name}: expected and, or, and comparisons of terms, got {kind}; rewrite it with these")


def _term(node: Any, letters: dict[str, str], name: str) -> str:
    kind = type(node).__name__
    if kind == "Var":
        place = 0
        for index, size in zip(node.indices, node.shape, strict=True):
            place = place * size + index
        return f"{letters[node.name]}_{place}"
    if kind in TERMS:
        return f"({TERMS[kind]} {' '.join(_term(one, letters, name) for one in _parts(node, kind))})"
    lexeme = getattr(node, "lexeme", None)
    if lexeme is None:
        raise RobustkitError(f"{name}: expected numbers, variables, +, - and *, got {kind}; rewrite it with these")
    return str(lexeme)


def _parts(node: Any, kind: str) -> Iterator[Any]:
    if kind == "Negate":
        return iter((node.expr,))
    return iter((node.head, *node.rest) if kind == "Minus" else node.args)


def _complaint(text: str) -> str:
    """Make one line of what the package says: its first error with the line it stands in."""
    try:
        first = json.loads(text)["errors"][0]
        return f"line {first['line']}: {first['message']} at {first['offendingSymbol']!r}: {first['hint']}"
    except (ValueError, KeyError, IndexError, TypeError):
        return " ".join(text.split())
