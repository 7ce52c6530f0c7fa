"""Experiments: several configurations that belong together, from a TOML file or a preset that ships."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from robustkit.config import Config, configuration, read_toml
from robustkit.errors import UsageError, unknown_name

DEFAULT_PRESET = "digits"


@dataclass(frozen=True)
class Experiment:
    """Networks to train, attack, verify and compare.

    Attributes:
        name: of its folder.
        title: heads its report.
        configs: one for each network.
    """

    name: str
    title: str
    configs: tuple[Config, ...]


def preset_names() -> list[str]:
    """List the presets that ship."""
    return sorted(file.name.removesuffix(".toml") for file in _presets() if file.name.endswith(".toml"))


def load_experiment(name: str, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Read a preset by name, or an experiment from a TOML file.

    The file holds a ``title``, tables that all runs share (those of ``Config``), and one ``[[runs]]`` table for each
    network, laid over the shared ones.

    Args:
        name: a preset's name, or the path of a ``.toml`` file.
        overrides: laid over every run.

    Returns:
        The experiment.

    Raises:
        UsageError: an unknown preset or option, a value that does not fit, or no runs.
        RobustkitError: the file cannot be read.
    """
    path = Path(name)
    if path.suffix == ".toml":
        table = read_toml(path)
    elif name in preset_names():
        text = (resources.files("robustkit.presets") / f"{name}.toml").read_text(encoding="utf-8")
        table = tomllib.loads(text)
    else:
        raise UsageError(f"{unknown_name('preset', name, preset_names())}; or give the path of a .toml file")
    if not table:
        raise UsageError(f"expected an experiment in {name}, got an empty file; see docs/configuration.md")
    runs = table.pop("runs", [{}])
    title = str(table.pop("title", path.stem))
    if not isinstance(runs, list) or not runs or not all(isinstance(run, dict) for run in runs):
        raise UsageError(f"expected at least one [[runs]] table in {name}, got {runs!r}; add one for each network")
    configs = [configuration(table, run, overrides or {}) for run in runs]
    if len(set(map(repr, configs))) < len(configs):
        raise UsageError(f"expected runs that differ in {name}, got two alike; remove one or change its seed")
    return Experiment(path.stem, title, tuple(configs))


def _presets() -> list[Any]:
    return list(resources.files("robustkit.presets").iterdir())
