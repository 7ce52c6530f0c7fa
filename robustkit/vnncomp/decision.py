"""One instance of the verification competition: a network, a property, a verdict, and its counterexample replayed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
import torch
from torch import nn

from robustkit.errors import RobustkitError, SoundnessError, UsageError
from robustkit.models import OnnxNetwork
from robustkit.verifiers.certificate import Evidence
from robustkit.vnncomp.recheck import Recheck, recheck
from robustkit.vnnlib import Property, Query
from robustkit.vnnlib.queries import Array

TOLERANCE = 1e-4
"""How far a replayed counterexample may miss the unsafe set.

Source: ``COUNTEREXAMPLE_ATOL`` in the scoring scripts of VNN-COMP 2022 to 2026.
"""
SEARCH_SHARE = 0.7
"""Share of the time that is left for a search; the rest is for checking its proof."""
PROBES = 256
"""Random points of a box that an ``unsat`` is held against."""


class Result(StrEnum):
    """The verdicts of the competition."""

    SAT = "sat"
    UNSAT = "unsat"
    UNKNOWN = "unknown"
    TIMEOUT = "timeout"


@dataclass(frozen=True, eq=False)
class Answer:
    """What a solver says of one query.

    Attributes:
        verdict: ``SAT`` where an unsafe output can be reached, ``UNSAT`` where it is proved that none can.
        x: for ``SAT``, an input that reaches one, flat.
        reason: for the others, why.
        proof: for ``UNSAT``, with a tree for each disjunct of the query; empty where there is none.
    """

    verdict: Result
    x: Array | None = None
    reason: str = ""
    proof: Evidence = field(default_factory=Evidence)


Solve = Callable[[nn.Module, Query, float], Answer]
"""A complete verifier: the network in eval mode for inputs ``(B, *query.input_shape)``, a query, and seconds."""


@dataclass(frozen=True, eq=False)
class Counterexample:
    """A replayed counterexample.

    Attributes:
        x: the input, flat, in the box.
        y: outputs that onnxruntime computes for it, in float32.
        float64: how far the outputs of our own layers in float64 are from unsafe: 0 or less where they are.
        onnxruntime: the same for onnxruntime's.
    """

    x: Array
    y: Array
    float64: float
    onnxruntime: float

    @property
    def genuine(self) -> bool:
        """Whether one of the two computes an unsafe output, and the other one within the tolerance."""
        return max(self.float64, self.onnxruntime) <= TOLERANCE and min(self.float64, self.onnxruntime) <= 0.0

    def text(self) -> str:
        """Write it in the competition's format."""
        values = [(f"X_{place}", value) for place, value in enumerate(self.x)]
        values += [(f"Y_{place}", value) for place, value in enumerate(self.y)]
        return "sat\n(" + "\n ".join(f"({name} {float(value)!r})" for name, value in values) + ")\n"


@dataclass(frozen=True, eq=False)
class Decision:
    """The verdict on an instance.

    Attributes:
        verdict: of all queries together.
        counterexample: for ``SAT``.
        reason: where nothing is decided, why.
        seconds: until the verdict was found, without its check.
        recheck: of ``UNSAT``, what the independent checker says of its proof.
    """

    verdict: Result
    counterexample: Counterexample | None = None
    reason: str = ""
    seconds: float = 0.0
    recheck: Recheck | None = None

    @property
    def checked(self) -> bool:
        """Whether it is ``UNSAT`` and the checker has accepted the proof; any other ``UNSAT`` is ``unsat (float)``."""
        return self.recheck is not None and not self.recheck.reason


def decide(network: OnnxNetwork, asked: Property, timeout: float, solve: Solve) -> Decision:
    """Decide whether a network can reach an unsafe output.

    Args:
        network: the network.
        asked: the property.
        timeout: seconds for all its queries and for checking their proofs.
        solve: the verifier; what it finds is replayed, what it proves is held against random points and checked again.

    Returns:
        ``SAT`` with a replayed counterexample if any query is reachable, ``UNSAT`` if none is: with certificates where
        the checker has accepted every proof before the time was up, else with the reason why they are proved in float32
        only.

    Raises:
        UsageError: a timeout that is not above 0.
        RobustkitError: the property speaks of another number of inputs or outputs.
        SoundnessError: a proof is contradicted by a point of the box.
    """
    if not timeout > 0:
        raise UsageError(f"expected a timeout above 0 seconds, got {timeout:g}; give it time")
    sizes = (asked.inputs, asked.outputs)
    if sizes != (network.inputs, network.outputs):
        raise RobustkitError(
            f"expected a property of {network.inputs} inputs and {network.outputs} outputs for this network, got "
            f"one of {sizes[0]} and {sizes[1]}; check that they belong together"
        )
    began = time.monotonic()
    deadline = began + timeout
    queries = [replace(query, input_shape=network.input_shape) for query in asked.queries]
    open_queries: list[Decision] = []
    proofs = []
    for query in queries:
        decision, proof = _decide(network, query, SEARCH_SHARE * (deadline - time.monotonic()), solve)
        if decision.verdict is Result.SAT:
            return replace(decision, seconds=time.monotonic() - began)
        proofs.append(proof)
        if decision.verdict is not Result.UNSAT:
            open_queries.append(decision)
    seconds = time.monotonic() - began
    if open_queries:
        late = next((one for one in open_queries if one.verdict is Result.TIMEOUT), open_queries[0])
        return replace(late, seconds=seconds)
    return Decision(Result.UNSAT, seconds=seconds, recheck=recheck(network, queries, proofs, deadline))


def replay(network: OnnxNetwork, query: Query, x: Array) -> Counterexample:
    """Compute what a network makes of an input, moved into the box where rounding has put it outside.

    Args:
        network: the network.
        query: the query it should answer.
        x: the input, flat.

    Returns:
        The input in the box, with its outputs and how far they are from unsafe.
    """
    x = query.settle(np.asarray(x, dtype=np.float64).reshape(-1))
    outputs = network.run(x)
    return Counterexample(x, outputs, query.excess(network.run_exactly(x)), query.excess(outputs))


def _decide(network: OnnxNetwork, query: Query, left: float, solve: Solve) -> tuple[Decision, Evidence]:
    """Let the verifier decide one query, and give its proof where it has one."""
    if left <= 0:
        return Decision(Result.TIMEOUT, reason="no time was left for it"), Evidence()
    answer = solve(network.model, query, left)
    if answer.verdict is Result.SAT:
        return _replayed(network, query, answer.x), Evidence()
    if answer.verdict is Result.UNSAT:
        _hold_against_points(network, query)
    return Decision(answer.verdict, reason=answer.reason), answer.proof


def _replayed(network: OnnxNetwork, query: Query, x: Array | None) -> Decision:
    """Believe a counterexample only where it replays in the box."""
    if x is None:
        return Decision(Result.UNKNOWN, reason="the solver says sat and names no input")
    found = replay(network, query, x)
    if query.contains(found.x) and found.genuine:
        return Decision(Result.SAT, found)
    return Decision(
        Result.UNKNOWN,
        reason=f"the counterexample does not replay: {found.float64:.3g} from unsafe in float64, "
        f"{found.onnxruntime:.3g} by onnxruntime",
    )


@torch.no_grad()
def _hold_against_points(network: OnnxNetwork, query: Query) -> None:
    """Refuse a proof that some random point of the box contradicts: cheap, and no proof itself."""
    draw = np.random.default_rng(0)
    points = query.lower + draw.random((PROBES, len(query.lower))) * (query.upper - query.lower)
    half = draw.random((PROBES // 2, points.shape[1])) < 0.5
    points[: PROBES // 2] = np.where(half, query.lower, query.upper)
    outputs = network.model(torch.from_numpy(points.astype(np.float32)).reshape(-1, *network.input_shape))
    seen = [query.excess(one) for one in outputs.double().numpy()]
    worst = int(np.argmin(seen))
    if seen[worst] <= 0.0:
        found = replay(network, query, points[worst])
        if max(found.float64, found.onnxruntime) <= 0.0:
            raise SoundnessError(
                f"unsat is claimed for a box that holds an unsafe point ({found.float64:.3g} in float64, "
                f"{found.onnxruntime:.3g} by onnxruntime): the verifier is unsound, and no result of it may be used"
            )
