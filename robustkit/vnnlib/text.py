"""Parenthesised text, the surface of SMT-LIB and VNN-LIB, with the place of every word for messages."""

from __future__ import annotations

import re
from dataclasses import dataclass

from robustkit.errors import RobustkitError

WORD = re.compile(r"""\s+|;[^\n]*|(?P<open>\()|(?P<close>\))|(?P<word>[^\s();"|]+)|(?P<other>.)""", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Atom:
    """A word: a symbol or a number.

    Attributes:
        text: as it stands in the file.
        at: offset of its first character.
    """

    text: str
    at: int


@dataclass(frozen=True, slots=True)
class Group:
    """What stands between a pair of parentheses.

    Attributes:
        items: words and groups, in order.
        at: offset of the opening parenthesis.
    """

    items: tuple[Form, ...]
    at: int

    @property
    def head(self) -> str:
        """The first word, empty where there is none."""
        first = self.items[0] if self.items else None
        return first.text if isinstance(first, Atom) else ""


Form = Atom | Group


@dataclass(frozen=True)
class Text:
    """A text that can say where something in it stands.

    Attributes:
        content: all of it.
        name: what it is called in a message, the path for a file.
    """

    content: str
    name: str

    def error(self, at: int, message: str) -> RobustkitError:
        """Build the error for a mistake at an offset, with its line and column, both from 1."""
        return RobustkitError(f"{self.name}, {self.place(at)}: {message}")

    def place(self, at: int) -> str:
        """Give line and column of an offset in words."""
        line = self.content.count("\n", 0, at) + 1
        return f"line {line}, column {at - self.content.rfind(chr(10), 0, at)}"


def read_forms(text: Text) -> list[Group]:
    """Read all groups of a text; comments run from ``;`` to the end of the line.

    Args:
        text: the text.

    Returns:
        The outermost groups, in order.

    Raises:
        RobustkitError: parentheses that do not match, a word outside of them, or a character of no meaning.
    """
    outer: list[Group] = []
    opened: list[tuple[int, list[Form]]] = []
    for found in WORD.finditer(text.content):
        at, kind = found.start(), found.lastgroup
        if kind == "open":
            opened.append((at, []))
        elif kind == "close":
            if not opened:
                raise text.error(at, "expected a command, got ')' that closes nothing; remove it")
            start, items = opened.pop()
            group = Group(tuple(items), start)
            (opened[-1][1] if opened else outer).append(group)
        elif kind == "word" and opened:
            opened[-1][1].append(Atom(found.group(), at))
        elif kind is not None:
            what = "a command in parentheses" if kind == "word" else "a word or a parenthesis"
            raise text.error(at, f"expected {what}, got {found.group()!r}; remove it")
    if opened:
        raise text.error(opened[-1][0], "expected ')' for this '(', got the end of the file; close it")
    return outer
