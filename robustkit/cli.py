"""The command line: it reads what was typed, calls the pipeline, and prints what came of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from robustkit import __version__, asked
from robustkit.asked import RUNS
from robustkit.errors import RobustkitError, UsageError

if TYPE_CHECKING:
    from robustkit.handbook import Page
    from robustkit.progress import Reporter

# Everything that loads torch is imported inside the commands, so that --help answers at once.

F = TypeVar("F", bound=Callable[..., Any])
BELOW_THRESHOLD = 4
INTERRUPTED = 130
PAGE_WIDTH = 100


class Failure(click.ClickException):
    """A mistake of the user's in one line, with its own exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.__dict__["exit_code"] = exit_code  # click reads it as an attribute; its stub says class variable


class Commands(click.Group):
    """A group that turns the toolkit's errors into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except RobustkitError as error:
            raise Failure(str(error), error.exit_code) from error
        except KeyboardInterrupt as error:
            raise Failure("interrupted; what was finished is kept, the same command goes on", INTERRUPTED) from error


class Eps(click.ParamType[list[float]]):
    """One radius, or several with commas between them."""

    name = "eps"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        """Read ``0.3``, ``8/255`` or ``0.1,0.2``."""
        from robustkit.threat import parse_radii

        return value if isinstance(value, list) else parse_radii(str(value))


class EpsRange(click.ParamType[list[float]]):
    """Radii at equal distances."""

    name = "range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        """Read ``0:0.4:9``."""
        from robustkit.threat import parse_range

        return value if isinstance(value, list) else parse_range(str(value))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="robustkit")
def cli() -> None:
    """Train robust neural networks, attack them, verify them, and compare them.

    \b
    robustkit run                                  all of it on the embedded dataset, about three minutes
    robustkit train --dataset mnist --eps 0.1      train a network by MixTrain
    robustkit attack --method interval-gradient    attack the network trained last
    robustkit verify --eps 8/255                   certify it
    robustkit report                               tables, plots and a page of what was measured

    Every eps is an L-infinity radius in pixel units of [0, 1]. Exit codes: 0 done, 1 error, 2 usage, 3 a sample both
    verified and broken (nothing may be believed), 4 below --fail-under.
    """


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


data_options = _options(
    click.option("--dataset", metavar="NAME", help="digits, mnist, cifar10, ..., a folder of images, or an npz file."),
    click.option("--data-root", metavar="DIR", help="Where downloaded datasets lie."),
    click.option("--download", is_flag=True, default=None, help="Fetch a dataset that is not there."),
)
compute_options = _options(
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute.  [default: auto]"),
    click.option("--seed", type=int, help="Of weights, order and draws.  [default: 0]"),
    click.option("--deterministic", is_flag=True, default=None, help="Use deterministic algorithms only."),
)
config_options = _options(
    click.option("--config", "config_file", metavar="FILE", help="Options from a TOML file."),
    click.option("--set", "settings", multiple=True, metavar="A.B=V", help="Any option; see docs/configuration.md."),
)
variation_options = _options(
    click.option("--seeds", metavar="N,N,...", help="Once for each of these seeds, such as 0,1,2."),
    click.option("--sweep", "sweeps", multiple=True, metavar="A.B=V,V", help="Once for each value; several: a grid."),
)
subject_options = _options(
    click.option("--run", "run_path", metavar="DIR", help="A trained run.  [default: the latest]"),
    click.option("--checkpoint", metavar="FILE", help="Weights trained elsewhere (.pth, .pt, .safetensors)."),
    click.option("--model", metavar="NAME", help="Architecture of --checkpoint, or package.module:factory."),
)
semantics_option = click.option(
    "--semantics",
    type=click.Choice(["real", "float32"]),
    help="Prove outputs in real arithmetic, or of executions in float32.  [default: real]",
)
evaluation_options = _options(
    click.option("--method", "methods", multiple=True, metavar="NAME", help="May be repeated; commas work too."),
    click.option("--eps", type=Eps(), help="Radius, such as 0.3 or 8/255; several with commas."),
    click.option("--eps-range", type=EpsRange(), metavar="A:B:COUNT", help="A curve: radii from A to B, 0:0.4:9."),
    click.option("--n", type=int, help="The first so many test samples.  [default: all]"),
    click.option("--batch-size", type=int, help="Samples worked on together.  [default: 250]"),
    click.option("--out", metavar="DIR", help="Where the results of --checkpoint go.  [default: runs/...]"),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else."),
    click.option(
        "--fail-under",
        type=click.FloatRange(0, 1),
        help="Exit with 4 where ERA or VRA is below; proofs in floating point alone do not count.",
    ),
)

checks_option = click.option(
    "--checks/--no-checks", default=None, help="Look for signs that attacks were blind.  [default: --checks]"
)

minimal_option = click.option(
    "--minimal-eps",
    type=float,
    is_flag=False,
    flag_value=0.001,
    metavar="[TOLERANCE]",
    help="Also find the least radius that breaks each sample, by bisection.  [tolerance: 0.001]",
)


@cli.command()
@click.option("--method", metavar="NAME", help="See `robustkit list methods`.  [default: mixtrain]")
@click.option("--model", metavar="NAME", help="Architecture.  [default: the dataset's]")
@click.option("--eps", type=Eps(), help="Radius to train for.  [default: the dataset's]")
@click.option("--epochs", type=int, help="Passes over the training set.")
@click.option("--batch-size", type=int, help="Samples per step.")
@click.option("--tensorboard", is_flag=True, default=None, help="Write the metrics for TensorBoard as well.")
@click.option("--out", metavar="DIR", help="The run directory; of several networks, their folder.  [default: runs/...]")
@variation_options
@data_options
@compute_options
@config_options
def train(**typed: Any) -> None:
    """Train one network, or one for each seed; typed again, the same command goes on where it was interrupted."""
    from robustkit.networks import train_network
    from robustkit.summary import describe_seeds, describe_training

    own = {
        "train": asked.given(
            method=typed["method"],
            epochs=typed["epochs"],
            batch_size=typed["batch_size"],
            eps=asked.one_eps(typed["eps"]),
            tensorboard=typed["tensorboard"],
        ),
        "model": asked.given(name=typed["model"]),
    }
    several = bool(typed["seeds"] or typed["sweeps"])
    reporter, out, networks = _reporter(), asked.path_of(typed["out"]), []
    for config in asked.varied([asked.configured(typed, own)], typed, own):
        network = train_network(config, out or RUNS if several else RUNS, reporter, out=None if several else out)
        networks.append(network)
        if _talks():
            described = describe_training(network)
            click.echo(f"{network.run.path}\n{described}")
    for line in describe_seeds(networks, [setting.partition("=")[0] for setting in typed["sweeps"]]):
        if _talks():
            click.echo(line)


@cli.command()
@evaluation_options
@click.option("--methods", "battery", metavar="A,B,C", help="These in turn, each on what those before it left.")
@minimal_option
@checks_option
@click.option("--replay", metavar="FILE", help="Run saved examples again: runs/.../examples/*.npz.")
@subject_options
@data_options
@compute_options
@config_options
def attack(battery: str | None, replay: str | None, **typed: Any) -> None:
    """Attack a network; what no attack breaks is its empirical robust accuracy (ERA).

    Methods: pgd and interval-gradient (the default); autoattack, the standard battery; and those that `robustkit
    attacks` explains. Of a battery, the column proved_by of the results names the attack that broke a sample.

    Afterwards a few samples are checked for signs that the attacks were blind, such as gradients of zero or a search
    without gradients that finds more; a warning changes no figure and no exit code.

    With --replay it attacks nothing, but runs saved adversarial examples again: each must lie in its ball and be wrong
    in the network and in float64. Exit code 1 where one does not hold.
    """
    if battery is not None:
        typed["methods"] = (*typed["methods"], "+".join(battery.split(",")))
    if replay is not None:
        if _talks():
            _replay(Path(replay), typed)
        return
    _evaluate(typed, ["attack"])


@cli.command()
@evaluation_options
@subject_options
@click.option("--onnx", metavar="FILE", help="A network to decide --vnnlib for, .onnx or .onnx.gz.")
@click.option("--vnnlib", metavar="FILE", help="A property in VNN-LIB, .vnnlib or .vnnlib.gz.")
@click.option("--timeout", type=float, help="Seconds for a sample.  [default: 10; complete 60; --vnnlib 300]")
@click.option("--total", type=float, help="Seconds of branch and bound for all samples.  [default: 300; complete: any]")
@click.option("--jobs", type=int, help="Samples that branch and bound works on at a time.  [default: 1]")
@click.option("--certificates", metavar="DIR", help="Keep the proofs of branch and bound for `robustkit check`.")
@click.option("--certificate", metavar="FILE", help="Where a proof of --vnnlib goes, ending in .npz.")
@semantics_option
@data_options
@compute_options
@config_options
def verify(**typed: Any) -> None:
    """Certify a network; what is proved is its verified robust accuracy (VRA).

    Methods: cascade (the default), which attacks, then tries ever dearer bounds on what is left, and then branch and
    bound for a while; complete, the same with more time; or one bound: ibp, crown-ibp, symbolic, crown, alpha-crown.
    Only what the float64 checker confirms counts; VRA (float) is what it does not. It is about real arithmetic, or with
    --semantics float32 about every execution in float32.

    With --onnx and --vnnlib it decides one property instead, and prints sat with a counterexample, unsat, unknown or
    timeout; with unsat, whether the independent checker has accepted the proof within the time.
    """
    instance = {name: typed.pop(name) for name in ("onnx", "vnnlib", "certificate")}
    if any(one is not None for one in instance.values()):
        _decide({**instance, "timeout": typed.pop("timeout")}, typed)
        return
    from robustkit.verifiers import VERIFIERS

    shared = asked.given(semantics=typed.pop("semantics"))
    limits = asked.given(**{name: typed.pop(name) for name in ("timeout", "total", "certificates")})
    options = {name: {**shared, **(limits if name in ("cascade", "complete") else {})} for name in VERIFIERS}
    given = {name: one for name, one in options.items() if one} or None
    _evaluate(typed, ["verify"], asked.given(jobs=typed.pop("jobs"), options=given))


@cli.command()
@click.argument("instances", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Table of results; it is gone on with.")
@click.option("--timeout", type=float, help="Seconds for every instance.  [default: its own]")
@click.option("--jobs", type=int, default=1, show_default=True, help="Instances decided at a time.")
@click.option("--certificates", metavar="DIR", type=click.Path(path_type=Path), help="Where proofs are kept.")
def vnncomp(instances: Path, out: Path, timeout: float | None, jobs: int, certificates: Path | None) -> None:
    """Decide a benchmark of the verification competition: INSTANCES is its instances.csv.

    Results are lines of benchmark,onnx,vnnlib,prepare_time,result,run_time; counterexamples go into a folder beside
    them. Every proof is checked again in float64 within the time of its instance: a table beside the results says of
    each unsat whether the checker has accepted it, and those it has not are counted apart, as float. Where
    published_results.json lies beside INSTANCES, verdicts are held against those of most tools.
    """
    from robustkit.terminal import Terminal
    from robustkit.vnncomp import check_published, read_instances, run_benchmark, summarise
    from robustkit.vnncomp.published import PUBLISHED, read_published, read_tools, table

    path = instances.parent / PUBLISHED
    published = read_published(path)
    rows = run_benchmark(read_instances(instances, timeout), out, Terminal(), jobs=jobs, certificates=certificates)
    summary = summarise(rows, published)
    click.echo(table([summary], read_tools(path, rows)))
    click.echo(f"wrote {out}")
    check_published(summary)


@cli.command()
@click.option("--onnx", required=True, metavar="FILE", help="Where the network goes, ending in .onnx.")
@click.option("--run", "run_path", metavar="DIR", help="A trained run.  [default: the latest]")
def export(onnx: str, run_path: str | None) -> None:
    """Write a trained network as ONNX, held against onnxruntime."""
    from robustkit.models import export_onnx, load_checkpoint
    from robustkit.runs import latest_run

    folder = Path(run_path) if run_path else latest_run(RUNS).path
    model, card = load_checkpoint(folder)
    apart = export_onnx(model, card.input_shape, Path(onnx))
    click.echo(f"wrote {onnx}: {folder}, logits within {apart:.2g} of onnxruntime's")


@cli.command()
@evaluation_options
@checks_option
@subject_options
@data_options
@compute_options
@config_options
def evaluate(**typed: Any) -> None:
    """Attack and verify a network in one go."""
    if typed["methods"]:
        raise UsageError("expected no --method for evaluate; use attack or verify, or --set attack.methods=[...]")
    _evaluate(typed, ["attack", "verify"])


@cli.command()
@click.argument("certificate", type=click.Path(path_type=Path))
@subject_options
@click.option("--onnx", metavar="FILE", help="The network, .onnx or .onnx.gz, instead of a run or checkpoint.")
@semantics_option
@data_options
@compute_options
@config_options
def check(certificate: Path, onnx: str | None, semantics: str | None, **typed: Any) -> None:
    """Check again, independently of what found it, that a CERTIFICATE proves its claim of a network.

    Bounds are computed anew in float64, on the CPU, with every rounding error accounted for. Exit code 1 where the
    claim is not proved. A certificate is of no one semantics: it may prove its claim in real arithmetic and not, for
    want of margin, of executions in float32.
    """
    from robustkit.verifiers.checker import check_file
    from robustkit.verifiers.exact_network import Semantics

    model = asked.onnx(onnx, typed) if onnx else asked.model(typed)
    found = check_file(certificate, model, Semantics(semantics or "real"))
    if not found.proved:
        raise Failure(f"REFUSED {found.claim or certificate}: {found.reason}", 1)
    click.echo(f"PROVED {found.claim}: least margin {found.margin:.6g}, {found.leaves} leaves, {found.seconds:.1f} s")


@cli.command()
@click.option("--natural", required=True, metavar="DIR", help="Run of an accurate network.")
@click.option("--robust", required=True, metavar="DIR", help="Run of the network that certificates rest on.")
@click.option("--weight", type=float, default=0.8, show_default=True, help="Of the robust network, in (0, 1].")
@click.option("--out", metavar="DIR", help="The run directory.  [default: runs/...]")
def mix(natural: str, robust: str, weight: float, out: str | None) -> None:
    """Mix the probabilities of two trained networks; attack, verify and report take the mixture like any run.

    With weight a of the robust network a sample is certified where its probability margin exceeds (1 - a) / a over the
    whole ball: nothing is for 0.5 or less.
    """
    from robustkit.mixing import mix_networks
    from robustkit.runs import Run

    network = mix_networks(Run(Path(natural)), Run(Path(robust)), weight, RUNS, out=asked.path_of(out))
    click.echo(f"{network.run.path}")
    click.echo(f"{1 - weight:.4g} of {natural} and {weight:.4g} of {robust} on {network.dataset.name}")


@cli.command()
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option("--out", metavar="DIR", help="Folder of the report.  [default: report/ beside the runs]")
@click.option("--title", help="Heads the report.")
def report(runs: tuple[Path, ...], out: str | None, title: str | None) -> None:
    """Write tables, plots and a page of the RUNS given, or of the latest experiment."""
    from robustkit.pipeline import report as write
    from robustkit.runs import find_runs, latest_experiment

    folders = list(runs) or [latest_experiment(RUNS)]
    target = Path(out) if out else (folders[0] if len(folders) == 1 else RUNS) / "report"
    _show(write(find_runs(folders), target, title=title or folders[0].name))


@cli.command()
@click.argument("experiment", default="digits", metavar="[PRESET | FILE.toml]")
@click.option("--method", "methods", multiple=True, metavar="NAME", help="Train by these instead of its own runs.")
@click.option("--model", metavar="NAME", help="Architecture.  [default: the experiment's]")
@click.option("--eps", type=Eps(), help="Radius to train for and to evaluate at.  [default: the experiment's]")
@click.option("--epochs", type=int, help="Passes over the training set.")
@click.option("--n", type=int, help="Evaluate the first so many test samples only.")
@click.option("--out", metavar="DIR", help="Folder of the experiment.  [default: runs/<its name>]")
@variation_options
@data_options
@compute_options
@click.option("--set", "settings", multiple=True, metavar="A.B=V", help="Any option, laid over every run.")
def run(experiment: str, methods: tuple[str, ...], n: int | None, out: str | None, **typed: Any) -> None:
    """Train, attack, verify and compare: the whole of an experiment.

    Without an argument it runs the preset `digits` on the embedded dataset. `robustkit list presets` names the others.

    \b
    robustkit run --seeds 0,1,2                              mean and standard deviation over seeds
    robustkit run --dataset mnist --method ibp,mixtrain      these methods, all else as in the preset
    robustkit run --method mtl-ibp --sweep train.options.mtl-ibp.alpha=0.1,0.3,0.5
    """
    from robustkit.experiment import load_experiment
    from robustkit.pipeline import run_experiment

    eps = asked.one_eps(typed["eps"])
    own = {
        "model": asked.given(name=typed["model"]),
        "train": asked.given(epochs=typed["epochs"], eps=eps),
        **{kind: asked.given(n=n, eps=None if eps is None else [eps]) for kind in ("attack", "verify")},
    }
    names = [name for one in methods for name in one.split(",")]
    plan = load_experiment(experiment, asked.overrides(typed, own), methods=names)
    own["train"] |= {"method": names} if names else {}
    plan = replace(plan, configs=asked.varied(plan.configs, typed, own))
    written = run_experiment(plan, asked.path_of(out) or RUNS / plan.name, _reporter())
    if _talks():
        _show(written)


@cli.command(name="list")
@click.argument("what", required=False)
def list_names(what: str | None) -> None:
    """List the names that options take: methods, attacks, verifiers, models, datasets, presets; and the runs."""
    from robustkit.catalogue import catalogue

    names = catalogue(RUNS)
    if what is not None and what not in names:
        from robustkit.errors import unknown_name

        raise unknown_name("list", what, names)
    for heading, entries in names.items():
        if what in (None, heading):
            click.echo(f"{heading}:")
            for name, meaning in entries.items():
                click.echo(f"  {name:<23} {meaning}".rstrip())


@cli.command()
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """Say what each training method minimises, after which paper, with which options; or all there is of one NAME."""
    from robustkit.handbook import method_page
    from robustkit.training import METHODS

    if name is not None:
        _print_page(method_page(name))
        return
    for page in map(method_page, METHODS):
        _print_entry(page)


@cli.command()
@click.argument("name", required=False)
def attacks(name: str | None) -> None:
    """Say what each attack does, after which paper, with which options; or all there is of one NAME."""
    from robustkit.attacks import ATTACKS, PREFIX, library_attacks
    from robustkit.handbook import attack_page

    if name is not None:
        _print_page(attack_page(name))
        return
    for page in map(attack_page, ATTACKS):
        _print_entry(page)
    click.echo(f"{PREFIX}NAME  Any other L-infinity attack of the library, with its own options.")
    click.echo(click.wrap_text(f"names: {', '.join(library_attacks())}", PAGE_WIDTH, "  ", "    "))
    click.echo("A+B+C  Several in turn, each on what those before it left; --methods A,B,C is the same.")


def main() -> None:
    """Run the command line."""
    cli(prog_name="robustkit")


def _print_entry(page: Page) -> None:
    """Show a training method or an attack in a few lines."""
    click.echo(f"{page.name:<12} {page.summary}")
    options = ", ".join(f"{one.name}={one.default}" for one in page.options) or "none"
    for heading, text in (("formula", page.formula), ("source", page.source), ("options", options)):
        if text:
            click.echo(f"  {heading:<10} {text}")


def _print_page(page: Page) -> None:
    """Show all there is to know of one training method or attack."""
    for part in (f"{page.name}: {page.summary}", *page.details):
        click.echo(click.wrap_text(part, PAGE_WIDTH))
        click.echo("")
    if page.formula:
        click.echo(f"formula: {page.formula}")
    click.echo(click.wrap_text(f"source: {page.source}", PAGE_WIDTH, subsequent_indent="  "))
    for option in page.options:
        text = f"--set {page.where}.{option.name}={'...' if option.default == 'None' else option.default}"
        click.echo(f"\n{text}\n{click.wrap_text(option.meaning, PAGE_WIDTH, '    ', '    ')}")


def _talks() -> bool:
    """Say whether this process writes to the terminal: torchrun starts several of a command, and one of them talks."""
    return os.environ.get("RANK", "0") == "0"


def _reporter() -> Reporter:
    """Give what tells of the progress."""
    from robustkit.progress import Silent
    from robustkit.terminal import Terminal

    return Terminal() if _talks() else Silent()


def _evaluate(typed: dict[str, Any], kinds: list[str], settings: Mapping[str, Any] = MappingProxyType({})) -> None:
    from robustkit.checking import check_attacks, describe_checks
    from robustkit.evaluation import evaluate as work
    from robustkit.figures import figure_lines, figures_of
    from robustkit.minimal import minimal_radii

    methods = [name for one in typed["methods"] for name in one.split(",")]
    if typed["eps"] and typed["eps_range"]:
        raise UsageError("expected --eps or --eps-range, got both; leave one out")
    named = asked.given(
        eps=typed["eps"] or typed["eps_range"], n=typed["n"], batch_size=typed["batch_size"], methods=methods or None
    )
    wanted = {**named, **settings}
    own = {kind: wanted | asked.given(checks=typed.get("checks") if kind == "attack" else None) for kind in kinds}
    network, reporter = asked.network(typed, own), _reporter()
    tables = {kind: work(network, kind, getattr(network.config, kind), reporter) for kind in kinds}  # type: ignore[arg-type]
    checked = None
    if "attack" in tables:
        checked = check_attacks(network, tables["attack"], network.config.attack, reporter)
    found = []
    if typed.get("minimal_eps") is not None:
        found = minimal_radii(network, tables["attack"], network.config.attack, typed["minimal_eps"], reporter)
    if not _talks():
        return
    figures = figures_of(network, tables)
    if found:
        figures["minimal_eps"] = [one.plain() for one in found]
    if checked:
        figures["checks"] = checked.plain()["checks"]
    if typed["as_json"]:
        click.echo(json.dumps(figures))
    else:
        more = [*(one.describe() for one in found), *(describe_checks(checked) if checked else ())]
        click.echo("\n".join([figures["run"], *figure_lines(tables), *(f"  {line}" for line in more)]))
    threshold = typed["fail_under"]
    reached = [value for value in (figures["era"], figures["vra"]) if value is not None]
    if threshold is not None and min(reached) < threshold:
        raise Failure(f"{min(reached):.4f} is below --fail-under {threshold}", BELOW_THRESHOLD)


def _replay(file: Path, typed: dict[str, Any]) -> None:
    """Run saved adversarial examples again, against the run they lie in or the network named."""
    from robustkit.attacks import load_examples, replay_examples
    from robustkit.runs import CONFIG_FILE

    network = ("run_path", "checkpoint", "model", "dataset", "data_root", "config_file", "settings", "as_json")
    other = asked.named_options({name: value for name, value in typed.items() if name not in network})
    if other:
        raise UsageError(f"expected besides --replay only what names the network, got {', '.join(other)}; leave it out")
    examples = load_examples(file)
    home = next((one for one in file.resolve().parents[:2] if (one / CONFIG_FILE).is_file()), None)
    if home and not (typed["run_path"] or typed["checkpoint"] or typed["model"]):
        typed = {**typed, "run_path": str(home)}
    seen = replay_examples(asked.model(typed), examples)
    hold, n = int(seen.broken.sum()), len(examples.y)
    if typed["as_json"]:
        click.echo(json.dumps({"file": str(file), "eps": examples.eps, "n": n, "hold": hold}))
    else:
        click.echo(
            f"{hold} of {n} examples hold: in the ball of eps {examples.eps:.4g}, wrong in the network and float64"
        )
    failed = [row for row, holds in enumerate(seen.broken.tolist()) if not holds]
    if failed:
        first = failed[0]
        where = "in" if bool(seen.inside[first]) else "outside"
        raise Failure(
            f"{len(failed)} of {n} examples do not hold; the first, of sample {int(examples.index[first])}, lies "
            f"{where} its ball with margin {float(seen.native[first]):.4g} in the network and "
            f"{float(seen.wide[first]):.4g} in float64: another network, or a damaged file",
            1,
        )


def _decide(instance: dict[str, Any], typed: dict[str, Any]) -> None:
    """Decide one property of one network, and print the verdict."""
    from robustkit.vnncomp.single import decide_files

    other = asked.named_options(typed)
    if other or not instance["onnx"] or not instance["vnnlib"]:
        got = ", ".join([name for name, value in instance.items() if value is not None] + other).replace("_", "-")
        raise UsageError(
            f"expected --onnx and --vnnlib together, and besides only --timeout and --certificate; got {got}"
        )
    timeout = 300.0 if instance["timeout"] is None else instance["timeout"]
    certificate = Path(instance["certificate"]) if instance["certificate"] else None
    files = Path(instance["onnx"]), Path(instance["vnnlib"])
    for line in decide_files(*files, timeout, certificate=certificate):
        click.echo(line)


def _show(paths: list[Path]) -> None:
    text = next(path for path in paths if path.suffix == ".txt")
    click.echo(text.read_text(encoding="utf-8").rstrip())
    click.echo("")
    for path in paths:
        click.echo(f"wrote {path}")
