"""Branches in which every neuron is split: the network is affine there, and a linear programme decides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import linprog

from robustkit.bounds.branches import Branches
from robustkit.bounds.split_network import SplitNetwork
from robustkit.verifiers.claims import Array


@torch.no_grad()
def solve_leaf(network: SplitNetwork, branch: Branches) -> Branches:
    """Find the multipliers that give the exact minimum of a row in a branch, and the point where it is.

    An empty branch has multipliers that prove anything: those of the least violation of its constraints, scaled up.

    Args:
        network: over the whole box.
        branch: a single one, every neuron split.

    Returns:
        The branch, bounded with these multipliers; ``worst`` is the minimiser where there is one.
    """
    matrix, shift, row, constant = _affine(network, branch)
    sign = branch.sign[0].double().cpu().numpy()
    left, right = -sign[:, None] * matrix, sign * shift  # sign * (matrix x + shift) >= 0
    centre, radius = (one.flatten().double().cpu().numpy() for one in (network.centre, network.radius))
    box = list(zip(centre - radius, centre + radius, strict=True))
    found = linprog(row, left, right, bounds=box, method="highs")
    if found.status == 0:
        beta = -found.ineqlin.marginals
        point = torch.from_numpy(found.x).to(branch.worst).view_as(branch.worst)
    else:
        beta, point = _of_an_empty_branch(left, right, box, row, constant), branch.worst
    multipliers = torch.from_numpy(np.maximum(beta, 0.0)).to(branch.beta)[None]
    bounded = network.bounded(replace(branch, beta=multipliers), iterations=0)
    return replace(bounded, worst=point)


def _of_an_empty_branch(
    left: Array, right: Array, box: list[tuple[float, float]], row: Array, constant: float
) -> Array:
    """Give multipliers of constraints that no point of the box satisfies together; zeros where that is not so."""
    columns = len(box)
    relaxed = np.hstack([left, -np.ones((len(left), 1))])
    cost = np.append(np.zeros(columns), 1.0)
    found = linprog(cost, relaxed, right, bounds=[*box, (0.0, None)], method="highs")
    if found.status != 0 or found.fun <= 0:
        return np.zeros(len(left))
    least = constant + float(sum(min(one * low, one * high) for one, (low, high) in zip(row, box, strict=True)))
    scale = 2.0 * (abs(least) + 1.0) / float(found.fun)
    multipliers: Array = -scale * found.ineqlin.marginals
    return multipliers


def _affine(network: SplitNetwork, branch: Branches) -> tuple[Array, Array, Array, float]:
    """Write what splits are of and the row as affine maps of the input: ``(U, n)``, ``(U,)``; ``(n,)``, a number."""
    shape, size = network.centre.shape[1:], network.centre.numel()
    basis = torch.cat([torch.zeros(1, size), torch.eye(size)]).to(network.centre).view(-1, *shape)
    seen, outputs = network.with_fixed_signs(basis, branch.sign[0])
    values = (outputs.double() @ branch.row[0].double() + branch.offset[0].double()).cpu().numpy()
    neurons = seen.double().cpu().numpy()
    return (neurons[1:] - neurons[0]).T, neurons[0], values[1:] - values[0], float(values[0])
