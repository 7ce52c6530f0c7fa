from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from robustkit.bounds import BoundedNetwork, BoundMethod
from robustkit.bounds.chain import chain_of
from robustkit.cli import cli
from robustkit.errors import RobustkitError, UnsupportedLayerError, UsageError
from robustkit.models import (
    ModelCard,
    Normalize,
    conversion,
    export_onnx,
    load_checkpoint,
    load_onnx,
    make_model,
    read_onnx,
    save_checkpoint,
)
from robustkit.models import onnx as adapter
from robustkit.models.affine import Elementwise
from robustkit.models.checkpoints import make_from_card


def write(
    path: Path, nodes: list[Any], constants: dict[str, Any], shape: tuple[Any, ...], kind: int = TensorProto.FLOAT
) -> Path:
    """Write a network of nodes from ``x`` to ``y``."""
    stored = [numpy_helper.from_array(np.asarray(one), name) for name, one in constants.items()]
    source = helper.make_tensor_value_info("x", kind, shape)
    target = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "test", [source], [target], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path


def numbers(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def kinds(model: nn.Module) -> list[str]:
    return [type(one).__name__ for one in model.children()]


def agrees(path: Path, batch: int = 4) -> nn.Module:
    """Read a network, and hold whole batches of it against onnxruntime on a box other than the one it was read for."""
    network = read_onnx(path)
    x = 3 * torch.rand(batch, *network.input_shape) - 1
    with torch.no_grad():
        found = network.model(x).numpy()
    expected = [network.run(one.numpy().reshape(-1).astype(float)) for one in x]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    exact = network.run_exactly(x[0].numpy().reshape(-1).astype(float))
    np.testing.assert_allclose(exact, expected[0], rtol=1e-4, atol=1e-5)
    return network.model


@pytest.mark.parametrize(
    "name", ["mnist_small", "mlp", "cnn_small", "batch-norm", "normalize", "residual", "average pool"]
)
def test_what_is_exported_reads_back(name: str, tmp_path: Path) -> None:
    shape = {"mnist_small": (1, 28, 28), "normalize": (3, 4, 4)}.get(name, (1, 4, 4))
    convolution = nn.Conv2d(1, 3, 3, padding=1)
    ends = (nn.Flatten(), nn.Linear(48, 3))
    own: dict[str, nn.Module] = {
        "batch-norm": nn.Sequential(convolution, nn.BatchNorm2d(3), nn.ReLU(), *ends),
        "normalize": nn.Sequential(Normalize([0.5, 0.4, 0.3], [0.25, 0.2, 0.5]), nn.Conv2d(3, 3, 3, padding=1), *ends),
        "residual": Skip(nn.Conv2d(1, 1, 3, padding=1), nn.Linear(16, 3)),
        "average pool": nn.Sequential(convolution, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)),
    }
    model = own[name] if name in own else make_model(name, shape, 3 if name != "mnist_small" else 10)
    model.train()
    for one in model.modules():
        if isinstance(one, nn.BatchNorm2d):
            one.running_mean, one.running_var = torch.rand(3), torch.rand(3) + 0.5
    assert export_onnx(model, shape, tmp_path / "net.onnx") < 1e-4
    assert model.training
    read = agrees(tmp_path / "net.onnx")
    assert not read.training
    x = torch.rand(5, *shape)
    with torch.no_grad():
        torch.testing.assert_close(read(x), model.eval()(x), rtol=1e-4, atol=1e-5)
    assert isinstance(read, conversion.Converted) is (name == "residual")
    plain = name not in ("residual", "average pool")
    assert (chain_of(read, x[:1]) is not None) is plain
    bounded = BoundedNetwork(read, x[:1])  # the engine carries the others
    identity = torch.eye(bounded.classes).repeat(5, 1, 1)
    lower, upper = bounded.output_bounds(x - 0.01, x + 0.01, identity, BoundMethod.CROWN)
    with torch.no_grad():
        assert (lower <= read(x) + 1e-4).all()
        assert (read(x) <= upper + 1e-4).all()


class Skip(nn.Module):
    """A branching network with a reshape to a fixed batch of one, as exporters write it."""

    def __init__(self, convolution: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.convolution, self.last = convolution, last

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.last((torch.relu(self.convolution(x)) + x).flatten(1))
        return z


def test_acas_xu_in_small(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["a"]),
        helper.make_node("Div", ["a", "range"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"], axis=1),
        helper.make_node("MatMul", ["c", "w"], ["d"]),
        helper.make_node("Add", ["d", "bias"], ["e"]),
        helper.make_node("Relu", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "bias"], ["g"], alpha=0.5, beta=2.0, transB=1),
        helper.make_node("Mul", ["two", "g"], ["h"]),
        helper.make_node("Sub", ["two", "h"], ["y"]),
    ]
    constants = {"mean": numbers(1, 1, 1, 5), "range": numbers(5) ** 2 + 1, "w": numbers(5, 5), "bias": numbers(5)}
    path = write(tmp_path / "n.onnx", nodes, {**constants, "v": numbers(5, 5), "two": np.float32(2)}, (1, 1, 1, 5))
    model = agrees(path)
    assert kinds(model) == ["Flatten", "Linear", "ReLU", "Linear"]
    assert chain_of(model, torch.zeros(1, 1, 1, 5)) is not None


def test_a_network_without_a_batch_dimension(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["w", "x"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    path = write(tmp_path / "n.onnx", nodes, {"w": numbers(3, 2), "b": numbers(3)}, (2,))
    model = agrees(path)
    assert kinds(model) == ["Linear", "ReLU", "Linear"]
    assert isinstance(model[2], nn.Linear)  # closes the stack, and changes nothing
    assert torch.equal(model[2].weight, torch.eye(3))


def test_reshapes_as_exporters_compute_them(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "first"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "axes"], ["m"]),
        helper.make_node("Concat", ["m", "rest"], ["t"], axis=0),
        helper.make_node("Conv", ["x", "k", "kb"], ["u"], pads=[1, 0, 1, 0], strides=[2, 1], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["u"], ["v"]),
        helper.make_node("Reshape", ["v", "t"], ["z"]),
        helper.make_node("MatMul", ["z", "w"], ["y"]),
    ]
    constants = {"first": np.int64(0), "axes": np.array([0]), "rest": np.array([-1]), "w": numbers(8, 3)}
    path = write(tmp_path / "n.onnx", nodes, {**constants, "k": numbers(2, 1, 3, 3), "kb": numbers(2)}, ("N", 1, 4, 4))
    assert kinds(agrees(path)) == ["Conv2d", "ReLU", "Flatten", "Linear"]


@pytest.mark.parametrize(
    ("pads", "shift", "expected"),
    [
        (0, numbers(1, 1, 1, 1), ["Conv2d", "Flatten", "Linear"]),
        (1, numbers(1, 1, 1, 1), ["Normalize", "Conv2d", "Flatten", "Linear"]),  # the padding is not shifted
        (1, np.zeros((1, 1, 1, 1), np.float32), ["Conv2d", "Flatten", "Linear"]),
        (0, numbers(1, 1, 4, 4), ["Elementwise", "Conv2d", "Flatten", "Linear"]),
    ],
)
def test_what_is_folded_into_a_convolution(pads: int, shift: Any, expected: list[str], tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["a"]),
        helper.make_node("Add", ["a", "shift"], ["b"]),
        helper.make_node("Conv", ["b", "k"], ["c"], pads=[pads] * 4),
        helper.make_node("Mul", ["c", "after"], ["d"]),
        helper.make_node("Flatten", ["d"], ["y"]),
    ]
    constants = {"scale": np.float32(3), "shift": shift, "k": numbers(2, 1, 3, 3), "after": numbers(2, 1, 1)}
    assert kinds(agrees(write(tmp_path / "n.onnx", nodes, constants, (1, 1, 4, 4)))) == expected


@pytest.mark.parametrize(
    ("changes", "exact"),
    [
        ({}, True),
        ({"bias": np.array([0.5, 0.25], np.float32)}, True),
        ({"bias": np.array([0.1, 0.25], np.float32), "more": np.array([1e8, 0.0], np.float32)}, False),  # the sum
        ({"scale": np.float32(3)}, False),
        ({"shift": np.float32(0.5)}, False),  # the product of the matrix with it
        ({"w": np.array([[0.1, 1.0], [1.0, 1.0]])}, False),  # in float64
    ],
)
def test_what_is_rounded_is_not_exact(changes: dict[str, Any], exact: bool, tmp_path: Path) -> None:
    constants = {"scale": np.float32(1), "shift": np.float32(0), "w": numbers(2, 2), "bias": np.float32([0.0, 0.0])}
    constants = {**constants, "more": np.zeros(2, np.float32), **changes}
    nodes = [
        helper.make_node("Sub", ["x", "shift"], ["a"]),
        helper.make_node("Mul", ["a", "scale"], ["b"]),
        helper.make_node("Cast", ["w"], ["v"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["b", "v"], ["c"]),
        helper.make_node("Add", ["c", "bias"], ["d"]),
        helper.make_node("Add", ["d", "more"], ["y"]),
    ]
    path = write(tmp_path / "n.onnx", nodes, constants, (1, 2))
    assert read_onnx(path).exact is exact


@pytest.mark.parametrize("operation", ["Div", "BatchNormalization"])
def test_quotients_are_not_exact(operation: str, tmp_path: Path) -> None:
    given = {"Div": ["d"], "BatchNormalization": ["d", "z", "z", "d"]}[operation]
    nodes = [helper.make_node(operation, ["x", *given], ["y"])]
    constants = {"d": np.full(2, 4.0, np.float32), "z": np.zeros(2, np.float32)}
    assert not read_onnx(write(tmp_path / "n.onnx", nodes, constants, (1, 2))).exact


def test_an_elementwise_map_computes_in_the_batch() -> None:
    layer = Elementwise(torch.tensor([2.0, -1.0]), torch.tensor([0.0, 1.0]))
    assert layer(torch.tensor([[1.0, 1.0], [0.5, 3.0]])).tolist() == [[2.0, 0.0], [1.0, -2.0]]


def branching(path: Path, batch: Any, last: str = "Add") -> Path:
    """Write ``relu(w x) + x`` over a reshape to a batch of one."""
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node(last, ["a", "c"], ["y"], name="joins"),
    ]
    return write(path, nodes, {"w": numbers(4, 4), "flat": np.array([1, 4])}, (batch, 2, 2))


def test_a_fixed_batch_of_one_takes_any(tmp_path: Path) -> None:
    model = agrees(branching(tmp_path / "n.onnx", 1), batch=3)
    assert isinstance(model, conversion.Converted)
    assert not model.singly


def test_a_graph_for_one_sample_only_goes_sample_by_sample(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Add", ["a", "x"], ["b"]),
        helper.make_node("Concat", ["b", "row"], ["c"], axis=0),
        helper.make_node("Reshape", ["c", "six"], ["y"]),
    ]
    model = agrees(write(tmp_path / "n.onnx", nodes, {"row": numbers(1, 3), "six": np.array([1, 6])}, (1, 3)), batch=3)
    assert isinstance(model, conversion.Converted)
    assert model.singly


def test_a_mismatch_is_refused_with_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = branching(tmp_path / "n.onnx", 1)
    convert = conversion.convert
    monkeypatch.setattr(adapter, "convert", lambda *given: nn.Sequential(convert(*given), nn.Dropout(0), Off()))
    with pytest.raises(RobustkitError, match=r"expected the outputs that onnxruntime computes .* 0\.\d+ away"):
        read_onnx(path)


class Off(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 1.1 + 0.1


def test_a_stack_that_computes_something_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "n.onnx"
    write(path, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": numbers(4, 3)}, (1, 4))
    stack_of = adapter.stack_of
    monkeypatch.setattr(adapter, "stack_of", lambda graph: (nn.Sequential(stack_of(graph)[0], Off()), True))
    assert isinstance(agrees(path), conversion.Converted)


def test_an_unsupported_operation_is_named_with_its_place(tmp_path: Path) -> None:
    nodes = [helper.make_node("Hardmax", ["x"], ["y"], name="the_last")]
    with pytest.raises(UnsupportedLayerError, match=r"the operation Hardmax at node the_last \(opset 13\)"):
        read_onnx(write(tmp_path / "n.onnx", nodes, {}, (1, 4)))


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        ((3, 4), TensorProto.FLOAT, r"batch of 1 or any .* got x of shape \(3, 4\)"),
        ((1, "n"), TensorProto.FLOAT, r"got x of shape \(1, 0\) \(0 for unknown\)"),
        ((1, 4), TensorProto.DOUBLE, "ONNX type 11"),
    ],
)
def test_inputs_that_cannot_be_meant(shape: tuple[Any, ...], kind: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(RobustkitError, match=message):
        read_onnx(write(tmp_path / "n.onnx", [helper.make_node("Relu", ["x"], ["y"])], {}, shape, kind))


def test_files_that_are_none(tmp_path: Path, small_cnn: nn.Sequential) -> None:
    with pytest.raises(UsageError, match=r"expected a network in \.onnx"):
        load_onnx(tmp_path / "net.pth")
    with pytest.raises(RobustkitError, match="expected a file at"):
        load_onnx(tmp_path / "net.onnx")
    (tmp_path / "net.onnx").write_bytes(b"nonsense")
    with pytest.raises(RobustkitError, match="damaged or no ONNX file"):
        load_onnx(tmp_path / "net.onnx")
    export_onnx(small_cnn, (1, 4, 4), tmp_path / "good.onnx")
    packed = gzip.compress((tmp_path / "good.onnx").read_bytes())
    (tmp_path / "good.onnx.gz").write_bytes(packed)
    assert kinds(load_onnx(tmp_path / "good.onnx.gz"))[0] == "Conv2d"
    (tmp_path / "good.onnx.gz").write_bytes(packed[:-20])
    with pytest.raises(RobustkitError, match="damaged or cut short"):
        load_onnx(tmp_path / "good.onnx.gz")
    with pytest.raises(RobustkitError, match="expected a box of 16 inputs for this network, got 2"):
        load_onnx(tmp_path / "good.onnx", (np.zeros(2), np.ones(2)))


def test_two_inputs_are_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "z"], ["y"])],
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 2)) for name in "xz"],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 2))],
    )
    onnx.save(helper.make_model(graph, ir_version=8), str(tmp_path / "n.onnx"))
    with pytest.raises(RobustkitError, match=r"expected one input and one output .* got 2 and 1"):
        read_onnx(tmp_path / "n.onnx")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    weight = np.full((4, 3), np.nan, dtype=np.float32)
    with pytest.raises(RobustkitError, match="expected finite outputs"):
        read_onnx(write(tmp_path / "n.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}, (1, 4)))


def test_an_export_that_computes_something_else_is_not_written(tmp_path: Path) -> None:
    class Counting(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Counting.calls += 1
            return x * float(Counting.calls)

    with pytest.raises(RobustkitError, match="nothing is written"):
        export_onnx(Counting(), (3,), tmp_path / "n.onnx")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match=r"expected a path ending in \.onnx"):
        export_onnx(nn.Flatten(), (3,), tmp_path / "n.pb")


def test_a_layer_that_onnx_cannot_hold_is_refused(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.i0e(x)

    with pytest.raises(UnsupportedLayerError, match="cannot write this network as ONNX"):
        export_onnx(Odd(), (3,), tmp_path / "n.onnx")


def test_the_competitions_networks_are_plain_stacks(shared: Path) -> None:
    files = sorted([*shared.glob("vnncomp/*/onnx/*.onnx*"), *shared.glob("vnncomp/*/*.onnx")])
    if not files:
        pytest.skip("needs vnncomp/ in the shared folder")
    for file in files:
        network = read_onnx(file)
        assert chain_of(network.model, torch.zeros(1, *network.input_shape)) is not None, file
        assert network.exact, file


def test_the_command_line_exports_a_run(tmp_path: Path) -> None:
    card = ModelCard("mlp", (1, 4, 4), 3, "digits", (0.5,), (0.25,), "natural", 0.0, 0)
    save_checkpoint(tmp_path, make_from_card(card), card)
    target = tmp_path / "net.onnx"
    done = CliRunner().invoke(cli, ["export", "--run", str(tmp_path), "--onnx", str(target)])
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"wrote {target}: {tmp_path}, logits within ")
    x = torch.rand(2, 1, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(load_onnx(target)(x), load_checkpoint(tmp_path)[0](x), rtol=1e-4, atol=1e-5)
    done = CliRunner().invoke(cli, ["export", "--run", str(tmp_path / "none"), "--onnx", str(target)])
    assert done.exit_code == 1
    assert "expected a trained network" in done.output
