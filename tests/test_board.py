import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from test_loop import metrics

from robustkit.board import FOLDER, board
from robustkit.errors import RobustkitError


class Writer:
    """Keeps what a real one would write to files."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.scalars: list[tuple[str, float, int]] = []
        self.flushed = 0
        WRITERS.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def flush(self) -> None:
        self.flushed += 1


WRITERS: list[Writer] = []


def test_every_measured_figure_of_the_last_epoch_is_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    write = board(tmp_path)
    first, second = metrics(epoch=1, loss=2.0, val_vra=math.nan), metrics(epoch=2, loss=1.0, val_vra=0.5)
    write([first])
    write([first, second])
    writer = WRITERS[-1]
    assert writer.folder == str(tmp_path / FOLDER)
    assert writer.scalars == [("loss", 2.0, 1), ("loss", 1.0, 2), ("val_vra", 0.5, 2)]
    assert writer.flushed == 2


def test_without_the_package_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(RobustkitError, match=r"expected the package tensorboard .* install it with"):
        board(tmp_path)
