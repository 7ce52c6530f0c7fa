"""Experiments: several configurations that belong together, from a TOML file or a preset that ships."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from robustkit.config import Config, configuration, read_toml
from robustkit.errors import UsageError, unknown_name
from robustkit.training import METHODS

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


def load_experiment(
    name: str, overrides: Mapping[str, Any] | None = None, *, methods: Sequence[str] = ()
) -> Experiment:
    """Read a preset by name, or an experiment from a TOML file.

    The file holds a ``title``, tables that all runs share (those of ``Config``), and one ``[[runs]]`` table for each
    network, laid over the shared ones.

    Args:
        name: a preset's name, or the path of a ``.toml`` file.
        overrides: laid over every run.
        methods: training methods to compare instead of the experiment's own runs; what these share stays.

    Returns:
        The experiment; one of other methods is called by them and its dataset.

    Raises:
        UsageError: an unknown preset, option or method, a value that does not fit, or no runs.
        RobustkitError: the file cannot be read.
    """
    table, overrides = _read(name), overrides or {}
    stem = Path(name).stem
    runs = table.pop("runs", [{}])
    title = str(table.pop("title", stem))
    if not isinstance(runs, list) or not runs or not all(isinstance(run, dict) for run in runs):
        raise UsageError(f"expected at least one [[runs]] table in {name}, got {runs!r}; add one for each network")
    if methods:
        runs = _runs_of(methods, overrides)
    configs = [configuration(table, run, overrides) for run in runs]
    if len(set(map(repr, configs))) < len(configs):
        raise UsageError(f"expected runs that differ in {name}, got two alike; remove one or change its seed")
    dataset = Path(configs[0].data.name).stem
    if methods:
        stem = "-".join([dataset, *methods])
    if methods or "name" in overrides.get("data", {}) or "eps" in overrides.get("train", {}):
        title = f"{', '.join(one.train.method for one in configs)} on {dataset}"  # the file's own is of other runs
    return Experiment(stem, title, tuple(configs))


def _read(name: str) -> dict[str, Any]:
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
    return table


def _runs_of(methods: Sequence[str], overrides: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give a run for each method."""
    for place, method in enumerate(methods):
        if method not in METHODS:
            raise unknown_name("training method", method, METHODS)
        if method in methods[:place]:
            raise UsageError(f"expected different methods, got {method} twice; leave one out, or give --seeds")
    if "method" in overrides.get("train", {}):
        raise UsageError("expected train.method by --method or by --set, got both; leave one out")
    return [{"train": {"method": method}} for method in methods]


def _presets() -> list[Any]:
    return list(resources.files("robustkit.presets").iterdir())
