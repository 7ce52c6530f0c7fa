"""Run the benchmarks: ``python -m benchmarks [PART ...] [--rounds N]``; the parts are the names in ``PARTS``."""

from __future__ import annotations

import click
import torch

from benchmarks import attacks, battery, branches, engine, growth, passes, scaling, training, verification
from robustkit.runs import hardware

PARTS = {
    "training": training.table,
    "passes": passes.table,
    "scaling": scaling.table,
    "attacks": attacks.table,
    "battery": battery.table,
    "verification": verification.table,
    "engine": engine.table,
    "branches": branches.table,
    "growth": growth.table,
}


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)))
@click.option("--rounds", default=5, show_default=True, help="How often each candidate is timed.")
def main(parts: tuple[str, ...], rounds: int) -> None:
    """Time what is asked for, or everything, and print tables in Markdown."""
    click.echo(f"{hardware()}, torch {torch.__version__}, median of {rounds} rounds, candidates in turn")
    for name in parts or PARTS:
        click.echo("\n" + "\n".join(PARTS[name](rounds)))


if __name__ == "__main__":
    main()
