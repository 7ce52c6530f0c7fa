"""Any other L-infinity attack of torchattacks, by the name it has there."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.attacks.apgd import MOST_TARGETS
from robustkit.attacks.base import AttackResult
from robustkit.attacks.torch_attacks import call, import_torchattacks, session
from robustkit.errors import RobustkitError, UsageError, unknown_name
from robustkit.threat import LinfBall

PREFIX = "torchattacks:"
"""What the names of the library's attacks begin with."""

_NOT_ASKED = ("self", "model", "eps", "norm", "seed", "verbose", "device")


@dataclass(frozen=True)
class TorchAttack:
    """Any L-infinity attack of the torchattacks library, by its name there, with its own options.

    A default step size ``alpha`` of the library is scaled with eps: 2/255 at 8/255 is eps/4 at any radius. Its last
    point is projected into the ball and predicted again. Its result is the same for the same batch; whether it depends
    on the batch is the library's affair.

    Attributes:
        attack: the library's name of it, such as ``DIFGSM``.
        options: names and values of its own options.
        seed: of all draws.

    Source: Kim 2020, arXiv 2010.01950, and whatever paper the library names for the attack.
    """

    attack: str
    options: tuple[tuple[str, Any], ...] = ()
    seed: int = 0

    @property
    def name(self) -> str:
        """What it is called in tables and on the command line."""
        return PREFIX + self.attack

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, ball: LinfBall, index: Tensor | None = None
    ) -> AttackResult:
        """Search the ball around each sample; see ``Attack``.

        Raises:
            RobustkitError: the library fails, as some of its attacks do on inputs that are no square colour images.
        """
        asked = _parameters(getattr(import_torchattacks(), self.attack))
        with session(model, x, y, ball, index, seed=self.seed) as attacked:
            most = min(attacked.classes, MOST_TARGETS + 1)
            own = {"eps": ball.eps, "norm": "Linf", "seed": self.seed, "n_classes": most}
            if "alpha" in asked and asked.get("eps"):
                own["alpha"] = asked["alpha"] / asked["eps"] * ball.eps
            settings = {name: value for name, value in own.items() if name in asked} | dict(self.options)
            try:
                attacked.run(self.attack, call, settings)
            except (torch.OutOfMemoryError, RobustkitError):
                raise
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                raise RobustkitError(
                    f"{self.name} failed inside the library on inputs of shape {tuple(x.shape)} ({error}); "
                    "check its options, and whether it takes inputs other than square colour images"
                ) from error
            return attacked.result()


def library_attacks() -> list[str]:
    """List the attacks of torchattacks that its documentation says are for the L-infinity norm."""
    library = import_torchattacks()
    return [name for name in library.__all__ if "Linf" in _norms(getattr(library, name))]


def library_attack(name: str, options: Mapping[str, Any]) -> TorchAttack:
    """Make an attack of the library.

    Args:
        name: ``torchattacks:NAME``.
        options: those of the library's class, and ``seed``.

    Returns:
        The attack.

    Raises:
        UsageError: no such attack, one of another norm, no such option (the nearest names are offered), or a value of
            another type.
    """
    library, own = import_torchattacks(), name.removeprefix(PREFIX)
    if own in library.__all__ and own not in library_attacks():
        norms = _norms(getattr(library, own)) or "none"
        raise UsageError(
            f"expected an attack of the L-infinity norm, got {name}, which is for {norms}; see `robustkit attacks`"
        )
    if own not in library.__all__:
        raise unknown_name("attack", name, [PREFIX + one for one in library_attacks()])
    given = {key: value for key, value in options.items() if key != "seed"}
    asked = {key: value for key, value in _parameters(getattr(library, own)).items() if key not in _NOT_ASKED}
    for key, value in given.items():
        if key not in asked:
            raise unknown_name(f"option of attack.options.{name}", key, [*asked, "seed"])
        _check_type(f"attack.options.{name}.{key}", value, asked[key])
    seed = options.get("seed", 0)
    _check_type(f"attack.options.{name}.seed", seed, 0)
    return TorchAttack(own, tuple(sorted(given.items())), seed)


def library_page(name: str) -> tuple[str, dict[str, tuple[object, str]]]:
    """Read what the library says of an attack.

    Args:
        name: ``torchattacks:NAME``.

    Returns:
        What it is, and of each of its options the default and the meaning.

    Raises:
        UsageError: no such attack, or one of another norm.
    """
    kind = getattr(import_torchattacks(), library_attack(name, {}).attack)
    about, _, said = (inspect.getdoc(kind) or "").partition("Distance Measure")
    meanings = dict(re.findall(r"^ *(\w+) ?\([^)]*\) ?: (.*)$", said, flags=re.MULTILINE))
    asked = {key: value for key, value in _parameters(kind).items() if key not in _NOT_ASKED}
    return " ".join(about.split()), {key: (value, meanings.get(key, "")) for key, value in asked.items()}


def _norms(kind: type[Any]) -> str:
    """Give what a class of the library says after "Distance Measure"."""
    lines = (inspect.getdoc(kind) or "").splitlines()
    said = [line.partition(":")[2].strip() for line in lines if line.strip().startswith("Distance Measure")]
    return said[0] if said else ""


def _parameters(kind: type[Any]) -> dict[str, Any]:
    """List what a class of the library is made with, and its defaults."""
    return {one.name: one.default for one in inspect.signature(kind.__init__).parameters.values()}


def _check_type(where: str, value: object, default: object) -> None:
    """Refuse a value of another type than the default, the one thing the library says of its options."""
    wanted = (int, float) if isinstance(default, float) else type(default)
    fits = isinstance(value, wanted) and isinstance(value, bool) == isinstance(default, bool)
    if default is not None and default is not inspect.Parameter.empty and not fits:
        raise UsageError(f"expected {where} as {type(default).__name__}, got {value!r}")
