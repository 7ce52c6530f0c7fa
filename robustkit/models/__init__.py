"""Networks by name, and their checkpoints."""

from __future__ import annotations

from robustkit.models.architectures import (
    Normalize,
    check_output,
    count_parameters,
    count_relus,
    make_model,
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
from robustkit.models.initialisation import initialise_for_intervals
from robustkit.models.mixture import Mixture
from robustkit.models.named import ARCHITECTURES

__all__ = [
    "ARCHITECTURES",
    "MIXTURE",
    "Mixture",
    "ModelCard",
    "Normalize",
    "check_output",
    "count_parameters",
    "count_relus",
    "fingerprint",
    "initialise_for_intervals",
    "load_checkpoint",
    "load_weights",
    "make_model",
    "read_card",
    "save_checkpoint",
]
