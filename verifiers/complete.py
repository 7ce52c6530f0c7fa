"""Complete verification: the cascade with time enough, for networks that branch and bound carries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from robustkit.bounds.graph import trace
from robustkit.verifiers.base import Prepared
from robustkit.verifiers.cascade import Cascade
from robustkit.verifiers.preconditions import check_mode


@dataclass(frozen=True)
class Complete(Cascade):
    """Falsify what an attack breaks, prove what bounds prove, split what is left until it is proved or broken.

    The cascade with more time: complete up to the limits and to ties. A network that branch and bound cannot carry is
    refused.

    Attributes:
        timeout: seconds of branch and bound for each sample, above 0.
        total: seconds of branch and bound for all samples of an evaluation.
    """

    name: ClassVar[str] = "complete"
    timeout: float = 60.0
    total: float = math.inf

    def prepare(self, model: nn.Module, example: Tensor) -> Prepared:
        """Prepare for a model once; see ``Verifier``."""
        check_mode(model)
        trace(model, example)
        return super().prepare(model, example)
