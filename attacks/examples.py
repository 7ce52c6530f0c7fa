"""Adversarial examples on disk: enough to show them, and to replay each one exactly."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from robustkit.errors import RobustkitError, UsageError
from robustkit.files import replacing
from robustkit.verdict import Verdict


@dataclass(frozen=True)
class Examples:
    """Samples that an attack broke, and the points that broke them.

    Attributes:
        x: the samples, shape ``(n, ...)``, float32, pixels in [0, 1].
        x_adv: a misclassified point of the ball of each, likewise.
        y: labels, shape ``(n,)``.
        predicted: classes predicted at ``x_adv``, shape ``(n,)``.
        index: positions in the test set, shape ``(n,)``.
        eps: radius of the ball, in pixel units.
    """

    x: NDArray[np.float32]
    x_adv: NDArray[np.float32]
    y: NDArray[np.int64]
    predicted: NDArray[np.int64]
    index: NDArray[np.int64]
    eps: float

    def __post_init__(self) -> None:
        sizes = {len(self.x), len(self.x_adv), len(self.y), len(self.predicted), len(self.index)}
        if len(sizes) > 1 or self.x.shape != self.x_adv.shape:
            raise UsageError(
                f"expected x, x_adv, y, predicted and index of one length, got shapes {self.x.shape}, "
                f"{self.x_adv.shape}, {self.y.shape}, {self.predicted.shape}, {self.index.shape}"
            )

    @classmethod
    def of(cls, table: pd.DataFrame, x: Tensor, x_adv: Tensor, predicted: Tensor) -> Examples:
        """Pick the falsified samples out of an evaluation.

        Args:
            table: rows of one attack at one radius, one per sample.
            x: the samples, shape ``(N, ...)``.
            x_adv: what the attack gave for them, likewise.
            predicted: classes predicted at ``x_adv``, shape ``(N,)``.

        Returns:
            The examples, in the order of the table.
        """
        falsified = (table["verdict"] == Verdict.FALSIFIED).to_numpy(dtype=bool)
        return cls(
            x=x.detach().cpu().numpy().astype(np.float32)[falsified],
            x_adv=x_adv.detach().cpu().numpy().astype(np.float32)[falsified],
            y=table["label"].to_numpy(dtype=np.int64)[falsified],
            predicted=predicted.cpu().numpy().astype(np.int64)[falsified],
            index=table["index"].to_numpy(dtype=np.int64)[falsified],
            eps=float(table["eps"].iloc[0]) if len(table) else 0.0,
        )

    def after(self, earlier: Examples | None) -> Examples:
        """Give these behind those of an earlier sitting."""
        if earlier is None:
            return self
        pairs = zip(earlier.arrays().items(), self.arrays().values(), strict=True)
        return Examples(**{name: np.concatenate([old, new]) for (name, old), new in pairs}, eps=self.eps)

    def at(self, places: NDArray[np.intp], eps: float | None = None) -> Examples:
        """Give those at some places; as examples in another ball that is not smaller, where one is given."""
        arrays = {name: one[places] for name, one in self.arrays().items()}
        return Examples(**arrays, eps=self.eps if eps is None else eps)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Give every array by its name."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "eps"}


def save_examples(path: Path, examples: Examples) -> None:
    """Write examples as a compressed npz file, whole or not at all.

    Raises:
        RobustkitError: the file cannot be written.
    """
    with replacing(path, "wb") as file:
        arrays: dict[str, Any] = {**examples.arrays(), "eps": np.asarray(examples.eps)}
        np.savez_compressed(file, **arrays)


def load_examples(path: Path) -> Examples:
    """Read examples back; nothing in the file is ever executed.

    Raises:
        RobustkitError: the file is missing, cut short, or holds something else.
    """
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            arrays = {one.name: file[one.name] for one in fields(Examples)}
        return Examples(**{**arrays, "eps": float(arrays["eps"])})
    except FileNotFoundError:
        raise RobustkitError(f"expected adversarial examples at {path}, found none; run attack first") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, UsageError) as error:
        raise RobustkitError(
            f"expected adversarial examples at {path}, could not read them ({error}); delete the file and attack again"
        ) from error
