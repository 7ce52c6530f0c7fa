"""The metrics of every epoch for TensorBoard, on request."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from robustkit.errors import RobustkitError
from robustkit.training import EpochMetrics

FOLDER = "tensorboard"


def board(folder: Path) -> Callable[[Sequence[EpochMetrics]], None]:
    """Open a board in a run directory.

    Args:
        folder: the run directory; scalars go into ``tensorboard/`` there.

    Returns:
        What writes the last epoch of a history, one scalar for each figure that was measured.

    Raises:
        RobustkitError: TensorBoard is not installed.
    """
    try:
        writer: Any = importlib.import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError:
        raise RobustkitError(
            "expected the package tensorboard for train.tensorboard, found none; install it with "
            "`uv pip install tensorboard`, or train without"
        ) from None
    scalars = writer(str(folder / FOLDER))

    def write(history: Sequence[EpochMetrics]) -> None:
        last = history[-1]
        for name, value in last.items():
            if name != "epoch" and isinstance(value, int | float) and not math.isnan(value):
                scalars.add_scalar(name, value, last["epoch"])
        scalars.flush()

    return write
