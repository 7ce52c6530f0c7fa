"""Cost of a training step by each method, as a ratio to a natural step and to PGD-40 adversarial training."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks import networks
from benchmarks.timing import side_by_side
from robustkit.threat import LinfBall
from robustkit.training import Moment, Trainee, make_method

BATCH = 50
METHODS: dict[str, tuple[str, dict[str, object]]] = {
    "natural": ("natural", {}),
    "PGD-40": ("pgd", {"steps": 40}),
    "IBP": ("ibp", {}),
    "MixTrain k=1": ("mixtrain", {"k": 1}),
    "MixTrain k=5": ("mixtrain", {"k": 5}),
    "MixTrain k=20": ("mixtrain", {"k": 20}),
    f"full batch (k={BATCH})": ("mixtrain", {"k": BATCH, "mixing": 1.0}),
}
STEPS = 10


def table(rounds: int) -> list[str]:
    """Time ten steps of each method; MixTrain's mixing probability of 0.8 is part of its cost."""
    data = networks.dataset()
    x, y = data.train.x[:BATCH].to(networks.device()), data.train.y[:BATCH].to(networks.device())
    seconds = side_by_side({name: _steps(*METHODS[name], x, y) for name in METHODS}, rounds)
    lines = ["| method | ms a step | natural steps | of PGD-40 |", "| --- | ---: | ---: | ---: |"]
    for name, one in seconds.items():
        natural, pgd = one / seconds["natural"], one / seconds["PGD-40"]
        lines.append(f"| {name} | {1000 * one / STEPS:.1f} | {natural:.1f} | {pgd:.2f} |")
    return [f"One training step, {data.model} on {data.name}, batch {BATCH}, eps {data.eps:.3g}:", "", *lines]


def _steps(method: str, options: dict[str, object], x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    model = networks.fresh().train()
    trainee, chosen = Trainee(model, x[:1]), make_method(method, options)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    ball = LinfBall(networks.dataset().eps)

    def work() -> None:
        generator = torch.Generator().manual_seed(0)
        for step in range(STEPS):
            loss = chosen.loss(trainee, x, y, Moment(ball, 0.5, generator, step))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return work
