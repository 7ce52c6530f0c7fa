"""What training came to, in a line for each network and one for all its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from robustkit.config import digest, plain
from robustkit.errors import RobustkitError
from robustkit.networks import Network
from robustkit.runs import what_training_reads


def describe_training(network: Network) -> str:
    """Say how long training took and how the network stands on validation samples after its last epoch."""
    history = network.run.history()
    if not len(history):
        raise RobustkitError(f"{network.run.path} is trained, but its history.jsonl is missing; restore it from a copy")
    return (
        f"{_what(network)}: {len(history)} epochs in {history['seconds'].sum():.1f} s; "
        f"{_validated(network)}{_figures(history.iloc[[-1]])}"
    )


def describe_seeds(networks: Sequence[Network], swept: Sequence[str] = ()) -> list[str]:
    """Say how networks stand that differ only by seed: mean and sample standard deviation over the seeds.

    Args:
        networks: trained ones; those of one recipe are taken together.
        swept: dotted names of options that tell recipes apart.

    Returns:
        A line for each recipe that was trained with several seeds.
    """
    groups: dict[str, list[Network]] = {}
    for network in networks:
        recipe = {**what_training_reads(plain(network.config)), "seed": None}
        groups.setdefault(digest(recipe), []).append(network)
    return [_over_seeds(group, swept) for group in groups.values() if len(group) > 1]


def _over_seeds(group: Sequence[Network], swept: Sequence[str]) -> str:
    last = pd.concat([network.run.history().iloc[[-1]] for network in group])
    values = {name.split(".")[-1]: _option(group[0], name) for name in swept if name != "seed"}
    told = "".join(f", {name}={value}" for name, value in values.items() if value is not None)
    seeds = ", ".join(str(network.config.seed) for network in group)
    return (
        f"{_what(group[0])}{told}: {len(group)} seeds ({seeds}), mean ± standard deviation "
        f"{_validated(group[0])}{_figures(last)}"
    )


def _figures(last: pd.DataFrame) -> str:
    """Write clean and verified accuracy where measured, with their spread where there are several."""
    texts = []
    for name, column in (("clean", "val_clean"), ("verified", "val_vra")):
        values = last[column]
        if values.notna().all():
            spread = f" ± {values.std(ddof=1):.2%}" if len(values) > 1 else ""
            texts.append(f"{name} {values.mean():.2%}{spread}")
    return ", ".join(texts)


def _what(network: Network) -> str:
    train = network.config.train
    return f"{train.method} on {network.dataset.name} at eps {train.eps:.4g}"


def _option(network: Network, name: str) -> Any:
    found = plain(network.config)
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _validated(network: Network) -> str:
    """Say on how many samples was validated, or why on none."""
    count = min(len(network.dataset.val), network.config.data.val_n)
    if count:
        return f"on {count} validation samples "
    why = "data.val_n is 0" if not network.config.data.val_n else f"{network.dataset.name} has no samples for it"
    return f"nothing was validated: {why}"
