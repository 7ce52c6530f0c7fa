"""The datasets that go by a name: digits is embedded, the others are read where they lie or downloaded."""

from __future__ import annotations

import gzip
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robustkit.data.own import sort_images
from robustkit.data.splits import Array, Profile, Raw
from robustkit.errors import RobustkitError

DATA_VARIABLE = "ROBUSTKIT_DATA"
CHECKOUT = Path(__file__).resolve().parents[2]
CIFAR10_JPEG = "cifar10-jpeg.zip"
PHOTO = Profile("cifar_small", 2 / 255, mean=(0.485, 0.456, 0.406), std=(0.225, 0.225, 0.225))

FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
TEN = tuple(map(str, range(10)))
CLASS_NAMES = {"mnist": TEN, "fashion-mnist": FASHION, "svhn": TEN}
CIFAR10_FILES = tuple(f"cifar-10-batches-py/{one}" for one in ("data_batch_1", "data_batch_5", "test_batch"))
CIFAR100_FILES = ("cifar-100-python/train", "cifar-100-python/test")
SVHN_FILES = ("train_32x32.mat", "test_32x32.mat")

Root = str | Path | None


@dataclass(frozen=True)
class Named:
    """A dataset that goes by a name.

    Attributes:
        about: what it is, in a line.
        profile: its defaults.
        read: given a root and whether to download, reads it.
    """

    about: str
    profile: Profile
    read: Callable[[Root, bool], Raw]


@dataclass(frozen=True)
class Torchvision:
    """A dataset that torchvision can download; called with a root and whether to, it reads it.

    Attributes:
        name: its name here.
        cls: its class in ``torchvision.datasets``.
        files: what must lie in the root, as it is or gzipped.
        load: reads it from the folder that holds these.
    """

    name: str
    cls: str
    files: tuple[str, ...]
    load: Callable[[Torchvision, Path], Raw]

    def __call__(self, root: Root, download: bool) -> Raw:
        """Find the files, downloading them if asked to and there are none, and read them."""
        base = _find(root, self.files)
        if base is None and download:
            base = Path(root or "data")
            self.fetch(base)
        if base is None:
            raise _absent(self.name, root, _hint(self.name, root))
        return self.load(self, base)

    def fetch(self, base: Path) -> None:
        """Download into a folder."""
        for train in (True, False):
            self.open(base, train=train, download=True)

    def open(self, base: Path, *, train: bool, download: bool = False) -> Any:
        """Open one half as torchvision does, which checks the files' digests.

        Raises:
            RobustkitError: the files are damaged, or could not be fetched.
        """
        import torchvision.datasets

        half: dict[str, Any] = {"split": "train" if train else "test"} if self.cls == "SVHN" else {"train": train}
        try:
            return getattr(torchvision.datasets, self.cls)(str(base), download=download, **half)
        except (OSError, RuntimeError, EOFError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            remedy = (
                "check the network, or give --data-root" if download else "remove the files and fetch with --download"
            )
            raise RobustkitError(
                f"cannot {'download' if download else 'read'} {self.name} at {base}: {reason}; {remedy}"
            ) from None


def read_digits(root: Root = None, download: bool = False) -> Raw:
    """Read the 1,797 embedded 8x8 digits, values 0..16 divided by 16; root and download are not needed."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = (bunch.images / 16).astype(np.float32)[:, None]
    return Raw(x, bunch.target.astype(np.int64), tuple(map(str, range(10))))


def read_cifar10_jpeg(root: Root, download: bool = False) -> Raw:
    """Read CIFAR-10 as an archive of JPEG files, ``{train,test}/<class>/NNNN.jpg``: lossy, so not called cifar10.

    Raises:
        RobustkitError: the archive is absent or damaged.
    """
    base = _find(root, (CIFAR10_JPEG,))
    if base is None:
        raise _absent("cifar10-jpeg", root, f"put {CIFAR10_JPEG} there or give --data-root; it cannot be downloaded")
    try:
        with zipfile.ZipFile(base / CIFAR10_JPEG) as archive:
            names = [one for one in archive.namelist() if one.endswith(".jpg")]
            return sort_images(names, archive.read, str(base / CIFAR10_JPEG))
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise RobustkitError(f"cannot read {base / CIFAR10_JPEG}: {error}; fetch it again") from None


def read_idx(path: Path) -> Array:
    """Read an array of bytes in the idx format, plain or, where only ``<path>.gz`` is there, gzipped.

    Raises:
        RobustkitError: the file is no idx file of bytes, or is truncated.
    """
    plain = path.exists()
    path = path if plain else path.with_name(path.name + ".gz")
    try:
        data = path.read_bytes() if plain else gzip.decompress(path.read_bytes())
        zeros, kind, dims = data[0] << 8 | data[1], data[2], data[3]
        shape = np.frombuffer(data, ">i4", count=dims, offset=4)
        if zeros or kind != 8:
            raise ValueError("no idx file of bytes")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise RobustkitError(f"{path} is damaged or no idx file ({error}); remove it and use --download") from None


def _load_idx(source: Torchvision, base: Path) -> Raw:
    x, y, x_test, y_test = (read_idx(base / name) for name in source.files)
    if len(x) != len(y) or len(x_test) != len(y_test):
        raise RobustkitError(f"expected as many labels as images in {base}; remove the files and use --download")
    return Raw(x[:, None], y, CLASS_NAMES[source.name], x_test[:, None], y_test)


def _load_cifar(source: Torchvision, base: Path) -> Raw:
    train, test = (source.open(base, train=one) for one in (True, False))
    x, x_test = (one.data.transpose(0, 3, 1, 2) for one in (train, test))
    return Raw(x, np.array(train.targets), tuple(train.classes), x_test, np.array(test.targets))


def _load_svhn(source: Torchvision, base: Path) -> Raw:
    train, test = (source.open(base, train=one) for one in (True, False))
    return Raw(train.data, train.labels, CLASS_NAMES["svhn"], test.data, test.labels)


def _roots(root: Root) -> list[Path]:
    """List the folders where data may lie, in the order of looking; a root that is given is the only one."""
    given = root or os.environ.get(DATA_VARIABLE)
    inside = [Path(given).expanduser(), Path(given).expanduser() / "data"] if given else []
    usual = [Path("data"), Path("../shared/data"), CHECKOUT.parent / "shared" / "data"]
    return inside if root else [*inside, *usual]


def _find(root: Root, files: tuple[str, ...]) -> Path | None:
    def there(path: Path) -> bool:
        return path.exists() or path.with_name(path.name + ".gz").exists()

    return next((base for base in _roots(root) if all(there(base / name) for name in files)), None)


def _absent(name: str, root: Root, remedy: str) -> RobustkitError:
    places = ", ".join(dict.fromkeys(str(one.resolve()) for one in _roots(root)))
    return RobustkitError(f"expected the dataset {name} in one of {places}; found none: {remedy}")


def _hint(name: str, root: Root) -> str:
    lossy = name == "cifar10" and _find(root, (CIFAR10_JPEG,)) is not None
    other = "; its lossy copy is there under the name cifar10-jpeg" if lossy else ""
    return f"give its folder with --data-root, or fetch it with --download{other}"


def _idx(name: str, folder: str, eps: float, about: str) -> Named:
    files = (f"{half}-{what}-ubyte" for half in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))
    paths = tuple(f"{folder}/raw/{file}" for file in files)
    return Named(about, Profile("mnist_small", eps), Torchvision(name, folder, paths, _load_idx))


NAMED: dict[str, Named] = {
    "digits": Named("8x8 grey digits, 10 classes, embedded: no download", Profile("digits_small", 0.1), read_digits),
    "mnist": _idx("mnist", "MNIST", 0.3, "28x28 grey digits, 10 classes"),
    "fashion-mnist": _idx("fashion-mnist", "FashionMNIST", 0.1, "28x28 grey pieces of clothing, 10 classes"),
    "cifar10": Named(
        "32x32 colour photographs, 10 classes", PHOTO, Torchvision("cifar10", "CIFAR10", CIFAR10_FILES, _load_cifar)
    ),
    "cifar10-jpeg": Named("CIFAR-10 as JPEG files, which are lossy, 10 classes", PHOTO, read_cifar10_jpeg),
    "cifar100": Named(
        "32x32 colour photographs, 100 classes", PHOTO, Torchvision("cifar100", "CIFAR100", CIFAR100_FILES, _load_cifar)
    ),
    "svhn": Named("32x32 colour house numbers, 10 classes", PHOTO, Torchvision("svhn", "SVHN", SVHN_FILES, _load_svhn)),
}
