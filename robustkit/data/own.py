"""The user's own data: an npz file or a folder of images."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

from robustkit.data.splits import Array, Raw, channels_first
from robustkit.errors import RobustkitError

SUFFIXES = (".png", ".jpg", ".jpeg")
GREY = ("1", "L", "LA")
COLOUR = ("RGB", "RGBA", "P", "CMYK", "YCbCr")
MOST_CLASSES = 10_000


def read_npz(path: Path) -> Raw:
    """Read ``x_train, y_train, x_test, y_test``, or ``images, labels`` (and ``test_index``) as test samples only.

    Args:
        path: the file; images as ``channels_first`` accepts them, uint8 of 0..255 or floats of [0, 1].

    Returns:
        The arrays; the number of classes is the greatest training label plus one, or that of ``class_names``.

    Raises:
        RobustkitError: no such file, no npz file, Python objects inside, keys missing, or shapes that do not fit.
    """
    arrays = _arrays(path)
    if {"images", "labels"} <= arrays.keys():
        x_test, y_test = _samples(arrays, path, "images", "labels")
        x, y = x_test[:0], y_test[:0]
    elif {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        x, y = _samples(arrays, path, "x_train", "y_train")
        x_test, y_test = _samples(arrays, path, "x_test", "y_test")
    else:
        raise RobustkitError(
            f"expected x_train, y_train, x_test, y_test (or images, labels) in {path}, got {', '.join(arrays)}"
        )
    names = arrays["class_names"].tolist() if "class_names" in arrays else range(_count_classes(y, y_test, path))
    index = arrays.get("test_index")
    if index is not None and (index.shape != y_test.shape or index.dtype.kind not in "iu"):
        raise RobustkitError(f"expected test_index in {path} as {len(y_test)} positions, got shape {index.shape}")
    return Raw(x, y, tuple(map(str, names)), x_test, y_test, index_test=index)


def read_folder(path: Path) -> Raw:
    """Read ``train/<class>/*`` and ``test/<class>/*``, or just ``<class>/*``; png and jpg files.

    Args:
        path: the folder; classes are numbered in the order of their names.

    Returns:
        The images, grey where all are grey, else colour. Their order takes one of each class in turn, so that the first
        ``n`` hold about as many of each; ``index`` counts the files in the order of their names.

    Raises:
        RobustkitError: no images, images of several sizes, a file that is no image, or a class known to the test only.
    """
    parts = [one for one in ("train", "test") if (path / one).is_dir()]
    if len(parts) == 1:
        raise RobustkitError(f"expected train and test side by side in {path}, got only {parts[0]}; add the other")
    folders = [path / one for one in parts] or [path]
    names = [one.relative_to(path).as_posix() for folder in folders for one in _images(folder)]
    return sort_images(names, lambda name: (path / name).read_bytes(), str(path))


def sort_images(names: Sequence[str], read: Callable[[str], bytes], where: str) -> Raw:
    """Decode images whose names say their class and, if any, their half.

    Args:
        names: ``train/<class>/<file>`` and ``test/<class>/<file>``, or ``<class>/<file>``.
        read: gives the bytes of a named file.
        where: the folder or archive, for messages.

    Returns:
        The images, as ``read_folder`` describes.

    Raises:
        RobustkitError: as for ``read_folder``.
    """
    by_class = sorted(names, key=lambda name: name.split("/"))
    halves = [[one for one in by_class if one.count("/") == 1 or one.startswith(half)] for half in ("train/", "test/")]
    if not all(halves):
        raise RobustkitError(f"expected png or jpg images in {where}, a folder per class, found none; check the place")
    has_test = halves[0] != halves[1]
    class_names = tuple(sorted({one.split("/")[-2] for one in halves[0]}))
    extra = {one.split("/")[-2] for one in halves[1]} - set(class_names)
    if extra:
        raise RobustkitError(f"expected the classes of {where}/train in {where}/test, got {min(extra)!r} in the latter")
    wanted = [*halves[0], *(halves[1] if has_test else [])]
    x = _stack([_decode(read, name, where) for name in wanted], wanted, where)
    y = np.array([class_names.index(name.split("/")[-2]) for name in wanted], dtype=np.int64)
    n = len(halves[0])
    index, index_test = _in_turn(y[:n]), _in_turn(y[n:])
    if not has_test:
        return Raw(x[index], y[index], class_names, index=index)
    x_test, y_test = x[n:][index_test], y[n:][index_test]
    return Raw(x[:n][index], y[:n][index], class_names, x_test, y_test, index, index_test)


def _arrays(path: Path) -> dict[str, Array]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {key: np.asarray(file[key]) for key in file.files}
    except FileNotFoundError:
        raise RobustkitError(f"expected an npz file at {path}, found none; check the path") from None
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RobustkitError(f"expected plain arrays in the npz file {path}: {reason}; save it by np.savez") from None


def _samples(arrays: dict[str, Array], path: Path, images: str, labels: str) -> tuple[Array, Array]:
    x, y = channels_first(arrays[images], f"{images} in {path}"), arrays[labels]
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.shape != (len(x),) or y.dtype.kind not in "iu":
        raise RobustkitError(
            f"expected {labels} in {path} as {len(x)} whole numbers, one per image, got {y.dtype} of shape {y.shape}"
        )
    return x, y.astype(np.int64)


def _count_classes(y: Array, y_test: Array, path: Path) -> int:
    labels = y if len(y) else y_test
    if not len(labels):
        return 0
    if labels.max() >= MOST_CLASSES or (len(y) and y.min() > 0):
        found = f"{labels.min()} to {labels.max()}"
        raise RobustkitError(f"expected labels from 0 up in {path}, got {found}; number the classes from 0")
    return int(labels.max()) + 1


def _images(folder: Path) -> list[Path]:
    """List the images of every class folder; a class without one is a mistake."""
    found: list[Path] = []
    for one in sorted(folder.iterdir()):
        if one.is_dir() and not one.name.startswith("."):
            images = [file for file in one.iterdir() if file.suffix.lower() in SUFFIXES and file.name[0] != "."]
            if not images:
                raise RobustkitError(f"expected png or jpg images in {one}, found none; add some or remove the folder")
            found += images
    return found


def _decode(read: Callable[[str], bytes], name: str, where: str) -> Array:
    """Give one image as ``(H, W, 1)`` or ``(H, W, 3)``, uint8."""
    from PIL import Image

    try:
        with Image.open(BytesIO(read(name))) as image:
            if image.mode not in GREY + COLOUR:
                raise RobustkitError(
                    f"expected images of 8 bits per channel, got mode {image.mode} in {where}/{name}; convert it"
                )
            pixels = np.asarray(image.convert("L" if image.mode in GREY else "RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "damaged or no image"
        raise RobustkitError(f"cannot read the image {where}/{name} ({reason}); remove or replace it") from None
    return pixels.reshape(*pixels.shape[:2], -1)


def _stack(images: list[Array], names: list[str], where: str) -> Array:
    height, width, _ = images[0].shape
    for image, name in zip(images, names, strict=True):
        if image.shape[:2] != (height, width):
            raise RobustkitError(
                f"expected all images of {where} in one size, got {width}x{height} in {names[0]} and "
                f"{image.shape[1]}x{image.shape[0]} in {name}; resize them"
            )
    channels = max(image.shape[2] for image in images)
    return np.stack([np.broadcast_to(image, (height, width, channels)) for image in images]).transpose(0, 3, 1, 2)


def _in_turn(y: Array) -> Array:
    """Order samples sorted by class so that every class comes in turn."""
    if not y.size:
        return np.arange(0)
    within = np.concatenate([np.arange(count) for count in np.unique(y, return_counts=True)[1]])
    return np.lexsort((y, within))
