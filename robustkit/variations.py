"""Variations of a configuration: several seeds, and every point of a grid of options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustkit.config import Config, configuration, digest, nested, parse_value, plain
from robustkit.errors import UsageError, unknown_name
from robustkit.runs import what_training_reads
from robustkit.training import METHODS, make_method

METHOD = "train.method"
OPTIONS = "train.options."


@dataclass(frozen=True)
class Sweep:
    """One option, and the values it takes in turn.

    Attributes:
        name: dotted name of the option.
        values: as TOML gives them, at least one.
    """

    name: str
    values: tuple[Any, ...]

    def concerns(self, config: Config) -> bool:
        """Say whether a run is varied: it is trained here, and an option of one method is none of another's."""
        own = self.name.removeprefix(OPTIONS).split(".")[0] if self.name.startswith(OPTIONS) else config.train.method
        return not config.model.checkpoint and own == config.train.method

    def points(self, config: Config) -> list[Config]:
        """Give the run once for each value.

        Raises:
            UsageError: an unknown option, a value that does not fit, two alike, or an option that no weight depends on.
        """
        made = [configuration(plain(config), nested(self.name, value)) for value in self.values]
        for one in made:  # an unknown option of the method shows here, not when its turn comes
            make_method(one.train.method, one.train.options.get(one.train.method))
        recipes = {digest(what_training_reads(plain(one))) for one in made}
        if len(recipes) < len(made):
            shown = ", ".join(map(str, self.values))
            if len(set(map(repr, made))) == len(made):
                raise UsageError(f"expected --sweep of what training reads, got {self.name}; give it by --set")
            raise UsageError(
                f"expected different values for --sweep {self.name}, got {shown}; leave the repeated one out"
            )
        return made


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read seeds with commas between them, such as ``0,1,2``.

    Raises:
        UsageError: one that is no whole number from 0 on, or one given twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UsageError(f"expected --seeds as whole numbers with commas, such as 0,1,2, got {text!r}")
    seeds = tuple(map(int, parts))
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"expected different --seeds, got {text!r}; leave the repeated one out")
    return seeds


def parse_sweeps(settings: Sequence[str]) -> tuple[Sweep, ...]:
    """Read ``a.b=1,2,3`` settings; each value is TOML, or else plain text.

    Args:
        settings: as typed after ``--sweep``; commas inside brackets, braces and quotes do not separate.

    Returns:
        One sweep for each, in the order typed.

    Raises:
        UsageError: no name, no value, an open bracket or quote, or an option given twice.
    """
    sweeps: list[Sweep] = []
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not all(name.split(".")):
            raise UsageError(f"expected --sweep section.option=value,value, got {setting!r}")
        if name in [sweep.name for sweep in sweeps]:
            raise UsageError(f"expected one --sweep of {name}, got two; put all values into one")
        parts = [part.strip() for part in split_values(text)]
        if not all(parts):
            raise UsageError(f"expected values with commas between them after --sweep {name}=, got {text!r}")
        sweeps.append(Sweep(name, tuple(map(parse_value, parts))))
    return tuple(sweeps)


def split_values(text: str) -> list[str]:
    """Split at the commas that stand outside brackets, braces and quotes.

    Raises:
        UsageError: a bracket or a quote is left open.
    """
    parts, depth, quote, escaped = [""], 0, "", False
    for one in text:
        if quote:
            quote = "" if one == quote and not escaped else quote
            escaped = one == "\\" and quote == '"' and not escaped
        elif one in "\"'":
            quote = one
        else:
            depth += (one in "[{") - (one in "]}")
        if one == "," and not quote and not depth:
            parts.append("")
        else:
            parts[-1] += one
    if quote or depth:
        raise UsageError(f"expected every bracket and quote closed in --sweep values, got {text!r}; close it")
    return parts


def refuse_given(given: Mapping[str, Any], seeds: Sequence[int], sweeps: Sequence[Sweep]) -> None:
    """Refuse what is asked to be both one value and several.

    Args:
        given: nested table of the options that were typed with one value.
        seeds: as ``--seeds`` gives them.
        sweeps: as ``--sweep`` gives them.

    Raises:
        UsageError: an option stands in both.
    """
    if seeds and "seed" in given:
        raise UsageError("expected --seed or --seeds, got both; leave one out")
    for sweep in sweeps:
        if sweep.name == "seed" and seeds:
            raise UsageError("expected --seeds or --sweep seed=..., got both; leave one out")
        found: Any = given
        for part in sweep.name.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        if found is not None:
            raise UsageError(f"expected {sweep.name} as one value or by --sweep, got both; leave one out")


def vary(configs: Sequence[Config], seeds: Sequence[int] = (), sweeps: Sequence[Sweep] = ()) -> tuple[Config, ...]:
    """Give every run once for each point of the grid and, there, once for each seed.

    Runs that differed only in what is varied fall together. Weights trained elsewhere are left as they are.

    Args:
        configs: the runs.
        seeds: none for each run's own.
        sweeps: the axes of the grid; an option of one method varies the runs of that method alone.

    Returns:
        The runs, those of one recipe beside one another.

    Raises:
        UsageError: a sweep that no run has, or that cannot be meant.
    """
    varied = list(configs)
    for sweep in sorted(sweeps, key=lambda one: one.name != METHOD):  # the method decides which options there are
        _check_known(sweep, varied)
        varied = [point for one in varied for point in (sweep.points(one) if sweep.concerns(one) else [one])]
    if seeds:
        tables = [(one, [{}] if one.model.checkpoint else [{"seed": seed} for seed in seeds]) for one in varied]
        varied = [configuration(plain(one), table) for one, several in tables for table in several]
    return tuple({repr(one): one for one in varied}.values())


def _check_known(sweep: Sweep, configs: Sequence[Config]) -> None:
    """Refuse an option that would vary nothing."""
    if sweep.name.startswith(OPTIONS):
        method = sweep.name.removeprefix(OPTIONS).split(".")[0]
        if method not in METHODS:
            raise unknown_name("training method", method, METHODS)
    if not any(sweep.concerns(one) for one in configs):
        trained = sorted({one.train.method for one in configs if not one.model.checkpoint})
        raise UsageError(
            f"expected a run that --sweep {sweep.name} concerns, got training by {', '.join(trained) or 'nothing'}; "
            "add such a run, or give --method"
        )
