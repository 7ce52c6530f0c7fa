"""Networks of torchvision: made, trained, saved and loaded like any other; bounds are refused by layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from robustkit.bounds import BoundedNetwork
from robustkit.cli import cli
from robustkit.errors import RobustkitError, UnsupportedLayerError, UsageError
from robustkit.models import Normalize, load_checkpoint, make_model
from robustkit.models.library import from_torchvision

SMALL = "torchvision:shufflenet_v2_x0_5"


def first_convolution(model: nn.Module) -> nn.Conv2d:
    return next(one for one in model.modules() if isinstance(one, nn.Conv2d))


def test_it_is_torchvision_s_own_behind_the_normalisation() -> None:
    torch.manual_seed(0)
    model = make_model(SMALL, (3, 32, 32), 7, mean=(0.4, 0.5, 0.6), std=(0.2,) * 3).eval()
    torch.manual_seed(0)
    bare = from_torchvision(SMALL, 3, 7).eval()
    assert isinstance(model, nn.Sequential) and isinstance(model[0], Normalize)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    by_hand = (x - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / 0.2
    assert model(x).shape == (2, 7)
    torch.testing.assert_close(model(x), bare(by_hand))


@pytest.mark.parametrize("channels", [1, 4])
def test_the_first_convolution_takes_the_channels_of_the_images(channels: int) -> None:
    torch.manual_seed(0)
    model, usual = make_model(SMALL, (channels, 32, 32), 5), from_torchvision(SMALL, 3, 5)
    adapted, before = first_convolution(model), first_convolution(usual)
    assert adapted.weight.shape == (before.out_channels, channels, *before.kernel_size)
    assert (adapted.stride, adapted.padding) == (before.stride, before.padding)
    assert (adapted.bias is None) == (before.bias is None)
    assert model.eval()(torch.rand(2, channels, 32, 32)).shape == (2, 5)


def test_mistakes_are_named() -> None:
    with pytest.raises(UsageError, match="unknown torchvision model 'resnet81'; did you mean resnet18"):
        make_model("torchvision:resnet81", (3, 32, 32), 10)
    with pytest.raises(UsageError, match="unknown torchvision model 'fcn_resnet50'"):  # it classifies pixels
        make_model("torchvision:fcn_resnet50", (3, 32, 32), 10)
    with pytest.raises(RobustkitError, match=r"expected a model for images of shape \(1, 8, 8\), got RuntimeError"):
        make_model("torchvision:squeezenet1_1", (1, 8, 8), 10)
    with pytest.raises(UsageError, match="expected width"):
        make_model(SMALL, (3, 32, 32), 10, width=4)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("resnet18", "MaxPool2d at '0.maxpool'"), ("mnasnet0_5", "Conv2d at '0.layers.3': .* groups=1")],
)
def test_layers_that_have_no_bounds_are_refused_by_name(name: str, layer: str) -> None:
    model = make_model(f"torchvision:{name}", (1, 32, 32), 10).eval()
    with pytest.raises(UnsupportedLayerError, match=f"cannot bound {layer}"):
        BoundedNetwork(model, torch.rand(1, 1, 32, 32))


def test_one_trains_is_attacked_and_loads_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["--set", "train.epochs=1", "--set", "data.train_n=100", "--model", SMALL, "--out"]
    refused = CliRunner().invoke(cli, ["train", *tiny, "runs/mixtrain"])
    assert refused.exit_code == 1 and "cannot bound MaxPool2d at '0.maxpool'" in refused.stderr
    assert not list(Path("runs/mixtrain").glob("*.safetensors")) and not list(Path("runs").rglob("history.jsonl"))
    pgd = ["--method", "pgd", "--set", "train.options.pgd.steps=1"]
    assert CliRunner().invoke(cli, ["train", *tiny, "runs/net", *pgd]).exit_code == 0
    model, card = load_checkpoint("runs/net")
    assert card.architecture == SMALL and first_convolution(model).in_channels == 1
    attacked = CliRunner().invoke(cli, ["attack", "--method", "fgsm", "--n", "20"])
    assert attacked.exit_code == 0, attacked.output
    verified = CliRunner().invoke(cli, ["verify", "--n", "5"])
    assert verified.exit_code == 1 and "cannot bound MaxPool2d" in verified.stderr
