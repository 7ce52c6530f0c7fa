"""What auto-LiRPA needs before it can be imported and built on a current torch: 0.3 all of it, 0.7 the slopes only."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the library prints and warns about out of the user's sight; errors still come through."""
    with warnings.catch_warnings(record=True), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def import_auto_lirpa() -> types.ModuleType:
    """Import auto-LiRPA, repaired where its age asks for it.

    The library configures the root logger and the warning filters when it is imported; both are put back.
    """
    _provide_arraysetops()
    _provide_opset_setter()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it looks for a CUDA compiler
    with quiet():
        library = importlib.import_module("auto_LiRPA")
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("auto_LiRPA").setLevel(logging.CRITICAL)
    logging.getLogger("auto_LiRPA.utils").setLevel(logging.CRITICAL)
    if library.__version__ == "0.3":
        _repair_module_methods(library.BoundedModule)
    _repair_slope_gradient()
    return library


def _provide_arraysetops() -> None:
    """Numpy 2 has dropped ``numpy.lib.arraysetops``, of which one name is imported."""
    name = "numpy.lib.arraysetops"
    if name not in sys.modules:
        module = types.ModuleType(name)
        cast(Any, module).isin = np.isin
        sys.modules[name] = module


def _provide_opset_setter() -> None:
    """Torch 2.11 and later have moved the exporter's globals and dropped the function that sets the operator set."""
    symbolic_helper: Any = importlib.import_module("torch.onnx.symbolic_helper")
    if hasattr(symbolic_helper, "_set_opset_version"):
        return

    def set_opset_version(version: int) -> None:
        settings = _exporter_globals()
        settings.export_onnx_opset_version = version
        settings.autograd_inlining = False

    symbolic_helper._set_opset_version = set_opset_version
    node = cast(Any, torch._C).Node
    if not hasattr(node, "__getitem__"):
        node.__getitem__ = lambda self, key: getattr(self, self.kindOf(key))(key)


def _exporter_globals() -> Any:
    for name in ("torch.onnx._internal.torchscript_exporter._globals", "torch.onnx._globals"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name).GLOBALS
    raise ImportError("auto-LiRPA 0.3 needs torch.onnx's TorchScript exporter, which this torch does not have")


def _repair_module_methods(bounded_module: Any) -> None:
    """Let two overridden methods take what torch passes them today."""
    named_members: Callable[..., Any] = bounded_module._named_members

    def accept_keywords(
        self: Any, get_members: Any, prefix: str = "", recurse: bool = True, **_: Any
    ) -> Iterator[tuple[str, Any]]:
        yield from named_members(self, get_members, prefix, recurse)

    bounded_module._named_members = accept_keywords
    bounded_module.register_parameter = nn.Module.register_parameter


def _repair_slope_gradient() -> None:
    """Let slopes that start at 0 or 1 move: a current torch gives ``clamp`` no gradient at its ends.

    Without this alpha-CROWN optimises nothing, for CROWN starts it with every slope at one of the ends.
    """
    relu: Any = importlib.import_module("auto_LiRPA.operators").BoundRelu

    def mask(
        lower: Tensor, upper: Tensor, below: Tensor | None, above: Tensor | None, leaky_alpha: float = 0.0
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        active, inactive = (lower >= 0).to(lower.dtype), (upper <= 0).to(upper.dtype)
        unstable, stable = (1.0 - active) * (1.0 - inactive), active + leaky_alpha * (1.0 - active) * inactive
        slopes = [None if one is None else _kept(one, leaky_alpha) * unstable + stable for one in (below, above)]
        return slopes[0], slopes[1], inactive.bool().all() & (leaky_alpha == 0.0)

    owner = next(one for one in relu.__mro__ if "_relu_mask_alpha" in vars(one))
    owner._relu_mask_alpha = staticmethod(mask)


def _kept(slope: Tensor, least: float) -> Tensor:
    return slope + (slope.clamp(least, 1.0) - slope).detach()
