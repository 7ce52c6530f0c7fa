"""What the command line says of the training methods."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from robustkit.cli import cli
from robustkit.handbook import method_page
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
