"""Graphs that are no stack of plain layers, converted by onnx2torch: the one file that knows it."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.errors import UnsupportedLayerError
from robustkit.models.graph import Graph


class Converted(nn.Module):
    """A converted graph as a network of ``(B, *sample)`` inputs that gives ``(B, n_outputs)``.

    Args:
        graph: for inputs of ``shape``.
        shape: of the file's input, for a batch of one.
        singly: compute the samples one after another, for a graph that takes no other batch than one.
    """

    def __init__(self, graph: nn.Module, shape: tuple[int, ...], *, singly: bool) -> None:
        super().__init__()
        self.graph, self.shape, self.singly = graph, shape, singly

    def forward(self, x: Tensor) -> Tensor:
        """Compute the outputs."""
        if not self.singly:
            whole: Tensor = self.graph(x)
            return whole.flatten(1)
        return torch.cat([self.graph(one.reshape(self.shape)).reshape(1, -1) for one in x])


def convert(proto: Any, graph: Graph, path: str) -> nn.Module:
    """Convert what an ONNX file holds into a module of torch's.

    Args:
        proto: what it holds.
        graph: the same, for its names.
        path: what messages call it.

    Raises:
        UnsupportedLayerError: an operation that cannot be converted; it is named, with its place.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import onnx2torch
        from onnx2torch.node_converters import get_converter

        versions = {one.domain: one.version for one in proto.opset_import}
        for step, node in zip(graph.steps, proto.graph.node, strict=True):
            try:
                get_converter(step.operation, versions.get(node.domain, 0), node.domain)
            except NotImplementedError:
                raise UnsupportedLayerError(
                    f"cannot read {path}: the operation {step.operation} at node {step.name} (opset "
                    f"{versions.get(node.domain, 0)}) is not supported; export the network with other layers"
                ) from None
        try:
            module: nn.Module = onnx2torch.convert(proto)
        except Exception as error:
            raise UnsupportedLayerError(
                f"cannot convert {path}: {first_line(error)}; export it with other layers"
            ) from error
    return module


def first_line(error: Exception) -> str:
    """Give the first line of an engine's error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
