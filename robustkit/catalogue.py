"""The names that options take, each with a line of what it means."""

from __future__ import annotations

from pathlib import Path

from robustkit.attacks import ATTACKS
from robustkit.bounds import BoundMethod
from robustkit.data import dataset_names
from robustkit.experiment import preset_names
from robustkit.models import ARCHITECTURES
from robustkit.runs import find_runs
from robustkit.training import METHODS
from robustkit.verifiers import VERIFIERS


def catalogue(runs: Path) -> dict[str, dict[str, str]]:
    """List every name by family, with the first line of its documentation.

    Args:
        runs: folder of the runs to list as well.

    Returns:
        Family to name to meaning.
    """
    found = find_runs([runs]) if runs.is_dir() and any(runs.rglob("config.toml")) else []
    return {
        "methods": {name: _first_line(kind) for name, kind in METHODS.items()},
        "attacks": {name: _first_line(kind) for name, kind in ATTACKS.items()},
        "verifiers": {
            name: "Prove what this bound alone can." if name in set(BoundMethod) else _first_line(kind)
            for name, kind in VERIFIERS.items()
        },
        "models": dict.fromkeys(sorted(ARCHITECTURES), ""),
        "datasets": dict.fromkeys(dataset_names(), ""),
        "presets": dict.fromkeys(preset_names(), ""),
        "runs": {str(run.path): "trained" if run.trained else "evaluated or unfinished" for run in found},
    }


def _first_line(kind: object) -> str:
    return (kind.__doc__ or "").strip().split("\n")[0]
