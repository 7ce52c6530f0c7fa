"""One instance from its two files, in words."""

from __future__ import annotations

from pathlib import Path

from robustkit.errors import UsageError
from robustkit.models import read_onnx
from robustkit.vnncomp.complete import solve as complete
from robustkit.vnncomp.decision import Result, Solve, decide
from robustkit.vnnlib import load_property


def decide_files(onnx: Path, vnnlib: Path, timeout: float, solve: Solve = complete) -> list[str]:
    """Decide one instance.

    Args:
        onnx: the network.
        vnnlib: the property.
        timeout: seconds.
        solve: the verifier.

    Returns:
        Lines for the user: the verdict, then the counterexample with both replays, or the reason.

    Raises:
        RobustkitError: anything the user can mend; see the message.
    """
    if not timeout > 0:
        raise UsageError(f"expected a timeout above 0 seconds, got {timeout:g}; give it time")
    asked = load_property(vnnlib)
    network = read_onnx(onnx, (asked.queries[0].lower, asked.queries[0].upper))
    decision = decide(network, asked, timeout, solve)
    found = decision.counterexample
    if found is not None:
        replayed = f"distance to the unsafe set (0 or below: in it): {found.float64:.6g} in float64, "
        return [*found.text().splitlines(), f"; {replayed}{found.onnxruntime:.6g} by onnxruntime"]
    undecided = decision.verdict is not Result.UNSAT and decision.reason
    return [str(decision.verdict), *([f"; {decision.reason}"] if undecided else [])]
