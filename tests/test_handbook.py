"""What the command line says of the training methods and of the attacks."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from robustkit.attacks import ATTACKS
from robustkit.cli import cli
from robustkit.errors import UsageError
from robustkit.handbook import attack_page, method_page
from robustkit.training import METHODS


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_minimises_and_after_whom(name: str) -> None:
    page = method_page(name)
    assert page.summary.endswith(".")
    assert page.formula and page.source
    assert [one.name for one in page.options if not one.meaning] == []


def test_options_are_those_of_the_class_with_their_defaults() -> None:
    page = method_page("ibp")
    (kappa,) = page.options
    assert (kappa.name, kappa.default) == ("kappa_end", "0.5")
    assert kappa.meaning == "kappa once eps has reached its target, in [0, 1]."
    assert page.source == "Gowal et al. 2018, arXiv 1810.12715, Sec. 3."
    assert page.details == ("kappa falls from 1 as eps grows. The last layer is merged with the margin matrix.",)


def test_options_of_the_class_above_are_explained_too() -> None:
    alpha = method_page("cc-ibp").options[0]
    assert (alpha.name, alpha.default) == ("alpha", "0.3")
    assert alpha.meaning.startswith("share of the bound, in [0, 1]")


def test_methods_are_listed_with_formula_source_and_options() -> None:
    result = CliRunner().invoke(cli, ["methods"])
    assert result.exit_code == 0
    for name, kind in METHODS.items():
        assert f"\n{name} " in f"\n{result.stdout}"
        assert kind.formula in result.stdout
    assert "k=5, mixing=0.8" in result.stdout
    assert "arXiv 1811.02625" in result.stdout


def test_one_method_is_shown_in_full() -> None:
    result = CliRunner().invoke(cli, ["methods", "mixtrain"])
    assert result.exit_code == 0
    assert "--set train.options.mixtrain.mixing=0.8\n    probability that a step has a robust term" in result.stdout
    assert "How the paper itself drives the weight was not found" in " ".join(result.stdout.split())
    assert "kappa_end" not in result.stdout


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_says_what_it_does_after_whom_and_by_which_options(name: str) -> None:
    page = attack_page(name)
    assert page.summary.endswith(".")
    assert "arXiv" in page.source
    assert "seed" in [one.name for one in page.options]
    assert [one.name for one in page.options if not one.meaning] == []


def test_attacks_are_listed_with_source_and_options() -> None:
    result = CliRunner().invoke(cli, ["attacks"])
    assert result.exit_code == 0
    for name in ATTACKS:
        assert f"\n{name} " in f"\n{result.stdout}"
    assert "steps=100, n_queries=5000, seed=0" in result.stdout
    assert "DIFGSM, TIFGSM" in result.stdout
    assert "CW," not in result.stdout, "it is for L2"
    assert "formula" not in result.stdout


def test_one_attack_is_shown_in_full() -> None:
    result = CliRunner().invoke(cli, ["attacks", "square"])
    assert result.exit_code == 0
    assert "--set attack.options.square.n_queries=5000\n    predictions of each restart" in result.stdout
    assert "arXiv 1912.00049" in result.stdout


def test_an_attack_of_the_library_is_shown_with_what_the_library_says() -> None:
    page = attack_page("torchattacks:DIFGSM")
    assert page.summary.startswith("DI2-FGSM in the paper")
    options = {one.name: (one.default, one.meaning) for one in page.options}
    assert options["steps"] == ("10", "number of iterations. (Default: 10)")
    assert "eps" not in options


def test_an_unknown_attack_is_offered_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown attack 'squares'; did you mean square"):
        attack_page("squares")
