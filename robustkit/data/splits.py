"""What a dataset is, how it is split, and what is checked before anything trains on it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from robustkit.errors import RobustkitError

Array = npt.NDArray[Any]

TEST_SHARE = 0.2
VAL_SHARE = 0.1
VAL_MOST = 5000


@dataclass(frozen=True)
class Split:
    """Samples in a fixed order.

    Attributes:
        x: images in [0, 1], shape ``(N, C, H, W)``, float32.
        y: labels, shape ``(N,)``, int64.
        index: positions in the set the samples came from, shape ``(N,)``, int64.
    """

    x: Tensor
    y: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def take(self, n: int | None) -> Split:
        """Give the first ``n`` samples, or all for None."""
        return self if n is None else Split(self.x[:n], self.y[:n], self.index[:n])

    def rows(self, chosen: Tensor) -> Split:
        """Give the samples at some places, int64, or those where a mask of shape ``(N,)`` holds."""
        chosen = chosen.to(self.y.device)
        return Split(self.x[chosen], self.y[chosen], self.index[chosen])

    def among(self, index: npt.ArrayLike) -> Tensor:
        """Say which samples stand at some positions of the set they came from, shape ``(N,)``."""
        return torch.from_numpy(np.isin(self.index.cpu().numpy(), np.asarray(index)))

    def to(self, device: torch.device | str) -> Split:
        """Give the same samples on another device."""
        return Split(self.x.to(device), self.y.to(device), self.index.to(device))


@dataclass(frozen=True)
class Dataset:
    """Samples to train, validate and test on, with the defaults that suit them.

    Attributes:
        name: what tables call it.
        classes: number of classes ``K``; labels are 0..K-1.
        class_names: one name per class.
        train: training samples; empty for a set to evaluate on only.
        val: validation samples, taken from the training samples.
        test: test samples, in the set's own order.
        model: default architecture.
        eps: default radius, in pixel units.
        mean: mean per channel that a ``Normalize`` layer of the model subtracts; 0 for none.
        std: standard deviation per channel that it divides by; 1 for none.
    """

    name: str
    classes: int
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    model: str
    eps: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one image, ``(C, H, W)``."""
        channels, height, width = self.test.x.shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class Profile:
    """The defaults that go with a dataset: architecture, radius, and mean and deviation for all channels.

    Attributes:
        model: architecture.
        eps: radius in pixel units.
        mean: per channel; empty for no normalisation.
        std: per channel; empty for no normalisation.
    """

    model: str
    eps: float
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class Raw:
    """What a reader found, before it is split: arrays as they lie on the disk.

    Attributes:
        x: training images (all images where there is no test set of its own), shape ``(N, C, H, W)``, uint8 or float.
        y: their labels, shape ``(N,)``.
        class_names: one name per class.
        x_test: test images; None to hold some of ``x`` out.
        y_test: their labels.
        index: positions of the training images, where their order is not that of the set.
        index_test: positions of the test images, likewise.
    """

    x: Array
    y: Array
    class_names: tuple[str, ...]
    x_test: Array | None = None
    y_test: Array | None = None
    index: Array | None = None
    index_test: Array | None = None

    def code(self) -> str:
        """Give eight hexadecimal digits of the content: sets of one name and other images are told apart by it."""
        content = hashlib.sha256(repr(self.class_names).encode())
        for one in (self.x, self.y, self.x_test, self.y_test, self.index, self.index_test):
            if one is not None:
                content.update(f"{one.dtype}{one.shape}".encode())
                content.update(np.ascontiguousarray(one).data)
        return content.hexdigest()[:8]


def assemble(name: str, profile: Profile, raw: Raw, train_n: int | None = None) -> Dataset:
    """Split what a reader found and check every part.

    Args:
        name: what tables call the dataset.
        profile: its defaults.
        raw: what was read.
        train_n: keep the first so many training samples after the split; None for all.

    Returns:
        The dataset.

    Raises:
        RobustkitError: no samples, pixels outside [0, 1], labels outside 0..K-1, training samples of one class only, or
            test images of another shape than the training images.
    """
    pool = np.arange(len(raw.y))
    if raw.x_test is None or raw.y_test is None:
        pool, held = hold_out(raw.y, round(TEST_SHARE * len(raw.y)))
        test = _split(raw, held, "test")
    else:
        own = Raw(raw.x_test, raw.y_test, raw.class_names, index=raw.index_test)
        test = _split(own, np.arange(len(raw.y_test)), "test")
    rest, held = hold_out(raw.y[pool], min(VAL_MOST, round(VAL_SHARE * len(pool))))
    train = _split(raw, pool[rest][:train_n], "training")
    val = _split(raw, pool[held], "validation")
    _check_shapes(name, train, test)
    _check_classes(train, raw.class_names)
    channels = test.x.shape[1]
    mean, std = profile.mean or (0.0,) * channels, profile.std or (1.0,) * channels
    classes = len(raw.class_names)
    return Dataset(name, classes, raw.class_names, train, val, test, profile.model, profile.eps, mean, std)


def hold_out(y: Array, n: int) -> tuple[Array, Array]:
    """Choose ``n`` samples so that every class keeps its share to within one sample.

    Args:
        y: labels, shape ``(N,)``; the choice depends on nothing else.
        n: how many to hold out.

    Returns:
        The positions that stay and those held out, both ascending.
    """
    # RandomState's stream is frozen for good, unlike default_rng's: a split never changes with numpy.
    shuffled = np.random.RandomState(0).permutation(len(y))
    by_class = shuffled[np.argsort(y[shuffled], kind="stable")]
    held = np.sort(by_class[((np.arange(n) + 0.5) * len(y) / max(n, 1)).astype(np.int64)])
    return np.setdiff1d(np.arange(len(y)), held), held


def channels_first(x: Array, where: str) -> Array:
    """Give images the shape ``(N, C, H, W)``.

    Args:
        x: shape ``(N, H, W)``, ``(N, C, H, W)``, or ``(N, H, W, C)`` with 1 or 3 channels.
        where: what the images are called in a message.

    Returns:
        The images, channels first.

    Raises:
        RobustkitError: any other number of dimensions.
    """
    if x.ndim == 3:
        return x[:, None]
    if x.ndim != 4:
        expected = "(N, H, W), (N, H, W, C) or (N, C, H, W)"
        raise RobustkitError(f"expected {where} of shape {expected}, got {x.shape}; reshape the array")
    last = x.shape[3] in (1, 3) and x.shape[1] not in (1, 3)
    return x.transpose(0, 3, 1, 2) if last else x


def _split(raw: Raw, rows: Array, what: str) -> Split:
    """Convert only the rows that are kept, so that a small part of a large set stays small."""
    x, y = _pixels(raw.x[rows], what), _labels(raw.y[rows], len(raw.class_names), what)
    return Split(x, y, torch.from_numpy(rows if raw.index is None else raw.index[rows]).long())


def _pixels(array: Array, what: str) -> Tensor:
    if not array.size:
        return torch.zeros(array.shape)
    if array.dtype.kind not in "buif":
        raise RobustkitError(f"expected {what} images as numbers, got {array.dtype}; save uint8 or float pixels")
    x = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if array.dtype == np.uint8:
        return x.div_(255)
    least, most = x.min().item(), x.max().item()
    if least >= 0 and most <= 1:
        return x
    got = f"min {least:.4g}" if least < 0 else f"max {most:.4g}"
    if x.isnan().any():
        raise RobustkitError(f"expected x in [0, 1], got NaN in the {what} images; repair the data")
    raise RobustkitError(
        f"expected x in [0, 1], got {got} in the {what} images; put normalisation inside the model, "
        "and store pixels of 0..255 as uint8"
    )


def _labels(array: Array, classes: int, what: str) -> Tensor:
    if array.size and not 0 <= array.min() <= array.max() < classes:
        bad = array[(array < 0) | (array >= classes)][0]
        raise RobustkitError(f"expected {what} labels in 0..{classes - 1}, got {bad}; number the classes from 0")
    return torch.from_numpy(array.astype(np.int64))


def _check_shapes(name: str, train: Split, test: Split) -> None:
    if not len(test):
        raise RobustkitError(f"expected test samples in {name}, got none; give at least one per class")
    shapes = ["x".join(map(str, split.x.shape[1:])) for split in (train, test)]
    if len(train) and shapes[0] != shapes[1]:
        raise RobustkitError(f"expected test images of {shapes[0]} like the training images, got {shapes[1]}")


def _check_classes(train: Split, class_names: tuple[str, ...]) -> None:
    found = np.unique(train.y.numpy())
    if len(found) == 1:
        raise RobustkitError(
            f"expected training samples of at least two classes, got only class {class_names[found[0]]!r}; "
            "add samples of another class, or mix the order and raise train_n"
        )
