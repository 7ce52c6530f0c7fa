"""Networks by name, and their checkpoints."""

from __future__ import annotations

from robustkit.models.architectures import (
    Normalize,
    check_output,
    count_parameters,
    count_relus,
    make_model,
    makes_its_weights,
)
from robustkit.models.checkpoints import (
    MIXTURE,
    ModelCard,
    fingerprint,
    load_checkpoint,
    load_weights,
    read_card,
    save_checkpoint,
)
from robustkit.models.export import export_onnx
from robustkit.models.initialisation import initialise_for_intervals
from robustkit.models.mixture import Mixture
from robustkit.models.named import ARCHITECTURES
from robustkit.models.onnx import OnnxNetwork, load_onnx, read_onnx

__all__ = [
    "ARCHITECTURES",
    "MIXTURE",
    "Mixture",
    "ModelCard",
    "Normalize",
    "OnnxNetwork",
    "check_output",
    "count_parameters",
    "count_relus",
    "export_onnx",
    "fingerprint",
    "initialise_for_intervals",
    "load_checkpoint",
    "load_onnx",
    "load_weights",
    "make_model",
    "makes_its_weights",
    "read_card",
    "read_onnx",
    "save_checkpoint",
]
