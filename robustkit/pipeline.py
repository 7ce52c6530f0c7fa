"""From an experiment to its comparison: train, attack, verify, report; what is there already is not done again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import tomli_w

from robustkit.attacks import Examples, load_examples
from robustkit.checking import check_attacks, describe_checks, read_checks
from robustkit.config import Config, plain
from robustkit.errors import RobustkitError, UsageError
from robustkit.evaluation import evaluate
from robustkit.experiment import Experiment
from robustkit.files import replacing
from robustkit.models import MIXTURE, read_card
from robustkit.networks import open_checkpoint, train_network
from robustkit.progress import Reporter
from robustkit.reports import RunFacts, ShownCheck, write_report
from robustkit.runs import EXPERIMENT_FILE, RESULTS, Run
from robustkit.training import make_method


def report(runs: Sequence[Run], out: Path, *, title: str) -> list[Path]:
    """Write the comparison of some runs.

    Args:
        runs: run directories.
        out: folder of the report.
        title: heads it.

    Returns:
        What was written.

    Raises:
        RobustkitError: nothing has been evaluated, results of two networks are mixed, or a file cannot be written.
        UsageError: two runs have one name.
        SoundnessError: a sample is both verified and broken.
    """
    tables = [run.table() for run in runs]
    for run, one in zip(runs, tables, strict=True):
        if one["model"].nunique() > 1:
            raise RobustkitError(
                f"expected the results of one network in {run.path}, found those of weights that stood there before; "
                f"remove {run.path / RESULTS} and evaluate again"
            )
        namesake = next(other for other in runs if other.name == run.name)
        if namesake != run:
            raise UsageError(
                f"expected runs of different names, got {namesake.path} and {run.path}; rename one or report each apart"
            )
    table = pd.concat(tables, ignore_index=True)
    if not len(table):
        raise RobustkitError("expected evaluated runs, found no results; use `robustkit attack` or `verify` first")
    facts = [run_facts(run) for run in runs]
    return write_report(table, facts, out, title=title)


def run_facts(run: Run) -> RunFacts:
    """Collect what a report says of a run beside its results."""
    config, history = run.config(), run.history()
    dataset = run.table()["dataset"].iloc[:1].tolist()
    mixed = config.model.name == MIXTURE
    foreign = mixed or bool(config.model.checkpoint) or not run.trained
    return RunFacts(
        name=run.name,
        training="" if foreign else config.train.method,
        train_eps=float("nan") if foreign or config.train.method == "natural" else config.train.eps or 0.0,
        dataset=dataset[0] if dataset else config.data.name,
        model=read_card(run.path).parts[1].architecture if mixed else config.model.name,  # beside its robust part
        seed=config.seed,
        train_seconds=float(history["seconds"].sum()) if len(history) else float("nan"),
        hardware=str(run.environment().get("hardware", "")),
        history=history,
        examples=_examples(run),
        recipe={} if foreign else _recipe(config),
        checks=_checks(run),
    )


def _recipe(config: Config) -> dict[str, str]:
    """Give what training read, the method's own options among it, as text; all but the seed and the radius.

    Runs of one recipe are taken for seeds of one another: nothing that changes the weights may be left out.
    """
    train = {name: one for name, one in plain(config.train).items() if name not in ("method", "options", "eps")}
    if config.train.method == "natural":  # it is not labelled by a radius, though validation reads one
        train["eps"] = config.train.eps
    own = plain(make_method(config.train.method, config.train.options.get(config.train.method)))
    data = {"train_n": config.data.train_n or "all", "val_n": config.data.val_n}
    model = {"width": config.model.width or "published", "deterministic": config.deterministic}
    shared = {**data, **model, **train}
    own = {f"{config.train.method}.{name}" if name in shared else name: one for name, one in own.items()}
    return {name: str(one) for name, one in {**shared, **own}.items()}


def run_experiment(experiment: Experiment, out: Path, reporter: Reporter) -> list[Path]:
    """Train, attack and verify every network of an experiment, and write the comparison.

    Args:
        experiment: what to compare.
        out: its folder; what an earlier sitting finished there is not done again.
        reporter: told of the progress.

    Returns:
        What was written.
    """
    with replacing(out / EXPERIMENT_FILE) as file:
        file.write(tomli_w.dumps({"title": experiment.title, "runs": [plain(one) for one in experiment.configs]}))
    runs: list[Run] = []
    for place, config in enumerate(experiment.configs):
        reporter.say(f"[{place + 1}/{len(experiment.configs)}] {_describe(config)}")
        foreign = bool(config.model.checkpoint)
        network = open_checkpoint(config, out) if foreign else train_network(config, out, reporter)
        attacked = evaluate(network, "attack", network.config.attack, reporter)
        checked = check_attacks(network, attacked, network.config.attack, reporter)
        for line in describe_checks(checked) if checked else ():
            if not line.startswith("  pass"):
                reporter.say(line)
        evaluate(network, "verify", network.config.verify, reporter)
        if network.run not in runs:  # two configurations may train alike and be evaluated differently
            runs.append(network.run)
    return network.world.from_first(lambda: report(runs, out / "report", title=experiment.title))


def _describe(config: Config) -> str:
    if config.model.checkpoint:
        return f"{config.model.name} from {config.model.checkpoint}"
    eps = "" if config.train.eps is None else f" at eps {config.train.eps:.4g}"
    return f"{config.train.method} training on {config.data.name}{eps}, seed {config.seed}"


def _checks(run: Run) -> Sequence[ShownCheck]:
    """Take what the checks of its attacks came to."""
    checked = read_checks(run)
    return checked.checks if checked else ()


def _examples(run: Run) -> Examples | None:
    """Take the adversarial examples of one attack; of the first in name where there are several."""
    for path in run.examples():
        return load_examples(path)
    return None
