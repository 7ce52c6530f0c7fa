"""The checker follows a forward of a user's own, and is not taken in by code that does more than it shows."""

import copy
from collections.abc import Callable

import networks
import pytest
import torch
from proofs import values
from torch import Tensor, nn
from torch.nn import functional

from robustkit.bounds.graph import trace
from robustkit.errors import UnsupportedLayerError
from robustkit.models.named import Residual
from robustkit.verifiers.exact_network import Activation
from robustkit.verifiers.network_reader import read_network

SHAPE = (1, 6, 6)
Code = Callable[["Own", Tensor], Tensor]


class Block(nn.Module):
    """A residual block as image networks have it: activations in place, a sum in place, one layer used twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.norm, self.relu = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.norm(self.first(x)))
        out = self.second(out)
        out += x
        return self.relu(out)  # type: ignore[no-any-return]


class Own(nn.Module):
    """A network whose forward does what it is given."""

    def __init__(self, code: Code) -> None:
        super().__init__()
        self.code, self.calls, self.gain = code, 0, torch.tensor(2.0)
        self.register_buffer("seen", torch.zeros(()))
        self.conv, self.block, self.relu = nn.Conv2d(1, 2, 3, padding=1), Block(2), nn.ReLU()
        self.early, self.last = nn.ReLU(inplace=True), nn.Linear(72, 3)
        self.listed = [nn.Linear(3, 3)]

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, x)


def make(code: Code) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Own(code).eval()


def blocks(net: Own, x: Tensor) -> Tensor:
    z = net.block(net.block(functional.relu(net.conv(x))))
    return net.last(z.view(z.size(0), -1))  # type: ignore[no-any-return]


def mixed(net: Own, x: Tensor) -> Tensor:
    inner = functional.leaky_relu(net.conv(x), 0.1)
    both = torch.add(inner, net.relu(net.block(inner) + inner).relu_())
    doubled = both + both
    return net.last(torch.flatten(doubled, 1).reshape(-1, 8, 9).view(x.shape[0], 72))  # type: ignore[no-any-return]


def sizes(net: Own, x: Tensor) -> Tensor:
    z = torch.relu(net.conv(x))
    z = z.reshape((z.size()[0], z.shape[1], -1)).flatten(start_dim=1)
    return torch.relu(net.last(torch.nn.functional.relu(z, inplace=True)))


@pytest.mark.parametrize("code", [blocks, mixed, sizes])
def test_a_forward_of_ones_own_is_read_as_it_computes(code: Code) -> None:
    model = make(code)
    x = torch.randn(5, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(x)
    torch.testing.assert_close(values(read_network(model, SHAPE), x.flatten(1))[-1], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["blocks", "residual", "residual_named", "conv"])
def test_activations_are_numbered_as_the_search_numbers_them(kind: str) -> None:
    named = nn.Sequential(Residual(1, 2, down=True), Residual(2, 2, down=False), nn.Flatten(), nn.Linear(18, 3)).eval()
    model = {"blocks": make(blocks), "residual_named": named}.get(kind) or networks.make(kind)
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(2))
    network, graph = read_network(model, SHAPE), trace(model, x[:1])
    with torch.no_grad():
        of_search, of_checker = graph.values(x), values(network, x.flatten(1).double())
    inputs = [value for _, value in network.activations()]
    assert [one.number for one, _ in network.activations()] == list(range(len(inputs)))
    assert len(inputs) == len(graph.activations())
    for mine, at in zip(inputs, graph.activations(), strict=True):
        other = of_search[graph.steps[at].inputs[0]].flatten(1).double()
        torch.testing.assert_close(of_checker[mine], other, rtol=1e-4, atol=1e-4)


def in_place_before_the_sum(net: Own, x: Tensor) -> Tensor:
    z = net.conv(x)
    return net.last((net.early(z) + z).flatten(1))  # type: ignore[no-any-return]


def in_place_through_another_shape(net: Own, x: Tensor) -> Tensor:
    z = net.conv(x)
    flat = z.flatten(1)
    z.relu_()
    return net.last(flat)  # type: ignore[no-any-return]


def sum_in_place_is_no_new_value(net: Own, x: Tensor) -> Tensor:
    z = kept = net.conv(x)
    z += torch.relu(z)
    return net.last((z + kept).flatten(1))  # type: ignore[no-any-return]


def asks_for_values(net: Own, x: Tensor) -> Tensor:
    return net.last(net.conv(x).flatten(1)) if x.sum() > 0 else net.last(net.conv(-x).flatten(1))  # type: ignore[no-any-return]


def asks_for_the_batch(net: Own, x: Tensor) -> Tensor:
    z: Tensor = net.last(net.conv(x).flatten(1))
    return z if x.size(0) > 1 else z + z


def counts(net: Own, x: Tensor) -> Tensor:
    net.calls += 1
    z: Tensor = net.last(net.conv(x).flatten(1))
    return z if net.calls < 9 else z + z


def changes_a_buffer(net: Own, x: Tensor) -> Tensor:
    net.get_buffer("seen").add_(1)
    return net.last(net.conv(x).flatten(1))  # type: ignore[no-any-return]


def draws(net: Own, x: Tensor) -> Tensor:
    z: Tensor = net.last(net.conv(x).flatten(1))
    return z if torch.rand(()) < 0.999 else z + z


def casts(net: Own, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return net.last(net.conv(x).flatten(1))  # type: ignore[no-any-return]


TRAPS: dict[Code, str] = {
    in_place_before_the_sum: "overwritten in place",
    in_place_through_another_shape: "overwritten in place",
    sum_in_place_is_no_new_value: "overwritten in place",
    asks_for_values: "cannot be followed",
    asks_for_the_batch: "cannot be followed",
    counts: "running it changes the module",
    changes_a_buffer: "running it changes the module",
    draws: "draws random numbers",
    casts: "autocast",
    lambda net, x: net.last(net.conv(x).flatten(1)) * net.gain: "no rule for gain",
    lambda net, x: net.last(net.conv(x).flatten(1)) + 1.0: "no rule for add",
    lambda net, x: net.last(net.conv(x).flatten(1)) + net.get_buffer("seen"): "Own",
    lambda net, x: net.last(net.conv(x).flatten(1)) + net.last.bias: "Own",
    lambda net, x: torch.add(net.last(net.conv(x).flatten(1)), net.last(net.conv(x).flatten(1)), alpha=2): "for add",
    lambda net, x: net.listed[0](net.last(net.conv(x).flatten(1))): "cannot be followed",
    lambda net, x: net.last.forward(net.conv(x).flatten(1)): "no rule for last.weight",
    lambda net, x: net.last(net.conv(x).transpose(2, 3).flatten(1)): "no rule for transpose",
    lambda net, x: net.last(net.conv(x).view(1, -1)): "no rule for view",
    lambda net, x: net.last(net.conv(x).reshape(-1, 36)): "no rule for reshape",
    lambda net, x: net.last(torch.flatten(net.conv(x))): "no rule for flatten",
    lambda net, x: functional.leaky_relu(net.last(net.conv(x).flatten(1)), -0.5): "no rule for leaky_relu",
    lambda net, x: (net.last(net.conv(x).flatten(1)), net.early(x))[0]: "not what is computed last",
    lambda net, x: torch.sigmoid(net.last(net.conv(x).flatten(1))): "no rule for sigmoid",
}


@pytest.mark.parametrize("code", TRAPS, ids=lambda code: code.__name__)
def test_code_that_cannot_be_followed_is_refused(code: Code) -> None:
    with pytest.raises(UnsupportedLayerError, match=TRAPS[code]):
        read_network(make(code), SHAPE)


def patched(net: Own) -> None:
    net.conv.forward = lambda x: x  # type: ignore[method-assign]


def hooked(net: Own) -> None:
    net.block.first.register_forward_pre_hook(lambda module, inputs: (-inputs[0],))


def parametrised(net: Own) -> None:
    nn.utils.parametrizations.orthogonal(net.last)


def training(net: Own) -> None:
    net.block.norm.train()


def training_itself(net: Own) -> None:
    net.training = True


@pytest.mark.parametrize("change", [patched, hooked, parametrised, training, training_itself])
def test_changed_layers_within_are_refused(change: Callable[[Own], None]) -> None:
    model = make(blocks)
    assert isinstance(model, Own)
    change(model)
    with pytest.raises(UnsupportedLayerError, match=r"hooks|parametrizations|training mode"):
        read_network(model, SHAPE)


def test_hooks_of_all_modules_are_refused() -> None:
    hook = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(UnsupportedLayerError, match="no hooks for all modules"):
            read_network(make(blocks), SHAPE)
    finally:
        hook.remove()


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x)

    def __call__(self, x: Tensor) -> Tensor:
        return -x


def test_a_call_of_its_own_is_refused() -> None:
    with pytest.raises(UnsupportedLayerError, match="a call of its own"):
        read_network(nn.Sequential(nn.Flatten(), Odd()).eval(), SHAPE)


def test_a_layer_that_was_read_wrongly_is_caught_by_running_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    model = networks.make("mlp")
    read_network(model, SHAPE)
    genuine = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: genuine(self, x) * (1 + 1e-9))
    with pytest.raises(UnsupportedLayerError, match="something else than was read"):
        read_network(model, SHAPE)


def test_an_activation_in_place_in_one_path_of_a_known_block_is_refused() -> None:
    block = Residual(1, 2, down=False)
    block.long = nn.Sequential(nn.ReLU(inplace=True), *block.long)
    with pytest.raises(UnsupportedLayerError, match="overwritten in place"):
        read_network(block.eval(), SHAPE)
    block.long[0] = nn.ReLU()
    assert sum(isinstance(step.operation, Activation) for step in read_network(block, SHAPE).steps) == 3
