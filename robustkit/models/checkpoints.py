"""Networks on the disk: our own checkpoints, and weights that others saved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from robustkit.config import build
from robustkit.errors import RobustkitError, UsageError
from robustkit.files import replacing
from robustkit.models.architectures import Normalize, make_model
from robustkit.models.mixture import Mixture

WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "model.json"
SUFFIXES = (".pth", ".pt", ".model", ".ckpt", ".bin", ".tar", ".safetensors")
MIXTURE = "mixture"
"""Architecture of a card whose network is a ``Mixture`` of those of its parts."""

NESTED = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.")

State = dict[str, Tensor]


@dataclass(frozen=True)
class ModelCard:
    """What must be known of a network to make it again and to judge its numbers.

    Attributes:
        architecture: name that ``make_model`` takes, or ``"mixture"``.
        input_shape: ``(C, H, W)`` of an image.
        classes: number of classes.
        dataset: what it was trained on.
        mean: per channel, of its ``Normalize`` layer.
        std: per channel, of its ``Normalize`` layer.
        method: how it was trained.
        eps: radius it was trained for, in pixel units.
        seed: of its training.
        versions: of the software that trained it, by package.
        width: of its layers, where that is not the architecture's own.
        parts: of a mixture: the cards of its natural and of its robust network.
        weight: of a mixture: that of its robust network.
    """

    architecture: str
    input_shape: tuple[int, int, int]
    classes: int
    dataset: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    method: str
    eps: float
    seed: int
    versions: dict[str, str] = field(default_factory=dict)
    width: int | None = None
    parts: tuple[ModelCard, ...] = ()
    weight: float | None = None


def make_from_card(card: ModelCard) -> nn.Module:
    """Make the network of a card, with fresh weights.

    Raises:
        RobustkitError: it is the card of a mixture, but not of two networks and a weight.
        UsageError: no network is made by that name.
    """
    if card.architecture != MIXTURE:
        return make_model(
            card.architecture, card.input_shape, card.classes, mean=card.mean, std=card.std, width=card.width
        )
    if len(card.parts) != 2 or card.weight is None:
        raise RobustkitError(
            f"expected two parts and a weight on the card of a mixture, got {len(card.parts)} and {card.weight}; "
            "make it again by `robustkit mix`"
        )
    natural, robust = map(make_from_card, card.parts)
    return Mixture(natural, robust, card.weight)


def save_checkpoint(folder: Path, model: nn.Module, card: ModelCard) -> None:
    """Save a trained network; the weights file comes last, for its presence means that training has finished.

    Args:
        folder: where ``model.json`` and ``model.safetensors`` go; made where it is missing.
        model: the network.
        card: what it is.

    Raises:
        RobustkitError: the folder cannot be written, or a weight is NaN or infinite.
    """
    state = {name: one.detach().cpu().contiguous().clone() for name, one in model.state_dict().items()}
    _check_finite(state, "the model to save")
    with replacing(folder / CARD_FILE) as file:
        json.dump(asdict(card), file, indent=2)
        # Old weights beside a new card would be another network than the card says.
        (folder / WEIGHTS_FILE).unlink(missing_ok=True)
    with replacing(folder / WEIGHTS_FILE, "wb") as file:
        file.write(safetensors.torch.save(state))


def load_checkpoint(path: str | Path) -> tuple[nn.Module, ModelCard]:
    """Load a network that ``save_checkpoint`` saved; the random state stays as it is.

    Args:
        path: the folder, or the ``.safetensors`` file beside the card.

    Returns:
        The network on the CPU, in eval mode, and its card.

    Raises:
        RobustkitError: a file is absent, damaged, or does not fit the other.
    """
    weights = Path(path) if Path(path).suffix == ".safetensors" else Path(path) / WEIGHTS_FILE
    if not weights.is_file():
        raise RobustkitError(
            f"expected a trained network at {weights}, found none; finish the training, or check the path"
        )
    card = read_card(weights.parent)
    with torch.random.fork_rng(devices=[]):
        model = make_from_card(card)
    load_weights(model, weights, architecture=card.architecture)
    return model.eval(), card


def read_card(folder: Path) -> ModelCard:
    """Read the card of a network that ``save_checkpoint`` saved in a folder.

    Raises:
        RobustkitError: it is absent or damaged.
    """
    path = folder / CARD_FILE
    try:
        return build(ModelCard, json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise RobustkitError(
            f"expected a model card at {path}: {error.strerror}; name the architecture to load weights without one"
        ) from None
    except (ValueError, TypeError, AttributeError, UsageError) as error:
        raise RobustkitError(f"{path} is no model card: {error}; train again, or name the architecture") from None


def load_weights(model: nn.Module, path: str | Path, *, architecture: str = "the model") -> None:
    """Fill a network with weights from any checkpoint that holds fitting tensors and no code.

    Names decide; where they differ (a ``Sequential`` saved under other numbers, a ``Normalize`` layer between), tensors
    of the same shapes in the same order do. A ``Normalize`` layer that the checkpoint lacks keeps its own values.

    Args:
        model: filled in place, on the device it is on.
        path: a ``.safetensors`` file, or what ``torch.save`` wrote (``.pth``, ``.pt``, ``.model``): a state dict, one
            nested under ``state_dict``, ``model_state_dict``, ``model`` or ``net``, or the first of a list of them.
        architecture: what the model is called in a message.

    Raises:
        UsageError: a file of another kind.
        RobustkitError: the file is absent, damaged, holds code, holds NaN or infinite weights, or does not fit.
    """
    path = Path(path)
    state = _strip(_state_dict(_read(path), path))
    _check_finite(state, str(path))
    own: State = model.state_dict()
    keys = _match(own, state, _normalize_keys(model), sorted_by_name=path.suffix == ".safetensors")
    if keys is None:
        raise RobustkitError(f"expected the weights of {architecture} in {path}, got {_mismatch(own, state)}")
    model.load_state_dict({**own, **{mine: state[theirs] for mine, theirs in keys.items()}})


def fingerprint(model: nn.Module) -> str:
    """Give twelve hexadecimal digits that change with any weight or buffer, but not with their names.

    Args:
        model: any module.

    Returns:
        The start of the SHA-256 digest over types, shapes and bytes, parameters first, in order.
    """
    sha = hashlib.sha256()
    for one in (*model.parameters(), *model.buffers()):
        flat = one.detach().cpu().contiguous().reshape(-1)
        sha.update(f"{flat.dtype}{tuple(one.shape)}".encode())
        sha.update(flat.view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:12]


def _read(path: Path) -> Any:
    if path.suffix not in SUFFIXES:
        raise UsageError(f"expected a checkpoint ({', '.join(SUFFIXES)}), got {path}")
    if not path.is_file():
        raise RobustkitError(f"expected a checkpoint at {path}, found none; check the path, or finish the training")
    if not path.stat().st_size:
        raise RobustkitError(f"{path} is empty; copy or download it again")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path, device="cpu")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can break a reader in any way
        if "Unsupported global" in str(error):
            raise RobustkitError(
                f"{path} holds Python objects that would run code, which is refused; save model.state_dict() instead"
            ) from None
        raise RobustkitError(f"{path} is damaged or no checkpoint; copy or download it again") from None


def _state_dict(found: Any, path: Path) -> State:
    """Unwrap what training scripts put around a state dict."""
    while True:
        inner = next((key for key in NESTED if isinstance(found, Mapping) and _holds(found.get(key))), None)
        if inner is not None:
            found = found[inner]
        elif isinstance(found, Sequence) and found and not isinstance(found, str):
            found = found[0]
        else:
            break
    if not isinstance(found, Mapping) or not found or not all(map(_is_entry, found.items())):
        raise RobustkitError(
            f"expected a state dict (names to tensors) in {path}, got {_describe(found)}; save model.state_dict()"
        )
    return dict(found)


def _is_entry(entry: tuple[Any, Any]) -> bool:
    return isinstance(entry[0], str) and isinstance(entry[1], Tensor)


def _holds(found: Any) -> bool:
    return isinstance(found, Mapping | list | tuple)


def _describe(found: Any) -> str:
    if isinstance(found, Mapping):
        return f"keys {', '.join(list(map(str, found))[:5])}" if found else "an empty one"
    return type(found).__name__


def _strip(state: State) -> State:
    for prefix in PREFIXES * 2:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): one for name, one in state.items()}
    return state


def _normalize_keys(model: nn.Module) -> set[str]:
    found = [name for name, one in model.named_modules() if isinstance(one, Normalize)]
    return {f"{name}.{buffer}".lstrip(".") for name in found for buffer in ("mean", "std")}


def _match(own: State, state: State, optional: set[str], *, sorted_by_name: bool) -> dict[str, str] | None:
    """Map our names to theirs, by name or else by order; None where neither fits."""
    for names in (list(own), [name for name in own if name not in optional]):
        if set(names) == state.keys():
            return {name: name for name in names} if _same_shapes(own, state, names, names) else None
        mine, theirs = names, list(state)
        if all(_layer_number(name) is not None for name in (*mine, *theirs)):
            mine, theirs = (sorted(one, key=lambda name: (_layer_number(name), name)) for one in (mine, theirs))
        elif sorted_by_name:  # a safetensors file keeps no order of layers
            continue
        if _same_shapes(own, state, mine, theirs):
            return dict(zip(mine, theirs, strict=True))
    return None


def _same_shapes(own: State, state: State, mine: list[str], theirs: list[str]) -> bool:
    return len(mine) == len(theirs) and all(own[a].shape == state[b].shape for a, b in zip(mine, theirs, strict=True))


def _layer_number(name: str) -> tuple[int, ...] | None:
    """Read where in nested ``Sequential`` containers a tensor stands; None where a layer has a name instead."""
    parts = name.split(".")[:-1]
    return tuple(map(int, parts)) if parts and all(one.isdecimal() for one in parts) else None


def _mismatch(own: State, state: State) -> str:
    """Say how two state dicts differ, in a handful of names."""
    wrong = [
        f"{name} {tuple(state[name].shape)} for {tuple(one.shape)}"
        for name, one in own.items()
        if name in state and state[name].shape != one.shape
    ]
    missing, unexpected = ([name for name in a if name not in b] for a, b in ((own, state), (state, own)))
    found = [("other shapes:", wrong), ("missing", missing), ("unexpected", unexpected)]
    return "; ".join(f"{what} {', '.join(names[:4])}{', ...' * (len(names) > 4)}" for what, names in found if names)


def _check_finite(state: State, where: str) -> None:
    for name, one in state.items():
        if one.is_floating_point() and not one.isfinite().all():
            raise RobustkitError(f"expected finite weights in {where}, got NaN or infinity in {name}; train it again")
