from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from robustkit.data import load_dataset
from robustkit.errors import RobustkitError, UsageError
from robustkit.models import ModelCard, fingerprint, load_checkpoint, load_weights, make_model, save_checkpoint
from robustkit.models.architectures import Normalize
from robustkit.models.checkpoints import CARD_FILE, WEIGHTS_FILE

CARD = ModelCard("mlp", (1, 4, 4), 3, "digits", (0.5,), (0.25,), "ibp", 0.1, 7, {"torch": "2"})


def net() -> nn.Module:
    return make_model("mlp", (1, 4, 4), 3, mean=(0.5,), std=(0.25,))


def bare() -> nn.Module:
    return make_model("mlp", (1, 4, 4), 3)


def weights_equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    model = net()
    save_checkpoint(tmp_path / "run", model, CARD)
    for path in (tmp_path / "run", tmp_path / "run" / WEIGHTS_FILE, str(tmp_path / "run")):
        again, card = load_checkpoint(path)
        assert card == CARD and not again.training
        assert fingerprint(again) == fingerprint(model)
    x = torch.rand(4, 1, 4, 4)
    assert torch.equal(again(x), model(x))
    assert sorted(one.name for one in (tmp_path / "run").iterdir()) == [CARD_FILE, WEIGHTS_FILE]


def test_saving_and_loading_leave_model_and_random_state_alone(tmp_path: Path) -> None:
    model = net()
    before = torch.get_rng_state()
    save_checkpoint(tmp_path, model, CARD)
    load_checkpoint(tmp_path)
    assert torch.equal(torch.get_rng_state(), before) and model.training


def test_shared_tensors_can_be_saved(tmp_path: Path) -> None:
    layer = nn.Linear(16, 16)
    tied = nn.Sequential(layer, nn.ReLU(), layer)
    save_checkpoint(tmp_path, tied, CARD)
    assert len(safetensors.torch.load_file(tmp_path / WEIGHTS_FILE)) == 4


def test_a_crash_leaves_no_weights_beside_another_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(_state: object) -> bytes:
        raise KeyboardInterrupt

    save_checkpoint(tmp_path, net(), CARD)
    monkeypatch.setattr(safetensors.torch, "save", crash)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, net(), dataclasses.replace(CARD, eps=0.2))
    assert [one.name for one in tmp_path.iterdir()] == [CARD_FILE]
    with pytest.raises(RobustkitError, match=r"expected a trained network at .*; finish the training"):
        load_checkpoint(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RobustkitError, match=r"cannot write .*model.json"):
        save_checkpoint(tmp_path / "file" / "run", net(), CARD)


def test_broken_weights_are_neither_saved_nor_loaded(tmp_path: Path) -> None:
    model = bare()
    save_checkpoint(tmp_path, model, CARD)
    with torch.no_grad():
        model[3].bias[0] = float("inf")  # type: ignore[index]
    torch.save(model.state_dict(), tmp_path / "bad.pth")
    with pytest.raises(
        RobustkitError, match=r"expected finite weights in the model to save, got NaN or infinity in 3\.bias"
    ):
        save_checkpoint(tmp_path, model, CARD)
    assert (tmp_path / WEIGHTS_FILE).exists()
    with pytest.raises(RobustkitError, match=r"expected finite weights in .*bad\.pth, got NaN or infinity in 3\.bias"):
        load_weights(bare(), tmp_path / "bad.pth")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "expected a model card at .*model.json: No such file"),
        ("", "is no model card"),
        ("[]", "is no model card"),
        ("{}", "is no model card: .*missing .* required"),
        (json.dumps({**dataclasses.asdict(CARD), "eps": "much"}), "is no model card: expected eps"),
        (json.dumps({**dataclasses.asdict(CARD), "depth": 3}), "is no model card: unknown .*'depth'"),
        (json.dumps({**dataclasses.asdict(CARD), "input_shape": [4, 4]}), r"expected an input shape \(C, H, W\)"),
        (
            json.dumps({**dataclasses.asdict(CARD), "classes": 4}),
            r"expected the weights of mlp .* other shapes: 6\.weight",
        ),
        (json.dumps({**dataclasses.asdict(CARD), "architecture": "mlpp"}), "unknown model 'mlpp'; did you mean mlp"),
    ],
)
def test_damaged_cards_are_named(text: str | None, message: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, net(), CARD)
    (tmp_path / CARD_FILE).unlink()
    if text is not None:
        (tmp_path / CARD_FILE).write_text(text)
    with pytest.raises(RobustkitError, match=message) as caught:
        load_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


# Weights that others saved.


def state(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.state_dict())


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".model", ".ckpt"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model_state_dict": s},
        lambda s: {"model": s, "optimizer": {}},
        lambda s: {"net": s, "acc": 90.0},
        lambda s: {"state_dict": [s, {name: one * 0 for name, one in s.items()}]},
        lambda s: [s],
        lambda s: {f"module.{name}": one for name, one in s.items()},
        lambda s: {f"_orig_mod.module.{name}": one for name, one in s.items()},
        lambda s: {"state_dict": {f"module._orig_mod.{name}": one for name, one in s.items()}},
    ],
    ids=["plain", "state_dict", "model_state_dict", "model", "net", "list", "bare-list", "module", "compiled", "both"],
)
def test_foreign_state_dicts_are_unwrapped(wrap: Any, suffix: str, tmp_path: Path) -> None:
    source, target = bare(), bare()
    torch.save(wrap(state(source)), tmp_path / f"x{suffix}")
    load_weights(target, tmp_path / f"x{suffix}")
    assert weights_equal(source, target)


def renumber(found: dict[str, Tensor], by: int) -> dict[str, Tensor]:
    return {f"{int(name.split('.')[0]) + by}.{name.split('.')[1]}": one for name, one in found.items()}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_numbers_of_the_same_layers_are_loaded_by_order(suffix: str, tmp_path: Path) -> None:
    source, target = bare(), bare()
    renamed = renumber(state(source), 8)  # 9., 11., 14.: as text, 11 comes before 9
    path = tmp_path / f"x{suffix}"
    safetensors.torch.save_file(renamed, path) if suffix == ".safetensors" else torch.save(renamed, path)
    load_weights(target, path)
    assert weights_equal(source, target)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_normalize_layer_that_the_file_lacks_keeps_its_values(suffix: str, tmp_path: Path) -> None:
    source, target = bare(), net()
    path = tmp_path / f"x{suffix}"
    safetensors.torch.save_file(state(source), path) if suffix == ".safetensors" else torch.save(state(source), path)
    load_weights(target, path)
    assert weights_equal(source, target)
    assert isinstance(target, nn.Sequential) and isinstance(target[0], Normalize)
    assert (target[0].mean.item(), target[0].std.item()) == (0.5, 0.25)


def test_a_normalize_layer_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    torch.save(state(net()), tmp_path / "x.pth")
    with pytest.raises(RobustkitError, match=r"unexpected 0\.mean, 0\.std"):
        load_weights(bare(), tmp_path / "x.pth")


def named_layers(model: nn.Module) -> dict[str, Tensor]:
    return {
        name.replace("1.", "first.").replace("3.", "second.").replace("5.", "a_last."): one
        for name, one in state(model).items()
    }


def test_named_layers_are_loaded_in_the_order_torch_saved_them(tmp_path: Path) -> None:
    source, target = bare(), bare()
    torch.save(OrderedDict(named_layers(source)), tmp_path / "x.pth")
    load_weights(target, tmp_path / "x.pth")
    assert weights_equal(source, target)


def test_named_layers_of_a_safetensors_file_have_no_order_to_trust(tmp_path: Path) -> None:
    safetensors.torch.save_file(named_layers(bare()), tmp_path / "x.safetensors")
    with pytest.raises(RobustkitError, match=r"missing 1\.weight.*unexpected"):
        load_weights(bare(), tmp_path / "x.safetensors")


def test_other_shapes_are_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    torch.save(state(make_model("mlp", (1, 5, 5), 3)), tmp_path / "x.pth")
    target = bare()
    before = fingerprint(target)
    message = r"expected the weights of mlp in .*x\.pth, got other shapes: 1\.weight \(100, 25\) for \(100, 16\)$"
    with pytest.raises(RobustkitError, match=message):
        load_weights(target, tmp_path / "x.pth", architecture="mlp")
    assert fingerprint(target) == before


def test_a_swap_of_shapes_under_known_names_is_not_loaded_by_order(tmp_path: Path) -> None:
    model = nn.Sequential(OrderedDict(first=nn.Linear(2, 3), second=nn.Linear(3, 2)))
    found = state(model)
    swapped = dict(zip(("second.weight", "second.bias", "first.weight", "first.bias"), found.values(), strict=True))
    torch.save(swapped, tmp_path / "x.pth")
    with pytest.raises(RobustkitError, match=r"other shapes: first\.weight"):
        load_weights(model, tmp_path / "x.pth")


def test_long_lists_of_names_are_cut_short(tmp_path: Path) -> None:
    torch.save({f"layer{i}": torch.zeros(1) for i in range(50)}, tmp_path / "x.pth")
    with pytest.raises(
        RobustkitError, match=r"missing 1\.weight, 1\.bias, 3\.weight, 3\.bias, \.\.\.; unexpected layer0"
    ) as caught:
        load_weights(bare(), tmp_path / "x.pth")
    assert len(str(caught.value)) < 400


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this ran",)


def test_code_is_refused_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, content in enumerate((Evil(), {"state_dict": Evil()}, bare())):
        path = tmp_path / f"{number}.pth"
        torch.save(content, path)
        with pytest.raises(RobustkitError, match=r"would run code, which is refused; save model\.state_dict") as caught:
            load_weights(bare(), path)
        assert "\n" not in str(caught.value)
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ({}, "an empty one"),
        ([], "list"),
        (torch.zeros(3), "Tensor"),
        ({"epoch": 3, "acc": 0.5}, "keys epoch, acc"),
        ({1: torch.zeros(1)}, "keys 1"),
    ],
)
def test_files_without_a_state_dict_are_refused(content: object, got: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(RobustkitError, match=rf"expected a state dict \(names to tensors\) in .*x\.pth, got {got}"):
        load_weights(bare(), tmp_path / "x.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_files_are_refused(suffix: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    safetensors.torch.save_file(state(bare()), path) if suffix == ".safetensors" else torch.save(state(bare()), path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(RobustkitError, match="is empty" if kept == 0 else "is damaged or no checkpoint") as caught:
        load_weights(bare(), path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"hello", b"\x80\x02junk.", b"<html>404</html>", bytes(1000), b"PK\x03\x04"])
def test_foreign_files_are_refused(suffix: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / f"x{suffix}").write_bytes(content)
    with pytest.raises(RobustkitError, match="is damaged or no checkpoint"):
        load_weights(bare(), tmp_path / f"x{suffix}")


def test_absent_files_and_other_kinds_are_named(tmp_path: Path) -> None:
    with pytest.raises(RobustkitError, match=r"expected a checkpoint at .*x\.pth, found none"):
        load_weights(bare(), tmp_path / "x.pth")
    with pytest.raises(UsageError, match=r"expected a checkpoint \(\.pth, .*\.safetensors\), got .*x\.onnx"):
        load_weights(bare(), tmp_path / "x.onnx")
    with pytest.raises(RobustkitError, match=r"expected a trained network at .*nothing/model.safetensors, found none"):
        load_checkpoint(tmp_path / "nothing")


def test_fingerprint_follows_the_numbers_and_not_the_names() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    copy = nn.Sequential(OrderedDict(a=nn.Linear(4, 3), b=nn.BatchNorm1d(3)))
    copy.load_state_dict(dict(zip(copy.state_dict(), model.state_dict().values(), strict=True)))
    first = fingerprint(model)
    assert len(first) == 12 and int(first, 16) >= 0
    assert fingerprint(copy) == first
    copy.b.running_mean[0] += 1  # type: ignore[index, operator, union-attr]
    assert fingerprint(copy) != first
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nextafter(model[0].weight[0, 0], torch.tensor(9.0))
    assert fingerprint(model) != first


def test_fingerprint_sees_shapes_and_types() -> None:
    flat, tall = nn.Linear(4, 1, bias=False), nn.Linear(1, 4, bias=False)
    with torch.no_grad():
        flat.weight.fill_(0.5)
        tall.weight.fill_(0.5)
    assert len({fingerprint(flat), fingerprint(tall), fingerprint(tall.bfloat16())}) == 3


# The published ones.


@pytest.mark.parametrize(
    ("name", "accuracy"),
    [
        ("mixtrain/mnist_small_mixtrain_0.3.pth", 93.67),
        ("wong/mnist_small_0_3.pth", 100 - 14.77),
        ("mixtrain/mnist_small_baseline.pth", 98.70),
    ],
)
def test_published_networks_have_their_published_accuracy_on_all_of_mnist(
    name: str, accuracy: float, shared: Path
) -> None:
    test = load_dataset("mnist", root=shared / "data", train_n=10).test
    model = make_model("mnist_small", (1, 28, 28), 10)
    load_weights(model, shared / "models" / name)
    with torch.no_grad():
        right = sum(
            int((model(x).argmax(1) == y).sum()) for x, y in zip(test.x.split(2000), test.y.split(2000), strict=True)
        )
    assert right == round(accuracy * 100)


@pytest.mark.parametrize(
    ("data", "file", "architecture", "options", "right"),
    [
        ("mnist", "mnist_cnn_a_adv.model", "mnist_small", {}, 195),
        (
            "cifar",
            "cifar_cnn_a_mix.model",
            "cifar_small",
            {"mean": [125.3 / 255, 123 / 255, 113.9 / 255], "std": [63 / 255, 62.1 / 255, 66.7 / 255]},
            158,
        ),
    ],
)
def test_published_networks_on_the_200_images_of_sdp_fo(
    data: str, file: str, architecture: str, options: dict[str, Any], right: int, shared: Path
) -> None:
    folder = shared / "models" / "sdp"
    x = torch.from_numpy(np.load(folder / f"{data}_X_sdp.npy")).permute(0, 3, 1, 2)
    y = torch.from_numpy(np.load(folder / f"{data}_y_sdp.npy"))
    model = make_model(architecture, tuple(x.shape[1:]), 10, **options)
    load_weights(model, folder / file)
    with torch.no_grad():
        assert int((model(x).argmax(1) == y).sum()) == right
