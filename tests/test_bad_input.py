"""Every mistake: one clear line, the right exit code, nothing lost."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from robustkit.cli import cli
from robustkit.models import make_model
from robustkit.results import read_table

TINY = ["--set", "train.epochs=1", "--set", "data.train_n=200", "--model", "mlp", "--method", "natural"]


def robustkit(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(result: Result, exit_code: int, *parts: str) -> None:
    """Hold a refusal to one line on stderr, nothing on stdout, and the exit code."""
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: "), result.stderr
    for part in parts:
        assert part in line


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert robustkit("train", *TINY).exit_code == 0
    yield folder


@pytest.fixture
def work(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["run", "digit"], ["unknown preset 'digit'", "digits"]),
        (["train", "--dataset", "mnst"], ["unknown dataset 'mnst'", "mnist"]),
        (["train", "--model", "mlpp"], ["unknown model 'mlpp'", "mlp"]),
        (["train", "--model", "torchvision:resnet81"], ["unknown torchvision model 'resnet81'", "resnet18"]),
        (["train", "--method", "mixtrian"], ["unknown training method 'mixtrian'", "mixtrain"]),
        (["train", "--set", "train.epoch=3"], ["epoch", "epochs"]),
        (["train", "--set", "train.epochs=many"], ["train.epochs", "many"]),
        (["train", "--set", "train.epochs"], ["--set section.option=value"]),
        (["train", "--set", "train.options.mixtrain.kk=3"], ["kk"]),
        (["train", "--set", "train.options.ibp.k=3"], ["train.options.ibp", "'k'", "an option of mixtrain;"]),
        (["train", "--set", "train.options.ibp.kappa=3"], ["did you mean kappa_end?"]),
        (["methods", "mixtrian"], ["unknown training method 'mixtrian'", "mixtrain"]),
        (["train", "--set", "train.options.mixtrian.k=3"], ["unknown training method 'mixtrian'"]),
        (["train", "--eps", "0.1,0.2"], ["one eps"]),
        (["train", "--batch-size", "100000"], ["batch_size"]),
        (["train", "--eps", "-0.1"], ["[0, 1]", "-0.1"]),
        (["train", "--eps", "1.5"], ["[0, 1]", "1.5"]),
        (["train", "--eps", "8/0"], ["8/0"]),
        (["train", "--eps", "abc"], ["abc"]),
        (["train", "--set", "model.checkpoint=f.pth"], ["model.checkpoint", "f.pth", "robustkit evaluate"]),
        (["list", "attack"], ["attacks"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0] in ("run", "train", "list") else "",
)
def test_usage_errors_name_what_came_and_what_was_expected(empty: Path, arguments: list[str], parts: list[str]) -> None:
    refused(robustkit(*arguments), 2, *parts)
    assert not list(empty.rglob("model.safetensors"))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["attack", "--method", "pdg"], ["unknown attack 'pdg'", "pgd"]),
        (["verify", "--method", "crow"], ["unknown verifier 'crow'", "crown"]),
        (["attack", "--set", "attack.options.pgd.step=3"], ["step", "steps"]),
        (["attack", "--set", "attack.options.pdg.steps=3"], ["unknown attack 'pdg'"]),
        (["attack", "--n", "0"], ["n", "at least 1"]),
        (["verify", "--model", "mlp", "--checkpoint", "x.pth", "--run", "runs"], ["--run or --checkpoint"]),
        (["verify", "--checkpoint", "x.pth"], ["--model"]),
        (["verify", "--model", "mlp"], ["--checkpoint"]),
        (["attack", "--model", "torchvision:resnet18"], ["--checkpoint"]),
        (["attack", "--model", "nowhere:make"], ["nowhere"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0] in ("attack", "verify") else "",
)
def test_evaluations_refuse_what_cannot_be_meant(work: Path, arguments: list[str], parts: list[str]) -> None:
    refused(robustkit(*arguments), 2, *parts)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_where_there_is_none(work: Path) -> None:
    refused(robustkit("attack", "--device", "cuda"), 2, "CUDA", "--device auto")


def test_commands_without_a_run(empty: Path) -> None:
    refused(robustkit("attack", "--run", str(empty)), 1, "expected a run directory", "config.toml")
    refused(robustkit("attack"), 1, "robustkit train")
    refused(robustkit("report"), 1, "robustkit run")
    refused(robustkit("report", "nowhere"), 1, "nowhere")
    refused(robustkit("verify", "--run", "nowhere"), 1, "nowhere")


def weights(name: str = "mlp") -> dict[str, torch.Tensor]:
    return make_model(name, (1, 8, 8), 10).state_dict()


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


def test_checkpoints_that_cannot_be_read(empty: Path) -> None:
    def verify(path: str, model: str = "mlp") -> Result:
        return robustkit("verify", "--model", model, "--checkpoint", path, "--n", "5")

    refused(verify("missing.pth"), 1, "missing.pth")
    torch.save(weights(), "whole.pth")
    Path("cut.pth").write_bytes(Path("whole.pth").read_bytes()[:2000])
    refused(verify("cut.pth"), 1, "cut.pth")
    Path("text.pth").write_text("these are not weights")
    refused(verify("text.pth"), 1, "text.pth")
    Path("bomb.pth").write_bytes(pickle.dumps(Bomb()))
    refused(verify("bomb.pth"), 1, "bomb.pth")
    assert not Path("exploded").exists()
    refused(verify("whole.pth", "digits_small"), 1, "digits_small", "whole.pth")
    broken = weights()
    broken["1.weight"][0, 0] = torch.nan
    torch.save(broken, "nan.pth")
    refused(verify("nan.pth"), 1, "1.weight")
    assert verify("whole.pth").exit_code == 0


def test_datasets_that_cannot_be_meant(empty: Path) -> None:
    x, y = np.random.default_rng(0).random((40, 8, 8)).astype("float32"), np.arange(40) % 4
    cases = {
        "bright": ({"x_train": x * 3, "y_train": y, "x_test": x, "y_test": y}, "[0, 1]"),
        "label": ({"x_train": x, "y_train": y - 1, "x_test": x, "y_test": y}, "label"),
        "empty": ({"x_train": x[:0], "y_train": y[:0], "x_test": x[:0], "y_test": y[:0]}, ", got none"),
    }
    for name, (arrays, part) in cases.items():
        np.savez(f"bad-{name}.npz", **arrays)
        refused(robustkit("train", "--dataset", f"bad-{name}.npz", "--epochs", "1"), 1, part)
    refused(robustkit("train", "--dataset", "no/such/folder"), 1, "no/such/folder")


def test_a_dataset_that_is_not_there_is_not_fetched_unasked(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTKIT_DATA", str(empty))
    refused(robustkit("train", "--dataset", "svhn", "--data-root", "nowhere"), 1, "--download", "nowhere")


def test_a_dataset_of_another_shape(work: Path) -> None:
    x, y = np.random.default_rng(0).random((40, 9, 9)).astype("float32"), np.arange(40) % 10
    np.savez("other.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    refused(robustkit("attack", "--dataset", "other.npz"), 2, "(1, 8, 8)", "(1, 9, 9)")


def test_a_directory_that_cannot_be_written(empty: Path) -> None:
    Path("file").write_text("in the way")
    refused(robustkit("train", *TINY, "--out", "file/run"), 1, "cannot write", "file/run")


def test_a_full_disk_loses_nothing(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    robustkit("attack", "--method", "fgsm", "--n", "10")
    (path,) = (work / "runs").rglob("attack-fgsm*.csv")
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        refused(robustkit("attack", "--method", "fgsm", "--n", "20"), 1, "No space left on device")
    assert path.read_bytes() == before
    assert not list((work / "runs").rglob("*.part"))


def test_a_directory_of_another_configuration(work: Path) -> None:
    (run,) = (work / "runs").iterdir()
    refused(robustkit("train", *TINY, "--seed", "7", "--out", str(run)), 2, "another configuration", "seed: 0 -> 7")


def test_damaged_files_in_a_run(work: Path) -> None:
    (run,) = (work / "runs").iterdir()
    robustkit("attack", "--method", "fgsm", "--n", "10")
    (path,) = run.rglob("attack-fgsm*.csv")
    path.write_text("not,a,table\n1,2,3\n")
    refused(robustkit("attack", "--method", "fgsm", "--n", "10"), 1, str(path.name))
    path.unlink()
    (run / "config.toml").write_text("this is = = not TOML")
    refused(robustkit("attack", "--n", "5"), 2, "config.toml")
    whole = (run / "model.safetensors").read_bytes()
    shutil.rmtree(run)
    robustkit("train", *TINY)
    (run / "model.safetensors").write_bytes(whole[:100])
    refused(robustkit("attack", "--n", "5"), 1, "model.safetensors")


@pytest.mark.parametrize(
    ("file", "content", "parts"),
    [
        ("environment.json", None, ["cannot read", "No such file"]),
        ("environment.json", "{", ["expected one JSON object", "damaged"]),
        ("environment.json", "[]", ["expected one JSON object", "damaged"]),
        ("history.jsonl", "", ["empty or damaged"]),
        ("history.jsonl", '{"epoch": 1,', ["empty or damaged"]),
        ("history.jsonl", '{"epoch": 1}\n', ["val_clean", "empty or damaged"]),
        ("history.jsonl", '"text"\n', ["empty or damaged"]),
    ],
)
def test_reports_name_the_damaged_file_of_a_run(work: Path, file: str, content: str | None, parts: list[str]) -> None:
    (run,) = (work / "runs").iterdir()
    robustkit("attack", "--method", "fgsm", "--n", "5")
    (run / file).unlink()
    if content is not None:
        (run / file).write_text(content)
    refused(robustkit("report"), 1, f"{run.name}/{file}", "restore it", *parts)


def test_a_trained_run_without_its_history(work: Path) -> None:
    (run,) = (work / "runs").iterdir()
    (run / "history.jsonl").unlink()
    refused(robustkit("train", *TINY), 1, "history.jsonl is missing")


def test_training_without_validation_says_so(empty: Path) -> None:
    result = robustkit("train", *TINY, "--set", "data.val_n=0")
    assert result.exit_code == 0
    assert "nothing was validated: data.val_n is 0" in result.stdout
    assert "nan" not in result.stdout


def test_an_attack_that_needs_bounds_is_named_and_the_others_are_kept(empty: Path) -> None:
    Path("smooth.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(144, 10))\n"
    )
    result = robustkit("attack", "--model", "smooth:make", "--eps", "0.001")
    refused(result, 1, "interval-gradient needs bounds", "Softplus", "--method pgd", "results of pgd at eps 0.001")
    (path,) = (empty / "runs").rglob("attack-*.csv")
    assert len(read_table(path)) == 359
    alone = robustkit("attack", "--model", "smooth:make", "--eps", "0.001", "--method", "interval-gradient")
    assert "kept" not in alone.stderr


def test_a_model_that_cannot_be_verified_is_refused_by_layer(empty: Path) -> None:
    Path("pooled.py").write_text(
        "from torch import nn\n"
        "make = lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 10))\n"
    )
    refused(robustkit("verify", "--model", "pooled:make", "--n", "5"), 1, "MaxPool2d")
    assert robustkit("attack", "--model", "pooled:make", "--method", "pgd", "--n", "5").exit_code == 0


def test_a_bug_keeps_its_traceback(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(nn.Module, "eval", bug)
    with pytest.raises(ZeroDivisionError):
        robustkit("attack", "--n", "5")
