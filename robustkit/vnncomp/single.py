"""One instance from its two files, in words."""

from __future__ import annotations

from pathlib import Path

from robustkit.errors import UsageError
from robustkit.models import read_onnx
from robustkit.vnncomp.complete import solve as complete
from robustkit.vnncomp.decision import Solve, decide
from robustkit.vnncomp.recheck import Recheck, save_certificates
from robustkit.vnnlib import load_property


def decide_files(
    onnx: Path, vnnlib: Path, timeout: float, solve: Solve = complete, certificate: Path | None = None
) -> list[str]:
    """Decide one instance.

    Args:
        onnx: the network.
        vnnlib: the property.
        timeout: seconds.
        solve: the verifier.
        certificate: where the proof goes if the checker accepts it, ending in ``.npz``; None to keep none.

    Returns:
        Lines for the user: the verdict, then the counterexample with both replays, what the checker says of the proof,
        or the reason.

    Raises:
        RobustkitError: anything the user can mend; see the message.
    """
    if not timeout > 0:
        raise UsageError(f"expected a timeout above 0 seconds, got {timeout:g}; give it time")
    if certificate and certificate.suffix != ".npz":
        raise UsageError(f"expected --certificate ending in .npz, got {certificate}; name it so")
    asked = load_property(vnnlib)
    network = read_onnx(onnx, (asked.queries[0].lower, asked.queries[0].upper))
    decision = decide(network, asked, timeout, solve)
    found = decision.counterexample
    if found is not None:
        replayed = f"distance to the unsafe set (0 or below: in it): {found.float64:.6g} in float64, "
        return [*found.text().splitlines(), f"; {replayed}{found.onnxruntime:.6g} by onnxruntime"]
    if decision.recheck:
        if certificate:
            save_certificates(certificate, decision.recheck.certificates)
        return [str(decision.verdict), _judged(decision.recheck)]
    return [str(decision.verdict), *([f"; {decision.reason}"] if decision.reason else [])]


def _judged(found: Recheck) -> str:
    if found.reason:
        return f"; unsat (float): the proof is not checked: {found.reason}"
    leaves = sum(len(tree.leaf) for one in found.certificates for tree in one.trees)
    return f"; the proof was checked again in float64: {leaves:,} leaves, {found.seconds:.1f} s"
