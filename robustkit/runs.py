"""Run directories: one per network, holding all that was asked, computed and measured of it."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import tomli_w
import torch

from robustkit.config import Config, configuration, differences, plain, read_toml
from robustkit.errors import RobustkitError, UsageError
from robustkit.files import replacing
from robustkit.models.checkpoints import WEIGHTS_FILE
from robustkit.results import COLUMNS, read_table

CONFIG_FILE = "config.toml"
HISTORY_FILE = "history.jsonl"
ENVIRONMENT_FILE = "environment.json"
EXPERIMENT_FILE = "experiment.toml"
RESULTS = "results"
EXAMPLES = "examples"
UNREAD = ("checkpoint_every", "stop_if_collapsed", "tensorboard")
"""Options of training that do not decide the weights."""

MEASURED = ("epoch", "eps", "weight", "loss", "val_clean", "val_vra", "seconds")
"""What a report reads of every epoch."""

MEND = "restore it from a copy, or train again into another --out"


@dataclass(frozen=True)
class Run:
    """One run directory.

    Attributes:
        path: the directory.
    """

    path: Path

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.path.name

    @property
    def trained(self) -> bool:
        """Whether training has finished here."""
        return (self.path / WEIGHTS_FILE).exists()

    def open(self, config: Config) -> None:
        """Make the directory, or take up one that stands and was made from the same configuration.

        Args:
            config: the resolved configuration; kept beside the environment it runs in.

        Raises:
            RobustkitError: the directory cannot be written.
            UsageError: it holds a run of another configuration; the message says what differs.
        """
        settings = plain(config)
        if (self.path / CONFIG_FILE).exists():
            before = plain(self.config())  # options that are newer than the run have their defaults
            differing = differences(what_training_reads(before), what_training_reads(settings))
            if differing:
                raise UsageError(
                    f"{self.path} holds a run of another configuration ({'; '.join(differing[:5])}); "
                    "give another --out, or the same configuration to go on"
                )
        with replacing(self.path / CONFIG_FILE) as file:
            file.write(tomli_w.dumps(settings))
        if not (self.trained and (self.path / ENVIRONMENT_FILE).exists()):  # it says where the network was trained
            with replacing(self.path / ENVIRONMENT_FILE) as file:
                json.dump(environment(), file, indent=2)

    def config(self) -> Config:
        """Read the configuration the run was made from.

        Raises:
            RobustkitError: this is no run directory.
        """
        if not (self.path / CONFIG_FILE).is_file():
            raise RobustkitError(
                f"expected a run directory at {self.path}, found no {CONFIG_FILE} there; see `robustkit list runs`"
            )
        return configuration(read_toml(self.path / CONFIG_FILE))

    def environment(self) -> dict[str, Any]:
        """Read what the run was computed on.

        Raises:
            RobustkitError: the file is missing or damaged.
        """
        path = self.path / ENVIRONMENT_FILE
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RobustkitError(f"cannot read {path}, where a run was computed: {error.strerror}; {MEND}") from None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise RobustkitError(f"expected one JSON object in {path}, found the file damaged; {MEND}")
        return found

    def write_history(self, history: Iterable[Mapping[str, Any]]) -> None:
        """Write the metrics of every epoch, a JSON object a line."""
        with replacing(self.path / HISTORY_FILE) as file:
            file.writelines(
                json.dumps({name: _or_null(one) for name, one in epoch.items()}) + "\n" for epoch in history
            )

    def history(self) -> pd.DataFrame:
        """Read the metrics of every epoch; without a row for a network trained elsewhere.

        Raises:
            RobustkitError: the file is empty or damaged.
        """
        path = self.path / HISTORY_FILE
        if not path.exists():
            return pd.DataFrame()
        try:
            table = pd.read_json(path, lines=True).astype(float)
        except (ValueError, TypeError):
            table = pd.DataFrame()
        if not len(table) or not set(MEASURED) <= set(table.columns):
            raise RobustkitError(
                f"expected the metrics of one epoch ({', '.join(MEASURED)}) in every line of {path}, found the file "
                f"empty or damaged; {MEND}"
            )
        return table

    def table(self) -> pd.DataFrame:
        """Read the rows of all finished evaluations."""
        tables = [read_table(path) for path in _finished(self.path / RESULTS, "*.csv")]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(COLUMNS))

    def examples(self) -> list[Path]:
        """Give the files of all adversarial examples."""
        return _finished(self.path / EXAMPLES, "*.npz")


def _finished(folder: Path, pattern: str) -> list[Path]:
    """Give files in order but for those that work under way keeps to itself: their names begin with a dot."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def what_training_reads(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give the part of a plain configuration that decides the weights: what names a run, and what resuming must find.

    Where the data lie, how the network is evaluated and the options of other methods are no part of it.
    """
    data = {name: one for name, one in settings.get("data", {}).items() if name not in ("root", "download")}
    train = {name: one for name, one in settings.get("train", {}).items() if name not in UNREAD}
    method = train.get("method")
    train["options"] = {name: one for name, one in train.get("options", {}).items() if name == method}
    return {"data": data, "train": train, **{key: settings.get(key) for key in ("model", "seed", "deterministic")}}


def file_name(method: str) -> str:
    """Give the name of a method as part of a file's: a battery's can be longer than that may be."""
    return method.replace(":", "-")[:100]


def share_of(path: Path, rank: int | str) -> Path:
    """Name the file in which one process keeps its share of what goes into another file in the end."""
    return path.with_name(f".{path.stem}.share{rank}{path.suffix}")


def shares_of(path: Path) -> list[Path]:
    """Give the shares of a file that processes have left beside it."""
    return sorted(path.parent.glob(share_of(path, "*").name))


def _or_null(value: Any) -> Any:
    """JSON has no NaN: what was not measured is null."""
    return None if isinstance(value, float) and math.isnan(value) else value


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """Find every run directory at or below some folders.

    Raises:
        RobustkitError: a folder holds none.
    """
    runs: list[Run] = []
    for path in paths:
        found = [Run(one.parent) for one in sorted(path.rglob(CONFIG_FILE))]
        if not found:
            raise RobustkitError(f"expected a run directory at {path}, found none; `robustkit train` makes one")
        runs += found
    return list({run.path.resolve(): run for run in runs}.values())


def latest_run(root: Path) -> Run:
    """Give the run whose training finished last.

    Raises:
        RobustkitError: there is none.
    """
    weights = list(root.rglob(WEIGHTS_FILE))
    if not weights:
        raise RobustkitError(
            f"expected a trained run under {root}, found none; start with `robustkit train`, "
            "or name a network by --run or by --model and --checkpoint"
        )
    return Run(max(weights, key=lambda path: path.stat().st_mtime).parent)


def latest_experiment(root: Path) -> Path:
    """Give the folder of the experiment that the latest run belongs to, or the run itself where it stands alone.

    Raises:
        RobustkitError: there is no run.
    """
    folders = [path.parent for path in root.rglob(CONFIG_FILE)]
    if not folders:
        raise RobustkitError(f"expected runs under {root}, found none; start with `robustkit run` or `robustkit train`")
    latest = max(folders, key=_touched)
    return latest.parent if (latest.parent / EXPERIMENT_FILE).exists() else latest


def _touched(folder: Path) -> float:
    return max(path.stat().st_mtime for path in folder.rglob("*") if path.is_file())


def environment() -> dict[str, Any]:
    """Describe the software and the machine."""
    packages = ("robustkit", "torch", "torchvision", "auto-LiRPA", "torchattacks", "numpy", "pandas", "scikit-learn")
    return {
        "python": platform.python_version(),
        "platform": platform.system() + " " + platform.machine(),
        "packages": {name: metadata.version(name) for name in packages},
        "hardware": hardware(),
        "git": _git_revision(),
    }


def hardware() -> str:
    """Describe the processors in a few words, for a caption."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cores} CPU cores{gpu}"


def _git_revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
