from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.errors import RobustkitError, UsageError
from robustkit.margins import logit_margins
from robustkit.models import ARCHITECTURES, Normalize, check_output, count_parameters, count_relus, make_model

GREY, COLOUR = (1, 28, 28), (3, 32, 32)


@pytest.mark.parametrize(
    ("name", "shape", "parameters", "relus"),
    [
        ("mnist_small", GREY, 166_406, 4_804),
        ("mnist_large", GREY, 1_974_762, 48_064),
        ("cifar_small", COLOUR, 214_918, 6_244),
        ("cifar_large", COLOUR, 2_466_858, 62_464),
        ("cifar_resnet", COLOUR, 1_145_410, 39_912),
        ("cifar_resnet_wong", COLOUR, 4_214_850, 107_496),
        ("cnn7", COLOUR, 17_190_602, 229_888),
        ("cnn7_bn", COLOUR, 17_192_650, 229_888),
        ("cnn5", GREY, 820_954, 17_760),
        ("cnn5_bn", GREY, 822_106, 17_760),
        ("digits_small", (1, 8, 8), 60_694, 1_636),
        ("mlp5", (1, 8, 8), 47_910, 500),
        ("mlp", (1, 8, 8), 17_610, 200),
        ("cnn_small", GREY, 166_406, 4_804),
    ],
)
def test_networks_have_the_published_size(name: str, shape: tuple[int, ...], parameters: int, relus: int) -> None:
    model = make_model(name, shape, 10)
    assert isinstance(model, nn.Sequential)
    assert (count_parameters(model), count_relus(model, shape)) == (parameters, relus)
    assert model(torch.zeros(2, *shape)).shape == (2, 10)


def test_the_imagenet200_network_counts_200_classes() -> None:
    model = make_model("imagenet200_resnet", (3, 64, 64), 200)
    assert (count_parameters(model), count_relus(model, (3, 64, 64))) == (739_720, 39_424)


def test_the_width_scales_a_network() -> None:
    model = make_model("cnn7_bn", (1, 8, 8), 10, width=4)
    assert isinstance(model, nn.Sequential)
    assert [one.out_channels for one in model if isinstance(one, nn.Conv2d)] == [4, 4, 8, 8, 8]
    assert count_relus(make_model("mlp5", (1, 8, 8), 10, width=7), (1, 8, 8)) == 35
    for name, width in (("mlp", 0), ("mlp", -2), ("package.module:factory", 3)):
        with pytest.raises(UsageError, match="expected width"):
            make_model(name, (1, 8, 8), 10, width=width)


@pytest.mark.parametrize("name", ["cnn5_bn", "cnn7", "cnn_small", "mlp"])
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 17, 40), (2, 5, 9)])
def test_sized_networks_take_any_shape(name: str, shape: tuple[int, ...]) -> None:
    assert make_model(name, shape, 7)(torch.zeros(2, *shape)).shape == (2, 7)


def test_all_architectures_are_plain_layers() -> None:
    plain = (nn.Conv2d, nn.Linear, nn.ReLU, nn.Flatten, nn.BatchNorm1d, nn.BatchNorm2d)
    for name, one in ARCHITECTURES.items():
        model = make_model(name, one.input_shape or GREY, 3, width=2)
        leaves = [layer for layer in model.modules() if not list(layer.children())]
        assert isinstance(model, nn.Sequential) and all(isinstance(layer, plain) for layer in leaves)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_can_be_bounded(name: str) -> None:
    from robustkit.bounds import BoundedNetwork, BoundMethod
    from robustkit.threat import LinfBall

    torch.manual_seed(0)
    x = torch.rand(2, *(ARCHITECTURES[name].input_shape or (1, 8, 8)))
    model = make_model(name, x.shape[1:], 5, width=2).eval()
    network, ball, y = BoundedNetwork(model, x), LinfBall(0.05), torch.tensor([0, 4])
    for method in (BoundMethod.IBP, BoundMethod.CROWN_IBP, BoundMethod.CROWN):
        margins = network.lower_margins(x, y, ball, method)
        for _ in range(20):
            assert (logit_margins(model(ball.sample(x)), y) - margins >= -1e-4).all(), method


def test_weights_come_from_the_global_seed() -> None:
    torch.manual_seed(3)
    first = make_model("mlp", (1, 4, 4), 2)
    torch.manual_seed(3)
    second = make_model("mlp", (1, 4, 4), 2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_normalize_by_hand() -> None:
    layer = Normalize((0.5, 0.25), (0.5, 2.0))
    x = torch.tensor([1.0, 1.25]).view(1, 2, 1, 1).expand(3, 2, 4, 5)
    assert torch.equal(layer(x), torch.tensor([1.0, 0.5]).view(1, 2, 1, 1).expand(3, 2, 4, 5))
    assert layer.mean.shape == layer.std.shape == (1, 2, 1, 1)
    assert not list(layer.parameters()) and set(layer.state_dict()) == {"mean", "std"}


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,), (0.0,)), ((0.5,), (-1.0,)), ((0.5, 0.5), (1.0,)), ((0.5,), (float("nan"),))]
)
def test_normalize_refuses(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="expected a mean and a std above 0 per channel"):
        Normalize(mean, std)


def test_normalisation_is_the_first_layer_only_where_it_does_something() -> None:
    model = make_model("cifar_small", COLOUR, 10, mean=(0.4, 0.5, 0.6), std=(0.2,) * 3)
    bare = make_model("cifar_small", COLOUR, 10, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert isinstance(model, nn.Sequential) and isinstance(model[0], Normalize)
    assert isinstance(bare, nn.Sequential) and isinstance(bare[0], nn.Conv2d)
    x = torch.rand(2, *COLOUR)
    by_hand = (x - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / 0.2
    torch.testing.assert_close(model(x), model[1:](by_hand))
    assert count_parameters(model) == count_parameters(bare)


def test_only_one_of_mean_and_std_is_enough() -> None:
    assert isinstance(make_model("mlp", (1, 4, 4), 2, std=(0.5,))[0], Normalize)  # type: ignore[index]
    assert isinstance(make_model("mlp", (1, 4, 4), 2, mean=(0.5,))[0], Normalize)  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("mnist_smal", GREY, {}, r"unknown model 'mnist_smal'; did you mean mnist_small.*package\.module:factory"),
        ("mnist_small", COLOUR, {}, r"expected images of shape \(1, 28, 28\) for mnist_small, got \(3, 32, 32\)"),
        ("digits_small", GREY, {}, r"expected images of shape \(1, 8, 8\) for digits_small"),
        ("cnn_small", (1, 3, 9), {}, "at least 4 pixels a side for cnn_small"),
        ("mlp", (28, 28), {}, r"expected an input shape \(C, H, W\), got \(28, 28\)"),
        ("mlp", (0, 4, 4), {}, r"expected an input shape \(C, H, W\)"),
        ("mlp", GREY, {"mean": (0.1, 0.1), "std": (1.0, 1.0)}, "mean and a std for each of 1 channels, got 2"),
    ],
)
def test_mistakes_are_named(name: str, shape: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_model(name, shape, 10, **options)


# The user's own networks.

SOURCE = """
from torch import nn

def net(): return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
def two(): return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
def needs(width): return nn.Linear(width, 3)
def fails(): raise ValueError("no weights\\nand more")
def number(): return 7
constant = 7
ready = net()
class Own(nn.Sequential):
    def __init__(self): super().__init__(nn.Flatten(), nn.Linear(16, 3))
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"robustkit_test_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize("factory", ["net", "ready", "Own"])
def test_a_factory_in_the_working_directory_is_found(own: str, factory: str) -> None:
    path = list(sys.path)
    model = make_model(f"{own}:{factory}", (1, 4, 4), 3)
    assert isinstance(model, nn.Sequential) and model(torch.zeros(5, 1, 4, 4)).shape == (5, 3)
    assert sys.path == path


def test_a_factory_brings_its_own_normalisation(own: str) -> None:
    model = make_model(f"{own}:net", (1, 4, 4), 3, mean=(0.5,), std=(0.5,))
    assert not any(isinstance(one, Normalize) for one in model.modules())


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("nets", r"unknown factory in \w+ 'nets'; did you mean net"),
        ("", "unknown factory in"),
        ("needs", r"needs\(\) to give a network, got TypeError: .*width"),
        ("fails", r"fails\(\) to give a network, got ValueError: no weights$"),
        ("number", r"expected an nn\.Module from \w+:number, got int"),
        ("constant", r"expected an nn\.Module from \w+:constant, got int"),
        ("two", r"expected logits of shape \(1, 3\) from the model on one image, got \(1, 2\)"),
    ],
)
def test_factory_mistakes_are_named(own: str, factory: str, message: str) -> None:
    with pytest.raises(RobustkitError, match=message):
        make_model(f"{own}:{factory}", (1, 4, 4), 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.such.module:net", "cannot import 'no.such.module' .*ModuleNotFoundError: No module named 'no'"),
        (":net", "cannot import ''"),
        ("broken_own:net", "cannot import 'broken_own' .*ZeroDivisionError"),
    ],
)
def test_modules_that_cannot_be_imported_are_named(name: str, message: str, own: str) -> None:
    Path("broken_own.py").write_text("1 / 0")
    with pytest.raises(UsageError, match=message):
        make_model(name, (1, 4, 4), 3)


class Noisy(nn.Module):
    """Draws random numbers, keeps running statistics, and mixes modes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm2d(1), nn.Dropout(), nn.Linear(16, 3)
        self.drop.eval()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.drop(self.norm(x + torch.rand_like(x))).flatten(1))
        return out


def test_check_output_leaves_no_trace() -> None:
    model = Noisy()
    modes = [one.training for one in model.modules()]
    state = {name: one.clone() for name, one in model.state_dict().items()}
    before = torch.get_rng_state()
    check_output(model, (1, 4, 4), 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert [one.training for one in model.modules()] == modes == [True, True, False, True]
    assert all(torch.equal(one, state[name]) for name, one in model.state_dict().items())


def test_check_output_restores_the_mode_of_a_model_that_fails() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(
        RobustkitError, match=r"expected a model for images of shape \(1, 4, 4\), got RuntimeError"
    ) as caught:
        check_output(model, (1, 4, 4), 3)
    assert model.training and "\n" not in str(caught.value)


def test_check_output_follows_the_type_of_the_weights() -> None:
    check_output(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double(), (1, 4, 4), 3)


def test_check_output_refuses_what_is_no_tensor() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(RobustkitError, match=r"expected logits of shape \(1, 3\) .* got tuple"):
        check_output(Pair(), (1, 4, 4), 3)


def test_count_relus_counts_every_call_and_leaves_no_hook() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), relu, nn.Linear(5, 4), relu)
    assert count_relus(model, (1, 4, 4)) == 9
    assert not relu._forward_hooks
