"""From what was typed to what is asked for: configurations, networks, options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustkit.errors import RobustkitError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from robustkit.config import Config
    from robustkit.networks import Network

# Everything that loads torch is imported inside the functions, so that --help answers at once.

RUNS = Path("runs")


def named_options(typed: dict[str, Any]) -> list[str]:
    """Name the options that were given."""
    names = [name for name, value in typed.items() if value not in (None, ()) and value is not False]
    return [name.removesuffix("_path").replace("_", "-") for name in names]


def network(typed: dict[str, Any], own: dict[str, Any]) -> Network:
    """Open what is to be evaluated: a checkpoint from elsewhere, the run given, or the latest."""
    from robustkit.config import configuration, plain
    from robustkit.models import makes_its_weights
    from robustkit.networks import open_checkpoint, open_run
    from robustkit.runs import Run, latest_run

    if typed["checkpoint"] or typed["model"]:
        if typed["run_path"]:
            raise UsageError("expected --run or --checkpoint, got both; leave one out")
        if not typed["model"]:
            raise UsageError("expected --model (its architecture) beside --checkpoint; see `robustkit list models`")
        if not typed["checkpoint"] and not makes_its_weights(typed["model"]):
            raise UsageError(
                f"expected --checkpoint with --model {typed['model']}: without weights there is nothing to judge"
            )
        checkpoint = typed["checkpoint"] and str(Path(typed["checkpoint"]).resolve())
        architecture = given(name=typed["model"], checkpoint=checkpoint)
        return open_checkpoint(configured(typed, {**own, "model": architecture}), RUNS, out=path_of(typed["out"]))
    run = Run(Path(typed["run_path"])) if typed["run_path"] else latest_run(RUNS)
    base = {**plain(run.config()), "device": "auto"}
    return open_run(run, configuration(base, overrides(typed, own)))


def model(typed: dict[str, Any]) -> nn.Module:
    """Open a network alone; one that was trained here needs no data for it."""
    from robustkit.models import load_checkpoint
    from robustkit.runs import Run, latest_run

    if not typed["checkpoint"] and not typed["model"]:
        run = Run(Path(typed["run_path"])) if typed["run_path"] else latest_run(RUNS)
        if run.trained:
            return load_checkpoint(run.path)[0]
    return network({**typed, "out": None}, {}).model


def onnx(path: str, typed: dict[str, Any]) -> nn.Module:
    """Read a network alone from an ONNX file, if what is proved of it is proved of the file."""
    from robustkit.models import read_onnx

    other = named_options(typed)
    if other:
        raise UsageError(f"expected only CERTIFICATE and --onnx, got {', '.join(other)} besides; leave it out")
    found = read_onnx(path)
    if not found.exact:
        raise RobustkitError(f"REFUSED {path}: it cannot be read as plain layers without rounding its numbers")
    return found.model


def varied(configs: Sequence[Config], typed: dict[str, Any], own: dict[str, Any]) -> tuple[Config, ...]:
    """Give every run for each seed and each point of the grid that were typed; a file's own value gives way to them."""
    from robustkit.variations import parse_seeds, parse_sweeps, refuse_given, vary

    seeds = () if typed["seeds"] is None else parse_seeds(typed["seeds"])
    sweeps = parse_sweeps(typed["sweeps"])
    refuse_given(overrides({**typed, "config_file": None}, own), seeds, sweeps)
    return vary(configs, seeds, sweeps)


def one_eps(eps: list[float] | None) -> float | None:
    """Give the one radius to train for; None where none was typed."""
    if eps and len(eps) > 1:
        shown = ",".join(f"{one:.4g}" for one in eps)
        raise UsageError(
            f"expected one eps to train for, got {len(eps)}; train once for each: --sweep train.eps={shown}"
        )
    return eps[0] if eps else None


def configured(typed: dict[str, Any], own: dict[str, Any]) -> Config:
    """Give the configuration that was typed, ``own`` being the command's own options."""
    from robustkit.config import configuration

    return configuration(overrides(typed, own))


def overrides(typed: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Lay the file, what was typed as options and what was typed as --set over one another, in this order."""
    from robustkit.config import merge, parse_overrides, read_toml

    file = typed.get("config_file")
    table = read_toml(Path(file)) if file else {}
    shared = {
        "data": given(name=typed["dataset"], root=typed["data_root"], download=typed["download"]),
        **given(device=typed["device"], seed=typed["seed"], deterministic=typed["deterministic"]),
    }
    for layer in (shared, own, parse_overrides(typed["settings"])):
        table = merge(table, layer)
    return table


def given(**values: Any) -> dict[str, Any]:
    """Give those options that were typed."""
    return {name: value for name, value in values.items() if value is not None}


def path_of(text: str | None) -> Path | None:
    """Give the path that was typed, if one was."""
    return Path(text) if text else None
