"""A computation graph without branches as a stack of plain layers, which the fast bounds can carry."""

from __future__ import annotations

import math

import numpy as np
from torch import nn

from robustkit.models.affine import Dense, exact, fold, layers_of
from robustkit.models.graph import Graph, NoStackError, Step, Walk
from robustkit.models.operations import OPERATIONS, computed, stored

MOST_CLOSING = 256
"""Outputs up to which a stack that ends in another layer is closed by a ``Linear`` that changes nothing."""


def stack_of(graph: Graph) -> tuple[nn.Sequential, bool]:
    """Make a stack of ``Linear``, ``Conv2d``, ``ReLU`` and ``Flatten`` layers that computes what a graph does.

    Constants that are added, subtracted, multiplied or divided by are folded into a linear layer beside them, in
    float64; where that is not exact they stay as ``Normalize`` or ``Elementwise``. Every sample is computed as in a
    batch of one, so a batch size that is fixed in the file does not matter.

    Args:
        graph: the graph.

    Returns:
        A module for inputs ``(B, *sample)`` that gives ``(B, n_outputs)``, in eval mode; and whether it computes the
        same in real arithmetic, for no number had to be rounded.

    Raises:
        NoStackError: the graph branches, or has an operation that is not known here.
    """
    walk = Walk(dict(graph.constants), graph.source, graph.shape, flat=len(graph.shape) <= 2)
    for step in graph.steps:
        _take(walk, step)
    if walk.value != graph.target:
        raise NoStackError(f"the output is {graph.target}, not {walk.value}")
    walk.flatten()
    parts = fold(walk.parts)
    size = math.prod(walk.shape)
    if size <= MOST_CLOSING and not isinstance(parts[-1] if parts else None, Dense):
        parts.append(Dense(np.eye(size), np.zeros(size)))
    return nn.Sequential(*layers_of(parts)).eval(), exact(parts)


def _take(walk: Walk, step: Step) -> None:
    """Take the next operation."""
    given = [name for name in step.inputs if name]
    if step.operation == "Constant":
        walk.constants[step.output] = stored(step)
    elif step.operation == "Shape" and given == [walk.value]:
        walk.constants[step.output] = np.array(walk.shape)
    elif all(name in walk.constants for name in given):
        walk.constants[step.output] = computed(step, [walk.constants[name] for name in given])
    elif given.count(walk.value) == 1 and all(one in walk.constants or one == walk.value for one in given):
        if step.operation not in OPERATIONS:
            raise NoStackError(f"{step.operation} at {step.name}")
        OPERATIONS[step.operation](walk, step)
        walk.value = step.output
    else:
        raise NoStackError(f"the graph branches at {step.operation} {step.name}")
