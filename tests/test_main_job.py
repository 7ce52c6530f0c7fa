"""The commands as typed: on one tiny trained run, through the command line's own entry."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from robustkit import evaluation, networks
from robustkit.attacks import ATTACKS, PGD, AttackResult, load_examples, save_examples
from robustkit.cli import cli
from robustkit.pipeline import run_facts
from robustkit.results import read_table, summarise
from robustkit.runs import Run
from robustkit.threat import LinfBall

TINY = ["--set", "train.epochs=2", "--set", "data.train_n=200", "--model", "mlp"]


def robustkit(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which `robustkit train` was typed once."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = robustkit("train", "--method", "ibp", "--eps", "0.05", *TINY)
        assert result.exit_code == 0, result.output
    yield folder


@pytest.fixture
def work(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def only_run(work: Path) -> Run:
    (path,) = (work / "runs").iterdir()
    return Run(path)


def test_training_leaves_all_that_is_needed_to_judge_it(work: Path) -> None:
    run = only_run(work)
    names = {path.name for path in run.path.iterdir()}
    assert names == {"config.toml", "environment.json", "history.jsonl", "model.json", "model.safetensors"}
    assert len(run.history()) == 2
    assert run.environment()["packages"]["torch"]
    assert run.config().train.eps == 0.05


def test_the_history_is_strict_json_also_where_nothing_was_measured(tmp_path: Path) -> None:
    run = Run(tmp_path)
    nothing = dict.fromkeys(("eps", "weight", "loss", "val_clean", "seconds"), 0.0)
    run.write_history([{"epoch": 1, "val_vra": float("nan"), **nothing}, {"epoch": 2, "val_vra": 0.5, **nothing}])
    for line in (tmp_path / "history.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert run.history()["val_vra"].isna().tolist() == [True, False]


def test_training_typed_again_does_nothing_new(work: Path) -> None:
    weights = only_run(work).path / "model.safetensors"
    before = weights.stat().st_mtime_ns
    result = robustkit("train", "--method", "ibp", "--eps", "0.05", *TINY)
    assert result.exit_code == 0
    assert "2 epochs" in result.stdout
    assert weights.stat().st_mtime_ns == before


def test_attack_and_verify_work_on_the_latest_run(work: Path) -> None:
    attacked = robustkit("attack", "--method", "interval-gradient", "--n", "20")
    verified = robustkit("verify", "--eps", "0.3", "--n", "20")
    assert attacked.exit_code == verified.exit_code == 0
    assert "interval-gradient" in attacked.stdout
    assert "cascade" in verified.stdout
    assert set(only_run(work).table()["eps"]) == {0.05, 0.3}


def test_json_is_one_object_with_the_promised_keys(work: Path) -> None:
    result = robustkit("evaluate", "--json", "--n", "30", "--eps", "0.02,0.05")
    figures = json.loads(result.stdout)
    assert {"n", "clean", "era", "vra", "eps", "seconds", "run", "evaluations"} <= set(figures)
    assert figures["n"] == 30
    assert figures["eps"] == 0.05
    assert 0 <= figures["vra"] <= figures["era"] <= figures["clean"] <= 1
    assert len(figures["evaluations"]) == 6
    only_attacked = json.loads(robustkit("attack", "--json", "--n", "30").stdout)
    assert only_attacked["vra"] is None
    only_bounded = json.loads(robustkit("verify", "--json", "--n", "30", "--method", "ibp").stdout)
    assert only_bounded["era"] is None
    assert only_bounded["vra"] is not None


def test_figures_are_those_of_the_rows(work: Path) -> None:
    figures = json.loads(robustkit("attack", "--method", "pgd", "--json", "--n", "50").stdout)
    (path,) = (only_run(work).path / "results").glob("*.csv")
    rows = read_table(path)
    assert figures["era"] == pytest.approx(rows["verdict"].eq("unknown").mean())
    assert figures["clean"] == pytest.approx((rows["label"] == rows["predicted"]).mean())


def test_fail_under_exits_with_four(work: Path) -> None:
    assert robustkit("attack", "--method", "fgsm", "--n", "20", "--fail-under", "0").exit_code == 0
    result = robustkit("attack", "--method", "fgsm", "--n", "20", "--fail-under", "1.0")
    assert result.exit_code == 4
    assert "below --fail-under" in result.stderr
    assert robustkit("verify", "--method", "ibp", "--n", "20", "--fail-under", "1.0").exit_code == 4


def test_more_samples_go_on_from_those_that_are_done(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    attack_batches = evaluation.attack_batches

    def counting(attack: Any, model: Any, split: Any, *rest: Any) -> Any:
        counted.append(len(split))
        return attack_batches(attack, model, split, *rest)

    monkeypatch.setattr(evaluation, "attack_batches", counting)
    robustkit("attack", "--method", "pgd", "--n", "10")
    robustkit("attack", "--method", "pgd", "--n", "25", "--batch-size", "7")
    robustkit("attack", "--method", "pgd", "--n", "25")
    assert counted == [10, 15, 0]
    (path,) = (only_run(work).path / "results").glob("*.csv")
    grown = read_table(path)
    path.unlink()
    robustkit("attack", "--method", "pgd", "--n", "25")
    pd.testing.assert_frame_equal(grown.drop(columns="seconds"), read_table(path).drop(columns="seconds"), rtol=1e-4)


def test_an_interrupted_evaluation_keeps_what_is_finished(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attack_batches = evaluation.attack_batches

    def interrupted(*arguments: Any) -> Any:
        for place, batch in enumerate(attack_batches(*arguments)):
            if place == 2:
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "attack_batches", interrupted)
        result = robustkit("attack", "--method", "pgd", "--n", "20", "--batch-size", "5")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    (path,) = (only_run(work).path / "results").glob("*.csv")
    assert len(read_table(path)) == 10
    assert robustkit("attack", "--method", "pgd", "--n", "20", "--batch-size", "5").exit_code == 0
    assert len(read_table(path)) == 20


def test_interrupted_training_goes_on_to_the_same_weights(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = (only_run(work).path / "model.safetensors").read_bytes()
    shutil.rmtree(work / "runs")
    write_history = Run.write_history

    def interrupt(run: Run, history: Any) -> None:
        write_history(run, history)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(networks.Run, "write_history", interrupt)
        assert robustkit("train", "--method", "ibp", "--eps", "0.05", *TINY).exit_code == 130
    assert not only_run(work).trained
    assert len(only_run(work).history()) == 1
    assert robustkit("train", "--method", "ibp", "--eps", "0.05", *TINY).exit_code == 0
    assert (only_run(work).path / "model.safetensors").read_bytes() == wanted


def test_rows_of_other_weights_are_not_mixed_in(work: Path) -> None:
    robustkit("attack", "--method", "fgsm", "--n", "10")
    (path,) = (only_run(work).path / "results").glob("*.csv")
    path.write_text(path.read_text().replace(read_table(path)["model"].iloc[0], "0" * 12))
    robustkit("attack", "--method", "fgsm", "--n", "5")
    rows = read_table(path)
    assert len(rows) == 5
    assert "0" * 12 not in set(rows["model"])


def test_a_sample_both_verified_and_broken_stops_the_program(work: Path) -> None:
    robustkit("verify", "--method", "crown", "--eps", "0.01", "--n", "40")
    (path,) = (only_run(work).path / "results").glob("verify*.csv")
    proved = read_table(path).query("verdict == 'verified'")["index"].iloc[0]
    robustkit("attack", "--method", "fgsm", "--eps", "0.01", "--n", "40")
    (attacked,) = (only_run(work).path / "results").glob("attack*.csv")
    rows = read_table(attacked)
    rows.loc[rows["index"] == proved, "verdict"] = "falsified"
    rows.to_csv(attacked, index=False)
    result = robustkit("attack", "--method", "fgsm", "--eps", "0.01", "--n", "40")
    assert result.exit_code == 3
    assert f"sample {proved} of digits is verified at eps 0.01 by crown and falsified" in result.stderr
    assert (only_run(work).path / "soundness.npz").exists()
    assert robustkit("report").exit_code == 3
    assert not list((work / "runs").rglob("comparison.txt"))


def test_a_small_experiment_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(
        """
        title = "Two methods & two seeds"
        data = { train_n = 200 }
        model = { name = "mlp" }
        train = { epochs = 2, eps = 0.05 }
        attack = { methods = ["fgsm", "pgd"], n = 40 }
        verify = { methods = ["cascade"], n = 40 }
        [[runs]]
        train = { method = "natural" }
        [[runs]]
        train = { method = "ibp" }
        [[runs]]
        train = { method = "ibp" }
        seed = 1
        """
    )
    result = robustkit("run", "mine.toml")
    assert result.exit_code == 0, result.output
    assert "Natural" in result.stdout
    assert "±" in result.stdout
    report = tmp_path / "runs" / "mine" / "report"
    for name in ("comparison.md", "comparison.csv", "comparison.tex", "report.html", "plots/training.png"):
        assert (report / name).stat().st_size > 100
    figures = pd.read_csv(report / "comparison.csv")
    natural = figures[(figures["training"] == "Natural")].set_index("figure")["value"]
    runs = [Run(path) for path in (tmp_path / "runs" / "mine").glob("digits-natural*")]
    rows = summarise(runs[0].table()).set_index("method")["robust"]
    assert natural["pgd"] == pytest.approx(rows["pgd"])
    assert natural["certified"] == pytest.approx(rows["cascade"])
    assert natural["certified"] <= natural["all attacks"] <= natural["clean"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.csv") if "results" in path.parts}
    again = robustkit("run", "mine.toml")
    assert again.stdout == result.stdout
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert "Two methods &amp; two seeds" in (report / "report.html").read_text()
    assert robustkit("report").exit_code == 0


def test_training_with_several_seeds_ends_with_their_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = robustkit("train", "--method", "ibp", "--eps", "0.05", *TINY, "--seeds", "2,0", "--out", "mine")
    assert result.exit_code == 0, result.output
    runs = [Run(Path(line)) for line in result.stdout.splitlines() if line.startswith("mine")]
    assert [run.config().seed for run in runs] == [2, 0]
    assert [run.path.parent for run in runs] == [Path("mine")] * 2
    clean = [run.history()["val_clean"].iloc[-1] for run in runs]
    mean, deviation = sum(clean) / 2, abs(clean[0] - clean[1]) / 2**0.5
    last = result.stdout.splitlines()[-1]
    assert last.startswith("ibp on digits at eps 0.05: 2 seeds (2, 0), mean ± standard deviation on 144 validation")
    assert f"clean {mean:.2%} ± {deviation:.2%}" in last
    assert (
        robustkit("train", "--method", "ibp", "--eps", "0.05", *TINY, "--seeds", "0,2", "--out", "mine").exit_code == 0
    )
    assert len(list(Path("mine").iterdir())) == 2


def test_training_at_each_point_of_a_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = ["--sweep", "train.options.mtl-ibp.alpha=0.2,0.8", "--set", "train.options.mtl-ibp.steps=1"]
    result = robustkit(
        "train", "--method", "mtl-ibp", "--eps", "0.05", "--epochs", "1", *TINY[2:], *sweep, "--seeds", "0,1"
    )
    assert result.exit_code == 0, result.output
    assert len(list(Path("runs").iterdir())) == 4
    spread = [line.split(": ")[0] for line in result.stdout.splitlines() if "seeds (0, 1)" in line]
    assert spread == [f"mtl-ibp on digits at eps 0.05, alpha={alpha}" for alpha in (0.2, 0.8)]


def test_an_experiment_of_methods_a_sweep_and_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    typed = [
        "run",
        "--method",
        "mtl-ibp,ibp",
        "--method",
        "natural",
        "--model",
        "mlp",
        "--epochs",
        "1",
        "--eps",
        "0.05",
    ]
    typed += ["--seeds", "0,1", "--sweep", "train.options.mtl-ibp.alpha=0.2,0.8", "--n", "20"]
    typed += ["--set", "data.train_n=200", "--set", "train.options.mtl-ibp.steps=1", "--set", 'attack.methods=["fgsm"]']
    result = robustkit(*typed, "--set", 'verify.methods=["ibp"]')
    assert result.exit_code == 0, result.output
    folder = tmp_path / "runs" / "digits-mtl-ibp-ibp-natural"
    assert len(list(folder.glob("digits-*"))) == 8
    figures = pd.read_csv(folder / "report" / "comparison.csv")
    assert list(dict.fromkeys(figures["training"])) == ["MTL-IBP, alpha=0.2", "MTL-IBP, alpha=0.8", "IBP", "Natural"]
    assert set(figures["seeds"]) == {"0 1"}
    assert set(figures["eps"]) == {0.05}
    assert "mtl-ibp, ibp, natural on digits" in (folder / "report" / "comparison.md").read_text()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["run", "--seed", "1", "--seeds", "0,1"], "expected --seed or --seeds, got both"),
        (["train", "--set", "seed=1", "--seeds", "0,1"], "expected --seed or --seeds, got both"),
        (["train", "--seeds", "0,0"], "expected different --seeds"),
        (["run", "--seeds", "a"], "expected --seeds as whole numbers"),
        (["train", "--epochs", "3", "--sweep", "train.epochs=1,2"], "expected train.epochs as one value or by --sweep"),
        (["run", "--set", "train.lr=1", "--sweep", "train.lr=1,2"], "expected train.lr as one value or by --sweep"),
        (["run", "--method", "ibp", "--sweep", "train.method=pgd"], "expected train.method as one value or by --sweep"),
        (["run", "--method", "ibp,ibp"], "expected different methods"),
        (["run", "--eps", "0.1,0.2"], "--sweep train.eps=0.1,0.2"),
        (["train", "--eps", "0.1,0.2"], "--sweep train.eps=0.1,0.2"),
        (["run", "--sweep", "train.options.sabr.steps=1,2"], "concerns, got training by ibp, mixtrain, natural, pgd"),
    ],
)
def test_one_and_several_at_once_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = robustkit(*command)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not Path("runs").exists()


def test_a_run_is_the_same_wherever_its_data_lie() -> None:
    from robustkit.config import configuration
    from robustkit.data import load_dataset
    from robustkit.networks import resolve, run_name

    digits = load_dataset("digits")

    def name(**table: Any) -> str:
        return run_name(resolve(configuration(table), digits), digits)

    assert name() == name(data={"root": "elsewhere"}, verify={"n": 3}, train={"options": {"pgd": {"steps": 3}}})
    assert len({name(), name(seed=1), name(data={"train_n": 9}), name(train={"options": {"mixtrain": {"k": 2}}})}) == 4


def test_runs_are_one_recipe_only_where_training_read_the_same(tmp_path: Path) -> None:
    from robustkit.config import configuration

    def recipe(**table: Any) -> Any:
        run = Run(tmp_path / repr(table))
        run.open(configuration({"train": {"eps": 0.1}}, table))
        (run.path / "model.safetensors").touch()
        return run_facts(run).recipe

    same = [recipe(), recipe(seed=1), recipe(verify={"n": 3}), recipe(data={"root": "elsewhere"}), recipe(device="cpu")]
    assert all(one == same[0] for one in same)
    others = [{"model": {"width": 2}}, {"deterministic": True}, {"train": {"lr": 0.1}}, {"data": {"train_n": 9}}]
    others += [{"train": {"options": {"mixtrain": {"k": 2}}}}]
    assert all(recipe(**one) != same[0] for one in others)


def test_results_of_other_data_of_the_same_name_are_not_taken_up(work: Path) -> None:
    draw = np.random.default_rng(0)
    for place in ("a", "b"):
        Path(place).mkdir()
        np.savez(f"{place}/set.npz", images=draw.random((12, 1, 8, 8), dtype=np.float32), labels=np.arange(12) % 10)
        robustkit("verify", "--dataset", f"{place}/set.npz", "--method", "ibp", "--eps", "0.01")
    tables = [read_table(path) for path in sorted((only_run(work).path / "results").glob("verify-ibp-eps0.01-*.csv"))]
    assert [len(table) for table in tables] == [12, 12]
    assert len({table["dataset"].iloc[0] for table in tables}) == 2
    assert tables[0]["margin"].tolist() != tables[1]["margin"].tolist()
    assert robustkit("attack", "--dataset", "b/set.npz", "--method", "fgsm", "--eps", "0.01").exit_code == 0


def test_close_radii_and_repeated_ones_are_kept_apart(work: Path) -> None:
    def figures(eps: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            robustkit("verify", "--eps", eps, "--method", "ibp", "--n", "10", "--json").stdout
        )
        return found

    assert figures("0.0313725")["eps"] == 0.0313725
    assert figures("8/255")["eps"] == 8 / 255
    twice = json.loads(robustkit("verify", "--eps", "0.01,0.01", "--method", "ibp,ibp", "--n", "10", "--json").stdout)
    assert [one["n"] for one in twice["evaluations"]] == [10]


def test_era_is_what_no_attack_breaks(work: Path) -> None:
    done = robustkit("attack", "--method", "fgsm,pgd", "--eps", "0.1", "--json")
    paths = (only_run(work).path / "results").glob("attack-*-eps0.1-*")
    broken = [read_table(path).set_index("index")["verdict"].isin(["misclassified", "falsified"]) for path in paths]
    assert len(broken) >= 2
    assert json.loads(done.stdout)["era"] == pytest.approx(1.0 - pd.concat(broken, axis=1).any(axis=1).mean())


def test_vra_is_judged_also_where_the_attack_went_further(work: Path) -> None:
    settings = ["--set", "attack.eps=[0.001,0.002]", "--set", "verify.eps=[0.001]", "--set", 'verify.methods=["ibp"]']
    done = robustkit("evaluate", *settings, "--n", "10", "--json", "--fail-under", "1.0")
    assert json.loads(done.stdout)["vra"] is not None
    assert done.exit_code == 4


def test_a_report_counts_a_run_once_and_never_mixes_two(work: Path) -> None:
    robustkit("verify", "--method", "ibp", "--n", "10", "--eps", "0.03")
    run = only_run(work).path
    once, twice = (robustkit("report", *[str(run)] * count, "--out", "report").stdout for count in (1, 2))
    assert once == twice
    shutil.copytree(run, Path("other") / run.name)
    mixed = robustkit("report", str(run), "other")
    assert mixed.exit_code == 2
    assert "expected runs of different names" in mixed.stderr
    path = next((run / "results").glob("verify-ibp-*.csv"))
    table = read_table(path)
    table.assign(model="other").to_csv(path.with_name("verify-older.csv"), index=False)
    stale = robustkit("report", str(run))
    assert stale.exit_code == 1
    assert "weights that stood there before" in stale.stderr


def test_runs_that_train_alike_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("twice.toml").write_text(
        """
        data = { train_n = 200 }
        model = { name = "mlp" }
        train = { epochs = 1, method = "natural" }
        attack = { methods = ["fgsm"], n = 20 }
        [[runs]]
        verify = { methods = ["ibp"], n = 20 }
        [[runs]]
        verify = { methods = ["crown"], n = 20 }
        """
    )
    result = robustkit("run", "twice.toml")
    assert "N = 20" in result.stdout
    assert "certified (ibp)" in result.stdout
    assert "certified (crown)" in result.stdout


def test_networks_trained_elsewhere(work: Path) -> None:
    import torch
    from safetensors.torch import load_file

    state = load_file(only_run(work).path / "model.safetensors")
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": one for name, one in state.items()}}, "elsewhere.pth")
    result = robustkit(
        "verify", "--model", "mlp", "--checkpoint", "elsewhere.pth", "--eps", "0.05", "--n", "30", "--json"
    )
    assert result.exit_code == 0, result.output
    here = json.loads(
        robustkit("verify", "--eps", "0.05", "--n", "30", "--json", "--run", str(only_first(work))).stdout
    )
    assert json.loads(result.stdout)["vra"] == here["vra"]
    Path("mynets.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    result = robustkit("attack", "--model", "mynets:make", "--method", "pgd", "--n", "10", "--json")
    assert json.loads(result.stdout)["n"] == 10


def only_first(work: Path) -> Path:
    return next(path for path in (work / "runs").iterdir() if path.name.startswith("digits-ibp"))


def test_the_first_thousand_are_shown_beside_more() -> None:
    from robustkit.figures import figure_lines
    from robustkit.results import Subject, evaluation_table
    from robustkit.verdict import Verdict

    verdicts = [Verdict.VERIFIED] * 500 + [Verdict.UNKNOWN] * 1500
    rows = evaluation_table(
        Subject("run", "m", "", float("nan"), "digits", 0),
        "verify",
        "ibp",
        "BoundVerifier()",
        eps=0.1,
        index=range(2000),
        label=[0] * 2000,
        predicted=[0] * 2000,
        verdict=verdicts,
        margin=[0.0] * 2000,
        seconds=[0.0] * 2000,
    )
    lines = figure_lines({"verify": rows})
    assert ["2000" in line and "25.00%" in line for line in lines[1:]] == [True, False]
    assert ["1000" in line and "50.00%" in line for line in lines[1:]] == [False, True]


def test_what_floating_point_alone_proves_is_shown_apart_and_reaches_no_threshold(work: Path) -> None:
    arguments = ("verify", "--method", "ibp", "--n", "40", "--eps", "0.002", "--set")
    checked = json.loads(robustkit(*arguments, "verify.options.ibp.recheck=true", "--json").stdout)
    alone = json.loads(robustkit(*arguments, "verify.options.ibp.recheck=false", "--json").stdout)
    assert checked["vra"] > 0.05 and checked["vra_float"] == 0.0
    assert (alone["vra"], alone["vra_float"]) == (0.0, checked["vra"])
    assert alone["evaluations"][0]["float"] == checked["vra"]
    assert alone["evaluations"][0]["unknown"] == checked["evaluations"][0]["unknown"]
    assert robustkit(*arguments, "verify.options.ibp.recheck=false", "--fail-under", "0.05").exit_code == 4
    shown = robustkit(*arguments, "verify.options.ibp.recheck=false").stdout
    assert "VRA (float)" in shown.splitlines()[1]
    assert f"{checked['vra']:.2%}" in shown.splitlines()[2]
    assert "VRA (float): proved in addition, but in floating point only" in shown
    assert "(float)" not in robustkit(*arguments, "verify.options.ibp.recheck=true").stdout


def test_names_are_listed(work: Path) -> None:
    result = robustkit("list")
    for name in ("mixtrain", "interval-gradient", "alpha-crown", "mnist_small", "fashion-mnist", "digits-ibp"):
        assert name in result.stdout
    assert "mixtrain" not in robustkit("list", "attacks").stdout


def test_every_name_is_explained_and_sizes_are_the_published_ones(work: Path) -> None:
    from robustkit.catalogue import catalogue

    assert [name for names in catalogue(Path("runs")).values() for name, meaning in names.items() if not meaning] == []
    lines = dict(line.split(maxsplit=1) for line in robustkit("list", "models").stdout.splitlines()[1:])
    assert lines["mnist_small"].endswith("images (1, 28, 28), 166,406 parameters for 10 classes")
    assert lines["imagenet200_resnet"].endswith("images (3, 64, 64), 739,720 parameters for 200 classes")
    assert lines["mlp"] == "2 hidden layers of 100 neurons; any image"
    assert lines["cnn5"].endswith("any image of at least 4 pixels a side")
    assert "default model mnist_small, eps 0.3" in robustkit("list", "datasets").stdout
    assert "Robust training on 8x8 digits, eps 0.1" in robustkit("list", "presets").stdout


def test_an_attack_is_checked_and_the_report_shows_it(work: Path) -> None:
    done = robustkit("attack", "--method", "fgsm", "--n", "20")
    assert "checks on 10 samples at eps 0.05: " in done.stdout
    assert "zero-gradient" in done.stdout
    path = only_run(work).path / "checks.json"
    before = path.stat().st_mtime_ns
    figures = json.loads(robustkit("attack", "--method", "fgsm", "--n", "20", "--json").stdout)
    assert {"name", "passed", "value", "expected"} == set(figures["checks"][0])
    assert path.stat().st_mtime_ns == before, "what was checked is not checked again"
    assert robustkit("report").exit_code == 0
    (page,) = work.rglob("report.html")
    assert "Checks of the attacks" in page.read_text()


def test_checks_can_be_switched_off(work: Path) -> None:
    done = robustkit("attack", "--method", "fgsm", "--n", "20", "--no-checks")
    assert done.exit_code == 0
    assert "checks on" not in done.stdout
    assert not (only_run(work).path / "checks.json").exists()
    assert "checks" not in json.loads(robustkit("attack", "--n", "20", "--eps", "0", "--json").stdout)


def test_damaged_checks_are_one_clear_line(work: Path) -> None:
    (only_run(work).path / "checks.json").write_text('{"key": ')
    result = robustkit("attack", "--method", "fgsm", "--n", "20")
    assert result.exit_code == 1
    assert "could not read them" in result.stderr and "delete it" in result.stderr


@dataclass(frozen=True)
class Fickle:
    """Breaks by a leap to the corner in the smallest ball only, and finds nothing in any larger one."""

    name: str = "fickle"

    def __call__(self, model: Any, x: Any, y: Any, ball: LinfBall, index: Any = None) -> AttackResult:
        return PGD(steps=10, rel_step_size=0.2)(model, x, y, ball if ball.eps < 0.15 else LinfBall(0.0), index)


def test_a_curve_never_rises_and_keeps_what_smaller_balls_broke(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ATTACKS, "fickle", Fickle)
    typed = ["attack", "--method", "fickle", "--n", "60", "--json", "--no-checks"]
    alone = json.loads(robustkit(*typed, "--eps", "0.2").stdout)
    assert alone["era"] == alone["clean"]
    figures = json.loads(robustkit(*typed, "--eps", "0.2,0.1,0.2").stdout)
    small, large = figures["evaluations"]
    assert (small["eps"], large["eps"]) == (0.1, 0.2)
    assert small["robust"] == large["robust"] < small["clean"]
    table = only_run(work).table()
    carried = table[(table["eps"] == 0.2) & (table["verdict"] == "falsified")]
    assert set(carried["reason"]) == {"broken at eps 0.1 already"}
    first, second = (load_examples(path) for path in sorted((only_run(work).path / "examples").glob("*.npz")))
    assert (first.eps, second.eps) == (0.1, 0.2)
    np.testing.assert_array_equal(first.x_adv, second.x_adv)


def test_a_curve_is_typed_as_a_range(work: Path) -> None:
    figures = json.loads(robustkit("attack", "--method", "pgd", "--n", "30", "--eps-range", "0:0.2:5", "--json").stdout)
    left = [one["robust"] for one in figures["evaluations"]]
    assert [one["eps"] for one in figures["evaluations"]] == [0.0, 0.05, 0.1, 0.15, 0.2]
    assert left == sorted(left, reverse=True)
    assert left[0] == figures["clean"] > left[-1]
    for typed, message in (
        (("--eps", ""), "expected one eps or more"),
        (("--eps", "0.1", "--eps-range", "0:1:2"), "both"),
    ):
        result = robustkit("attack", *typed)
        assert result.exit_code == 2
        assert message in result.stderr


def test_the_least_radius_of_each_sample_is_told(work: Path) -> None:
    typed = ["attack", "--method", "pgd", "--n", "15", "--eps", "0.1,0.2", "--no-checks", "--minimal-eps"]
    (figures,) = json.loads(robustkit(*typed, "0.02", "--json").stdout)["minimal_eps"]
    assert figures["method"] == "pgd"
    radii = pd.read_csv(figures["path"])
    assert len(radii) == figures["n"] == 15
    assert ((radii["breaks"] - radii["stands"]).dropna() <= 0.02).all()
    assert figures["broken"] == radii["breaks"].notna().sum() > 0
    assert "minimal eps by pgd: median" in robustkit(*typed).stdout
    wrong = robustkit(*typed, "0")
    assert wrong.exit_code == 2
    assert "a tolerance above 0" in wrong.stderr


def test_saved_examples_are_replayed(work: Path) -> None:
    assert robustkit("attack", "--method", "pgd", "--eps", "0.2", "--n", "40").exit_code == 0
    (path,) = (only_run(work).path / "examples").glob("*.npz")
    done = robustkit("attack", "--replay", str(path))
    count = len(load_examples(path).y)
    assert done.exit_code == 0
    assert f"{count} of {count} examples hold: in the ball of eps 0.2" in done.stdout
    shrunk = replace(load_examples(path), eps=0.1)
    save_examples(path, shrunk)
    failed = robustkit("attack", "--replay", str(path), "--json")
    assert failed.exit_code == 1
    assert json.loads(failed.stdout)["hold"] < count
    assert "lies outside its ball" in failed.stderr


def test_examples_of_a_network_that_its_own_code_makes_are_replayed(work: Path) -> None:
    (work / "own.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    done = robustkit(
        "attack", "--model", "own:make", "--method", "pgd", "--eps", "0.2", "--n", "60", "--out", "own-run"
    )
    assert done.exit_code == 0, done.output
    (path,) = (work / "own-run" / "examples").iterdir()
    again = robustkit("attack", "--replay", str(path))
    assert again.exit_code == 0, again.output


def test_a_run_that_has_lost_its_weights_is_refused(work: Path) -> None:
    run = only_run(work)
    assert robustkit("attack", "--method", "pgd", "--n", "5").exit_code == 0
    (run.path / "model.safetensors").unlink()
    result = robustkit("attack", "--run", str(run.path), "--method", "pgd", "--n", "9")
    assert result.exit_code == 1
    assert "expected a trained network at" in result.stderr


def test_a_replay_takes_nothing_else(work: Path) -> None:
    result = robustkit("attack", "--replay", "x.npz", "--method", "pgd", "--n", "3")
    assert result.exit_code == 2
    assert "expected besides --replay only what names the network, got methods, n" in result.stderr
    missing = robustkit("attack", "--replay", "x.npz")
    assert missing.exit_code == 1
    assert "found none; run attack first" in missing.stderr
