"""The own passes for plain stacks give what the engine gives, and are sound by themselves."""

import itertools
from functools import partial

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from robustkit.bounds import BoundedNetwork, BoundMethod
from robustkit.bounds.chain import chain_of, forward, intervals
from robustkit.bounds.symbolic import Backward, carries
from robustkit.errors import RobustkitError, UnsupportedLayerError
from robustkit.margins import margin_specification, robust_loss, worst_margin
from robustkit.models import Normalize
from robustkit.models.named import Residual
from robustkit.threat import LinfBall

BALL = LinfBall(0.08)


def odd(
    kernel: tuple[int, int] = (3, 2), stride: tuple[int, int] = (2, 1), dilation: int = 1, *, front: bool = True
) -> nn.Sequential:
    """Strides, padding and kernels that do not divide the image; no biases; two convolutions in a row."""
    return nn.Sequential(
        *([Normalize((0.4,), (0.3,))] if front else []),
        nn.Conv2d(1, 3, kernel, stride, padding=stride, bias=False),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(3, 2, 1, padding=1), nn.Conv2d(2, 4, 3, stride=2, padding=2, dilation=dilation)),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 2, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(9, bias=False),
        nn.Linear(9, 7),
        nn.BatchNorm1d(7),
        nn.ReLU(),
        nn.Linear(7, 4),
    )


def square() -> nn.Sequential:
    return odd((3, 3), (2, 2), front=False)


def deep() -> nn.Sequential:
    convs = [(1, 3, 3, 1), (3, 4, 4, 2), (4, 4, 3, 1)]
    body = [
        layer
        for inputs, outputs, kernel, stride in convs
        for layer in (nn.Conv2d(inputs, outputs, kernel, stride, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())
    ]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 4))


def dilated() -> nn.Sequential:
    return odd((3, 3), dilation=2)


def blocks() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.ReLU(),
        Residual(2, 4, down=True),
        Residual(4, 4, down=False),
        nn.Flatten(),
        nn.Linear(36, 6),
        nn.ReLU(),
        nn.Linear(6, 4),
    )


BUILD = {
    one.__name__: one for one in (networks.mlp, networks.conv, networks.batch_norm, deep, square, odd, dilated, blocks)
}
SYMBOLIC = ["mlp", "conv", "batch_norm", "deep", "square", "odd"]
REFERENCE = ["mlp", "conv", "batch_norm", "deep"]  # the engine takes less than that


def make(name: str, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = BUILD[name]().train()
    model(torch.rand(32, 1, 6, 6))
    return model.eval()


def both(model: nn.Module) -> tuple[BoundedNetwork, BoundedNetwork]:
    """The same network bounded by its own passes, and by the engine."""
    own, engine = BoundedNetwork(model, networks.inputs(1)), BoundedNetwork(model, networks.inputs(1))
    assert own._layers is not None
    engine._layers, engine._symbolic = None, False
    return own, engine


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    ("name", "method"),
    [*itertools.product(BUILD, [BoundMethod.IBP]), *itertools.product(REFERENCE, [BoundMethod.SYMBOLIC])],
)
def test_bounds_and_their_gradients_equal_the_engine_s(name: str, method: BoundMethod, train: bool) -> None:
    model = make(name).train(train)
    x, y = networks.inputs(6), torch.arange(6) % 4
    results = []
    for network in both(model):
        model.zero_grad()
        natural = functional.cross_entropy(network(x), y)
        lb, ub = BALL.box(x)
        lower, upper = network.output_bounds(lb, ub, margin_specification(y, 4), method)
        if train:  # in eval mode the engine gives no gradient
            (natural + robust_loss(lower, y) + upper.mean()).backward()
        gradients = [torch.zeros(()) if one.grad is None else one.grad.clone() for one in model.parameters()]
        results.append([lower.detach(), upper.detach(), natural.detach(), *gradients])
    scale = max(one.abs().max().item() for one in results[1])
    for own, engine in zip(*results, strict=True):
        torch.testing.assert_close(own, engine, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("name", BUILD)
def test_logits_and_running_statistics_are_the_network_s_own(name: str) -> None:
    one, other = make(name).train(), make(name).train()
    x = networks.inputs(6)
    torch.testing.assert_close(BoundedNetwork(one, x[:1])(x), other(x))
    for (key, own), expected in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(own, expected, msg=key)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("unstable_only", [False, True])
@pytest.mark.parametrize("name", SYMBOLIC)
def test_no_point_of_the_box_leaves_symbolic_bounds(name: str, unstable_only: bool, seed: int) -> None:
    model, x, y = make(name, seed), networks.inputs(5, seed), torch.arange(5) % 4
    specification = margin_specification(y, 4)
    lb, ub = LinfBall(0.2).box(x)
    network = BoundedNetwork(model, x[:1])
    lower, upper = network.output_bounds(lb, ub, specification, BoundMethod.SYMBOLIC, intervals_first=unstable_only)
    draw = torch.Generator().manual_seed(seed)
    for share in [torch.rand((400, *x.shape), generator=draw), torch.rand((400, *x.shape), generator=draw).round()]:
        points = (lb + share * (ub - lb)).flatten(0, 1)
        with torch.no_grad():
            values = torch.einsum("brk,sbk->sbr", specification, model(points).view(400, 5, 4))
        assert (values >= lower - 1e-4).all() and (values <= upper + 1e-4).all()


@pytest.mark.parametrize("name", BUILD)
def test_hidden_bounds_hold_and_come_in_the_order_of_the_network(name: str) -> None:
    model, x = make(name), networks.inputs(4)
    lb, ub = BALL.box(x)
    for network in both(model):
        _, hidden = network.interval_pass(lb, ub, margin_specification(torch.arange(4), 4))
        seen: list[Tensor] = []
        relus = [one for one in model.modules() if isinstance(one, nn.ReLU)]
        hooks = [
            one.register_forward_pre_hook(partial(lambda into, _, given: into.append(given[0]), seen)) for one in relus
        ]
        for _ in range(50):
            seen.clear()
            model(lb + torch.rand(x.shape) * (ub - lb))
            assert len(seen) == len(hidden)
            for value, (low, high) in zip(seen, hidden, strict=True):
                assert value.shape == low.shape == high.shape
                assert (value >= low - 1e-5).all() and (value <= high + 1e-5).all()
        for hook in hooks:
            hook.remove()


def test_an_exact_neuron_by_hand() -> None:
    """relu(z) for z in [-1, 3] lies between 3/4 z and 3/4 z + 3/4; 2 relu(z) - z over [-1, 3] is then in [-0.5, 3]."""
    layers = [nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)]
    with torch.no_grad():
        for layer, weight in ((layers[0], 1.0), (layers[2], 2.0)):
            layer.weight.fill_(weight)  # type: ignore[union-attr]
            layer.bias.fill_(0.0)  # type: ignore[union-attr]
    box = torch.tensor([[1.0]]), torch.tensor([[2.0]])
    backward = Backward(layers, box, None, unstable_only=False)  # type: ignore[arg-type]
    lower, upper = backward.bounds(torch.tensor([[[1.0]]]))
    assert (lower.item(), upper.item()) == pytest.approx((-1.5, 6.0))
    assert backward.to_input(torch.tensor([[[1.0]]])).coefficients.item() == pytest.approx(1.5)
    centre, radius = intervals(layers, box, None)  # type: ignore[arg-type]
    assert (centre.item(), radius.item()) == pytest.approx((3.0, 3.0))


def test_many_rows_are_split_to_the_same_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = make("odd"), networks.inputs(3), torch.arange(3)
    network = BoundedNetwork(model, x[:1])

    def lower() -> Tensor:
        with torch.no_grad():
            return network.lower_margins(x, y, BALL, BoundMethod.SYMBOLIC)

    whole = lower()
    monkeypatch.setattr("robustkit.bounds.symbolic.BUDGET", 500)
    torch.testing.assert_close(lower(), whole)


class Doubled(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        first: Tensor = super().forward(x)
        return 2.0 * first


def hooked() -> nn.Module:
    model = make("mlp")
    model[1].register_forward_hook(lambda _module, _given, out: out + 1.0)
    return model


def patched() -> nn.Module:
    model = make("mlp")
    vars(model[2])["forward"] = lambda z: -2.0 * z.relu()
    return model


def hooked_on_nothing() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Identity(), nn.Linear(4, 4))
    model[2].register_forward_hook(lambda _module, _given, out: -3.0 * out)
    return model


def normed() -> nn.Module:
    model = make("mlp")
    parametrizations.spectral_norm(model[1])
    return model


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(36, 4),
        Doubled(*make("mlp")),
        hooked(),
        patched(),
        hooked_on_nothing(),
        nn.Sequential(Normalize((0.1,) * 3, (0.5,) * 3), nn.Flatten(), nn.Linear(108, 4)),
        normed(),
        nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Tanh()),
        nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Tanh(), nn.Linear(4, 4)),
        nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1, groups=2), nn.Flatten(), nn.Linear(72, 4)),
        nn.Sequential(nn.Linear(6, 6), nn.Flatten(), nn.Linear(36, 4)),
        nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(36, 4)),
        nn.Sequential(),
    ],
    ids=lambda model: type(model).__name__,
)
def test_what_is_no_plain_stack_is_left_to_the_engine(model: nn.Module) -> None:
    assert chain_of(model, torch.rand(1, 1, 6, 6)) is None


def test_symbolic_bounds_leave_what_they_do_not_carry() -> None:
    x = networks.inputs(1)
    for model, expected in [
        (make("odd"), True),
        (make("blocks"), False),
        (make("dilated"), False),
        (nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(36, 4)), False),
        (nn.Sequential(Normalize((0.1,), (2.0,)), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4)), False),
    ]:
        layers = chain_of(model, x)
        assert layers is not None and carries(layers) == expected
        torch.testing.assert_close(forward(layers, x, None), model(x))  # type: ignore[arg-type]


def test_batch_norm_in_train_mode_needs_its_clean_batch_first() -> None:
    network = BoundedNetwork(make("batch_norm").train(), networks.inputs(1))
    with pytest.raises(RobustkitError, match="expected a call on the clean batch before bounds"):
        network.lower_margins(networks.inputs(3), torch.arange(3), BALL, BoundMethod.IBP)


def test_what_is_patched_in_later_layers_is_noticed() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Dropout(), nn.Linear(4, 4)).eval()
    model[2].register_forward_hook(lambda _module, _given, out: -3.0 * out)
    with pytest.raises(UnsupportedLayerError, match="cannot bound Dropout at '2': something is hooked into it"):
        BoundedNetwork(model, networks.inputs(1)).lower_margins(
            networks.inputs(1), torch.tensor([0]), BALL, BoundMethod.CROWN
        )


@pytest.mark.parametrize("weights", [(1e20, 1e20), (3e38, 1.0)])
def test_bounds_that_overflow_prove_nothing(weights: tuple[float, float]) -> None:
    first, second = weights
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).eval()
    with torch.no_grad():
        model[1].weight.fill_(first)
        model[1].bias.fill_(-0.55 * first)
        model[3].weight.fill_(second)
        model[3].bias.zero_()
        model[5].weight.copy_(torch.tensor([[0.0], [1.0]]))
        model[5].bias.copy_(torch.tensor([1.0, 0.0]))
    network, x, y = BoundedNetwork(model, torch.full((1, 1), 0.5)), torch.full((1, 1), 0.5), torch.tensor([0])
    for method in BoundMethod:
        assert not (worst_margin(network.lower_margins(x, y, LinfBall(0.1), method), y) > 0).any(), method


def test_layers_that_changed_since_are_refused() -> None:
    model, x, y = make("mlp"), networks.inputs(2), torch.tensor([0, 1])
    network = BoundedNetwork(model, x[:1])
    model[2].register_forward_hook(lambda _module, _given, out: -out)
    with pytest.raises(RobustkitError, match="expected the layers that bounds were prepared for"):
        network.lower_margins(x, y, BALL, BoundMethod.IBP)


def test_dropout_in_train_mode_within_a_model_in_eval_mode_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Dropout(0.5), nn.Linear(4, 4)).eval()
    network = BoundedNetwork(model, networks.inputs(1))
    model[2].train()
    with pytest.raises(UnsupportedLayerError, match="cannot bound Dropout at '2' in train mode"):
        network.lower_margins(networks.inputs(1), torch.tensor([0]), BALL, BoundMethod.IBP)


def test_doubles_are_refused_in_a_line() -> None:
    model, x = make("mlp").double(), networks.inputs(1).double()
    with pytest.raises(RobustkitError, match=r"expected float32 inputs and weights, got torch\.float64"):
        BoundedNetwork(model, x).lower_margins(x, torch.tensor([0]), BALL, BoundMethod.IBP)
