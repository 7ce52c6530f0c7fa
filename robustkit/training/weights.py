"""How much each sample of an adversarial batch counts: by its energy, or by its loss."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from robustkit.errors import UsageError

Weights = Literal["none", "weat", "done"]
"""How samples are weighted, as an option of a method."""


def weighted(losses: Tensor, clean: Tensor, weights: Weights, *, temperature: float) -> Tensor:
    """Give the weighted mean of the losses of a batch; no gradient goes through the weights.

    Args:
        losses: one a sample, shape ``(B,)``.
        clean: logits of the clean samples, shape ``(B, K)``; only their energies are used.
        weights: ``"none"``, ``"weat"`` by energy, or ``"done"`` by loss.
        temperature: of ``"done"``, above 0.

    Returns:
        A scalar. By loss, the weights are those within the samples given: over a share of a batch not the whole's.
    """
    if weights == "weat":
        return (energy_weights(clean) * losses).mean()
    if weights == "done":
        return (loss_weights(losses, temperature) * losses).sum()
    return losses.mean()


def energy_weights(logits: Tensor) -> Tensor:
    """Weigh samples by ``1 / log(1 + exp(|E|))`` of their energy ``E = -logsumexp(logits)``: near zero the most.

    Args:
        logits: of the clean samples, shape ``(B, K)``.

    Returns:
        Weights in ``(0, 1 / log 2]``, shape ``(B,)``, detached; they are not normalised.

    Source: WEAT, energy-weighted adversarial training. Which logits the energy is of, those of ``x`` or of ``x'``, is
    read from its formula as ``E(x)``: the clean ones, in both forms.
    """
    energy = -torch.logsumexp(logits.detach(), dim=1)
    return 1.0 / functional.softplus(energy.abs())


def loss_weights(losses: Tensor, temperature: float) -> Tensor:
    """Weigh samples by ``softmax(loss / temperature)`` over those given: the highest losses the most.

    Args:
        losses: one a sample, shape ``(B,)``.
        temperature: the greater, the more alike the weights, above 0.

    Returns:
        Weights that add up to 1, shape ``(B,)``, detached.

    Source: DONE, doubly robust reweighting; the closed form of distributional robustness in a KL ball: with detached
    weights the gradient is that of ``temperature * log mean exp(loss / temperature)``.
    """
    return torch.softmax(losses.detach() / temperature, dim=0)


def divergences(clean: Tensor, moved: Tensor) -> Tensor:
    """Give ``KL(softmax(clean) || softmax(moved))`` of each sample, from logits ``(B, K)``, shape ``(B,)``."""
    target = functional.softmax(clean, dim=1)
    return functional.kl_div(functional.log_softmax(moved, dim=1), target, reduction="none").sum(dim=1)


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that cannot be meant.

    Raises:
        UsageError: it is not above 0.
    """
    if not temperature > 0:
        raise UsageError(f"expected done_temperature above 0, got {temperature}")
