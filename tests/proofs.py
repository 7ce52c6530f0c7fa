"""A tiny reference search for proofs: slow, plain, and only as good as the tests of the checker need."""

from __future__ import annotations

import numpy as np
import torch
from networks import make
from torch import Tensor, nn

from robustkit.models import Normalize
from robustkit.models.named import Residual
from robustkit.verifiers.certificate import Certificate, Leaf, Node, Split, Tree
from robustkit.verifiers.claims import Array, Ball, Box, Disjunct
from robustkit.verifiers.exact_network import Activation, Dense, ExactNetwork
from robustkit.verifiers.leaves import leaf_margins
from robustkit.verifiers.network_reader import read_network
from robustkit.verifiers.sound_bounds import enclose

KINDS = ("mlp", "conv", "batch_norm", "average_pool", "leaky_relu", "residual_named")
STEPS = (0.0, 0.03, 0.1, 0.3, 1.0)


def network_of(kind: str, seed: int = 0) -> nn.Sequential:
    """One of the random networks that the checker reads, for samples of ``shape_of(kind)``."""
    if kind == "odd":
        return odd(seed)
    if kind != "residual_named":
        return make(kind, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        blocks = [Residual(2, 3, down=True), Residual(3, 3, down=False)]
        head = [Normalize([0.3], [0.7]), nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*head, *blocks, nn.Flatten(), nn.Linear(27, 4)).eval()


def shape_of(kind: str) -> tuple[int, ...]:
    return (2, 7, 8) if kind == "odd" else (1, 6, 6)


def odd(seed: int) -> nn.Sequential:
    """Strides and windows that leave rows over, groups, nested containers, and one ReLU used twice."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _odd()


def _odd() -> nn.Sequential:
    relu = nn.ReLU()
    inner = nn.Sequential(nn.Conv2d(2, 4, (3, 2), stride=(2, 3), padding=(1, 0), groups=2, bias=False), relu)
    layers = [Normalize([0.1, 0.2], [0.3, 0.7]), inner, nn.AvgPool2d((3, 1)), nn.Dropout(0.5), nn.Identity(), relu]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(12, 3)).eval()


def tiny(seed: int = 0, hidden: int = 5) -> nn.Sequential:
    """Two inputs, two hidden layers, two outputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hiddens = [nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
        return nn.Sequential(*hiddens, nn.Linear(hidden, 2)).eval()


def single(row: list[float], offset: float) -> tuple[Disjunct, ...]:
    """The unsafe set of one disjunct of one row."""
    return (Disjunct(np.array([row]), np.array([offset])),)


def root_only(model: nn.Module, claim: Ball | Box, disjuncts: int) -> Certificate:
    """A certificate without splits, with adaptive slopes."""
    return Certificate.build(model, claim, [Tree.build([Node()], [Leaf(0)]) for _ in range(disjuncts)])


def bounds(network: ExactNetwork, claim: Box) -> tuple[Tensor, Tensor]:
    return torch.tensor(claim.lb.reshape(1, -1)), torch.tensor(claim.ub.reshape(1, -1))


def split_all(model: nn.Module, claim: Box, limit: int = 6) -> Certificate:
    """Split on every unstable neuron, up to a limit, and choose multipliers by coordinate ascent."""
    network = read_network(model, claim.lb.shape)
    lb, ub = bounds(network, claim)
    region = enclose(network, lb, ub)
    unstable = [
        (layer, neuron)
        for layer, (_, value) in enumerate(network.activations())
        for neuron in ((region.lower[value] < 0) & (region.upper[value] > 0))[0].nonzero().flatten().tolist()
    ][:limit]
    nodes, front = [Node()], [0]
    for layer, neuron in unstable:
        nodes += [Node(parent, kind, layer, neuron) for parent in front for kind in (Split.ACTIVE, Split.INACTIVE)]
        front = list(range(len(nodes) - 2 * len(front), len(nodes)))

    def margins(beta: Array) -> Array:
        tree = Tree.build(nodes, [Leaf(node, 0, list(one)) for node, one in zip(front, beta, strict=True)])
        return np.concatenate(
            [found for _, found in leaf_margins(network, tree, claim.disjuncts[0], lb, ub, root=region)]
        )

    best = np.zeros((len(front), len(unstable)))
    for _ in range(2):
        for split in range(len(unstable)):
            for step in (*STEPS, *(-one for one in STEPS)):
                trial = best.copy()
                trial[:, split] = np.maximum(trial[:, split] + step, 0.0)
                better = margins(trial) > margins(best)
                best[better] = trial[better]
    tree = Tree.build(nodes, [Leaf(node, 0, list(one)) for node, one in zip(front, best, strict=True)])
    return Certificate.build(model, claim, [tree])


def random_tree(network: ExactNetwork, lb: Array, ub: Array, rng: np.random.Generator, splits: int) -> Tree:
    """A tree that covers the box, with random splits, slopes and multipliers."""
    nodes, leaves, depth = [Node()], [0], {0: 0}
    values = [value for _, value in network.activations()]
    for _ in range(splits):
        parent = leaves.pop(int(rng.integers(len(leaves))))
        if rng.random() < 0.5:
            layer = int(rng.integers(len(values)))
            cut: tuple[int, int, float] = (layer, int(rng.integers(network.size(values[layer]))), 0.0)
            kinds = (Split.ACTIVE, Split.INACTIVE)
        else:
            neuron = int(rng.integers(lb.size))
            cut = (-1, neuron, float(rng.uniform(lb.flat[neuron], ub.flat[neuron])))
            kinds = (Split.ABOVE, Split.BELOW)
        for kind in kinds:
            nodes.append(Node(parent, kind, *cut))
            leaves.append(len(nodes) - 1)
            depth[leaves[-1]] = depth[parent] + 1
    scale = 10.0 ** rng.uniform(-4, 1)
    return Tree.build(
        nodes,
        [
            Leaf(node, 0, list(scale * rng.random(depth[node])), [rng.random(network.size(value)) for value in values])
            for node in leaves
        ],
    )


def values(network: ExactNetwork, x: Tensor) -> list[Tensor]:
    """Every value of a network at points ``(B, n)``, in float64."""
    found = [x]
    for step in network.steps:
        operation, given_ = step.operation, [found[one] for one in step.inputs]
        if isinstance(operation, Dense):
            found.append(operation.times(operation.weight, given_[0]) + operation.bias)
        elif isinstance(operation, Activation):
            found.append(torch.maximum(given_[0], operation.slope * given_[0]))
        else:
            found.append(sum(given_[1:], given_[0]))
    return found
