"""The names that options take, each with a line of what it means."""

from __future__ import annotations

from pathlib import Path

import torch

from robustkit.attacks import ATTACKS
from robustkit.bounds import BoundMethod
from robustkit.data import dataset_names, describe_dataset
from robustkit.experiment import load_experiment, preset_names
from robustkit.models import ARCHITECTURES, count_parameters, make_model
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
        "attacks": {name: _first_line(kind) for name, kind in ATTACKS.items()}
        | {
            "torchattacks:NAME": "any other L-infinity attack of torchattacks, such as torchattacks:DIFGSM",
            "NAME+NAME": "several in turn, each on what those before it left",
        },
        "verifiers": {
            name: "Prove what this bound alone can." if name in set(BoundMethod) else _first_line(kind)
            for name, kind in VERIFIERS.items()
        },
        "models": {name: _describe_model(name) for name in sorted(ARCHITECTURES)}
        | {
            "torchvision:NAME": "a classification network of torchvision with fresh weights, such as resnet18",
            "package.module:factory": "your own network",
        },
        "datasets": {name: describe_dataset(name) for name in dataset_names()},
        "presets": {name: load_experiment(name).title for name in preset_names()},
        "runs": {str(run.path): "trained" if run.trained else "evaluated or unfinished" for run in found},
    }


def _describe_model(name: str) -> str:
    """Say what an architecture is, and its size where the images it takes decide that."""
    one = ARCHITECTURES[name]
    if one.input_shape is None:
        return f"{one.about}; any image" + (f" of at least {one.least} pixels a side" if one.least > 1 else "")
    with torch.device("meta"):  # weights are counted, never drawn
        size = count_parameters(make_model(name, one.input_shape, one.classes))
    return f"{one.about}; images {one.input_shape}, {size:,} parameters for {one.classes} classes"


def _first_line(kind: object) -> str:
    return (kind.__doc__ or "").strip().split("\n")[0]
