"""One evaluation by two processes, as torchrun starts them, is the one of a single process; also where one is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustkit.attacks import Examples, load_examples
from robustkit.cli import cli
from robustkit.config import EvaluationConfig
from robustkit.errors import RobustkitError, SoundnessError, UsageError
from robustkit.evaluation import evaluate, stop_at_clash
from robustkit.networks import Network, open_run
from robustkit.progress import Silent
from robustkit.results import read_table
from robustkit.runs import Run
from robustkit.store import KEPT_EXAMPLES, Rows, Store
from robustkit.world import World

TRAIN = "train --method ibp --eps 0.05 --model mlp --epochs 15 --out"
ATTACK = "attack --method pgd,fgsm+square --set attack.options.square.n_queries=20 --eps 0.02,0.1,0.2 --n 90"
CURVE = f"{ATTACK} --minimal-eps 0.02 --batch-size 20"
VERIFY = "verify --method crown-ibp,cascade --eps 0.01,0.03 --n 60 --batch-size 8 --timeout 100"


@given(count=st.integers(0, 60), batch=st.integers(1, 20), size=st.integers(1, 5))
def test_every_sample_is_the_share_of_one_process_and_batches_stay_whole(count: int, batch: int, size: int) -> None:
    shares = [World(rank, size).share(count, batch) for rank in range(size)]
    assert sorted(torch.cat(shares).tolist()) == list(range(count))
    if count >= batch * size:
        assert {one // batch * batch for share in shares for one in share[::batch].tolist()} == {
            *range(0, count, batch)
        }
    assert max(map(len, shares)) - min(map(len, shares)) <= batch


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory that holds a tiny network."""
    path = tmp_path_factory.mktemp("sharded") / "run"
    cli.main([*TRAIN.split(), str(path)], standalone_mode=False)
    return path


def copied(trained: Path, path: Path) -> Path:
    """A run of the same name and weights in another folder."""
    path.mkdir()
    for file in trained.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def by_torchrun(script: str, *arguments: str, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a script in two processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, "--max-restarts", str(restarts), script, *arguments]
    return subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200
    )


def results(path: Path) -> pd.DataFrame:
    """What stands in the tables of a run, but for the time it took."""
    table = pd.concat([read_table(one) for one in sorted((path / "results").iterdir())], ignore_index=True)
    return table.drop(columns="seconds")


COMMANDS = """
import sys
from robustkit.cli import cli
for command in sys.argv[1:]:
    cli.main(command.split(), standalone_mode=False)
"""


def test_two_processes_attack_and_verify_as_one(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    one, two = copied(trained, tmp_path / "run"), copied(trained, tmp_path / "two" / "run")
    script = tmp_path / "script.py"
    script.write_text(COMMANDS)
    done = by_torchrun(str(script), *(f"{command} --run {two}" for command in (CURVE, VERIFY)))
    assert done.returncode == 0, done.stderr[-9000:]
    assert done.stdout.count("minimal eps by pgd") == 1, "one of them talks"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for command in (CURVE, VERIFY):
            cli.main([*command.split(), "--run", str(one)], standalone_mode=False)
    finally:
        torch.set_num_threads(threads)
    pd.testing.assert_frame_equal(results(one), results(two))
    assert {"misclassified", "falsified", "verified", "unknown"} <= set(results(one)["verdict"])
    files = {file.relative_to(one) for file in one.rglob("*")}
    assert files == {file.relative_to(two) for file in two.rglob("*")}, "shares are gone"
    for name in (one / "minimal-eps").iterdir():
        assert name.read_text() == (two / "minimal-eps" / name.name).read_text()
    for name in Run(one).examples():
        here, there = load_examples(name).arrays(), load_examples(two / "examples" / name.name).arrays()
        assert all(np.array_equal(here[key], there[key]) for key in here), name


LOSING = """
import os, sys
from pathlib import Path
from robustkit import evaluation, store
from robustkit.cli import cli

lost, worked = Path(sys.argv[1]), Path(sys.argv[2])
first_life = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
store.WRITE_EVERY = 0.0
work = evaluation.attack_batches
def counted(attack, model, split, *rest):
    for number, (rows, x_adv) in enumerate(work(attack, model, split, *rest)):
        if first_life and os.environ["RANK"] == "1" and number == 2:
            lost.write_text("")
            os._exit(9)
        if not first_life or number < 2:  # what the other process still does before it is ended is its own affair
            with worked.open("a") as file:
                file.writelines(f"{one}\\n" for one in rows["index"])
        yield rows, x_adv
        if first_life and os.environ["RANK"] == "0" and number == 1:
            import time; time.sleep(600)
evaluation.attack_batches = counted
cli.main(sys.argv[3].split(), standalone_mode=False)
"""


def test_a_lost_process_is_started_again_and_nothing_finished_is_done_twice(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "lost").mkdir()
    one, other = copied(trained, tmp_path / "run"), copied(trained, tmp_path / "lost" / "run")
    script, lost, worked = (tmp_path / name for name in ("script.py", "lost.txt", "worked.txt"))
    script.write_text(LOSING)
    command = "attack --method pgd --eps 0.1 --n 90 --batch-size 10 --no-checks"
    done = by_torchrun(str(script), str(lost), str(worked), f"{command} --run {other}", restarts=1)
    assert done.returncode == 0, done.stderr[-9000:]
    assert lost.exists()
    cli.main([*command.split(), "--run", str(one)], standalone_mode=False)
    assert sorted(map(int, worked.read_text().split())) == results(one)["index"].tolist(), "each was attacked once"
    exact = ["index", "label", "predicted", "verdict"]
    pd.testing.assert_frame_equal(results(one)[exact], results(other)[exact])
    assert {file.name for file in (other / "results").iterdir()} == {file.name for file in (one / "results").iterdir()}


def test_a_share_that_a_lost_process_left_is_taken_up_by_one_alone(trained: Path, tmp_path: Path) -> None:
    path = copied(trained, tmp_path / "run")
    command = "attack --method pgd --eps 0.2 --n 40 --batch-size 10 --no-checks --run"
    cli.main([*command.split(), str(path)], standalone_mode=False)
    (file,), (examples,) = (path / "results").iterdir(), (path / "examples").iterdir()
    whole, kept = read_table(file), load_examples(examples)
    for rank, rows in enumerate((slice(0, 20), slice(10, 30))):  # some samples twice
        table = whole.iloc[rows].assign(seconds=123.0)
        table.to_csv(file.with_name(f".{file.stem}.share{rank}.csv"), index=False)
    file.unlink()
    examples.rename(examples.with_name(f".{examples.stem}.share0.npz"))
    cli.main([*command.split(), str(path)], standalone_mode=False)
    assert [one.name for one in (path / "results").iterdir()] == [file.name]
    again = read_table(file)
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), whole.drop(columns="seconds"))
    assert (again["seconds"] == 123.0).sum() == 30, "only what was missing is attacked"
    assert np.array_equal(load_examples(examples).x_adv, kept.x_adv)


@dataclass(frozen=True)
class Beside(World):
    """The first of two processes; the other one has what is given."""

    size: int = 2
    theirs: tuple[object, ...] = ()

    def gather(self, value: Any) -> list[Any]:
        return [value, next(iter(self.theirs), value)]

    def from_first(self, make: Callable[[], Any]) -> Any:
        return make()


def test_processes_with_different_networks_are_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = open_run(Run(trained))
    monkeypatch.setattr(Network, "world", Beside(theirs=("another",)))
    with pytest.raises(RobustkitError, match="expected one network and evaluation in all processes, got"):
        Store.open(network, "attack-pgd")


def test_what_only_another_host_has_kept_is_written_by_the_first(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(copied(trained, tmp_path / "run"))
    network = open_run(run)
    table = evaluate(network, "attack", EvaluationConfig(("pgd",), (0.1,), n=5), Silent())
    (path,) = (run.path / "results").iterdir()
    path.unlink()

    @dataclass(frozen=True)
    class Kept(Beside):
        def gather(self, value: Any) -> list[Any]:
            return [value, Rows(table)] if isinstance(value, Rows) else [value, value]

    monkeypatch.setattr(Network, "world", Kept())
    Store.open(network, path.stem)
    assert read_table(path)["index"].tolist() == table["index"].tolist()


def test_what_one_host_has_broken_another_may_not_verify(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = open_run(Run(copied(trained, tmp_path / "run")))
    verified = evaluate(network, "verify", EvaluationConfig(("ibp",), (0.01,), n=60), Silent())
    row = verified[verified["verdict"] == "verified"].head(1)
    theirs = row.assign(kind="attack", method="pgd", verdict="falsified")
    monkeypatch.setattr(Network, "world", Beside(theirs=(theirs,)))
    with pytest.raises(SoundnessError, match="the samples are saved in"):
        stop_at_clash(network)


def test_a_world_that_nobody_says_where_to_meet_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"expected RANK, MASTER_ADDR, MASTER_PORT .* unset WORLD_SIZE"):
        World.join(torch.device("cpu"))


def test_a_failure_of_the_first_is_one_of_all(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from robustkit.errors import RobustkitError\n"
        "from robustkit.world import World\n"
        "world = World.join(torch.device('cpu'))\n"
        "def fail():\n    raise RobustkitError('the disk is full')\n"
        "try:\n    world.from_first(fail)\n"
        "except RobustkitError as error:\n    Path(sys.argv[1], str(world.rank)).write_text(str(error))\n"
    )
    done = by_torchrun(str(script), str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["the disk is full"] * 2


def test_rows_put_together_ascend_and_the_first_of_two_stays() -> None:
    def part(index: list[int], eps: float) -> Rows:
        table = Rows.none().table.reindex(range(len(index))).assign(index=index, label=0, eps=eps)
        places = np.array(index)
        x = np.full((len(index), 1, 1, 1), eps, dtype=np.float32)
        return Rows(table, Examples(x, x, places, places, places, eps))

    both = Rows.together([part([5, 1], 0.1), Rows.none(), part([1, 0, 7], 0.2)])
    assert both.table["index"].tolist() == [0, 1, 5, 7]
    assert both.table["eps"].tolist() == [0.2, 0.1, 0.1, 0.2]
    assert both.examples is not None
    assert both.examples.index.tolist() == [0, 1, 5, 7]
    assert both.examples.x.flatten().tolist() == pytest.approx([0.2, 0.1, 0.1, 0.2])
    many = Rows.together([part(list(range(700, 0, -1)), 0.1)])
    assert many.examples is not None
    assert many.examples.index.tolist() == list(range(1, KEPT_EXAMPLES + 1))
