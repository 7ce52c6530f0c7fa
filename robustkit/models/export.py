"""Networks written as ONNX files."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustkit.errors import RobustkitError, UnsupportedLayerError, UsageError
from robustkit.files import replacing
from robustkit.models.conversion import first_line
from robustkit.models.onnx import MATCH, SAMPLES, apart, parse_onnx, start_session

OPSET = 17


def export_onnx(model: nn.Module, input_shape: Sequence[int], path: Path) -> float:
    """Write a network to an ONNX file for any batch, whole or not at all, and hold it against onnxruntime.

    Args:
        model: its mode stays as it is; what is written is its eval mode.
        input_shape: of a sample.
        path: ends in ``.onnx``.

    Returns:
        The greatest difference of an output from onnxruntime's on random inputs in [0, 1].

    Raises:
        UsageError: another ending.
        UnsupportedLayerError: a layer that ONNX cannot hold.
        RobustkitError: the file cannot be written, or gives other outputs.
    """
    if path.suffix != ".onnx":
        raise UsageError(f"expected a path ending in .onnx, got {path}; rename it")
    shell = copy.deepcopy(model).cpu().eval()
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(SAMPLES, *input_shape, generator=draw)
    content = _exported(shell, x[:1])
    session = start_session(parse_onnx(content, path), path)
    with torch.no_grad():
        expected = shell(x).numpy()
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    away = apart(found, expected)
    if not away <= MATCH:
        raise RobustkitError(
            f"expected the outputs of the network from its export, got ones {away:.3g} away (as a share of 1 + the "
            f"largest, at most {MATCH:g}); nothing is written: a layer exports wrongly"
        )
    with replacing(path, "wb") as file:
        file.write(content)
    return float(np.abs(found - expected).max())


def _exported(shell: nn.Module, example: Tensor) -> bytes:
    """Trace a network by torch's TorchScript exporter: the other one needs a package more."""
    content = io.BytesIO()
    options: dict[str, Any] = {
        "input_names": ["input"],
        "output_names": ["output"],
        "dynamic_axes": {name: {0: "batch"} for name in ("input", "output")},
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter is deprecated
            torch.onnx.export(shell, (example,), f=content, dynamo=False, opset_version=OPSET, **options)  # type: ignore[arg-type]
    except Exception as error:
        raise UnsupportedLayerError(f"cannot write this network as ONNX: {first_line(error)}; replace it") from error
    return content.getvalue()
