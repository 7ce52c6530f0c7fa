from __future__ import annotations

import gzip
import pickle
import struct
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image

from robustkit.data import Dataset, dataset_names, load_dataset, named
from robustkit.data.splits import hold_out
from robustkit.errors import RobustkitError, UsageError

rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _nothing_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, with no data in any of the usual places."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    monkeypatch.delenv("ROBUSTKIT_DATA", raising=False)
    monkeypatch.setattr(named, "CHECKOUT", tmp_path / "nowhere" / "checkout")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def indices(data: Dataset) -> list[set[int]]:
    return [set(one.index.tolist()) for one in (data.train, data.val, data.test)]


def test_digits_is_split_without_overlap_or_loss(digits: Dataset) -> None:
    train, val, test = indices(digits)
    assert train | val | test == set(range(1797))
    assert len(train) + len(val) + len(test) == 1797
    assert (len(val), len(test)) == (144, 359)


def test_digits_index_finds_the_original_image(digits: Dataset) -> None:
    from sklearn.datasets import load_digits

    original = load_digits()
    for split in (digits.train, digits.val, digits.test):
        np.testing.assert_array_equal(split.x[:, 0].numpy() * 16, original.images[split.index])
        np.testing.assert_array_equal(split.y.numpy(), original.target[split.index])


def test_digits_has_its_types_and_defaults(digits: Dataset) -> None:
    assert (digits.test.x.dtype, digits.test.y.dtype, digits.test.index.dtype) == (
        torch.float32,
        torch.int64,
        torch.int64,
    )
    assert digits.input_shape == (1, 8, 8)
    assert (digits.name, digits.model, digits.eps, digits.classes) == ("digits", "digits_small", 0.1, 10)
    assert (digits.mean, digits.std) == ((0.0,), (1.0,))
    assert digits.train.x.max() == 1 and digits.train.x.min() == 0


def test_splits_ignore_every_random_state(digits: Dataset) -> None:
    np.random.seed(7)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again = load_dataset("digits")
    assert indices(again) == indices(digits)
    assert torch.equal(torch.get_rng_state(), before)


def test_splits_are_stratified_and_in_order(digits: Dataset) -> None:
    for split, share in ((digits.test, 359), (digits.val, 144)):
        counts = split.y.bincount(minlength=10)
        assert counts.sum() == share and counts.max() - counts.min() <= 3
        assert (split.index.diff() > 0).all()


def test_train_n_takes_from_the_front_after_the_split(digits: Dataset) -> None:
    few = load_dataset("digits", train_n=50)
    assert torch.equal(few.train.x, digits.train.x[:50])
    assert torch.equal(few.val.index, digits.val.index)
    assert torch.equal(few.test.index, digits.test.index)


@pytest.mark.parametrize("train_n", [0, -3])
def test_train_n_must_be_positive(train_n: int) -> None:
    with pytest.raises(UsageError, match=f"expected train_n at least 1, got {train_n}"):
        load_dataset("digits", train_n=train_n)


def test_take_gives_the_first_or_all(digits: Dataset) -> None:
    three = digits.test.take(3)
    assert len(three) == 3
    assert torch.equal(three.x, digits.test.x[:3]) and torch.equal(three.index, digits.test.index[:3])
    assert torch.equal(digits.test.take(None).x, digits.test.x)
    assert len(digits.test.take(10**6)) == len(digits.test)


def test_to_moves_every_part(digits: Dataset) -> None:
    moved = digits.test.take(2).to("meta")
    assert {one.device.type for one in (moved.x, moved.y, moved.index)} == {"meta"}


@pytest.mark.parametrize("n", [0, 1, 7, 30])
def test_hold_out_keeps_the_share_of_every_class(n: int) -> None:
    y = np.array([0] * 60 + [1] * 30 + [2] * 10)
    rest, held = hold_out(y, n)
    assert len(held) == n and sorted([*rest, *held]) == list(range(100))
    for label, share in enumerate((0.6, 0.3, 0.1)):
        assert abs((y[held] == label).sum() - share * n) <= 1


def test_names_are_listed_and_near_ones_offered() -> None:
    assert dataset_names() == ["cifar10", "cifar10-jpeg", "cifar100", "digits", "fashion-mnist", "mnist", "svhn"]
    with pytest.raises(
        UsageError, match=r"unknown dataset 'digit'; did you mean digits\?.*folder of images.*\.npz file"
    ):
        load_dataset("digit")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100", "svhn"])
def test_absent_dataset_says_where_it_was_looked_for(name: str, tmp_path: Path) -> None:
    with pytest.raises(RobustkitError) as caught:
        load_dataset(name)
    message = str(caught.value)
    for place in ("a/b/data", "a/shared/data", "nowhere/shared/data"):
        assert str(tmp_path / place) in message
    assert "--data-root" in message and "--download" in message and "\n" not in message


def idx(array: np.ndarray[Any, Any]) -> bytes:
    return struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(root: Path, folder: str = "MNIST", *, zipped: bool = False) -> np.ndarray[Any, Any]:
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    images = rng.integers(0, 256, (40, 28, 28))
    for half, pixels in (("train", images), ("t10k", images[:10])):
        for name, array in (
            (f"{half}-images-idx3-ubyte", pixels),
            (f"{half}-labels-idx1-ubyte", np.arange(len(pixels)) % 10),
        ):
            data = idx(array)
            (raw / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)
    return images


@pytest.mark.parametrize(
    ("name", "folder", "zipped"), [("mnist", "MNIST", False), ("fashion-mnist", "FashionMNIST", True)]
)
def test_idx_files_are_read_plain_or_zipped_and_nothing_is_written(
    name: str, folder: str, zipped: bool, tmp_path: Path
) -> None:
    images = write_mnist(tmp_path, folder, zipped=zipped)
    before = sorted(tmp_path.rglob("*"))
    data = load_dataset(name, root=tmp_path)
    np.testing.assert_array_equal(data.test.x[:, 0].numpy(), images[:10].astype(np.float32) / np.float32(255))
    assert data.test.y.tolist() == list(range(10)) and data.test.index.tolist() == list(range(10))
    assert (len(data.train), len(data.val)) == (36, 4)
    assert data.eps == (0.1 if zipped else 0.3) and data.model == "mnist_small"
    assert len(data.class_names) == 10
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", ["{}", "{}/data"])
def test_the_environment_names_the_data_or_its_parent(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(Path(place.format(tmp_path / "mine")))
    monkeypatch.setenv("ROBUSTKIT_DATA", str(tmp_path / "mine"))
    assert len(load_dataset("mnist").test) == 10


@pytest.mark.parametrize("place", ["a/b/data", "a/shared/data", "nowhere/shared/data"])
def test_the_usual_places_are_searched(place: str, tmp_path: Path) -> None:
    write_mnist(tmp_path / place)
    assert len(load_dataset("mnist").test) == 10


def test_no_other_place_is_searched_where_a_root_is_given(tmp_path: Path) -> None:
    write_mnist(tmp_path / "a/b/data")
    with pytest.raises(RobustkitError, match=r"mine/data; found none"):
        load_dataset("mnist", root=tmp_path / "mine")


def test_the_given_root_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "other")
    images = write_mnist(tmp_path / "mine")
    monkeypatch.setenv("ROBUSTKIT_DATA", str(tmp_path / "other"))
    data = load_dataset("mnist", root=tmp_path / "mine")
    np.testing.assert_allclose(data.test.x[0, 0].numpy() * 255, images[0], rtol=1e-6)


@pytest.mark.parametrize("damage", [b"", b"junk", idx(np.zeros((40, 28, 28)))[:500], b"\0\0\x0d\1\0\0\0\1abcd"])
@pytest.mark.parametrize("zipped", [False, True])
def test_damaged_idx_files_are_named(damage: bytes, zipped: bool, tmp_path: Path) -> None:
    write_mnist(tmp_path, zipped=zipped)
    path = tmp_path / "MNIST" / "raw" / ("train-images-idx3-ubyte" + ".gz" * zipped)
    path.write_bytes(damage)
    with pytest.raises(RobustkitError, match=r"train-images-idx3-ubyte.* is damaged or no idx file .*--download"):
        load_dataset("mnist", root=tmp_path)


def test_idx_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(39)))
    with pytest.raises(RobustkitError, match="as many labels as images"):
        load_dataset("mnist", root=tmp_path)


class FakeCifar:
    """Stands for torchvision's class: writes its marker files on download, refuses where they are absent."""

    classes = tuple("abcdefghij")

    def __init__(self, root: str, train: bool, download: bool) -> None:
        folder = Path(root) / "cifar-10-batches-py"
        if download:
            folder.mkdir(parents=True, exist_ok=True)
            for name in named.CIFAR10_FILES:
                (Path(root) / name).touch()
        if not folder.exists():
            raise RuntimeError("Dataset not found or corrupted.")
        n = 60 if train else 20
        self.data = np.full((n, 32, 32, 3), 51, dtype=np.uint8)
        self.targets = [i % 10 for i in range(n)]


def test_torchvision_downloads_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeCifar)
    with pytest.raises(RobustkitError, match="expected the dataset cifar10"):
        load_dataset("cifar10")
    assert not Path("data").exists()
    data = load_dataset("cifar10", download=True)
    assert Path("data/cifar-10-batches-py").is_dir()
    assert (len(data.train), len(data.val), len(data.test)) == (54, 6, 20)
    assert data.input_shape == (3, 32, 32) and data.test.x.unique().tolist() == pytest.approx([0.2])
    assert (data.model, data.eps, data.mean) == ("cifar_small", 2 / 255, (0.485, 0.456, 0.406))
    assert data.std == (0.225,) * 3 and data.class_names == FakeCifar.classes


def test_download_goes_to_the_given_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeCifar)
    load_dataset("cifar10", root=tmp_path / "mine", download=True)
    assert (tmp_path / "mine" / "cifar-10-batches-py").is_dir()


def test_svhn_is_read_by_its_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __init__(self, root: str, split: str, download: bool) -> None:
            n = {"train": 40, "test": 10}[split]
            self.data, self.labels = np.zeros((n, 3, 32, 32), dtype=np.uint8), np.arange(n) % 10

    for name in named.SVHN_FILES:
        (tmp_path / name).touch()
    monkeypatch.setattr(torchvision.datasets, "SVHN", Fake)
    data = load_dataset("svhn", root=tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (36, 4, 10)


def test_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError("no route to host\nsecond line")

    monkeypatch.setattr(torchvision.datasets, "MNIST", refuse)
    with pytest.raises(
        RobustkitError, match="cannot download mnist at data: no route to host; check the network"
    ) as caught:
        load_dataset("mnist", download=True)
    assert "second line" not in str(caught.value)


def test_damaged_cifar_batches_are_refused(tmp_path: Path) -> None:
    for name in named.CIFAR10_FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"junk")
    with pytest.raises(RobustkitError, match=r"cannot read cifar10 at .*; remove the files and fetch with --download"):
        load_dataset("cifar10", root=tmp_path)


def jpeg(level: int, size: int = 32) -> bytes:
    file = BytesIO()
    Image.new("RGB", (size, size), (level, level, level)).save(file, "jpeg")
    return file.getvalue()


def write_jpegs(path: Path, classes: tuple[str, ...] = ("airplane", "cat")) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for half, count in (("train", 10), ("test", 3)):
            for label, name in reversed(list(enumerate(classes))):
                for i in range(count):
                    archive.writestr(f"{half}/{name}/{i:04}.jpg", jpeg(100 * label + i))


def test_lossy_cifar_keeps_its_name_and_takes_classes_in_turn(tmp_path: Path) -> None:
    write_jpegs(tmp_path / "cifar10-jpeg.zip")
    data = load_dataset("cifar10-jpeg", root=tmp_path)
    assert data.name == "cifar10-jpeg" and data.class_names == ("airplane", "cat")
    assert data.test.y.tolist() == [0, 1, 0, 1, 0, 1]
    assert data.test.index.tolist() == [0, 3, 1, 4, 2, 5]
    levels = (data.test.x.mean((1, 2, 3)) * 255).round().tolist()
    assert levels == [0, 100, 1, 101, 2, 102]


def test_lossy_cifar_never_stands_in_for_the_real_one(tmp_path: Path) -> None:
    write_jpegs(tmp_path / "cifar10-jpeg.zip")
    with pytest.raises(RobustkitError, match="lossy copy is there under the name cifar10-jpeg"):
        load_dataset("cifar10", root=tmp_path)


def test_lossy_cifar_errors(tmp_path: Path) -> None:
    with pytest.raises(RobustkitError, match=r"expected the dataset cifar10-jpeg .* cannot be downloaded"):
        load_dataset("cifar10-jpeg", root=tmp_path)
    (tmp_path / "cifar10-jpeg.zip").write_bytes(b"junk")
    with pytest.raises(RobustkitError, match=r"cannot read .*cifar10-jpeg\.zip"):
        load_dataset("cifar10-jpeg", root=tmp_path)
    with zipfile.ZipFile(tmp_path / "cifar10-jpeg.zip", "w"):
        pass
    with pytest.raises(RobustkitError, match=r"expected png or jpg images in .*found none"):
        load_dataset("cifar10-jpeg", root=tmp_path)


def test_the_published_mnist(shared: Path) -> None:
    data = load_dataset("mnist", root=shared / "data", train_n=200)
    assert (len(data.train), len(data.val), len(data.test)) == (200, 5000, 10_000)
    assert data.test.y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert data.test.x.mean().item() == pytest.approx(0.1325, abs=1e-4)


def test_the_published_fashion_mnist_is_read_from_its_zipped_files(shared: Path) -> None:
    data = load_dataset("fashion-mnist", root=shared / "data", train_n=200)
    assert data.test.y[:5].tolist() == [9, 2, 1, 1, 6]
    assert data.val.y.bincount().tolist() == [500] * 10


# The user's own data.


def save(path: Path, n: int = 40, shape: tuple[int, ...] = (20, 20), **changes: Any) -> str:
    y = np.arange(n) % 4
    arrays: dict[str, Any] = {
        "x_train": rng.integers(0, 256, (n, *shape)).astype(np.uint8),
        "y_train": y,
        "x_test": rng.integers(0, 256, (8, *shape)).astype(np.uint8),
        "y_test": y[:8],
    }
    arrays.update(changes)
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return str(path)


def test_npz_is_read(tmp_path: Path) -> None:
    x_test = rng.integers(0, 256, (8, 20, 20)).astype(np.uint8)
    data = load_dataset(save(tmp_path / "own.npz", x_test=x_test))
    np.testing.assert_array_equal(data.test.x[:, 0].numpy(), x_test.astype(np.float32) / np.float32(255))
    assert data.test.y.tolist() == [0, 1, 2, 3] * 2
    assert (len(data.train), len(data.val), data.classes, data.name[:4]) == (36, 4, 4, "own-")
    assert data.class_names == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((20, 20), (1, 20, 20)),
        ((20, 20, 3), (3, 20, 20)),
        ((20, 20, 1), (1, 20, 20)),
        ((3, 20, 20), (3, 20, 20)),
        ((1, 20, 3), (1, 20, 3)),
        ((4, 20, 20), (4, 20, 20)),
    ],
)
def test_npz_layouts(shape: tuple[int, ...], expected: tuple[int, ...], tmp_path: Path) -> None:
    assert load_dataset(save(tmp_path / "own.npz", shape=shape)).input_shape == expected


def test_npz_channels_last_moves_the_right_pixels(tmp_path: Path) -> None:
    x_test = rng.random((8, 5, 6, 3)).astype(np.float32)
    x_train = rng.random((40, 5, 6, 3))
    data = load_dataset(save(tmp_path / "own.npz", x_test=x_test, x_train=x_train))
    assert torch.equal(data.test.x[:, 2], torch.from_numpy(x_test[..., 2]))


@pytest.mark.parametrize(
    ("shape", "model", "eps"), [((8, 8), "mlp", 0.1), ((16, 16), "cnn_small", 0.1), ((16, 16, 3), "cnn_small", 2 / 255)]
)
def test_own_data_gets_sensible_defaults(shape: tuple[int, ...], model: str, eps: float, tmp_path: Path) -> None:
    data = load_dataset(save(tmp_path / "own.npz", shape=shape))
    channels = data.input_shape[0]
    assert (data.model, data.eps) == (model, eps)
    assert (data.mean, data.std) == ((0.0,) * channels, (1.0,) * channels)


def test_npz_of_test_samples_only(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "t.npz", images=np.zeros((5, 9, 9), np.uint8), labels=[0, 1, 2, 0, 1], test_index=[9, 3, 5, 1, 7]
    )
    data = load_dataset(str(tmp_path / "t.npz"))
    assert (len(data.train), len(data.val), len(data.test), data.classes) == (0, 0, 5, 3)
    assert data.train.x.shape == (0, 1, 9, 9)
    assert data.test.index.tolist() == [9, 3, 5, 1, 7]


def test_npz_class_names_and_column_labels(tmp_path: Path) -> None:
    path = save(
        tmp_path / "own.npz", class_names=np.array(["a", "b", "c", "d", "e"]), y_train=np.arange(40)[:, None] % 4
    )
    data = load_dataset(path)
    assert (data.class_names, data.classes) == (("a", "b", "c", "d", "e"), 5)


x = np.zeros((40, 20, 20), dtype=np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": x + 2.6}, r"expected x in \[0, 1\], got max 2.6 in the training images; put normalisation inside"),
        ({"x_test": x[:8] - 0.5}, r"expected x in \[0, 1\], got min -0.5 in the test images"),
        ({"x_test": x[:8] + np.nan}, r"expected x in \[0, 1\], got NaN in the test images"),
        ({"x_train": x.astype(np.int64) + 200}, r"got max 200 .*0\.\.255 as uint8"),
        ({"x_train": x.astype(str)}, "expected training images as numbers"),
        ({"x_train": x.reshape(40, 400)}, r"expected x_train in .* of shape .* got \(40, 400\)"),
        ({"x_test": np.zeros((8, 3, 20, 20))}, "expected test images of 1x20x20 like the training images, got 3x20x20"),
        ({"y_test": np.full(8, 4)}, r"expected test labels in 0\.\.3, got 4"),
        ({"y_train": np.arange(40) % 5 - 1}, r"expected training labels in 0\.\.3, got -1"),
        ({"y_train": np.arange(40) % 4 + 1}, "expected labels from 0 up in .* got 1 to 4"),
        ({"y_train": np.arange(40) * 10**8}, "expected labels from 0 up"),
        ({"y_train": np.arange(40) / 4}, "as 40 whole numbers, one per image, got float64"),
        ({"y_train": np.arange(39) % 4}, r"as 40 whole numbers, one per image, got int64 of shape \(39,\)"),
        ({"y_train": np.eye(40)}, r"as 40 whole numbers.* got float64 of shape \(40, 40\)"),
        ({"y_train": np.zeros(40, int), "y_test": np.zeros(8, int)}, "at least two classes, got only class '0'"),
        ({"x_test": x[:0], "y_test": np.zeros(0, int)}, r"expected test samples in own-\w{8}, got none"),
        (
            {"y_test": None},
            r"expected x_train, y_train, x_test, y_test \(or images, labels\) in .*, got x_train, y_train, x_test",
        ),
        ({"test_index": np.arange(3)}, r"expected test_index in .* as 8 positions, got shape \(3,\)"),
        ({"y_train": np.array([{}] * 40)}, r"expected plain arrays in the npz file"),
    ],
)
def test_npz_mistakes_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = save(tmp_path / "own.npz", **changes)
    with pytest.raises(RobustkitError, match=message) as caught:
        load_dataset(path)
    assert "\n" not in str(caught.value)


def test_validation_images_are_checked_too(tmp_path: Path) -> None:
    x_train = np.zeros((40, 20, 20))
    x_train[int(load_dataset(save(tmp_path / "own.npz")).val.index[0])] = 3
    with pytest.raises(RobustkitError, match="got max 3 in the validation images"):
        load_dataset(save(tmp_path / "own.npz", x_train=x_train))


def test_one_class_left_by_train_n_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "own.npz", y_train=np.sort(np.arange(40) % 4))
    with pytest.raises(RobustkitError, match=r"only class '0'; .*raise train_n"):
        load_dataset(path, train_n=5)


@pytest.mark.parametrize("data", [b"", b"junk", b"PK\3\4 cut short", pickle.dumps({"a": 1})])
def test_files_that_are_no_npz_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(data)
    with pytest.raises(RobustkitError, match=r"expected plain arrays in the npz file .*bad\.npz.*np\.savez") as caught:
        load_dataset(str(tmp_path / "bad.npz"))
    assert "\n" not in str(caught.value)


def test_a_single_array_or_half_a_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "one.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    whole = Path(save(tmp_path / "own.npz")).read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    for name in ("one.npz", "half.npz"):
        with pytest.raises(RobustkitError, match="expected plain arrays in the npz file"):
            load_dataset(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "message"), [("no/such.npz", "expected an npz file at"), ("no/such", "expected a folder")]
)
def test_absent_paths_are_named(name: str, message: str) -> None:
    with pytest.raises(RobustkitError, match=f"{message}.* {name}.* found none"):
        load_dataset(name)


def draw(path: Path, level: int = 0, *, mode: str = "L", size: tuple[int, int] = (6, 5)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level if mode in ("L", "I;16", "P") else (level,) * len(mode)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images of each of two classes, all grey, class b brighter."""
    for i in range(10):
        draw(tmp_path / "own" / "a" / f"{i}.png", i)
        draw(tmp_path / "own" / "b" / f"{i}.png", 100 + i)
    return tmp_path / "own"


def test_folder_of_classes_is_split(folder: Path) -> None:
    (folder / "notes.txt").write_text("not an image")
    (folder / "a" / ".hidden.png").write_bytes(b"")
    (folder / "a" / "readme.md").write_text("")
    data = load_dataset(str(folder))
    assert (len(data.train), len(data.val), len(data.test)) == (14, 2, 4)
    assert (data.name[:4], data.class_names, data.input_shape, data.model) == ("own-", ("a", "b"), (1, 5, 6), "mlp")
    train, val, test = indices(data)
    assert train | val | test == set(range(20))
    for split in (data.train, data.val, data.test):
        levels = (split.x[:, 0, 0, 0] * 255).round().long()
        assert torch.equal(levels, split.index % 10 + 100 * split.y)
        assert split.y.sum() * 2 == len(split)


def test_folder_with_its_own_test_images(folder: Path) -> None:
    for i in range(10):
        for name in "ab":
            (folder / "train" / name).mkdir(parents=True, exist_ok=True)
            (folder / name / f"{i}.png").rename(folder / "train" / name / f"{i}.png")
    for name in "ab":
        (folder / name).rmdir()
    draw(folder / "test" / "b" / "x.PNG", 255)
    draw(folder / "test" / "b" / "y.jpeg", 255)
    data = load_dataset(str(folder))
    assert (len(data.train), len(data.val), len(data.test)) == (18, 2, 2)
    assert data.test.y.tolist() == [1, 1] and data.test.x.min() == 1
    assert data.train.y[:10].sum() in (4, 5, 6)


def test_folder_turns_to_colour_with_the_first_coloured_image(folder: Path) -> None:
    draw(folder / "b" / "9.png", 109, mode="RGB")
    data = load_dataset(str(folder))
    assert data.input_shape == (3, 5, 6) and data.eps == 2 / 255
    assert torch.equal(data.train.x[:, 0], data.train.x[:, 2])


def test_folder_classes_sort_as_folders_do(tmp_path: Path) -> None:
    for i in range(10):
        draw(tmp_path / "own" / "a" / f"{i}.png", 0)
        draw(tmp_path / "own" / "a-b" / f"{i}.png", 255)
    data = load_dataset(str(tmp_path / "own"))
    assert data.class_names == ("a", "a-b")
    assert torch.equal(data.train.x[:, 0, 0, 0].long(), data.train.y)
    assert torch.equal(data.train.index // 10, data.train.y)


def test_folder_mistakes_are_named(folder: Path, tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(RobustkitError, match=message) as caught:
            load_dataset(str(folder))
        assert "\n" not in str(caught.value)

    draw(folder / "b" / "x.png", size=(7, 5))
    refused(r"in one size, got 6x5 in a/0\.png and 7x5 in b/x\.png")
    (folder / "b" / "x.png").write_bytes((folder / "b" / "0.png").read_bytes()[:40])
    refused(r"cannot read the image .*b/x\.png")
    (folder / "b" / "x.png").write_bytes(b"")
    refused(r"cannot read the image .*b/x\.png .*remove or replace it")
    draw(folder / "b" / "x.png", 300, mode="I;16")
    refused(r"8 bits per channel, got mode I;16 in .*b/x\.png")
    (folder / "b" / "x.png").unlink()
    (folder / "c").mkdir()
    refused(r"expected png or jpg images in .*own/c, found none")
    (folder / "c").rmdir()
    (folder / "train").mkdir()
    refused("expected train and test side by side in .* got only train")
    draw(folder / "train" / "a" / "0.png")
    draw(folder / "test" / "z" / "0.png")
    refused("expected the classes of .*/train in .*/test, got 'z'")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RobustkitError, match=r"expected png or jpg images in .*empty, a folder per class, found none"):
        load_dataset(str(tmp_path / "empty"))


def test_folder_of_one_class_is_refused(tmp_path: Path) -> None:
    for i in range(10):
        draw(tmp_path / "own" / "a" / f"{i}.png")
    with pytest.raises(RobustkitError, match="at least two classes, got only class 'a'"):
        load_dataset(str(tmp_path / "own"))
