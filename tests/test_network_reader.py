import ast
import copy
from pathlib import Path

import pytest
import torch
from proofs import KINDS, network_of, shape_of, values
from torch import Tensor, nn

from robustkit import verifiers
from robustkit.errors import UnsupportedLayerError
from robustkit.models import Mixture
from robustkit.models.affine import Elementwise
from robustkit.verifiers.exact_network import Dense
from robustkit.verifiers.network_reader import read_network

TRUSTED = (
    "checker",
    "leaves",
    "ball_margins",
    "activation_lines",
    "rounding",
    "claims",
    "proof_tree",
    "sound_bounds",
    "exact_network",
    "network_reader",
    "layer_rules",
    "forward_code",
    "execution_error",
    "certificate",
    "certificate_file",
)


@pytest.mark.parametrize("name", TRUSTED)
def test_the_checker_shares_nothing_with_the_search(name: str) -> None:
    source = Path(verifiers.__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(source)))
    imported = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    own = {f"robustkit.verifiers.{one}" for one in TRUSTED}
    models = {f"robustkit.models.{one}" for one in ("affine", "architectures", "named")}
    known = own | models | {"robustkit.errors", "robustkit.files"}
    assert {one for one in imported if one.startswith("robustkit")} <= known
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert not attributes & {"autograd", "backward", "grad", "requires_grad_", "cuda"}


def twin(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).double()(x)


@pytest.mark.parametrize("kind", [*KINDS, "odd"])
def test_the_network_that_is_read_is_the_network(kind: str) -> None:
    model, shape = network_of(kind), shape_of(kind)
    x = torch.rand(5, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    network = read_network(model, shape)
    mine = values(network, x.flatten(1))[-1]
    # Normalize and batch norm are written in another form
    torch.testing.assert_close(mine, twin(model, x), rtol=1e-10, atol=1e-10)
    counts = {"mlp": 2, "conv": 3, "residual_named": 5, "odd": 2}
    assert len(network.activations()) == counts.get(kind, len(network.activations()))


def of_onnx() -> nn.Sequential:
    """The layers that networks from ONNX files have besides."""
    generator = torch.Generator().manual_seed(0)
    maps = [Elementwise(*torch.randn(2, *shape, generator=generator)) for shape in ((36,), (2, 3, 4))]
    middle = [nn.Unflatten(1, (1, 6, 6)), nn.Conv2d(1, 2, (4, 3)), maps[1], nn.ReLU()]
    return nn.Sequential(nn.Flatten(), maps[0], *middle, nn.Flatten(), nn.Linear(24, 3)).eval()


def test_maps_and_shapes_of_onnx_are_read() -> None:
    model, x = of_onnx(), torch.rand(5, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mine = values(read_network(model, (1, 6, 6)), x.flatten(1))[-1]
    torch.testing.assert_close(mine, twin(model, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [*KINDS, "odd"])
def test_transposes_are_transposes(kind: str) -> None:
    network, generator = read_network(network_of(kind), shape_of(kind)), torch.Generator().manual_seed(0)
    for number, step in enumerate(network.steps):
        if isinstance(step.operation, Dense):
            x = torch.randn(3, network.size(step.inputs[0]), dtype=torch.float64, generator=generator)
            a = torch.randn(3, network.size(number + 1), dtype=torch.float64, generator=generator)
            forward = (step.operation.times(step.operation.weight, x) * a).sum(dim=1)
            torch.testing.assert_close((step.operation.transpose(a) * x).sum(dim=1), forward)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def hooked() -> nn.Module:
    layer = nn.Linear(36, 2)
    layer.register_forward_hook(lambda module, inputs, output: -output)
    return layer


def patched() -> nn.Module:
    layer = nn.Linear(36, 2)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    return layer


def poisoned() -> nn.Module:
    layer = nn.Linear(36, 2)
    layer.bias.data[0] = torch.nan
    return layer


REFUSED = {
    "Doubled": [nn.Flatten(), Doubled(36, 2)],
    "hooks": [nn.Flatten(), hooked()],
    "without hooks": [nn.Flatten(), patched()],
    "finite": [nn.Flatten(), poisoned()],
    "Sigmoid": [nn.Sigmoid()],
    "MaxPool2d": [nn.MaxPool2d(2)],
    "a slope outside": [nn.LeakyReLU(1.5)],
    "windows": [nn.AvgPool2d(3, stride=1)],
    "padding": [nn.Conv2d(1, 1, 3, padding="same")],
    "zeros": [nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")],
    "dilation": [nn.Conv2d(1, 1, 3, dilation=2)],
    "Linear": [nn.Linear(6, 2)],
    "Elementwise": [Elementwise(torch.ones(6), torch.ones(6))],
    "a flat sample": [nn.Flatten(), nn.Unflatten(1, (-1, 6))],
    "as a whole": [nn.Unflatten(2, (2, 3))],
    "all dimensions": [nn.Flatten(2)],
    "no smaller than the kernel": [nn.Conv2d(1, 1, 9)],
    "no running statistics": [nn.BatchNorm2d(1, track_running_stats=False)],
    "Mixture": [Mixture(nn.Identity(), nn.Identity(), 0.8)],
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_carried_is_refused_by_name(message: str) -> None:
    model = nn.Sequential(*REFUSED[message]).eval()
    with pytest.raises(UnsupportedLayerError, match=message):
        read_network(model, (1, 6, 6))


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(1), nn.Dropout()])
def test_training_mode_is_refused(layer: nn.Module) -> None:
    with pytest.raises(UnsupportedLayerError, match="training mode"):
        read_network(nn.Sequential(layer).train(), (1, 6, 6))
