"""Proofs of queries, checked again: what a float32 search proves is a proposal until the checker accepts it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustkit.errors import UsageError
from robustkit.models import OnnxNetwork
from robustkit.verifiers.certificate import Certificate, Evidence
from robustkit.verifiers.certificate_file import save_certificate
from robustkit.verifiers.checker import check
from robustkit.verifiers.claims import Box, Disjunct
from robustkit.vnnlib import Query

ROUNDED = "numbers of the file were rounded to read it as plain layers, and a proof of those is none of the file"


@dataclass(frozen=True, eq=False)
class Recheck:
    """What the checker says of the proofs of some queries.

    Attributes:
        certificates: one for each query, accepted; empty where ``reason`` is not.
        reason: why a proof is not accepted; empty where all are.
        seconds: taken.
    """

    certificates: tuple[Certificate, ...] = ()
    reason: str = ""
    seconds: float = 0.0


def claim_of(query: Query) -> Box:
    """Say what the proof of a query claims: the query itself, in float64, with every row of every disjunct."""
    shape = query.input_shape or query.lower.shape
    disjuncts = tuple(Disjunct(one.rows, one.offsets) for one in query.unsafe)
    return Box(query.lower.reshape(shape), query.upper.reshape(shape), disjuncts)


def recheck(network: OnnxNetwork, queries: Sequence[Query], proofs: Sequence[Evidence], until: float) -> Recheck:
    """Let the independent checker decide whether proofs prove that no query can be reached.

    Args:
        network: the network.
        queries: all queries of a property.
        proofs: of each query, with a tree for each disjunct; empty where a search gives none.
        until: when to stop, by the clock of ``time.monotonic``; what is accepted later does not count.

    Returns:
        The certificates if all proofs are accepted in time, else why not.
    """
    began = time.monotonic()
    certificates, reason = [], "" if network.exact else ROUNDED
    for query, proof in zip(queries, proofs, strict=True):
        if not reason and not proof.trees:
            reason = "the search gives no proof"
        if reason:
            break
        certificates.append(Certificate.build(network.model, claim_of(query), proof.trees, proof.hidden))
        reason = check(certificates[-1], network.model, until).reason
        if not reason and time.monotonic() > until:
            reason = "the check came too late"
    return Recheck(() if reason else tuple(certificates), reason, time.monotonic() - began)


def save_certificates(path: Path, certificates: Sequence[Certificate]) -> None:
    """Write the certificates of a property: the first to a file, those of further boxes beside it with a number.

    Args:
        path: ends in ``.npz``.
        certificates: of each box of inputs.

    Raises:
        UsageError: the file ends otherwise.
        RobustkitError: it cannot be written.
    """
    if path.suffix != ".npz":
        raise UsageError(f"expected a certificate ending in .npz, got {path}; name it so")
    for number, one in enumerate(certificates, start=1):
        save_certificate(path if number == 1 else path.with_name(f"{path.stem}-{number}.npz"), one)
