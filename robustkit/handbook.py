"""The training methods as a reader wants them: what is minimised, after which paper, with which options."""

from __future__ import annotations

import dataclasses
import inspect
import re
from dataclasses import dataclass
from typing import Any, cast

from robustkit.errors import unknown_name
from robustkit.training import METHODS, TrainingMethod


@dataclass(frozen=True)
class Option:
    """One hyper-parameter of a method.

    Attributes:
        name: as in ``train.options.<method>.<name>``.
        default: as text.
        meaning: what the docstring says of it.
    """

    name: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Page:
    """What there is to know of a training method, read from its class.

    Attributes:
        name: of the method.
        summary: first line of its docstring.
        details: the paragraphs between that and the list of its attributes.
        formula: what is minimised.
        source: after which paper, and where it deviates.
        options: its hyper-parameters.
    """

    name: str
    summary: str
    details: tuple[str, ...]
    formula: str
    source: str
    options: tuple[Option, ...]


def method_page(name: str) -> Page:
    """Read what there is to know of a training method.

    Args:
        name: one of ``METHODS``.

    Raises:
        UsageError: an unknown name; the nearest are offered.
    """
    if name not in METHODS:
        raise unknown_name("training method", name, METHODS)
    kind = METHODS[name]
    summary, *rest = _paragraphs(kind)
    sources = [one for one in rest if one.startswith("Source:")]
    details = [one for one in rest if one not in sources and not one.startswith("Attributes:")]
    source = " ".join(one.removeprefix("Source:").strip() for one in sources)
    return Page(name, summary, tuple(details), kind.formula, source, _options(kind))


def _paragraphs(kind: type[Any]) -> list[str]:
    """Split a docstring at its empty lines; lines of running text are joined, those of a list of attributes are not."""
    parts = inspect.cleandoc(kind.__doc__ or "").replace("``", "").split("\n\n")
    return [one if one.startswith("Attributes:") else " ".join(one.split()) for one in parts]


def _options(kind: type[TrainingMethod]) -> tuple[Option, ...]:
    """List the fields of a method, each with what the docstring of its class or of the class above says."""
    meanings: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        for part in _paragraphs(one):
            if part.startswith("Attributes:"):
                meanings |= _meanings(part)
    fields = [one for one in dataclasses.fields(cast(Any, kind)) if one.init]
    return tuple(Option(one.name, str(one.default), meanings.get(one.name, "")) for one in fields)


def _meanings(attributes: str) -> dict[str, str]:
    """Read the list of attributes of a docstring: name to meaning."""
    entries = re.split(r"\n    (?=\w+:)", attributes)[1:]
    pairs = (entry.split(":", 1) for entry in entries)
    return {name.strip(): " ".join(meaning.split()) for name, meaning in pairs}
