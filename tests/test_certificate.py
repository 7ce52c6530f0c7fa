import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from proofs import network_of, root_only, single, split_all, tiny
from torch import nn

from robustkit.cli import cli
from robustkit.errors import RobustkitError, UsageError
from robustkit.models import ModelCard, load_checkpoint, make_model, save_checkpoint
from robustkit.verifiers import execution_error
from robustkit.verifiers.certificate import Certificate, Leaf, Node, Split, Tree, model_digest
from robustkit.verifiers.certificate_file import load_certificate, save_certificate
from robustkit.verifiers.checker import check, check_file
from robustkit.verifiers.claims import Ball, Box, Disjunct

LB, UB = np.array([-0.3, -0.3]), np.array([0.3, 0.3])


@pytest.fixture(scope="module")
def model() -> nn.Sequential:
    return tiny(3)


@pytest.fixture(scope="module")
def proof(model: nn.Sequential) -> Certificate:
    """A true certificate with splits whose property is far from false."""
    certificate = split_all(model, Box(LB, UB, single([1.0, -1.0], 2.0)))
    assert len(certificate.trees[0].leaf) >= 4
    assert check(certificate, model).proved
    return certificate


def test_a_certificate_comes_back_from_its_file(model: nn.Sequential, proof: Certificate, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save_certificate(path, proof)
    again = load_certificate(path)
    assert (again.model, again.input) == (proof.model, proof.input)
    for name in ("parent", "kind", "layer", "neuron", "threshold", "leaf", "row", "beta"):
        mine, read = getattr(proof.trees[0], name), getattr(again.trees[0], name)
        assert mine.dtype == read.dtype
        np.testing.assert_array_equal(mine, read)
    checked, fresh = check_file(path, model), check(proof, model)
    assert (checked.proved, checked.margin, checked.leaves) == (True, fresh.margin, fresh.leaves)


def test_a_ball_comes_back_bit_by_bit(tmp_path: Path) -> None:
    model = network_of("conv")
    x = torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(0))
    claim = Ball(x.numpy(), 8 / 255, int(model(x.unsqueeze(0)).argmax()))
    save_certificate(tmp_path / "b.npz", root_only(model, claim, 3))
    again = load_certificate(tmp_path / "b.npz").claim
    assert isinstance(again, Ball)
    assert (again.eps, again.lower, again.upper, again.label) == (8 / 255, 0.0, 1.0, claim.label)
    np.testing.assert_array_equal(again.x, claim.x)
    assert check_file(tmp_path / "b.npz", model).proved


def changed(proof: Certificate, **parts: Any) -> Certificate:
    """The same certificate with other arrays in its tree."""
    return replace(proof, trees=(replace(proof.trees[0], **parts),))


def put(array: Any, place: Any, value: Any) -> Any:
    copy = array.copy()
    copy[place] = value
    return copy


def without_last_pair(tree: Tree) -> dict[str, Any]:
    return {name: getattr(tree, name)[:-2] for name in ("parent", "kind", "layer", "neuron", "threshold")}


TREE_TAMPERING = {
    "a leaf's proof left out": lambda t: {"leaf": t.leaf[1:], "row": t.row[1:]},
    "a leaf's proof for another's": lambda t: {"leaf": put(t.leaf, 0, t.leaf[1])},
    "an inner node called a leaf": lambda t: {"leaf": put(t.leaf, 0, 0)},
    "a pair of leaves left out": without_last_pair,
    "one child left out": lambda t: {
        name: getattr(t, name)[:-1] for name in ("parent", "kind", "layer", "neuron", "threshold")
    },
    "a child twice": lambda t: {"kind": put(t.kind, -1, t.kind[-2])},
    "a child of another neuron": lambda t: {"neuron": put(t.neuron, -1, (t.neuron[-1] + 1) % 5)},
    "a child of another layer": lambda t: {"layer": put(t.layer, -1, 1 - t.layer[-1])},
    "a neuron that is not there": lambda t: {"neuron": put(t.neuron, [-1, -2], 5)},
    "a negative neuron": lambda t: {"neuron": put(t.neuron, [-1, -2], -1)},
    "a layer that is not there": lambda t: {"layer": put(t.layer, [-1, -2], 2)},
    "a kind that is not there": lambda t: {"kind": put(t.kind, -1, 5)},
    "a second root": lambda t: {"kind": put(t.kind, 1, 0)},
    "an orphan": lambda t: {"parent": put(t.parent, -1, -1)},
    "a cycle": lambda t: {"parent": put(t.parent, 1, len(t.parent) - 1)},
    "one's own parent": lambda t: {"parent": put(t.parent, 1, 1)},
    "no root": lambda t: {"parent": put(t.parent, 0, 0)},
    "a split of another kind": lambda t: {"kind": put(t.kind, [-2, -1], [Split.ACTIVE, Split.ABOVE])},
    "half a threshold": lambda t: {
        "kind": put(t.kind, [-2, -1], [3, 4]),
        "neuron": put(t.neuron, [-2, -1], 0),
        "threshold": put(t.threshold, [-2, -1], [0.0, 0.1]),
    },
    "a negative multiplier": lambda t: {"beta": put(t.beta, 0, -0.1)},
    "a multiplier too few": lambda t: {"beta": t.beta[1:]},
    "a row that is not there": lambda t: {"row": put(t.row, 0, 1)},
    "a negative row": lambda t: {"row": put(t.row, 0, -1)},
    "slopes of some layers only": lambda t: {"columns": (np.arange(5),), "alpha": (np.ones((1, 5), np.float32),)},
    "a slope above 1": lambda t: {"columns": (np.arange(5),) * 2, "alpha": (np.full((1, 5), 1.1, np.float32),) * 2},
    "a slope below 0": lambda t: {"columns": (np.arange(5),) * 2, "alpha": (np.full((1, 5), -0.1, np.float32),) * 2},
    "slopes of no neuron": lambda t: {"columns": (np.arange(1, 6),) * 2, "alpha": (np.ones((1, 5), np.float32),) * 2},
    "two slopes of one": lambda t: {"columns": (np.zeros(5, int),) * 2, "alpha": (np.ones((1, 5), np.float32),) * 2},
}


@pytest.mark.parametrize("what", TREE_TAMPERING)
def test_a_tree_that_was_tampered_with_is_refused(model: nn.Sequential, proof: Certificate, what: str) -> None:
    checked = check(changed(proof, **TREE_TAMPERING[what](proof.trees[0])), model)
    assert not checked.proved
    assert "expected" in checked.reason


@pytest.mark.parametrize(
    "parts",
    [
        {"beta": np.array([np.nan])},
        {"threshold": np.array([np.inf])},
        {"parent": np.array([-1], dtype=np.int32)},
        {"kind": np.zeros((1, 1), dtype=np.int8)},
        {"leaf": [0]},
        {"row": np.zeros(2, dtype=np.int32)},
        {"columns": (np.arange(2),), "alpha": (np.zeros((1, 3), dtype=np.float32),)},
        {"columns": (np.arange(2),), "alpha": (np.zeros((3, 2), dtype=np.float32),)},
        {"columns": (np.arange(2),), "alpha": (np.zeros((1, 2)),)},
        {"columns": (np.arange(2),)},
        {"columns": (np.arange(1),), "alpha": (np.full((1, 1), np.nan, dtype=np.float32),)},
    ],
)
def test_arrays_of_another_shape_or_type_make_no_tree(parts: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"):
        replace(Tree.build([Node()], [Leaf(0)]), **parts)


def test_what_a_claim_must_be() -> None:
    x = np.zeros((1, 2, 2), dtype=np.float32)
    for wrong in ({"eps": -0.1}, {"eps": np.nan}, {"eps": np.inf}, {"label": -1}, {"lower": 1.0}, {"upper": np.inf}):
        with pytest.raises(UsageError, match="expected eps"):
            Ball(**{"x": x, "eps": 0.1, "label": 0, **wrong})
    with pytest.raises(UsageError, match="float32"):
        Ball(x.astype(np.float64), 0.1, 0)
    with pytest.raises(UsageError, match="empty"):
        Box(UB, LB, ())
    with pytest.raises(UsageError, match="finite"):
        Box(LB, np.array([np.nan, 1.0]), ())
    with pytest.raises(UsageError, match="one offset per row"):
        Disjunct(np.eye(2), np.zeros(1))


def test_leaves_get_all_their_multipliers_or_none() -> None:
    nodes = [Node(), Node(0, Split.ACTIVE, 0, 0), Node(0, Split.INACTIVE, 0, 0)]
    assert Tree.build(nodes, [Leaf(1), Leaf(2)]).beta.tolist() == [0.0, 0.0]
    with pytest.raises(UsageError, match="multiplier"):
        Tree.build(nodes, [Leaf(1, beta=[0.1, 0.2]), Leaf(2)])
    with pytest.raises(UsageError, match="all leaves or for none"):
        Tree.build(nodes, [Leaf(1, alpha=[np.ones(2)]), Leaf(2)])
    with pytest.raises(UsageError, match="parents first"):
        Tree.build([Node(), Node(2, Split.ACTIVE, 0, 0)], [Leaf(1)])


def test_another_claim_or_network_is_refused(model: nn.Sequential, proof: Certificate) -> None:
    claim = proof.claim
    assert isinstance(claim, Box)
    assert "claim" in check(replace(proof, claim=replace(claim, lb=LB - 1e-9)), model).reason
    offset = single([1.0, -1.0], 2.5)
    assert "claim" in check(replace(proof, claim=replace(claim, disjuncts=offset)), model).reason
    other = tiny(3)
    with torch.no_grad():
        other[2].bias[1] = torch.nextafter(other[2].bias[1], torch.tensor(9.0))
    assert model_digest(other) != proof.model
    assert "other parameters" in check(proof, other).reason


def test_a_ball_of_another_radius_sample_or_label_is_refused() -> None:
    model = network_of("conv")
    x = torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(0)).numpy()
    claim = Ball(x, 0.01, int(model(torch.from_numpy(x).unsqueeze(0)).argmax()))
    proof = root_only(model, claim, 3)
    assert check(proof, model).proved
    moved = replace(claim, x=put(x, (0, 0, 0), np.nextafter(x[0, 0, 0], np.float32(1))))
    changes = [replace(claim, eps=0.011), moved, replace(claim, label=0), replace(claim, upper=0.99)]
    for other in changes:
        assert "claim" in check(replace(proof, claim=other), model).reason


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_every_disjunct_needs_its_tree(count: int) -> None:
    model = network_of("conv")
    x = torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(0))
    claim = Ball(x.numpy(), 0.0, int(model(x.unsqueeze(0)).argmax()))
    assert "a tree for each of 3 disjuncts" in check(root_only(model, claim, count), model).reason


def resealed(path: Path, edit: Any, *, arrays: dict[str, Any] | None = None) -> None:
    """Write the file again with another header or other arrays, as somebody would who does not know the digest."""
    with np.load(path) as archive:
        found = {name: archive[name] for name in archive.files}
    header = json.loads(found.pop("header").tobytes())
    edit(header)
    text = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    with path.open("wb") as file:
        np.savez_compressed(file, header=text, **{**found, **(arrays or {})})


@pytest.mark.parametrize(
    ("edit", "arrays", "reason"),
    [
        (lambda h: h.update(version=1), {}, "version 2, got 1"),
        (lambda h: h.update(kind="ball"), {}, "was changed"),
        (lambda h: h.update(model="0" * 64), {}, "was changed"),
        (lambda h: h.update(disjuncts=0), {}, "was changed"),
        (lambda h: h.pop("content"), {}, "damaged"),
        (lambda h: None, {"0.threshold": np.ones(3)}, "was changed"),
        (lambda h: None, {"0.offsets": np.array([9.0])}, "was changed"),
        (lambda h: None, {"extra": np.zeros(1)}, "was changed"),
    ],
)
def test_a_file_that_was_edited_is_refused(
    model: nn.Sequential, proof: Certificate, tmp_path: Path, edit: Any, arrays: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "a.npz"
    save_certificate(path, proof)
    resealed(path, edit, arrays=arrays)
    checked = check_file(path, model)
    assert not checked.proved
    assert reason in checked.reason


def test_a_damaged_file_is_refused(model: nn.Sequential, proof: Certificate, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save_certificate(path, proof)
    whole = path.read_bytes()
    pieces = [whole[: len(whole) // 2], whole[:-30], b"", b"PK", whole[:200] + b"\x00\x01" + whole[202:]]
    for piece in pieces:
        path.write_bytes(piece)
        checked = check_file(path, model)
        assert not checked.proved
        assert "damaged" in checked.reason or "was changed" in checked.reason
    path.unlink()
    assert "found none" in check_file(path, model).reason


def test_python_objects_in_a_file_are_not_loaded(tmp_path: Path) -> None:
    path, buffer = tmp_path / "a.npz", io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.npy", buffer.getvalue())
    with pytest.raises(RobustkitError, match="damaged or no certificate"):
        load_certificate(path)


def trained(folder: Path) -> tuple[Path, Path]:
    """A run directory with a network for digits, and a certificate of an easy sample."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make_model("mlp", (1, 8, 8), 10).eval()
    card = ModelCard("mlp", (1, 8, 8), 10, "digits", (0.0,), (1.0,), "natural", 0.0, 0)
    save_checkpoint(folder / "run", model, card)
    x = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    gaps = model(x).detach().topk(2).values
    best = int((gaps[:, 0] - gaps[:, 1]).argmax())
    claim = Ball(x[best].numpy(), 1e-3, int(model(x[best : best + 1]).argmax()))
    save_certificate(folder / "proof.npz", root_only(model, claim, 9))
    return folder / "run", folder / "proof.npz"


def test_the_check_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, proof = trained(tmp_path)
    weights = str(run / "model.safetensors")
    for network in (["--run", str(run)], ["--model", "mlp", "--checkpoint", weights, "--dataset", "digits"]):
        done = CliRunner().invoke(cli, ["check", str(proof), *network])
        assert done.exit_code == 0, done.output
        assert done.output.startswith("PROVED label ")
        assert "least margin 0." in done.output
        assert "9 leaves" in done.output
    real, short = (
        CliRunner().invoke(cli, ["check", str(proof), "--run", str(run), "--semantics", kind]).output
        for kind in ("real", "float32")
    )
    margins = [float(one.partition("least margin ")[2].partition(",")[0]) for one in (real, short)]
    assert 0 < margins[1] < margins[0] < margins[1] + 1e-3, "what executions may lose is subtracted"


def test_the_verify_command_hands_the_semantics_to_every_verifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, _ = trained(tmp_path)
    command = ["verify", "--model", "mlp", "--checkpoint", str(run / "model.safetensors"), "--dataset", "digits"]
    command += ["--eps", "0", "--n", "60", "--json", "--method", "ibp,cascade"]
    verified = {}
    for kind in ("real", "float32"):
        monkeypatch.setattr(execution_error, "UNIT", 0.1)
        done = CliRunner().invoke(cli, [*command, "--semantics", kind, "--timeout", "1"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        verified[kind] = [(one["robust"], one["float"]) for one in json.loads(done.stdout)["evaluations"]]
    assert all(robust > 0 for robust, _ in verified["real"])
    assert all(robust == 0 and alone > 0 for robust, alone in verified["float32"])
    refused = CliRunner().invoke(cli, ["verify", "--onnx", "a", "--vnnlib", "b", "--semantics", "float32"])
    assert refused.exit_code == 2 and "semantics" in refused.stderr


def test_the_check_command_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, proof = trained(tmp_path)
    model, card = load_checkpoint(run)
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-6
    save_checkpoint(tmp_path / "other", model, card)
    cut = tmp_path / "cut.npz"
    cut.write_bytes(proof.read_bytes()[:-40])
    cases = {
        (str(proof), "other"): "Error: REFUSED label",
        (str(cut), "run"): "damaged or no certificate",
        ("absent.npz", "run"): "found none",
        (str(proof), "nowhere"): "expected a run directory",
    }
    for (path, folder), reason in cases.items():
        done = CliRunner().invoke(cli, ["check", path, "--run", str(tmp_path / folder)])
        assert done.exit_code == 1
        assert reason in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
