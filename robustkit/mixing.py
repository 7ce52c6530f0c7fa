"""A run directory for the mixture of two trained networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from robustkit import models
from robustkit.config import ModelConfig
from robustkit.errors import UsageError
from robustkit.networks import Network, check_fit, load_data, open_run
from robustkit.runs import Run, environment


def mix_networks(natural: Run, robust: Run, weight: float, root: Path, *, out: Path | None = None) -> Network:
    """Mix two trained networks into a run of their own, or open the one that stands.

    It is evaluated as its robust network is: on the same samples, at the same radii.

    Args:
        natural: run of the accurate network.
        robust: run of the one that certificates rest on.
        weight: of the robust network, in (0, 1].
        root: folder for run directories.
        out: the run directory itself, instead of one under ``root``.

    Returns:
        The mixture.

    Raises:
        UsageError: the networks take other images or classes, one is a mixture itself, the weight is no share, or
            ``out`` holds something else.
        RobustkitError: a run is not trained, or its files are damaged.
    """
    parts = [models.load_checkpoint(one.path) for one in (natural, robust)]
    (standard, standard_card), (protected, protected_card) = parts
    for run, (_, card) in zip((natural, robust), parts, strict=True):
        if card.architecture == models.MIXTURE:
            raise UsageError(f"expected two single networks to mix, got the mixture {run.path}; name its parts instead")
    if models.fingerprint(standard) == models.fingerprint(protected):
        raise UsageError(
            f"expected two different networks to mix, got {natural.path} and {robust.path}, which are alike"
        )
    config = robust.config()
    dataset = load_data(config)
    check_fit(standard_card, dataset)
    check_fit(protected_card, dataset)
    model = models.Mixture(standard, protected, weight).eval()
    code = models.fingerprint(model)
    run = Run(out or root / f"{dataset.name}-mixture-a{weight:.4g}-{code}")
    _refuse_other(run, code)
    run.open(replace(config, model=ModelConfig(name=models.MIXTURE)))
    if not run.trained:
        models.save_checkpoint(run.path, model, _card(standard_card, protected_card, weight))
    return open_run(run, dataset=dataset)


def _card(natural: models.ModelCard, robust: models.ModelCard, weight: float) -> models.ModelCard:
    return replace(
        robust,
        architecture=models.MIXTURE,
        method="",  # it was not trained itself
        versions=environment()["packages"],
        width=None,
        parts=(natural, robust),
        weight=weight,
    )


def _refuse_other(run: Run, code: str) -> None:
    """Refuse a directory that holds another network: its results would be taken for those of this one."""
    if run.trained and models.fingerprint(models.load_checkpoint(run.path)[0]) != code:
        raise UsageError(f"{run.path} holds another network; give another --out")
