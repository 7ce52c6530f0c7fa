from typing import Any

import pytest

from robustkit.config import Config, configuration
from robustkit.errors import UsageError
from robustkit.variations import Sweep, parse_seeds, parse_sweeps, refuse_given, split_values, vary


def trained_by(*methods: str, **table: Any) -> list[Config]:
    return [configuration(table, {"train": {"method": method}}) for method in methods]


def alphas(configs: tuple[Config, ...], method: str = "mtl-ibp") -> list[Any]:
    return [one.train.options.get(method, {}).get("alpha") for one in configs]


@pytest.mark.parametrize(("text", "seeds"), [("0,1,2", (0, 1, 2)), ("7", (7,)), (" 3 , 1 ", (3, 1))])
def test_seeds_are_read(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected --seeds as whole numbers with commas, such as 0,1,2, got ''"),
        ("0,", "whole numbers"),
        ("0,one", "whole numbers with commas, such as 0,1,2, got '0,one'"),
        ("1.5", "whole numbers"),
        ("-1", "whole numbers"),
        ("²", "whole numbers"),
        ("0,1,00", "expected different --seeds, got '0,1,00'"),
    ],
)
def test_seeds_that_cannot_be_meant_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("train.lr=1e-3,0.01", (1e-3, 0.01)),
        ("train.method=ibp,pgd", ("ibp", "pgd")),
        ("train.eps=8/255,0.1", ("8/255", 0.1)),
        ("a.b=[1,2],[3]", ([1, 2], [3])),
        ("a.b={c=1,d=2}", ({"c": 1, "d": 2},)),
        ('a.b="x,y",z', ("x,y", "z")),
        ("a.b='x,y',z", ("x,y", "z")),
        (r'a.b="x\",y",z', ('x",y', "z")),
        ("a.b=true, false", (True, False)),
        ("data.name=a=b,c", ("a=b", "c")),
        ('model.name=""', ("",)),
    ],
)
def test_sweep_values_are_toml_or_else_text(setting: str, values: tuple[Any, ...]) -> None:
    (sweep,) = parse_sweeps([setting])
    assert sweep == Sweep(setting.partition("=")[0], values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.lr"], r"expected --sweep section.option=value,value, got 'train.lr'"),
        (["=1,2"], "expected --sweep section.option=value,value"),
        (["train..lr=1"], "expected --sweep section.option=value,value"),
        (["train.lr="], "expected values with commas between them after --sweep train.lr=, got ''"),
        (["train.lr=1,,2"], "expected values with commas"),
        (["train.lr=1,"], "expected values with commas"),
        (["a.b=[1,2"], r"expected every bracket and quote closed in --sweep values, got '\[1,2'"),
        (["a.b=1],2"], "bracket"),
        (['a.b="x,y'], "quote"),
        (["train.lr=1", "train.lr=2"], "expected one --sweep of train.lr, got two"),
    ],
)
def test_sweeps_that_cannot_be_meant_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_sweeps(settings)


def test_commas_inside_do_not_separate() -> None:
    assert split_values("a,[b,{c,d}],'e,f'") == ["a", "[b,{c,d}]", "'e,f'"]


def test_every_run_once_for_each_seed_beside_one_another() -> None:
    varied = vary(trained_by("ibp", "pgd"), (4, 2))
    assert [(one.train.method, one.seed) for one in varied] == [("ibp", 4), ("ibp", 2), ("pgd", 4), ("pgd", 2)]
    assert vary(trained_by("ibp", seed=3)) == tuple(trained_by("ibp", seed=3))


def test_runs_that_differed_by_seed_alone_fall_together() -> None:
    runs = [*trained_by("ibp", seed=7), *trained_by("ibp", seed=8)]
    assert [one.seed for one in vary(runs, (0, 1))] == [0, 1]


def test_two_sweeps_are_a_grid() -> None:
    varied = vary(trained_by("ibp"), (0, 1), parse_sweeps(["train.lr=0.1,0.2", "train.epochs=1,2,3"]))
    assert [(one.train.lr, one.train.epochs, one.seed) for one in varied] == [
        (lr, epochs, seed) for lr in (0.1, 0.2) for epochs in (1, 2, 3) for seed in (0, 1)
    ]


def test_an_option_of_one_method_varies_only_its_runs() -> None:
    varied = vary(trained_by("mtl-ibp", "ibp"), (), parse_sweeps(["train.options.mtl-ibp.alpha=0.1,0.5"]))
    assert [one.train.method for one in varied] == ["mtl-ibp", "mtl-ibp", "ibp"]
    assert alphas(varied) == [0.1, 0.5, None]


def test_an_option_of_a_method_that_is_itself_swept() -> None:
    sweeps = parse_sweeps(["train.options.mtl-ibp.alpha=0.1,0.5", "train.method=ibp,mtl-ibp"])
    varied = vary(trained_by("natural"), (), sweeps)
    assert [(one.train.method, alpha) for one, alpha in zip(varied, alphas(varied), strict=True)] == [
        ("ibp", None),
        ("mtl-ibp", 0.1),
        ("mtl-ibp", 0.5),
    ]


def test_weights_trained_elsewhere_are_left_as_they_are() -> None:
    foreign = configuration({"model": {"name": "mlp", "checkpoint": "a.pth"}, "seed": 5})
    varied = vary([foreign, *trained_by("ibp")], (0, 1), parse_sweeps(["train.lr=0.1,0.2"]))
    assert varied[0] == foreign
    assert len(varied) == 1 + 4


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.epoch=1,2", "unknown option of train 'epoch'; did you mean epochs"),
        ("trian.epochs=1,2", "unknown option of the configuration 'trian'"),
        ("train.epochs=1,many", "expected train.epochs as int, got 'many'"),
        ("train.epochs=1,0", "expected train.epochs at least 1"),
        ("train.epochs=2,2", "expected different values for --sweep train.epochs, got 2, 2"),
        ("train.eps=0.2,1/5", "expected different values for --sweep train.eps, got 0.2, 1/5"),
        ("train.options.ibp.kappa=0,1", "unknown option of train.options.ibp 'kappa'"),
        ("train.options.ibpp.kappa=0,1", "unknown training method 'ibpp'"),
        (
            "train.options.sabr.steps=1,2",
            "expected a run that --sweep .*sabr.steps concerns, got training by ibp",
        ),
        ("train.method=ibpp,pgd", "unknown training method 'ibpp'"),
        ("verify.n=10,20", "expected --sweep of what training reads, got verify.n; give it by --set"),
        ("data.root=a,b", "expected --sweep of what training reads, got data.root"),
    ],
)
def test_a_grid_that_cannot_be_meant_is_refused(setting: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        vary(trained_by("ibp"), (), parse_sweeps([setting]))


@pytest.mark.parametrize(
    ("given", "seeds", "sweep", "message"),
    [
        ({"seed": 0}, (0, 1), [], "expected --seed or --seeds, got both"),
        ({"train": {"lr": 0.1}}, (), ["train.lr=1,2"], "expected train.lr as one value or by --sweep, got both"),
        ({"train": {"options": {"ibp": {"k": 0}}}}, (), ["train.options.ibp.k=1"], "train.options.ibp.k as one value"),
        ({}, (0, 1), ["seed=2,3"], "expected --seeds or --sweep seed"),
    ],
)
def test_one_value_and_several_are_refused(
    given: dict[str, Any], seeds: tuple[int, ...], sweep: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        refuse_given(given, seeds, parse_sweeps(sweep))


def test_other_options_may_be_given_beside_a_sweep() -> None:
    refuse_given({"train": {"epochs": 3}, "seed": 1}, (), parse_sweeps(["train.lr=1,2"]))
    refuse_given({"train": {"epochs": 3}}, (0, 1), parse_sweeps(["train.lr=1,2"]))
