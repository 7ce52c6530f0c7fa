"""Networks ready to be evaluated: trained here, found in a run directory, or brought along as a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from robustkit import models
from robustkit._process import use_full_precision
from robustkit.board import board
from robustkit.config import Config, digest, plain
from robustkit.data import Dataset, load_dataset
from robustkit.errors import UsageError
from robustkit.files import replacing
from robustkit.progress import Reporter
from robustkit.results import Subject
from robustkit.runs import RESULTS, Run, environment, what_training_reads
from robustkit.training import STATE_FILE, EpochMetrics, make_method, train
from robustkit.world import World


@dataclass(frozen=True)
class Network:
    """A network ready to be evaluated.

    Attributes:
        run: where its results go.
        config: the resolved configuration.
        model: in eval mode, on its device.
        dataset: what it is evaluated on.
        subject: what every row says of it.
    """

    run: Run
    config: Config
    model: nn.Module
    dataset: Dataset
    subject: Subject

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def world(self) -> World:
        """The processes that evaluate it together; the first one writes and tells."""
        return World.join(self.device)


def set_up(config: Config) -> torch.device:
    """Choose the device and seed torch.

    Raises:
        UsageError: a GPU is asked for where there is none.
    """
    found = torch.cuda.is_available()
    if config.device == "cuda" and not found:
        raise UsageError("expected a CUDA device for --device cuda, found none; use --device auto or cpu")
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if config.deterministic != torch.are_deterministic_algorithms_enabled():  # the call loads half of torch
        torch.use_deterministic_algorithms(config.deterministic)
    use_full_precision()
    torch.manual_seed(config.seed)
    if config.device == "cpu" or not found:
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def load_data(config: Config) -> Dataset:
    """Load the dataset a configuration names."""
    data = config.data
    return load_dataset(data.name, root=data.root, download=data.download, train_n=data.train_n)


def resolve(config: Config, dataset: Dataset) -> Config:
    """Fill in what depends on the dataset: the architecture, and the radius to train for and to evaluate at."""
    model = replace(config.model, name=config.model.name or dataset.model)
    eps = dataset.eps if config.train.eps is None else config.train.eps
    attack, verify = (replace(one, eps=one.eps or (eps,)) for one in (config.attack, config.verify))
    return replace(config, model=model, train=replace(config.train, eps=eps), attack=attack, verify=verify)


def run_name(config: Config, dataset: Dataset) -> str:
    """Name the run directory of a resolved configuration: what matters in words, the rest in a digest."""
    code = digest(what_training_reads(plain(config)))
    return f"{dataset.name}-{config.train.method}-eps{config.train.eps:.4g}-seed{config.seed}-{code}"


def train_network(config: Config, root: Path, reporter: Reporter, *, out: Path | None = None) -> Network:
    """Train a network, go on with one that was interrupted, or open one that is trained.

    Args:
        config: the configuration.
        root: folder for run directories.
        reporter: told of the progress.
        out: the run directory itself, instead of one under ``root``.

    Returns:
        The trained network.

    Raises:
        UsageError: a checkpoint is named, which only an evaluation reads.
        RobustkitError: anything the user can mend; see the message.
    """
    if config.model.checkpoint:
        raise UsageError(
            f"expected no model.checkpoint to train, got {config.model.checkpoint}: training starts from fresh "
            "weights; leave it out, or evaluate it by `robustkit evaluate --model NAME --checkpoint FILE`"
        )
    dataset = load_data(config)
    config = resolve(config, dataset)
    run = Run(out or root / run_name(config, dataset))
    for name, options in config.train.options.items():  # also those of methods that are not used here
        make_method(name, options)
    method = make_method(config.train.method, config.train.options.get(config.train.method))
    device = set_up(config)
    if not len(dataset.train):
        raise UsageError(f"expected training samples in {dataset.name}, found none; it can only be evaluated on")
    world = World.join(device)
    model = _make_model(config, dataset)
    if method.initialisation == "ibp":
        models.initialise_for_intervals(model)
    model.to(device)
    record = _recorder(run, config) if world.first else lambda history: None
    world.from_first(lambda: run.open(config))
    _give_to_all(run, world)
    if not world.from_first(lambda: run.trained):
        history = train(
            model,
            replace(dataset, val=dataset.val.take(config.data.val_n)),
            method,
            config.train,
            seed=config.seed,
            folder=run.path,
            reporter=reporter,
            record=record,
            world=world,
        )
        world.from_first(lambda: _save(run, model, history, config, dataset))
        _give_to_all(run, world)
    return open_run(run, config, dataset)


def _give_to_all(run: Run, world: World) -> None:
    """Let every process find in the run directory what the first one does, where hosts have no common file system."""
    if world.size == 1:
        return
    files = world.from_first(lambda: {one.name: one.read_bytes() for one in run.path.iterdir() if one.is_file()})
    if STATE_FILE not in files:
        (run.path / STATE_FILE).unlink(missing_ok=True)
    for name, content in files.items():
        path = run.path / name
        if not (path.is_file() and path.read_bytes() == content):
            with replacing(path, "wb") as file:
                file.write(content)


def _recorder(run: Run, config: Config) -> Callable[[list[EpochMetrics]], None]:
    """Give what keeps the history of a training after every epoch."""
    show = board(run.path) if config.train.tensorboard else lambda history: None

    def record(history: list[EpochMetrics]) -> None:
        run.write_history(history)
        show(history)

    return record


def _save(run: Run, model: nn.Module, history: list[EpochMetrics], config: Config, dataset: Dataset) -> None:
    """Save a trained network; the state that an interrupted training would go on from is then no longer needed."""
    run.write_history(history)
    models.save_checkpoint(run.path, model, _card(config, dataset))
    (run.path / STATE_FILE).unlink(missing_ok=True)


def open_run(run: Run, config: Config | None = None, dataset: Dataset | None = None) -> Network:
    """Open a trained run for evaluation.

    Args:
        run: its directory.
        config: instead of its own, for another device or other evaluations.
        dataset: where it is loaded already.

    Raises:
        RobustkitError: training has not finished there, or its files are damaged.
    """
    config = config or run.config()
    evaluated_only = not run.trained and (run.path / RESULTS).exists()
    if config.model.checkpoint or (evaluated_only and models.makes_its_weights(config.model.name)):
        return open_checkpoint(config, run.path.parent, out=run.path)
    model, card = models.load_checkpoint(run.path)
    dataset = dataset or load_data(config)
    check_fit(card, dataset)
    subject = Subject(run.name, models.fingerprint(model), card.method, card.eps, dataset.name, card.seed)
    return Network(run, config, model.to(set_up(config)), dataset, subject)


def open_checkpoint(config: Config, root: Path, *, out: Path | None = None) -> Network:
    """Open weights that were trained elsewhere.

    Args:
        config: names the architecture and the checkpoint.
        root: folder for run directories.
        out: the run directory itself, instead of one under ``root``.

    Raises:
        RobustkitError: the weights cannot be read or do not fit the architecture.
    """
    dataset = load_data(config)
    config = resolve(config, dataset)
    device = set_up(config)
    model = _make_model(config, dataset).eval()
    if config.model.checkpoint:
        models.load_weights(model, config.model.checkpoint, architecture=config.model.name)
    code = models.fingerprint(model)
    stem = Path(config.model.checkpoint or config.model.name.replace(":", "-")).stem
    run = Run(out or root / f"{dataset.name}-{stem}-{code}")
    run.open(config)
    subject = Subject(run.name, code, "", float("nan"), dataset.name, config.seed)
    return Network(run, config, model.to(device), dataset, subject)


def _make_model(config: Config, dataset: Dataset) -> nn.Module:
    return models.make_model(
        config.model.name,
        dataset.input_shape,
        dataset.classes,
        mean=dataset.mean,
        std=dataset.std,
        width=config.model.width,
    )


def _card(config: Config, dataset: Dataset) -> models.ModelCard:
    return models.ModelCard(
        architecture=config.model.name,
        input_shape=dataset.input_shape,
        classes=dataset.classes,
        dataset=dataset.name,
        mean=dataset.mean,
        std=dataset.std,
        method=config.train.method,
        eps=0.0 if config.train.method == "natural" else config.train.eps or 0.0,  # it trains for no radius
        seed=config.seed,
        versions=environment()["packages"],
        width=config.model.width,
    )


def check_fit(card: models.ModelCard, dataset: Dataset) -> None:
    """Refuse a dataset that the network was not made for.

    Raises:
        UsageError: images of another shape, or another number of classes.
    """
    if (tuple(card.input_shape), card.classes) != (dataset.input_shape, dataset.classes):
        raise UsageError(
            f"expected images of shape {tuple(card.input_shape)} in {card.classes} classes for this network, "
            f"trained on {card.dataset}; {dataset.name} has {dataset.input_shape} in "
            f"{dataset.classes}; pass a fitting --dataset"
        )
