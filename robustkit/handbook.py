"""The training methods and the attacks as a reader wants them: what is done, after which paper, by which options."""

from __future__ import annotations

import dataclasses
import inspect
import re
from dataclasses import dataclass
from typing import Any, cast

from robustkit.attacks import ATTACKS, PREFIX, library_page
from robustkit.errors import unknown_name
from robustkit.training import METHODS


@dataclass(frozen=True)
class Option:
    """One hyper-parameter of a method or of an attack.

    Attributes:
        name: the last part of its dotted name in the configuration.
        default: as text.
        meaning: what the docstring says of it.
    """

    name: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Page:
    """What there is to know of a training method or of an attack, read from its class.

    Attributes:
        name: what it is called on the command line.
        summary: first line of its docstring.
        details: the paragraphs between that and the list of its attributes.
        formula: what is minimised; empty for an attack.
        source: after which paper, and where it deviates.
        options: its hyper-parameters.
        where: dotted name of its options in the configuration.
    """

    name: str
    summary: str
    details: tuple[str, ...]
    formula: str
    source: str
    options: tuple[Option, ...]
    where: str


def method_page(name: str) -> Page:
    """Read what there is to know of a training method.

    Args:
        name: one of ``METHODS``.

    Raises:
        UsageError: an unknown name; the nearest are offered.
    """
    if name not in METHODS:
        raise unknown_name("training method", name, METHODS)
    return _page(name, METHODS[name], METHODS[name].formula, f"train.options.{name}")


def attack_page(name: str) -> Page:
    """Read what there is to know of an attack.

    Args:
        name: one of ``ATTACKS``, or ``torchattacks:NAME``.

    Raises:
        UsageError: an unknown name; the nearest are offered.
    """
    where = f"attack.options.{name}"
    if name.startswith(PREFIX):
        about, options = library_page(name)
        shown = tuple(Option(key, _text(default), meaning) for key, (default, meaning) in options.items())
        return Page(name, about, (), "", "the library's documentation; Kim 2020, arXiv 2010.01950.", shown, where)
    if name not in ATTACKS:
        raise unknown_name("attack", name, ATTACKS)
    return _page(name, ATTACKS[name], "", where)


def _page(name: str, kind: type[Any], formula: str, where: str) -> Page:
    """Read a class."""
    summary, *rest = _paragraphs(kind)
    sources = [one for one in rest if one.startswith("Source:")]
    details = [one for one in rest if one not in sources and not one.startswith("Attributes:")]
    source = " ".join(one.removeprefix("Source:").strip() for one in sources)
    return Page(name, summary, tuple(details), formula, source, _options(kind), where)


def _paragraphs(kind: type[Any]) -> list[str]:
    """Split a docstring at its empty lines; lines of running text are joined, those of a list of attributes are not."""
    parts = inspect.cleandoc(kind.__doc__ or "").replace("``", "").split("\n\n")
    return [one if one.startswith("Attributes:") else " ".join(one.split()) for one in parts]


def _options(kind: type[Any]) -> tuple[Option, ...]:
    """List the fields of a class, each with what the docstring of its class or of the class above says."""
    meanings: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        for part in _paragraphs(one):
            if part.startswith("Attributes:"):
                meanings |= _meanings(part)
    fields = [one for one in dataclasses.fields(cast(Any, kind)) if one.init]
    return tuple(Option(one.name, _text(one.default), meanings.get(one.name, "")) for one in fields)


def _text(default: object) -> str:
    return f"{default:.4g}" if isinstance(default, float) else str(default)


def _meanings(attributes: str) -> dict[str, str]:
    """Read the list of attributes of a docstring: name to meaning."""
    entries = re.split(r"\n    (?=\w+:)", attributes)[1:]
    pairs = (entry.split(":", 1) for entry in entries)
    return {name.strip(): " ".join(meaning.split()) for name, meaning in pairs}
