import copy
import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from networks import inputs
from proofs import KINDS, network_of, random_tree, root_only, shape_of, single, split_all, tiny
from torch import nn

from robustkit.bounds import BoundedNetwork, BoundMethod
from robustkit.verifiers import leaves, sound_bounds
from robustkit.verifiers.certificate import Certificate, Leaf, Node, Split, Tree
from robustkit.verifiers.checker import box_of, check
from robustkit.verifiers.claims import Array, Ball, Box, Disjunct
from robustkit.verifiers.network_reader import read_network


def linear(weights: list[list[list[float]]], biases: list[list[float]]) -> nn.Sequential:
    """A stack of fully connected layers with ReLU between."""
    layers: list[nn.Module] = []
    for weight, bias in zip(weights, biases, strict=True):
        layer = nn.Linear(len(weight[0]), len(weight))
        layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


HINGE = linear([[[1.0], [1.0]], [[1.0, -1.0]]], [[0.0, 4.0], [4.1]])
"""``relu(x) - relu(x + 4) + 4.1``: 0.1 for x >= 0 and ``0.1 - x`` for x in [-4, 0]."""

INTERVAL = Box(np.array([-1.0]), np.array([1.0]), single([1.0], 0.0))


def hinge(beta: tuple[float, float]) -> Certificate:
    nodes = [Node(), Node(0, Split.ACTIVE, 0, 0), Node(0, Split.INACTIVE, 0, 0)]
    return Certificate.build(HINGE, INTERVAL, [Tree.build(nodes, [Leaf(1, 0, beta[:1]), Leaf(2, 0, beta[1:])])])


def test_multipliers_prove_what_splits_alone_do_not() -> None:
    assert not check(root_only(HINGE, INTERVAL, 1), HINGE).proved
    refused = check(hinge((0.0, 0.0)), HINGE)
    assert "bounded by -0.9 only" in refused.reason
    checked = check(hinge((0.0, 1.0)), HINGE)
    assert (checked.proved, checked.leaves) == (True, 2)
    assert checked.margin == pytest.approx(0.1, abs=1e-6)  # the bias is 4.1 in float32
    half = check(hinge((0.0, 0.5)), HINGE)
    assert "bounded by -0.4 only" in half.reason


def test_multipliers_go_from_the_root_down() -> None:
    nodes = [Node(), Node(0, Split.ACTIVE, 0, 1), Node(0, Split.INACTIVE, 0, 1)]
    nodes += [Node(1, Split.ACTIVE, 0, 0), Node(1, Split.INACTIVE, 0, 0)]
    for first, second, proved in ((0.0, 1.0, True), (1.0, 0.0, False)):
        leaves = [Leaf(2), Leaf(4, 0, [first, second]), Leaf(3)]  # x + 4 <= 0 holds nowhere
        checked = check(Certificate.build(HINGE, INTERVAL, [Tree.build(nodes, leaves)]), HINGE)
        assert checked.proved == proved


def test_slopes_are_those_of_the_certificate() -> None:
    lines = [np.array([slope, 1.0]) for slope in (0.0, 0.25, 1.0)]
    lifted = replace(INTERVAL, disjuncts=single([1.0], 2.0))  # slope s: s x - x + 2.1 - (1 - s) at x = 1
    for alpha, margin in zip(lines, (1.1, 1.35, 2.1), strict=True):
        tree = Tree.build([Node()], [Leaf(0, alpha=[alpha])])
        checked = check(Certificate.build(HINGE, lifted, [tree]), HINGE)
        assert checked.margin == pytest.approx(margin, abs=1e-6)


def test_input_splits_bound_each_part_on_its_own() -> None:
    cut = [Node(), Node(0, Split.BELOW, -1, 0, 0.0), Node(0, Split.ABOVE, -1, 0, 0.0)]
    tree = Tree.build(cut, [Leaf(1), Leaf(2)])
    checked = check(Certificate.build(HINGE, INTERVAL, [tree]), HINGE)
    assert checked.proved
    assert checked.margin == pytest.approx(0.1, abs=1e-6)
    outside = [Node(), Node(0, Split.BELOW, -1, 0, 2.0), Node(0, Split.ABOVE, -1, 0, 2.0)]
    beyond = Tree.build(outside, [Leaf(1), Leaf(2)])
    assert not check(Certificate.build(HINGE, INTERVAL, [beyond]), HINGE).proved
    narrow = replace(INTERVAL, ub=np.array([-0.5]))
    empty = check(Certificate.build(HINGE, narrow, [beyond]), HINGE)
    assert empty.margin == pytest.approx(0.6, abs=1e-6)  # the leaf above 2 holds no point


def test_one_row_of_a_disjunct_is_enough_and_each_leaf_names_its_own() -> None:
    identity = linear([[[1.0], [-1.0]]], [[0.0, 0.0]])
    both = (Disjunct(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0.0, 0.0])),)  # unsafe: x <= 0 and -x <= 0
    cut = [Node(), Node(0, Split.BELOW, -1, 0, 0.0), Node(0, Split.ABOVE, -1, 0, 0.0)]
    tree = Tree.build(cut, [Leaf(1, 1), Leaf(2, 0)])
    claim = Box(np.array([-1.0]), np.array([1.0]), both)
    assert not check(Certificate.build(identity, claim, [tree]), identity).proved  # both hold at 0
    lifted = (Disjunct(both[0].rows, np.array([1e-12, 1e-12])),)
    checked = check(Certificate.build(identity, replace(claim, disjuncts=lifted), [tree]), identity)
    assert 0 < checked.margin <= 1e-12
    uneven = (Disjunct(both[0].rows, np.array([1.0, -0.1])),)  # unsafe from -0.1 down to -1
    assert not check(Certificate.build(identity, replace(claim, disjuncts=uneven), [tree]), identity).proved


@pytest.mark.parametrize("kind", KINDS)
def test_easy_samples_are_proved_by_the_root_alone(kind: str) -> None:
    model = network_of(kind)
    proved = 0
    for x in inputs(6):
        logits = model(x.unsqueeze(0))[0].detach()
        label = int(logits.argmax())
        checked = check(root_only(model, Ball(x.numpy(), 1e-3, label), 3), model)
        first, second = logits.topk(2).values.tolist()
        assert not checked.proved or checked.margin <= first - second + 1e-6
        proved += checked.proved
        wrong = check(root_only(model, Ball(x.numpy(), 1e-3, (label + 1) % 4), 3), model)
        assert not wrong.proved
    assert proved >= 3


@pytest.mark.parametrize("kind", ["mlp", "conv", "batch_norm", "average_pool"])
def test_the_root_bound_equals_that_of_the_engine(kind: str) -> None:
    model, x, eps = network_of(kind), inputs(1), 0.02
    label = int(model(x).argmax())
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    others = [one for one in range(4) if one != label]
    c = torch.eye(4)[[label]].expand(3, -1) - torch.eye(4)[others]
    found = BoundedNetwork(model, x).output_bounds(low, high, c.unsqueeze(0), BoundMethod.CROWN)
    engine = float(found[0].min())
    disjuncts = tuple(Disjunct(row.double().numpy()[None], np.array([10.0])) for row in c)
    claim = Box(low[0].double().numpy(), high[0].double().numpy(), disjuncts)
    margin = check(root_only(model, claim, 3), model).margin - 10.0
    assert engine - 1e-4 <= margin <= engine + 0.1 * abs(engine) + 0.05


def test_splitting_proves_what_the_root_does_not() -> None:
    lb, ub, gained = np.array([-0.8, -0.8]), np.array([0.8, 0.8]), 0
    for seed in range(4):
        model = tiny(seed)
        true = least(model, lb, ub, np.array([1.0, -1.0]))
        loose = Box(lb, ub, single([1.0, -1.0], 10.0 - true))
        whole, parts = root_only(model, loose, 1), split_all(model, loose, limit=4)
        at_root, split = (check(one, model).margin - 10.0 for one in (whole, parts))
        assert max(at_root, split) <= 1e-9
        if at_root < split - 1e-3:
            between = replace(loose, disjuncts=single([1.0, -1.0], -true - (at_root + split) / 2))
            assert check(Certificate.build(model, between, parts.trees), model).proved
            assert not check(Certificate.build(model, between, whole.trees), model).proved
            gained += 1
    assert gained >= 2


def test_a_leaf_is_empty_only_where_its_split_is_impossible() -> None:
    model = linear([[[1.0]], [[1.0]]], [[0.0], [-1.0]])  # relu(x) - 1
    nodes = [Node(), Node(0, Split.ACTIVE, 0, 0), Node(0, Split.INACTIVE, 0, 0)]
    tree = Tree.build(nodes, [Leaf(1), Leaf(2)])
    above = Box(np.array([1.5]), np.array([2.0]), single([1.0], 0.0))
    assert check(Certificate.build(model, above, [tree]), model).margin == pytest.approx(0.5)
    touching = Box(np.array([0.0]), np.array([2.0]), single([1.0], 1.0))  # at 0 the row is 0, which is unsafe
    assert not check(Certificate.build(model, touching, [tree]), model).proved


def least(model: nn.Module, lb: Array, ub: Array, row: Array, count: int = 4000) -> float:
    """The least value of a row found over a box, by samples, corners and projected gradient descent, in float64."""
    twin = copy.deepcopy(model).double()
    low, high, weights = (torch.tensor(one) for one in (lb, ub, row))
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(count, *low.shape, generator=generator, dtype=torch.float64)
    draws[: count // 4] = draws[: count // 4].round()
    x = low + (high - low) * draws
    values = twin(x).detach() @ weights
    x, step = x[values.argsort()[:64]], 0.1
    best = float(values.min())
    for _ in range(60):
        x.requires_grad_(True)
        value = twin(x) @ weights
        best = min(best, float(value.detach().min()))
        (gradient,) = torch.autograd.grad(value.sum(), x)
        x = (x.detach() - step * (high - low) * gradient.sign()).clamp(low, high)
        step *= 0.9
    return min(best, float((twin(x).detach() @ weights).min()))


@pytest.mark.parametrize("kind", ["tiny", "odd", *KINDS])
def test_a_false_property_is_never_proved(kind: str) -> None:
    rng = np.random.default_rng(len(kind))
    for seed in range(4):
        model = tiny(seed) if kind == "tiny" else network_of(kind, seed)
        shape = (2,) if kind == "tiny" else shape_of(kind)
        classes = {"tiny": 2, "odd": 3}.get(kind, 4)
        centre, eps = rng.random(shape), 10.0 ** rng.uniform(-4, -0.5)
        lb, ub = centre - eps, centre + eps
        row = rng.normal(size=classes)
        value = least(model, lb, ub, row, 500)
        network = read_network(model, shape)
        trees = [random_tree(network, lb, ub, rng, splits) for splits in (0, 1, 3, 6, 12)]
        for gap in (1e-3, 1e-6, 1e-9):
            claim = Box(lb, ub, (Disjunct(row[None], np.array([-value - gap * max(1.0, abs(value))])),))
            for tree in trees:
                assert not check(Certificate.build(model, claim, [tree]), model).proved
            if kind == "tiny":
                assert not check(split_all(model, claim, limit=3), model).proved


def test_a_true_property_is_proved_by_random_trees_once_it_is_far_from_false() -> None:
    rng, model, lb, ub = np.random.default_rng(0), tiny(1), np.zeros(2), np.full(2, 0.1)
    network = read_network(model, (2,))
    claim = Box(lb, ub, single([1.0, -1.0], 1e4))
    for splits in (0, 2, 8, 20):
        tree = random_tree(network, lb, ub, rng, splits)
        assert check(Certificate.build(model, claim, [tree]), model).proved


@pytest.mark.parametrize("power", [8, 12, 16, 20])
def test_a_large_number_added_and_taken_away_is_never_proved_wrongly(power: int) -> None:
    big = 10.0**power
    model = linear([[[1.0]], [[1.0]]], [[big], [-big - (0.5 if power < 12 else 0.0)]])
    # relu(x + w) - w - 0.5: in floating point the x is lost and the rest depends on how it is rounded
    exact = torch.tensor([big]).double().item() + model[2].bias.double().item()
    for low, high in ((0.0, 1.0), (0.25, 0.5), (0.5, 0.5)):
        true = low + exact
        for offset in (-true - 1e-9 * max(1.0, abs(true)), -true, -true + 1e-3, -true + 2.0 * big):
            claim = Box(np.array([low]), np.array([high]), single([1.0], offset))
            checked = check(root_only(model, claim, 1), model)
            assert not checked.proved or 0 < checked.margin <= true + offset
            assert checked.proved or offset < big


@pytest.mark.parametrize("scale", [1e10, 1e18, 1e30, 3e38])
def test_large_weights_are_never_proved_wrongly(scale: float) -> None:
    model = linear([[[scale], [-scale]], [[1.0, 1.0], [scale, -scale]], [[1.0, 0.0]]], [[0.0, 0.0], [0.0, 0.0], [0.0]])
    # |scale x| is 0 at 0
    for offset in (0.0, -1e-30, -1.0):
        claim = Box(np.array([-1.0]), np.array([1.0]), single([1.0], offset))
        assert not check(root_only(model, claim, 1), model).proved
        nodes = [Node(), Node(0, Split.ACTIVE, 0, 0), Node(0, Split.INACTIVE, 0, 0)]
        split = Tree.build(nodes, [Leaf(1, beta=[scale]), Leaf(2, beta=[scale])])
        assert not check(Certificate.build(model, claim, [split]), model).proved


def test_the_whole_real_ball_is_covered() -> None:
    """Float32 arithmetic would round ``x - eps`` up, and miss the point that breaks the claim."""
    x = np.array([0.7], dtype=np.float32)
    eps = next(
        one / 997 for one in range(1, 900) if float(np.float32(x[0]) - np.float32(one / 997)) > float(x[0]) - one / 997
    )
    shrunk, real = float(x[0] - np.float32(eps)), float(x[0]) - eps
    middle = (shrunk + real) / 2
    model = nn.Sequential(nn.Linear(1, 2)).double().eval()
    model[0].weight.data = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    model[0].bias.data = torch.tensor([0.0, middle], dtype=torch.float64)  # margin x - middle
    assert not check(root_only(model, Ball(x, eps, 0), 1), model).proved
    assert check(root_only(model, Ball(x, eps - 2 * (shrunk - real), 0), 1), model).proved


def test_the_box_of_a_ball_holds_the_real_ball_and_little_more() -> None:
    x = np.random.default_rng(0).random(200).astype(np.float32)
    for eps in (0.1, 8 / 255, 1e-9):
        lb, ub = (one[0].tolist() for one in box_of(Ball(x, eps, 0)))
        for centre, low, high in zip(x.tolist(), lb, ub, strict=True):
            real = (
                max(Fraction(centre) - Fraction(eps), Fraction(0)),
                min(Fraction(centre) + Fraction(eps), Fraction(1)),
            )
            assert real[0] - Fraction(1e-15) <= low <= real[0]
            assert real[1] <= high <= real[1] + Fraction(1e-15)


@pytest.mark.parametrize("kind", ["conv", "residual_named"])
def test_how_much_is_worked_on_at_once_changes_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rng = network_of(kind), np.random.default_rng(0)
    lb, ub = np.full((1, 6, 6), 0.4), np.full((1, 6, 6), 0.6)
    claim = Box(lb, ub, single([1.0, -1.0, 0.5, 0.0], 50.0))
    proof = Certificate.build(model, claim, [random_tree(read_network(model, (1, 6, 6)), lb, ub, rng, 5)])
    whole = check(proof, model)
    for module in (leaves, sound_bounds):
        monkeypatch.setattr(module, "BUDGET", 2000)
    parts = check(proof, model)
    assert (whole.proved, parts.proved) == (True, True)
    assert parts.margin == pytest.approx(whole.margin, abs=1e-9)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_bounds_of_a_box_do_not_depend_on_those_beside_it(kind: str) -> None:
    network, rng = read_network(network_of(kind), (1, 6, 6)), np.random.default_rng(0)
    centre, radius = rng.uniform(-1, 1, (6, 36)), 10.0 ** rng.uniform(-3, 0, (6, 1))
    lb, ub = torch.tensor(centre - radius), torch.tensor(centre + radius)
    together = sound_bounds.enclose(network, lb, ub)
    for box in range(6):
        alone = sound_bounds.enclose(network, lb[box : box + 1], ub[box : box + 1])
        for value in range(len(network.shapes)):
            torch.testing.assert_close(together.lower[value][box], alone.lower[value][0], rtol=0, atol=1e-9)
            torch.testing.assert_close(together.upper[value][box], alone.upper[value][0], rtol=0, atol=1e-9)


def test_trees_of_equal_boxes_share_their_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = [Node(), Node(0, Split.BELOW, -1, 0, 0.0), Node(0, Split.ABOVE, -1, 0, 0.0)]
    other = [cut[0], *(replace(one, threshold=0.25) for one in cut[1:])]
    claim = replace(INTERVAL, disjuncts=single([1.0], 1.0) * 3)
    trees = [Tree.build(nodes, [Leaf(1), Leaf(2)]) for nodes in (cut, cut, other)]
    calls = []
    monkeypatch.setattr(leaves, "enclose", lambda *given: (calls.append(given), sound_bounds.enclose(*given))[1])
    checked = check(Certificate.build(HINGE, claim, trees), HINGE)
    assert (checked.proved, checked.leaves, len(calls)) == (True, 6, 2)
    assert checked.margin == pytest.approx(0.85, abs=1e-6)  # 1.1 - x at x = 0.25, over [-1, 0.25]


def test_a_check_ends_in_time() -> None:
    late = check(hinge((0.0, 1.0)), HINGE, until=time.monotonic() - 1.0)
    assert not late.proved
    assert "the time for it was over" in late.reason
    assert check(hinge((0.0, 1.0)), HINGE, until=time.monotonic() + 60.0).proved


def test_overflow_proves_nothing() -> None:
    model = linear([[[3e38]]] * 9, [[0.0]] * 9)
    claim = Box(np.array([1.0]), np.array([2.0]), single([1.0], 0.0))
    assert not check(root_only(model, claim, 1), model).proved
    assert not check(root_only(model, replace(claim, disjuncts=single([1e308], 1e308)), 1), model).proved


def test_a_sample_outside_the_pixel_range_and_a_label_that_is_none_are_refused() -> None:
    model = network_of("conv")
    x = np.full((1, 6, 6), 1.2, dtype=np.float32)
    assert "sample in [0.0, 1.0]" in check(root_only(model, Ball(x, 0.01, 0), 3), model).reason
    assert "label below 4, got 7" in check(root_only(model, Ball(x / 2, 0.01, 7), 3), model).reason
    wide = Box(np.zeros((1, 6, 6)), np.ones((1, 6, 6)), single([1.0, 0.0, 0.0], 0.0))
    assert "4 outputs" in check(root_only(model, wide, 1), model).reason


def test_the_network_is_left_as_it_was() -> None:
    model = network_of("batch_norm")
    before = {name: one.clone() for name, one in model.state_dict().items()}
    claim = Ball(inputs(1)[0].numpy(), 0.01, 0)
    check(root_only(model, claim, 3), model)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert not model.training
