"""A traced graph computes what the network does, and its maps run backward rightly."""

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustkit.bounds.graph import Activation, Sum, trace
from robustkit.bounds.split_network import SplitNetwork
from robustkit.errors import UnsupportedLayerError
from robustkit.models.affine import Elementwise
from robustkit.models.architectures import Normalize
from robustkit.models.named import Residual
from robustkit.threat import LinfBall

CARRIED = ["mlp", "conv", "batch_norm", "residual", "average_pool", "leaky_relu"]


class OwnForward(nn.Module):
    """Functional calls, reshapes by the batch size, and a value that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3, padding=1, groups=1), nn.Conv2d(2, 2, 3, padding=2, dilation=2)
        self.last = nn.Linear(72, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = functional.relu(self.first(x))
        z = torch.relu(self.second(z) + z)
        out: Tensor = self.last(z.view(z.size(0), -1))
        return out


@pytest.mark.parametrize("kind", CARRIED)
def test_a_graph_computes_what_the_network_does(kind: str) -> None:
    model, x = networks.make(kind), networks.inputs(5)
    with torch.no_grad():
        assert torch.allclose(trace(model, x[:1]).values(x)[-1], model(x), atol=1e-5)


def test_a_forward_of_ones_own_is_followed() -> None:
    torch.manual_seed(0)
    model, x = OwnForward(), torch.rand(4, 1, 6, 6)
    graph = trace(model, x[:1])
    with torch.no_grad():
        assert torch.allclose(graph.values(x)[-1], model(x), atol=1e-5)
    assert len(graph.activations()) == 2
    assert sum(isinstance(step.operation, Sum) for step in graph.steps) == 1


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.Conv2d(2, 4, (2, 3), stride=(1, 2), padding=(0, 1), groups=2),
        nn.Conv2d(2, 3, 3, dilation=2, bias=False),
        nn.AvgPool2d(2),
        nn.AvgPool2d(3, stride=2, padding=1),
        nn.BatchNorm2d(2),
        Normalize([0.3, 0.1], [0.2, 0.7]),
        Elementwise(torch.rand(2, 7, 6), torch.rand(2, 7, 6)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_coefficients_run_back_through_every_map(layer: nn.Module) -> None:
    torch.manual_seed(1)
    x = torch.rand(3, 2, 7, 6)
    model = nn.Sequential(layer, nn.Flatten()).eval()
    operation = trace(model, x[:1]).steps[0].operation
    assert not isinstance(operation, Activation | Sum)
    with torch.no_grad():
        zero, out = layer(torch.zeros_like(x)), layer(x)
        given = torch.randn_like(out).requires_grad_()
        ahead = (given * (out - zero)).flatten(1).sum(1)
    back = operation.back(given)
    assert torch.allclose((back * x).flatten(1).sum(1), ahead, atol=1e-4)
    assert torch.autograd.grad(back.sum(), given)[0].shape == given.shape
    with torch.no_grad():
        radius = 0.1 * torch.rand_like(x)
        moved = layer(x + radius * (2 * torch.rand_like(x) - 1)) - out
        assert (moved.abs() <= operation.spread(radius) + 1e-5).all()


@pytest.mark.parametrize("kind", CARRIED)
@pytest.mark.parametrize("tighten", [0, 10])
def test_hidden_bounds_hold_for_samples_and_tightening_only_shrinks_them(kind: str, tighten: int) -> None:
    model, x = networks.make(kind), networks.inputs(1)
    graph, ball = trace(model, x), LinfBall(0.1)
    network = SplitNetwork(graph, *ball.box(x), tighten=tighten)
    with torch.no_grad():
        values = graph.values(ball.sample(x.expand(4000, *x.shape[1:]), torch.Generator().manual_seed(0)))
    for at, one in network.unstable.items():
        seen = values[graph.steps[at].inputs[0]].flatten(1)
        on, off = one.stable == 1.0, (one.stable == one.slope).index_fill(0, one.places, value=False)
        on = on.index_fill(0, one.places, value=False)
        assert (seen[:, one.places] >= one.lb - 1e-5).all()
        assert (seen[:, one.places] <= one.ub + 1e-5).all()
        assert (seen[:, on] >= -1e-5).all()
        assert (seen[:, off] <= 1e-5).all()
    assert network.count <= SplitNetwork(graph, *ball.box(x)).count


def test_rows_are_bounded_below_every_sample() -> None:
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 2, 3, padding=1), nn.LeakyReLU(0.2), Residual(2, 3, down=True), nn.AvgPool2d(3)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(3, 2)).eval()
    x, ball = torch.rand(1, 1, 6, 6), LinfBall(0.2)
    network = SplitNetwork(trace(model, x), *ball.box(x), tighten=10)
    rows = torch.eye(2)
    bounds = [network.bounded(network.whole(rows, torch.zeros(2)), iterations=steps).lower for steps in (0, 30)]
    with torch.no_grad():
        seen = model(ball.sample(x.expand(4000, *x.shape[1:]), torch.Generator().manual_seed(0))).amin(0)
    assert (bounds[0] <= bounds[1]).all()
    assert (bounds[1] <= seen + 1e-5).all()
    assert (bounds[1] > seen - 5.0).all()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Softmax(dim=1)), "Softmax with its settings at '2'"),
        (nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1, 2)), "MaxPool2d with its settings at '0'"),
        (nn.Sequential(nn.Conv2d(1, 2, 1)), "one vector"),
    ],
)
def test_what_is_not_piecewise_linear_is_refused(model: nn.Module, reason: str) -> None:
    with pytest.raises(UnsupportedLayerError, match=reason):
        trace(model, torch.rand(1, 1, 2, 2))


def test_hooks_and_code_that_asks_for_values_are_refused() -> None:
    class Asks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) if x.sum() > 0 else -x.flatten(1)

    with pytest.raises(UnsupportedLayerError, match="cannot follow the code"):
        trace(Asks(), torch.rand(1, 1, 2, 2))
    hooked = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    hooked[1].register_forward_hook(lambda *_: torch.zeros(1))
    with pytest.raises(UnsupportedLayerError, match="hooks"):
        trace(hooked, torch.rand(1, 1, 2, 2))
