"""The figures of an evaluation: as one object for scripts, and as lines to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from robustkit.networks import Network
from robustkit.results import summarise

FLOAT_HEADING = "VRA (float)"
FLOAT_LEGEND = "proved in addition, but in floating point only, not confirmed by the float64 checker"


def figures_of(network: Network, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Derive the figures of the worst radius and method, and those of every evaluation."""
    whole = pd.concat(tables.values(), ignore_index=True)
    rows = summarise(whole)
    rows["n"] = rows["n"].astype(int)
    top = rows[rows["eps"] == rows.groupby("kind")["eps"].transform("max")]
    attacked, verified = (top[top["kind"] == kind] for kind in ("attack", "verify"))
    best = verified.sort_values(["robust", "float"], ascending=False)
    broke = len(attacked) or bool((verified["falsified"] > 0).any())
    searched = whole[whole["eps"] == (attacked if len(attacked) else verified)["eps"].max()]
    if len(attacked):  # what all attacks leave, of the samples they saw
        searched = searched[searched["index"].isin(searched.loc[searched["kind"] == "attack", "index"])]
    broken = searched["verdict"].isin(["misclassified", "falsified"]).groupby(searched["index"]).any()
    return {
        "run": str(network.run.path),
        "dataset": network.dataset.name,
        "n": int(rows["n"].min()),
        "eps": float(rows["eps"].max()),
        "clean": float(rows["clean"].min()),
        "era": float((~broken).mean()) if broke else None,
        "vra": float(best["robust"].iloc[0]) if len(best) else None,
        "vra_float": float(best["float"].iloc[0]) if len(best) else None,
        "seconds": float(rows["seconds"].sum()),
        "evaluations": rows[
            ["kind", "method", "eps", "n", "clean", "robust", "float", "falsified", "unknown", "seconds"]
        ].to_dict("records"),
    }


def figure_lines(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Write the figures of every evaluation, and of the first 1,000 samples where there are more."""
    whole = pd.concat(tables.values(), ignore_index=True)
    first = whole.groupby(["kind", "method", "eps"], sort=False).head(1000)
    rows = summarise(whole).to_dict("records")
    rows += summarise(first).to_dict("records") if len(first) < len(whole) else []
    some = any(row["float"] > 0 for row in rows)
    apart = f"{FLOAT_HEADING:>13}" if some else ""
    width = max(20, *(len(row["method"]) + 2 for row in rows))
    heading = (
        f"  {'':8}{'method':<{width}}{'eps':>9}{'N':>8}{'clean':>9}"
        f"{'ERA':>9}{'VRA':>9}{apart}{'unknown':>9}{'seconds':>10}"
    )
    legend = [f"  {FLOAT_HEADING}: {FLOAT_LEGEND}"] if some else []
    return [heading, *(_line(row, some, width) for row in rows), *legend]


def _line(row: dict[Any, Any], some: bool, width: int) -> str:
    """Write the figures of one evaluation; ``some`` of those shown have proofs in floating point only."""
    attacked = row["kind"] == "attack"
    era = f"{row['clean'] - row['falsified']:.2%}" if attacked or row["falsified"] > 0 else "-"
    vra, apart, unknown = ("-" if attacked else f"{row[name]:.2%}" for name in ("robust", "float", "unknown"))
    return (
        f"  {row['kind']:8}{row['method']:<{width}}{row['eps']:>9.4g}{int(row['n']):>8}{row['clean']:>9.2%}"
        f"{era:>9}{vra:>9}{f'{apart:>13}' if some else ''}{unknown:>9}{row['seconds']:>10.1f}"
    )
