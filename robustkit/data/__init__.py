"""Datasets by name, from a folder of images or from an npz file; pixels in [0, 1], order never shuffled."""

from __future__ import annotations

from pathlib import Path

from robustkit.data.named import NAMED
from robustkit.data.own import read_folder, read_npz
from robustkit.data.splits import Dataset, Profile, Raw, Split, assemble
from robustkit.errors import RobustkitError, UsageError, unknown_name

__all__ = ["Dataset", "Split", "dataset_names", "describe_dataset", "load_dataset"]


def load_dataset(
    name: str, *, root: str | Path | None = None, download: bool = False, train_n: int | None = None
) -> Dataset:
    """Load a dataset and split it, always in the same way.

    Where a set brings no test samples of its own, 20 % are held out; validation samples are 10 % of the rest, at most
    5,000. Both draws are stratified and depend on nothing but the labels.

    Args:
        name: a name of ``dataset_names()``, a folder of images (``train/<class>/*.png`` and ``test/<class>/*.png``, or
            just ``<class>/*.png``; jpg too), or an ``.npz`` file (``x_train, y_train, x_test, y_test``, or ``images,
            labels`` for a set to evaluate on only).
        root: where downloaded datasets lie; else the environment variable ``ROBUSTKIT_DATA``, ``./data`` and
            ``../shared/data`` say where to look.
        download: fetch a dataset that is in none of these, into ``root`` or ``./data``.
        train_n: keep only the first so many training samples, counted after the split.

    Returns:
        The dataset. One that brings only test samples has empty ``train`` and ``val``. The user's own sets are called
        by their file or folder and a code of the content: results of other content are never taken for theirs.

    Raises:
        UsageError: an unknown name, or ``train_n`` below 1.
        RobustkitError: the data is absent, damaged, or outside [0, 1]; the message says which and what to do.
    """
    if train_n is not None and train_n < 1:
        raise UsageError(f"expected train_n at least 1, got {train_n}; leave it out to train on all samples")
    if name in NAMED:
        return assemble(name, NAMED[name].profile, NAMED[name].read(root, download), train_n)
    raw = _read_own(name)
    stem = Path(name).resolve().name.removesuffix(".npz")
    return assemble(f"{stem}-{raw.code()}", _own_profile(raw), raw, train_n)


def dataset_names() -> list[str]:
    """List the names that ``load_dataset`` knows."""
    return sorted(NAMED)


def describe_dataset(name: str) -> str:
    """Say in a line what a dataset of ``dataset_names()`` is, and which architecture and radius are its defaults."""
    named = NAMED[name]
    return f"{named.about}; default model {named.profile.model}, eps {named.profile.eps:.4g}"


def _read_own(name: str) -> Raw:
    path = Path(name).expanduser()
    if path.suffix == ".npz":
        return read_npz(path)
    if path.is_dir():
        return read_folder(path)
    if path.name != name:
        raise RobustkitError(f"expected a folder of images or an .npz file at {name}, found none; check the path")
    raise UsageError(f"{unknown_name('dataset', name, NAMED)}; a folder of images or an .npz file is accepted too")


def _own_profile(raw: Raw) -> Profile:
    """Choose defaults for the user's own data: an mlp below 16 pixels; eps 0.1, or 2/255 for colour."""
    channels, *sides = raw.x.shape[1:]
    return Profile("mlp" if min(sides) < 16 else "cnn_small", 0.1 if channels == 1 else 2 / 255)
