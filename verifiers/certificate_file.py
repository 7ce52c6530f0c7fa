"""Certificates on the disk: one compressed ``.npz`` without Python objects.

``header`` holds JSON as uint8: ``version``, ``kind`` (``"ball"`` or ``"box"``), the number of ``disjuncts``, the
``model`` and ``input`` digests, of a ball also ``eps``, ``lower``, ``upper``, ``label``; and ``content``, the SHA-256
of all the rest, which finds a damaged file. A ball has the array ``x``; a box has ``lb``, ``ub`` and of each disjunct
``d`` ``d.rows`` and ``d.offsets``. The tree of disjunct ``d`` is ``d.parent``, ``d.kind``, ``d.layer``,
``d.neuron``, ``d.threshold``, ``d.leaf``, ``d.row``, ``d.beta`` and of each activation layer ``k`` ``d.columns.k`` and
``d.alpha.k``, as ``certificate.Tree`` describes them. ``hidden`` lists the activations with slopes of their own; those
of activation ``h`` are ``hidden.h.neurons``, ``hidden.h.columns.k`` and ``hidden.h.alpha.k``, as
``certificate.HiddenSlopes`` describes them. Radii are written so that they are read back bit by bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from robustkit.errors import RobustkitError
from robustkit.files import replacing
from robustkit.verifiers.certificate import Certificate, HiddenSlopes, Tree
from robustkit.verifiers.claims import Array, Ball, Box, Disjunct, array_digest

VERSION = 2
PARTS = ("parent", "kind", "layer", "neuron", "threshold", "leaf", "row", "beta")


def save_certificate(path: Path, certificate: Certificate) -> None:
    """Write a certificate, whole or not at all.

    Raises:
        RobustkitError: the file cannot be written.
    """
    header, arrays = _pack(certificate)
    text = json.dumps({**header, "content": _content(header, arrays)})
    with replacing(path, "wb") as file:
        np.savez_compressed(file, header=np.frombuffer(text.encode(), dtype=np.uint8), **arrays)  # type: ignore[arg-type]


def load_certificate(path: str | Path) -> Certificate:
    """Read a certificate; whether it proves its claim is for the checker to say.

    Raises:
        RobustkitError: the file is absent, damaged, of another version, or no certificate.
    """
    path = Path(path)
    if not path.is_file():
        raise RobustkitError(f"expected a certificate at {path}, found none; check the path")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header = json.loads(arrays.pop("header").tobytes().decode())
        version, content = header["version"], header.pop("content")
    except Exception:  # a damaged file can break a reader in any way
        raise RobustkitError(f"{path} is damaged or no certificate; make it again") from None
    if version != VERSION:
        raise RobustkitError(f"expected a certificate of version {VERSION}, got {version} in {path}; make it again")
    if content != _content(header, arrays):
        raise RobustkitError(f"{path} was changed after it was written: its digest does not match; make it again")
    try:
        certificate = _unpack(header, arrays)
    except (KeyError, TypeError, ValueError, RobustkitError) as error:
        raise RobustkitError(f"{path} is no valid certificate: {error}; make it again") from None
    if arrays:
        raise RobustkitError(f"expected no other arrays in {path}, got {', '.join(sorted(arrays)[:3])}; make it again")
    return certificate


def _pack(certificate: Certificate) -> tuple[dict[str, Any], dict[str, Array]]:
    claim, arrays = certificate.claim, {}
    header: dict[str, Any] = {
        "version": VERSION,
        "kind": "ball" if isinstance(claim, Ball) else "box",
        "disjuncts": len(certificate.trees),
        "model": certificate.model,
        "input": certificate.input,
        "hidden": [one.layer for one in certificate.hidden],
    }
    if isinstance(claim, Ball):
        header |= {name: float(getattr(claim, name)) for name in ("eps", "lower", "upper")} | {"label": claim.label}
        arrays["x"] = claim.x
    else:
        arrays |= {"lb": claim.lb, "ub": claim.ub}
        for number, one in enumerate(claim.disjuncts):
            arrays |= {f"{number}.rows": one.rows, f"{number}.offsets": one.offsets}
    for number, tree in enumerate(certificate.trees):
        arrays |= {f"{number}.{name}": getattr(tree, name) for name in PARTS}
        for layer, (columns, alpha) in enumerate(zip(tree.columns, tree.alpha, strict=True)):
            arrays |= {f"{number}.columns.{layer}": columns, f"{number}.alpha.{layer}": alpha}
    for slopes in certificate.hidden:
        name = f"hidden.{slopes.layer}"
        arrays[f"{name}.neurons"] = slopes.neurons
        for layer, (columns, alpha) in enumerate(zip(slopes.columns, slopes.alpha, strict=True)):
            arrays |= {f"{name}.columns.{layer}": columns, f"{name}.alpha.{layer}": alpha}
    return header, arrays


def _unpack(header: dict[str, Any], arrays: dict[str, Array]) -> Certificate:
    """Take a certificate out of the arrays; what is left over belongs to none."""
    count = header["disjuncts"]
    claim: Ball | Box
    if header["kind"] == "ball":
        eps, lower, upper = (float(header[name]) for name in ("eps", "lower", "upper"))
        claim = Ball(arrays.pop("x"), eps, int(header["label"]), lower, upper)
    elif header["kind"] == "box":
        pairs = [(arrays.pop(f"{one}.rows"), arrays.pop(f"{one}.offsets")) for one in range(count)]
        claim = Box(arrays.pop("lb"), arrays.pop("ub"), tuple(Disjunct(*one) for one in pairs))
    else:
        raise ValueError(f"expected kind 'ball' or 'box', got {header['kind']!r}")
    trees = tuple(_tree(str(number), arrays) for number in range(count))
    hidden = tuple(
        HiddenSlopes(layer, arrays.pop(f"hidden.{layer}.neurons"), *_slopes(f"hidden.{layer}", arrays))
        for layer in header["hidden"]
    )
    return Certificate(claim, trees, str(header["model"]), str(header["input"]), hidden)


def _tree(prefix: str, arrays: dict[str, Array]) -> Tree:
    nodes = {name: arrays.pop(f"{prefix}.{name}") for name in PARTS}
    columns, alpha = _slopes(prefix, arrays)
    return Tree(**nodes, columns=columns, alpha=alpha)


def _slopes(prefix: str, arrays: dict[str, Array]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Take columns and slopes of every layer out of the arrays."""
    layers = range(sum(name.startswith(f"{prefix}.alpha.") for name in arrays))
    columns, alpha = (tuple(arrays.pop(f"{prefix}.{kind}.{one}") for one in layers) for kind in ("columns", "alpha"))
    return columns, alpha


def _content(header: dict[str, Any], arrays: dict[str, Array]) -> str:
    return array_digest(arrays, json.dumps(header, sort_keys=True))
