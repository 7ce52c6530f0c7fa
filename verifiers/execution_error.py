"""How far an execution in float32 may be from the network in real arithmetic; part of the trusted half.

The model: every sum, product, quotient and root of float32 numbers is rounded to nearest, products and sums fused or
not, sums added in any order and in any blocks, results gradually underflowing. With ``u = 2^-24`` a result is then off
by at most ``u`` of itself, or by 2^-150 where a product or quotient underflows; sums never underflow. The order being
free, all that computes a convolution as a sum of its products is covered. Winograd's and Fourier's transforms compute
other sums and are *not*; nor are inputs cut to shorter mantissas: TF32, which robustkit switches off
(``robustkit._process``), bfloat16, automatic casts. On a GPU, cuDNN may choose Winograd for convolutions of 3 x 3.

Let ``|h| <= H`` over the region for a value ``h`` of the network and ``e`` bound how far the executed one is from it,
for each entry; the input, a float32 point of the region, has ``e = 0``. An executed value is no greater than ``H + e``.
With ``gamma_n = n u / (1 - n u)`` (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., Sec. 3.1):

- ``W h + b``, n products to a sum. What comes in costs ``|W| e``. A product meets its own rounding and at most n of
  additions (of n numbers and the bias): ``e' = |W| e + gamma_(n+1) (|W| (H + e) + |b|) + n 2^-150``.
- Average pooling, k to a window: k - 1 additions, and a quotient or a product with ``1/k``, itself rounded: k + 1 in
  all. It is a convolution with n = k and ``doubt``, below.
- Batch norm, ``w (x - m) + b`` with ``w = g / sqrt(v + eps)``, and ``Normalize``. However it is arranged, as it stands
  or as ``w x + (b - w m)``: eps, its sum and the root cost ``w`` 2 u, a reciprocal u, or a reciprocal root of two units
  in the last place 5 u with what comes before, the product with g one more; then three operations. No term of
  ``|w x| + |w m| + |b|`` meets more than 10; ``doubt`` allows 16 besides two, and ``bias_size`` is ``|w m| + |b|``.
- ReLU is exact and takes nothing apart; where ``z <= U`` the results lie in ``[0, max(0, U + e)]``, so they are no
  further apart than that is long. Leaky ReLU, whose slope s is rounded too: ``e' = e + gamma_2 s (H + e)``.
- A sum of two: ``e' = e1 + e2 + u (H1 + e1 + H2 + e2)``.

Underflow is paid by ``TINY`` at every step: n products of 2^-150 each for n up to 2^60; and in batch norm, where what
underflows is multiplied by no more than 2^60 before the end, 2^-88 or less. For that, and for no overflow on the way,
``expect_float32`` asks for parameters below ``TAME`` and variances of at least ``2^-100``, and wherever
``|W| (H + e) + |b|`` exceeds ``TAME`` nothing is proved. The recursion is Higham's running error analysis; how the
layers of a network are put into it is our own.

All of this is computed in float64, where sums of n terms of one sign are off by less than ``n 2^-52`` of themselves;
``SPARE`` pays for it, and for weights that are no float64 numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robustkit.errors import UnsupportedLayerError
from robustkit.verifiers.exact_network import Activation, Dense, ExactNetwork, Semantics, Step
from robustkit.verifiers.rounding import down, up
from robustkit.verifiers.sound_bounds import Region

UNIT = 2.0**-24
TINY = 2.0**-80
"""What underflow may take away in one step."""

TAME = 2.0**60
"""Magnitude of parameters and values beyond which nothing is proved."""

LEAST_VARIANCE = 2.0**-100
SPARE = 1.0 + 2.0**-20
MOST_ROUNDINGS = 2**23
"""Roundings of one number beyond which nothing is proved: half of it is gone."""


def gamma(roundings: int) -> float:
    """Give Higham's ``gamma_n`` of float32; infinity where n is too great for it."""
    return roundings * UNIT / (1.0 - roundings * UNIT) if roundings < MOST_ROUNDINGS else math.inf


def expect_float32(model: nn.Module) -> None:
    """Refuse a network of which float32 executions are not what is described above.

    Raises:
        UnsupportedLayerError: parameters or buffers of another type or too great, or a variance that is too small.
    """
    for name, one in [*model.named_parameters(), *model.named_buffers()]:
        if one.is_floating_point() and (one.dtype != torch.float32 or not bool((one.abs() <= TAME).all())):
            raise UnsupportedLayerError(
                f"expected float32 numbers up to {TAME:.3g} in {name}, got others: an execution in float32 cannot be "
                "proved right; prove it in real arithmetic"
            )
    for name, layer in model.named_modules():
        variance = layer.running_var if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) else None
        if variance is not None and not bool((variance.double() + layer.eps >= LEAST_VARIANCE).all()):
            raise UnsupportedLayerError(
                f"expected variances of at least {LEAST_VARIANCE:.3g} in {name}, got less: an execution in float32 "
                "cannot be proved right; prove it in real arithmetic"
            )


def executed(network: ExactNetwork, region: Region, rows: Tensor, bounds: Tensor) -> Tensor:
    """Lower bounds of rows of a network's outputs, so that they hold for what is meant: see ``Semantics``.

    Args:
        network: the operations.
        region: what is known of every value.
        rows: coefficients of the outputs, shape ``(B, R, K)``; ``B`` may be 1 for all boxes.
        bounds: lower bounds of the rows in real arithmetic, shape ``(B, R)``.

    Returns:
        Lower bounds, shape ``(B, R)``: the same ones for real arithmetic.
    """
    if network.semantics == Semantics.REAL:
        return bounds
    error = execution_errors(network, region)[-1]
    # an error that is infinite costs as much even where a row does not look at it
    cost = (rows.abs() * error.unsqueeze(1)).sum(dim=2) * SPARE
    return down(bounds - cost.nan_to_num(nan=torch.inf, posinf=torch.inf))


def execution_errors(network: ExactNetwork, region: Region) -> list[Tensor]:
    """Bound how far every value that is executed in float32 may be from the real one, at any float32 point.

    Args:
        network: the operations, read from a module that ``expect_float32`` lets pass.
        region: what is known of every value.

    Returns:
        Of every value, of the input first, float64 of shape ``(B, n)``; infinite where nothing is known.
    """
    errors = [torch.zeros_like(region.size[0])]
    for step in network.steps:
        given = [(region.size[value], errors[value]) for value in step.inputs]
        error = _error(step, given) * SPARE
        if isinstance(step.operation, Activation) and not step.operation.slope:
            error = torch.minimum(error, up(region.upper[step.inputs[0]] + errors[step.inputs[0]]).clamp(min=0.0))
        errors.append(error.where(error <= TAME, torch.inf))
    return errors


def _error(step: Step, given: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Bound the error of one operation by the sizes and the errors of what it takes."""
    operation, (size, error) = step.operation, given[0]
    if isinstance(operation, Dense):
        weight = operation.weight.abs()
        total = operation.times(weight, size + error) + operation.bias_size
        roundings = operation.weight[0].numel() + 1 + operation.doubt
        found = operation.times(weight, error) + gamma(roundings) * total + TINY
        return found.where(total <= TAME, torch.inf)
    if isinstance(operation, Activation):
        return error + (gamma(2) * operation.slope * (size + error) + TINY) if operation.slope else error
    if len(given) == 2:
        return sum((one for _, one in given), UNIT * sum((one + two for one, two in given), torch.zeros_like(size)))
    return error
