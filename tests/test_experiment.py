from pathlib import Path
from typing import Any

import pytest

from robustkit.attacks import make_attack
from robustkit.errors import RobustkitError, UsageError
from robustkit.experiment import DEFAULT_PRESET, load_experiment, preset_names
from robustkit.models import ARCHITECTURES
from robustkit.training import make_method
from robustkit.verifiers import make_verifier


def experiment_file(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_names_only_what_exists(name: str) -> None:
    experiment = load_experiment(name)
    assert experiment.name == name
    assert experiment.title
    assert len(experiment.configs) >= 2
    for config in experiment.configs:
        make_method(config.train.method, config.train.options.get(config.train.method))
        for attack in config.attack.methods:
            make_attack(attack, config.attack.options.get(attack))
        for verifier in config.verify.methods:
            make_verifier(verifier, config.verify.options.get(verifier))
        for method, options in config.train.options.items():
            make_method(method, options)
        assert config.model.name in {"", *ARCHITECTURES}


def test_the_default_preset_ships() -> None:
    assert DEFAULT_PRESET in preset_names()


def test_an_unknown_preset_offers_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown preset 'digit'; did you mean digits\?; or give the path of a .toml"):
        load_experiment("digit")


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    text = 'title = "Mine"\nseed = 4\n[train]\neps = "8/255"\n[[runs]]\n[[runs]]\ntrain = { method = "ibp" }\n'
    experiment = load_experiment(experiment_file(tmp_path, text))
    assert (experiment.name, experiment.title) == ("mine", "Mine")
    assert [config.train.method for config in experiment.configs] == ["mixtrain", "ibp"]
    assert {(config.seed, config.train.eps) for config in experiment.configs} == {(4, 8 / 255)}


def test_a_file_without_runs_is_one_run_named_by_the_file(tmp_path: Path) -> None:
    experiment = load_experiment(experiment_file(tmp_path, "seed = 4\n"))
    assert experiment.title == "mine"
    assert [config.seed for config in experiment.configs] == [4]


def test_overrides_lie_over_every_run() -> None:
    experiment = load_experiment("digits", {"train": {"epochs": 1}, "seed": 9})
    assert {(config.train.epochs, config.seed) for config in experiment.configs} == {(1, 9)}
    assert len({config.train.method for config in experiment.configs}) == len(experiment.configs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("runs = []\n", r"expected at least one \[\[runs\]\] table in .*mine.toml"),
        ("runs = 3\n", r"at least one \[\[runs\]\] table .*got 3"),
        ("runs = [1, 2]\n", r"at least one \[\[runs\]\] table .*got \[1, 2\]"),
        ("[runs]\nseed = 1\n", r"at least one \[\[runs\]\] table"),
        ("[[runs]]\n[[runs]]\n", "expected runs that differ in .*, got two alike"),
        ("[[runs]]\nsede = 1\n", "unknown option of the configuration 'sede'; did you mean seed"),
        ("[train]\nepochs = 'many'\n", "expected train.epochs as int, got 'many'"),
        ("title = \n", "not valid TOML"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_experiment(experiment_file(tmp_path, text))


def test_overrides_that_make_runs_alike_are_refused() -> None:
    with pytest.raises(UsageError, match="got two alike"):
        load_experiment("digits", {"train": {"method": "natural"}})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RobustkitError, match=r"cannot read .*none\.toml"):
        load_experiment(str(tmp_path / "none.toml"))


def test_an_empty_file_is_no_experiment(tmp_path: Path) -> None:
    (tmp_path / "none.toml").write_text("\n# nothing\n")
    with pytest.raises(UsageError, match=r"expected an experiment in .*none\.toml, got an empty file"):
        load_experiment(str(tmp_path / "none.toml"))


def test_methods_take_the_place_of_the_runs_and_what_these_share_stays() -> None:
    experiment = load_experiment("digits", {"data": {"name": "mnist"}}, methods=["ibp", "sabr"])
    assert [config.train.method for config in experiment.configs] == ["ibp", "sabr"]
    assert {(config.train.epochs, config.train.eps, config.deterministic) for config in experiment.configs} == {
        (20, 0.1, True)
    }
    assert (experiment.name, experiment.title) == ("mnist-ibp-sabr", "ibp, sabr on mnist")


def test_a_title_of_other_data_or_another_radius_is_not_kept() -> None:
    assert "digits" in load_experiment("digits", {"train": {"epochs": 1}}).title
    assert load_experiment("digits", {"data": {"name": "mnist"}}).title == "natural, pgd, ibp, mixtrain on mnist"
    assert "0.1" not in load_experiment("digits", {"train": {"eps": 0.2}}).title


@pytest.mark.parametrize(
    ("methods", "overrides", "message"),
    [
        (["ibpp"], {}, r"unknown training method 'ibpp'; did you mean .*ibp"),
        (["ibp", "pgd", "ibp"], {}, "expected different methods, got ibp twice"),
        (["ibp"], {"train": {"method": "pgd"}}, "expected train.method by --method or by --set, got both"),
    ],
)
def test_methods_that_cannot_be_meant_are_refused(methods: list[str], overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_experiment("digits", overrides, methods=methods)
