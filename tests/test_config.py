import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from robustkit.bounds import BoundMethod
from robustkit.config import (
    Config,
    EvaluationConfig,
    TrainConfig,
    build,
    configuration,
    convert,
    differences,
    digest,
    merge,
    nested,
    parse_overrides,
    plain,
    read_toml,
)
from robustkit.errors import RobustkitError, UsageError


@dataclass(frozen=True)
class Toy:
    eps: float = 0.1
    count: int = 1
    rate: float = 1.0
    on: bool = False
    kind: Literal["left", "right"] = "left"
    bound: BoundMethod = BoundMethod.IBP
    bounds: tuple[BoundMethod, ...] = ()
    limit: int | None = None
    anything: Any = None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, Toy()),
        ({"eps": "8/255"}, Toy(eps=8 / 255)),
        ({"eps": 0}, Toy(eps=0.0)),
        ({"rate": 3}, Toy(rate=3.0)),
        ({"on": True}, Toy(on=True)),
        ({"kind": "right"}, Toy(kind="right")),
        ({"bound": "alpha-crown"}, Toy(bound=BoundMethod.ALPHA_CROWN)),
        ({"bounds": ["ibp", "crown"]}, Toy(bounds=(BoundMethod.IBP, BoundMethod.CROWN))),
        ({"bounds": "crown"}, Toy(bounds=(BoundMethod.CROWN,))),
        ({"limit": 5}, Toy(limit=5)),
        ({"limit": None}, Toy()),
        ({"anything": [1, "a"]}, Toy(anything=[1, "a"])),
    ],
)
def test_plain_values_take_the_declared_type(values: dict[str, Any], expected: Toy) -> None:
    made = build(Toy, values)
    assert made == expected
    assert [type(one) for one in vars(made).values()] == [type(one) for one in vars(expected).values()]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cuont": 1}, r"unknown option of toy 'cuont'; did you mean count"),
        ({"count": "three"}, "expected toy.count as int, got 'three'"),
        ({"count": 2.0}, "expected toy.count as int, got 2.0"),
        ({"count": True}, "expected toy.count as int, got True"),
        ({"count": None}, "expected toy.count as int, got None"),
        ({"rate": True}, "expected toy.rate as float, got True"),
        ({"rate": "fast"}, "expected toy.rate as float, got 'fast'"),
        ({"on": 1}, "expected toy.on as bool, got 1"),
        ({"eps": True}, "expected eps as a number"),
        ({"eps": [0.1]}, "expected eps as a number"),
        ({"eps": "8/0"}, "expected eps as a number"),
        ({"eps": math.nan}, r"expected eps in \[0, 1\]"),
        ({"eps": 8}, "for 8 grey levels write 8/255"),
        ({"kind": "rihgt"}, r"unknown value for toy.kind 'rihgt'; did you mean right\?"),
        ({"bound": "crwn"}, r"unknown value for toy.bound 'crwn'; did you mean crown"),
        ({"bounds": ["ibp", 3]}, "unknown value for toy.bounds '3'; known: .*ibp"),
        ({"limit": "all"}, "expected toy.limit as int, got 'all'"),
    ],
)
def test_what_does_not_fit_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(Toy, values, "toy")


def test_convert_refuses_a_scalar_where_a_table_belongs() -> None:
    with pytest.raises(UsageError, match="expected train as TrainConfig, got 3"):
        configuration({"train": 3})
    with pytest.raises(UsageError, match=r"expected train\.options\.ibp as dict, got 1"):
        configuration({"train": {"options": {"ibp": 1}}})
    assert convert(float, 1, "lr") == 1.0


def test_defaults_survive_a_partial_table() -> None:
    config = configuration({"verify": {"eps": [0.1]}, "attack": {"n": 5}})
    assert config.verify == EvaluationConfig(("cascade",), (0.1,))
    assert config.attack == EvaluationConfig(("pgd", "interval-gradient"), n=5)
    assert configuration() == Config()


def test_the_last_layer_lies_on_top() -> None:
    config = configuration({"train": {"epochs": 3, "lr": 0.1}}, {"train": {"epochs": 5}}, {"seed": 2})
    assert (config.train.epochs, config.train.lr, config.seed) == (5, 0.1, 2)


def test_merge_joins_tables_and_replaces_all_else() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    over = {"a": {"c": [3]}, "d": {"e": 2}}
    assert merge(base, over) == {"a": {"b": 1, "c": [3]}, "d": {"e": 2}}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 1}, "the layers below are left as they were"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"trian": {}}, r"unknown option of the configuration 'trian'; did you mean train\?"),
        ({"train": {"epoch": 1}}, r"unknown option of train 'epoch'; did you mean epochs"),
        ({"train": {"epochs": 0}}, "expected train.epochs at least 1, got 0"),
        ({"train": {"batch_size": 0}}, "expected train.batch_size at least 1"),
        ({"train": {"lr": 0}}, "expected train.lr above 0"),
        ({"train": {"lr": math.inf}}, "expected train.lr above 0 and finite"),
        ({"train": {"lr": math.nan}}, "expected train.lr above 0"),
        ({"train": {"clip": -1}}, "expected train.clip at least 0, got -1"),
        ({"train": {"weight_decay": -0.1}}, "expected train.weight_decay at least 0"),
        ({"train": {"lr_schedule": "cosin"}}, "unknown value for train.lr_schedule 'cosin'; did you mean cosine"),
        (
            {"train": {"ramp_start": 0.5, "ramp_end": 0.2}},
            r"expected train.ramp_start at most train.ramp_end = 0.2, got 0.5",
        ),
        ({"train": {"ramp_end": 1.5}}, r"expected train.ramp_end as a share of all epochs, in \[0, 1\], got 1.5"),
        ({"data": {"val_n": -1}}, "expected data.val_n at least 0"),
        ({"verify": {"n": 0}}, "expected n at least 1"),
        ({"attack": {"batch_size": 0}}, "expected batch_size at least 1"),
        ({"device": "gpu"}, "unknown value for device 'gpu'"),
        ({"seed": -1}, "expected seed in"),
        ({"seed": 2**64}, "expected seed in"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        configuration(table)


def test_no_ramp_is_a_ramp_too() -> None:
    assert TrainConfig(ramp_start=0.0, ramp_end=0.0) == configuration({"train": {"ramp_end": 0}}).train


@pytest.mark.parametrize(
    ("setting", "table"),
    [
        ("seed=3", {"seed": 3}),
        ("train.lr=1e-3", {"train": {"lr": 1e-3}}),
        ("train.eps=8/255", {"train": {"eps": "8/255"}}),
        ("train.method=ibp", {"train": {"method": "ibp"}}),
        ('train.method="ibp"', {"train": {"method": "ibp"}}),
        ("deterministic=true", {"deterministic": True}),
        ('verify.methods=["ibp", "crown"]', {"verify": {"methods": ["ibp", "crown"]}}),
        ("train.options.mixtrain.k=1", {"train": {"options": {"mixtrain": {"k": 1}}}}),
        ("data.name=a=b", {"data": {"name": "a=b"}}),
        ("data.name=", {"data": {"name": ""}}),
        ("data.name=C:\\new", {"data": {"name": "C:\\new"}}),
    ],
)
def test_a_setting_is_toml_or_else_text(setting: str, table: dict[str, Any]) -> None:
    assert parse_overrides([setting]) == table


def test_settings_add_up_and_the_last_wins() -> None:
    assert parse_overrides(["train.lr=1", "train.clip=2", "train.lr=3"]) == {"train": {"lr": 3, "clip": 2}}
    assert parse_overrides([]) == {}


def test_parts_of_a_name_may_be_quoted_as_in_toml() -> None:
    expected = {"attack": {"options": {"torchattacks:DIFGSM": {"steps": 20}}}}
    assert parse_overrides(['attack.options."torchattacks:DIFGSM".steps=20']) == expected
    assert nested('a."b.c".d', 1) == {"a": {"b.c": {"d": 1}}}


def test_a_dotted_name_is_a_nested_table() -> None:
    assert nested("a.b.c", [1]) == {"a": {"b": {"c": [1]}}}
    assert nested("seed", 3) == {"seed": 3}


@pytest.mark.parametrize("setting", ["seed", "=3", "train.=3", ".lr=3", "train..lr=3", ""])
def test_a_setting_without_a_name_or_a_value_is_refused(setting: str) -> None:
    with pytest.raises(UsageError, match=r"expected --set section\.option=value"):
        parse_overrides([setting])


def test_reading_toml(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('[train]\neps = "8/255"\n', encoding="utf-8")
    assert configuration(read_toml(path)).train.eps == 8 / 255
    path.write_text("[train\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"a\.toml is not valid TOML: .*line 1"):
        read_toml(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not valid TOML"):
        read_toml(path)
    with pytest.raises(RobustkitError, match=r"cannot read .*b\.toml: No such file"):
        read_toml(tmp_path / "b.toml")
    with pytest.raises(RobustkitError, match="cannot read"):
        read_toml(tmp_path)


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"train": {"eps": "8/255", "options": {"mixtrain": {"k": 1}}}, "model": {"checkpoint": "a.pt"}},
        {"attack": {"methods": ["fgsm"], "eps": [0.1, "2/255"], "n": 3, "options": {"fgsm": {}}}, "device": "cpu"},
    ],
)
def test_a_configuration_survives_the_way_through_plain_values(table: dict[str, Any]) -> None:
    config = configuration(table)
    assert configuration(plain(config)) == config
    assert digest(plain(configuration(plain(config)))) == digest(config)


def test_plain_leaves_out_what_is_not_set() -> None:
    values = plain(Config())
    assert "eps" not in values["train"]
    assert values["attack"]["methods"] == ["pgd", "interval-gradient"]


def test_the_digest_changes_with_any_value_and_not_with_the_order() -> None:
    tables: list[dict[str, Any]] = [
        {},
        {"seed": 1},
        {"train": {"eps": 0.1}},
        {"train": {"eps": 0.2}},
        {"device": "cpu"},
    ]
    found = {digest(configuration(table)) for table in tables}
    assert len(found) == len(tables)
    assert all(len(one) == 8 and int(one, 16) >= 0 for one in found)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_the_digest_takes_a_date_that_toml_gave() -> None:
    option = parse_overrides(["train.options.ibp.kappa_end=2020-01-01"])
    assert len(digest(configuration(option))) == 8


def test_differences_are_listed_by_their_dotted_name() -> None:
    old, new = {"a": {"b": 1, "c": 2}, "d": 1}, {"a": {"b": 3, "c": 2}, "e": [1]}
    assert differences(old, new) == ["a.b: 1 -> 3", "d: 1 -> None", "e: None -> [1]"]
    assert differences(old, old) == []
