"""Typed configuration: dataclasses built from TOML tables and ``--set`` overrides, every mistake named."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from robustkit.errors import RobustkitError, UsageError, unknown_name
from robustkit.threat import parse_eps

T = TypeVar("T")


@dataclass(frozen=True)
class DataConfig:
    """Which samples.

    Attributes:
        name: a dataset's name, a folder of images, or an npz file.
        root: where downloaded datasets lie; searched in the usual places where it is not given.
        download: fetch a dataset that is not there.
        train_n: use only the first so many training samples.
        val_n: validate each epoch on the first so many validation samples.
    """

    name: str = "digits"
    root: str | None = None
    download: bool = False
    train_n: int | None = None
    val_n: int = 500

    def __post_init__(self) -> None:
        _check(self.val_n >= 0, "data.val_n", "at least 0", self.val_n)


@dataclass(frozen=True)
class ModelConfig:
    """Which network.

    Attributes:
        name: an architecture's name, ``torchvision:NAME``, or ``package.module:factory``; empty for the dataset's own
            default.
        checkpoint: weights trained elsewhere, for evaluation.
        width: channels of the first convolution, or neurons of a hidden layer; the published width where not given.
    """

    name: str = ""
    checkpoint: str | None = None
    width: int | None = None


@dataclass(frozen=True)
class TrainConfig:
    """How it is trained; what only one method knows stands in ``options``. Times are shares of all epochs, in [0, 1].

    Attributes:
        method: a training method's name.
        eps: the radius to train for, in pixel units; empty for the dataset's default.
        epochs: passes over the training set.
        batch_size: samples per step, over all processes.
        accumulate: parts that a batch is worked on in, for less memory.
        optimizer: ``"adam"``, or ``"sgd"`` with momentum 0.9.
        lr: learning rate.
        lr_schedule: ``"cosine"`` to zero over all epochs, ``"constant"``, ``"milestones"``, or ``"accelat"``: cut
            where validation accuracy stops rising.
        milestones: times at which the learning rate is multiplied by ``lr_factor``.
        lr_factor: at each milestone.
        warmup: time over which the learning rate grows from zero.
        weight_decay: L2 penalty.
        l1: L1 penalty on weights, not on biases.
        clip: L2 norm that gradients are clipped to; 0 for none.
        ramp_start: time at which eps starts to grow from zero.
        ramp_end: time at which eps reaches its target.
        ramp_shape: ``"linear"``, or ``"smooth"``: slowly at first.
        augment: ``"none"``, ``"crop"`` (shifts by up to an eighth of a side) or ``"crop-flip"``.
        averaging: judge and keep averaged weights: ``"none"``, ``"ema"`` or ``"swa"``.
        ema_decay: share of the exponential average that stays at each step.
        swa_start: time from which weights are averaged alike.
        precision: ``"float32"``, or ``"bfloat16"`` outside the bounds.
        precise_bn: batches to compute the statistics of batch norm from after training; 0 to keep the running ones.
        select: keep the ``"last"`` weights, or the ``"best"``: those of highest verified accuracy on the validation
            samples once eps has reached its target; methods that verify nothing keep the last.
        stop_if_collapsed: give up a network that predicts a single class for three epochs.
        tensorboard: write the metrics of every epoch for TensorBoard as well.
        checkpoint_every: seconds after which the state is written, at the latest.
        options: the method's own hyper-parameters, by its name.
    """

    method: str = "mixtrain"
    eps: float | None = None
    epochs: int = 60
    batch_size: int = 50
    accumulate: int = 1
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 1e-3
    lr_schedule: Literal["cosine", "constant", "milestones", "accelat"] = "cosine"
    milestones: tuple[float, ...] = ()
    lr_factor: float = 0.2
    warmup: float = 0.0
    weight_decay: float = 1e-4
    l1: float = 0.0
    clip: float = 10.0
    ramp_start: float = 0.0
    ramp_end: float = 0.25
    ramp_shape: Literal["linear", "smooth"] = "linear"
    augment: Literal["none", "crop", "crop-flip"] = "none"
    averaging: Literal["none", "ema", "swa"] = "none"
    ema_decay: float = 0.999
    swa_start: float = 0.75
    precision: Literal["float32", "bfloat16"] = "float32"
    precise_bn: int = 0
    select: Literal["last", "best"] = "last"
    stop_if_collapsed: bool = True
    tensorboard: bool = False
    checkpoint_every: float = 60.0
    options: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            _check(getattr(self, name) >= 1, f"train.{name}", "at least 1", getattr(self, name))
        for name in ("lr", "lr_factor", "checkpoint_every"):
            _check(0.0 < getattr(self, name) < math.inf, f"train.{name}", "above 0 and finite", getattr(self, name))
        for name in ("weight_decay", "l1", "clip"):
            _check(0.0 <= getattr(self, name) < math.inf, f"train.{name}", "at least 0", getattr(self, name))
        _check(self.precise_bn >= 0, "train.precise_bn", "at least 0", self.precise_bn)
        _check(0.0 < self.ema_decay < 1.0, "train.ema_decay", "in (0, 1)", self.ema_decay)
        times = {"warmup": self.warmup, "swa_start": self.swa_start, "ramp_start": self.ramp_start}
        for name, time in {**times, "ramp_end": self.ramp_end}.items():
            self._check_time(name, time)
        for time in self.milestones:
            self._check_time("milestones", time)
        ordered = self.ramp_start <= self.ramp_end
        _check(ordered, "train.ramp_start", f"at most train.ramp_end = {self.ramp_end}", self.ramp_start)
        used = bool(self.milestones) == (self.lr_schedule == "milestones")
        _check(used, "train.milestones", 'together with train.lr_schedule = "milestones"', list(self.milestones))

    def _check_time(self, name: str, time: float) -> None:
        """Refuse a time outside training; whole numbers above 1 were meant as epochs."""
        share = f"; epoch {time:g} of {self.epochs} is {time / self.epochs:.3g}" if 1.0 < time <= self.epochs else ""
        if not 0.0 <= time <= 1.0:
            raise UsageError(f"expected train.{name} as a share of all epochs, in [0, 1], got {time:g}{share}")


@dataclass(frozen=True)
class EvaluationConfig:
    """How it is attacked, or how it is verified.

    Attributes:
        methods: names of attacks or verifiers.
        eps: radii, in pixel units; empty for the radius it was trained for.
        n: evaluate the first so many test samples; all where it is not given.
        batch_size: samples worked on together.
        jobs: processes that verify single samples by branch and bound.
        checks: look for signs that attacks were blind; of attacks only.
        options: hyper-parameters, by the method's name.
    """

    methods: tuple[str, ...] = ()
    eps: tuple[float, ...] = ()
    n: int | None = None
    batch_size: int = 250
    jobs: int = 1
    checks: bool = True
    options: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self.n is None or self.n >= 1, "n", "at least 1", self.n)
        _check(self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)
        _check(self.jobs >= 1, "jobs", "at least 1", self.jobs)


@dataclass(frozen=True)
class Config:
    """Everything that decides a run.

    Attributes:
        data: which samples.
        model: which network.
        train: how it is trained.
        attack: how it is attacked.
        verify: how it is verified.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        seed: of the initial weights, the order of samples and every draw.
        deterministic: ask torch for deterministic algorithms only.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    attack: EvaluationConfig = field(default_factory=lambda: EvaluationConfig(("pgd", "interval-gradient")))
    verify: EvaluationConfig = field(default_factory=lambda: EvaluationConfig(("cascade",)))
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    deterministic: bool = False

    def __post_init__(self) -> None:
        _check(0 <= self.seed < 2**63, "seed", "in [0, 2**63)", self.seed)


def configuration(*layers: Mapping[str, Any]) -> Config:
    """Build a configuration from tables laid over the defaults, the last on top.

    Args:
        layers: nested tables of plain values.

    Returns:
        The configuration.

    Raises:
        UsageError: a name that is no option, or a value that does not fit.
    """
    table: dict[str, Any] = plain(Config())
    for layer in layers:
        table = merge(table, layer)
    return build(Config, table)


def build(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build a dataclass from plain values, checking every name and type.

    Args:
        cls: a dataclass; its fields may be dataclasses themselves.
        values: field values as TOML or JSON gives them; fields left out keep their defaults.
        where: dotted path of ``values`` in the configuration, for messages.

    Returns:
        The instance.

    Raises:
        UsageError: a name that is no field (the nearest are offered), or a value of another type.
    """
    hints = typing.get_type_hints(cls)
    fields = [one.name for one in dataclasses.fields(cast(Any, cls)) if one.init]
    for name in values:
        if name not in fields:
            raise unknown_name(f"option of {where or 'the configuration'}", name, fields)
    return cls(**{name: convert(hints[name], value, f"{where}.{name}".lstrip(".")) for name, value in values.items()})


def convert(kind: Any, value: Any, where: str) -> Any:
    """Give a plain value the type a field declares.

    Args:
        kind: the declared type.
        value: what TOML, JSON or the command line gave.
        where: dotted name of the field.

    Returns:
        The value in the declared type.

    Raises:
        UsageError: the value does not fit.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return build(cast(type, kind), value, where)
    if origin is Literal:
        if value not in inner:
            raise unknown_name(f"value for {where}", str(value), map(str, inner))
        return value
    if isinstance(kind, type) and issubclass(kind, Enum):
        if value not in [one.value for one in kind]:
            raise unknown_name(f"value for {where}", str(value), [str(one.value) for one in kind])
        return kind(value)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else convert(next(one for one in inner if one is not type(None)), value, where)
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(convert(inner[0], item, where) for item in items)
    if origin is dict and isinstance(value, Mapping):
        return {key: convert(inner[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is Any:
        return value
    if where.rpartition(".")[2] == "eps" and kind is float:
        return parse_eps(value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise UsageError(f"expected {where} as {getattr(kind, '__name__', kind)}, got {value!r}")


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one nested table over another; where both hold a table the two are merged, else the upper one wins."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def parse_overrides(settings: Sequence[str]) -> dict[str, Any]:
    """Read ``a.b=value`` settings into a nested table.

    Args:
        settings: as typed after ``--set``; the value is TOML, or else plain text.

    Returns:
        The nested table.

    Raises:
        UsageError: a setting without ``=`` or without a name.
    """
    table: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not all(name.split(".")):
            raise UsageError(f"expected --set section.option=value, got {setting!r}")
        table = merge(table, nested(name, parse_value(text)))
    return table


def parse_value(text: str) -> Any:
    """Read one value as typed on the command line: TOML, or else plain text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def nested(name: str, value: Any) -> dict[str, Any]:
    """Give the nested table in which ``value`` stands at the dotted ``name``, whose parts may be quoted as in TOML."""
    for part in reversed(re.findall(r'"[^"]*"|[^.]+', name)):
        value = {part.strip('"'): value}
    return cast(dict[str, Any], value)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        RobustkitError: there is none, or it is not TOML (with line and column).
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RobustkitError(f"cannot read {path}: {error.strerror}; check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None


def plain(config: Any) -> Any:
    """Give a configuration as nested tables of plain values, without the unset ones."""
    if dataclasses.is_dataclass(config):
        values = ((one.name, getattr(config, one.name)) for one in dataclasses.fields(config))
        return {name: plain(value) for name, value in values if value is not None}
    if isinstance(config, Mapping):
        return {key: plain(value) for key, value in config.items()}
    return [plain(item) for item in config] if isinstance(config, tuple | list) else config


def digest(values: Any) -> str:
    """Give eight hexadecimal digits that change whenever a configuration does."""
    return hashlib.sha256(json.dumps(plain(values), sort_keys=True, default=str).encode()).hexdigest()[:8]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> list[str]:
    """List where two nested tables differ, as ``a.b: old -> new``."""
    found: list[str] = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{where}{key}.")
        elif before != after:
            found.append(f"{where}{key}: {before!r} -> {after!r}")
    return found


def _check(holds: bool, name: str, expected: str, value: object) -> None:
    if not holds:
        raise UsageError(f"expected {name} {expected}, got {value}")
