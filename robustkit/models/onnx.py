"""Networks in ONNX files: read as plain layers, held against onnxruntime."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from robustkit.errors import RobustkitError, UsageError
from robustkit.files import read_maybe_gzipped
from robustkit.models.conversion import Converted, convert, first_line
from robustkit.models.graph import Constants, Graph, NoStackError, Step
from robustkit.models.stack import stack_of

# onnx and onnxruntime are imported where they are needed: most commands need neither.

MATCH = 1e-4
"""How far outputs may lie from onnxruntime's, as a share of 1 + the largest output: float32 sums in another order."""
STACK_MATCH = 1e-5
"""The same for a stack of plain layers; one that is farther away is not used."""
SAMPLES = 8
"""Random inputs that networks are compared on."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class OnnxNetwork:
    """A network read from a file.

    Attributes:
        model: in eval mode on the CPU, float32; maps ``(B, *input_shape)`` to ``(B, outputs)``.
        input_shape: of a sample.
        outputs: number of outputs.
        session: onnxruntime's, of the file itself.
        file_shape: of the file's input, for a batch of one.
        exact: whether the model is a stack of plain layers with the very numbers of the file, so that both compute the
            same in real arithmetic; a converted network is not known to.
    """

    model: nn.Module
    input_shape: tuple[int, ...]
    outputs: int
    session: Any = field(repr=False)
    file_shape: tuple[int, ...]
    exact: bool = False

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        return math.prod(self.input_shape)

    def run(self, x: Array) -> Array:
        """Compute the outputs, shape ``(outputs,)``, of a flat input ``(inputs,)`` by onnxruntime in float32."""
        return _run(self.session, self.file_shape, x)

    def run_exactly(self, x: Array) -> Array:
        """Compute the same by our own layers in float64."""
        with torch.no_grad():
            outputs: Tensor = copy.deepcopy(self.model).double()(torch.from_numpy(x).reshape(1, *self.input_shape))
        return np.asarray(outputs[0].numpy(), dtype=np.float64)


def load_onnx(path: str | Path, box: tuple[Array, Array] | None = None) -> nn.Module:
    """Load a network from an ONNX file as a module of ``(B, *sample)``; see ``read_onnx``."""
    return read_onnx(path, box).model


def read_onnx(path: str | Path, box: tuple[Array, Array] | None = None) -> OnnxNetwork:
    """Read a network from an ONNX file, as plain layers where its graph is a chain, and hold it against onnxruntime.

    Args:
        path: ``.onnx``, or the same gzipped.
        box: lower and upper corner of the inputs it is made for, each flat; None for [0, 1].

    Returns:
        The network; its model computes any batch, also where the file fixes one of 1.

    Raises:
        RobustkitError: the file is absent or damaged, has not one float32 input and one output of known shapes, or the
            outputs differ from onnxruntime's.
        UnsupportedLayerError: an operation that cannot be read; it is named, with its place.
    """
    proto = _read(Path(path))
    graph = _graph(proto, path)
    session = start_session(proto, path)
    inputs = _samples(box, math.prod(graph.shape))
    try:
        expected = np.stack([_run(session, graph.shape, one) for one in inputs])
    except Exception as error:
        raise RobustkitError(
            f"onnxruntime cannot compute {path}: {first_line(error)}; export the network again"
        ) from None
    if not np.isfinite(expected).all():
        raise RobustkitError(f"expected finite outputs of {path}, got NaN or infinity; check its weights")
    sample = graph.shape[1:] if len(graph.shape) > 1 else graph.shape
    stack = _stack(graph, inputs, expected)
    model, exact = stack or (_converted(proto, graph, inputs, expected, path), False)
    return OnnxNetwork(model, sample, expected.shape[1], session, graph.shape, exact)


def _read(path: Path) -> Any:
    if path.name.endswith(".onnx") and path.is_file():
        import onnx

        try:
            return onnx.load(str(path))  # with weights in files beside it
        except Exception:  # whatever a damaged file breaks
            raise _damaged(path) from None
    if not path.name.endswith((".onnx", ".onnx.gz")):
        raise UsageError(f"expected a network in .onnx or .onnx.gz, got {path}")
    return parse_onnx(read_maybe_gzipped(path), path)


def parse_onnx(content: bytes, path: str | Path) -> Any:
    """Read what an ONNX file holds; ``path`` is what messages call it."""
    import onnx

    try:
        return onnx.load_from_string(content)
    except Exception:
        raise _damaged(path) from None


def _damaged(path: str | Path) -> RobustkitError:
    return RobustkitError(f"{path} is damaged or no ONNX file; copy or export it again")


def _graph(proto: Any, path: str | Path) -> Graph:
    """Read what the file computes, without torch."""
    from onnx import helper, numpy_helper

    constants: Constants = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
    sources = [one for one in proto.graph.input if one.name not in constants]
    if len(sources) != 1 or len(proto.graph.output) != 1:
        counts = f"{len(sources)} and {len(proto.graph.output)}"
        raise RobustkitError(f"expected one input and one output in {path}, got {counts}; export the network alone")

    def value(attribute: Any) -> Any:
        found = helper.get_attribute_value(attribute)
        return numpy_helper.to_array(found) if hasattr(found, "raw_data") else found

    steps = tuple(
        Step(
            node.name or f"number {place}",
            node.op_type,
            tuple(node.input),
            node.output[0],
            {one.name: value(one) for one in node.attribute},
        )
        for place, node in enumerate(proto.graph.node, start=1)
    )
    return Graph(steps, constants, sources[0].name, _shape(sources[0], path), proto.graph.output[0].name)


def _shape(source: Any, path: str | Path) -> tuple[int, ...]:
    kind = source.type.tensor_type
    shape = [one.dim_value if one.HasField("dim_value") else 0 for one in kind.shape.dim]
    if len(shape) > 1 and shape[0] <= 0:
        shape[0] = 1  # any batch
    if kind.elem_type != 1 or not shape or min(shape) < 1 or (len(shape) > 1 and shape[0] != 1):
        raise RobustkitError(
            f"expected a float32 input (batch, ...) with a batch of 1 or any in {path}, got {source.name} of shape "
            f"{tuple(shape)} (0 for unknown) and ONNX type {kind.elem_type}; export the network again"
        )
    return tuple(shape)


def start_session(proto: Any, path: str | Path) -> Any:
    """Let onnxruntime read what a file holds."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise RobustkitError(f"onnxruntime cannot read {path}: {first_line(error)}; export the network again") from None


def _run(session: Any, shape: tuple[int, ...], x: Array) -> Array:
    outputs = session.run(None, {session.get_inputs()[0].name: x.astype(np.float32).reshape(shape)})[0]
    return np.asarray(outputs, dtype=np.float64).reshape(-1)


def _samples(box: tuple[Array, Array] | None, size: int) -> Array:
    lower, upper = box if box else (np.zeros(size), np.ones(size))
    if lower.shape != (size,) or upper.shape != (size,):
        raise RobustkitError(f"expected a box of {size} inputs for this network, got {lower.size}; check the property")
    share = np.random.default_rng(0).random((SAMPLES, size))
    return np.asarray((lower + share * (upper - lower)).astype(np.float32), dtype=np.float64)


def _stack(graph: Graph, inputs: Array, expected: Array) -> tuple[nn.Module, bool] | None:
    """Make plain layers of a graph, where it is a chain of such and they compute the same; say whether exactly."""
    try:
        model, exact = stack_of(graph)
    except NoStackError:
        return None
    return (model, exact) if apart(_outputs(model, graph, inputs), expected) <= STACK_MATCH else None


def _converted(proto: Any, graph: Graph, inputs: Array, expected: Array, path: str | Path) -> nn.Module:
    """Convert a graph by onnx2torch: for whole batches where it computes them, else sample by sample."""
    converted = convert(_any_batch(proto), graph, str(path)).eval()
    away = math.inf
    for singly in [False, True] if len(graph.shape) > 1 else [True]:
        model = Converted(converted, graph.shape, singly=singly)
        try:
            away = apart(_outputs(model, graph, inputs), expected)
        except (RuntimeError, ValueError, IndexError):
            continue  # it takes no other batch than one
        if away <= MATCH:
            return model.eval()
    raise RobustkitError(
        f"expected the outputs that onnxruntime computes for {path}, got ones {away:.3g} away (as a share of 1 + the "
        f"largest, at most {MATCH:g}): an operation is converted wrongly; this network cannot be used"
    )


def _any_batch(proto: Any) -> Any:
    """Let reshapes to a batch of one keep whatever batch comes."""
    from onnx import numpy_helper

    proto = copy.deepcopy(proto)
    shapes = {node.input[1] for node in proto.graph.node if node.op_type == "Reshape" and len(node.input) > 1}
    stored = [one for one in proto.graph.initializer if one.name in shapes]
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.output[0] in shapes:
            stored += [one.t for one in node.attribute if one.name == "value"]
    for tensor in stored:
        shape = numpy_helper.to_array(tensor).copy()
        if shape.ndim == 1 and len(shape) > 1 and shape[0] == 1:
            shape[0] = 0 if (shape == -1).any() else -1
            tensor.CopyFrom(numpy_helper.from_array(shape, tensor.name))
    return proto


@torch.no_grad()
def _outputs(model: nn.Module, graph: Graph, inputs: Array) -> npt.NDArray[Any]:
    sample = graph.shape[1:] if len(graph.shape) > 1 else graph.shape
    found: Tensor = model(torch.from_numpy(inputs.astype(np.float32)).reshape(-1, *sample))
    return found.numpy()


def apart(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """Say how far outputs are from others, as a share of 1 + the largest; infinite where they cannot be compared."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return math.inf
    return float(np.abs(found - expected).max() / (1.0 + np.abs(expected).max()))
