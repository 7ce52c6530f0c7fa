from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from torch import nn

from robustkit.bounds import BoundedNetwork
from robustkit.config import configuration
from robustkit.margins import margin_specification
from robustkit.models import initialise_for_intervals, make_model
from robustkit.models.named import Residual
from robustkit.networks import train_network
from robustkit.progress import Silent
from robustkit.threat import LinfBall


def made(name: str, *, anew: bool = True) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make_model(name, (1, 28, 28), 10)
        if anew:
            initialise_for_intervals(model)
    return model


def test_every_weight_but_the_last_has_the_deviation_of_its_fan_in() -> None:
    model, before = made("mnist_small"), made("mnist_small", anew=False)
    assert isinstance(model, nn.Sequential)
    for place, fan_in in ((0, 16), (2, 16 * 16), (5, 32 * 7 * 7)):
        weight, count = model[place].weight, model[place].weight.numel()
        deviation = math.sqrt(2 * math.pi) / fan_in
        assert abs(weight.mean().item()) < 5 * deviation / math.sqrt(count)
        assert abs(weight.std().item() / deviation - 1) < 5 / math.sqrt(2 * count)
        assert not torch.equal(weight, before.state_dict()[f"{place}.weight"])
        assert torch.equal(model[place].bias, before.state_dict()[f"{place}.bias"]), "biases stay"
    for name in ("7.weight", "7.bias"):
        assert torch.equal(model.state_dict()[name], before.state_dict()[name]), "the last layer stays"


def test_batch_norm_stays() -> None:
    model = networks.make("batch_norm")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    initialise_for_intervals(model)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.weight", "4.weight"}


def test_both_convolutions_that_feed_a_sum_are_halved() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(Residual(8, 16, down=True), nn.Flatten(), nn.Linear(256, 10))
        block = model[0]
        long, short = block.long[-1], block.short
        biases = [long.bias.clone(), short.bias.clone()]
        initialise_for_intervals(model)
    for layer, fan_in, factor in ((block.long[0], 8 * 16, 1.0), (long, 16 * 9, 0.5), (short, 8 * 4, 0.5)):
        deviation = factor * math.sqrt(2 * math.pi) / fan_in
        assert abs(layer.weight.std().item() / deviation - 1) < 5 / math.sqrt(2 * layer.weight.numel())
    assert torch.equal(long.bias, 0.5 * biases[0]) and torch.equal(short.bias, 0.5 * biases[1])


def test_intervals_keep_their_width_where_torchs_own_weights_let_them_explode() -> None:
    x = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    lb, ub = LinfBall(0.3).box(x)
    grown = {}
    for anew in (False, True):
        model = made("mlp5", anew=anew)
        _, layers = BoundedNetwork(model, x[:1]).interval_pass(lb, ub, margin_specification(torch.zeros(8).long(), 10))
        widths = [(upper - lower).mean().item() for lower, upper in layers]
        grown[anew] = widths[-1] / widths[0]
    assert 0.2 < grown[True] < 5.0
    assert grown[False] > 30.0


@pytest.mark.parametrize("start", ["ibp", "default"])
def test_training_begins_with_the_weights_its_method_asks_for(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[nn.Module] = []

    def train(model: nn.Module, *_: Any, **__: Any) -> None:
        begun.append(model)
        raise KeyboardInterrupt

    monkeypatch.setattr("robustkit.networks.train", train)
    options = {"fast-ibp": {"initialisation": start}}
    config = configuration({"model": {"name": "mlp"}, "train": {"method": "fast-ibp", "options": options}})
    with pytest.raises(KeyboardInterrupt):
        train_network(config, tmp_path, Silent())
    (model,) = begun
    deviation = math.sqrt(2 * math.pi) / 64 if start == "ibp" else 1 / math.sqrt(3 * 64)
    assert model.get_parameter("1.weight").std().item() == pytest.approx(deviation, rel=0.05)
