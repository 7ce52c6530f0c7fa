"""Properties in VNN-LIB 1.0, the format of the verification competition."""

from __future__ import annotations

from robustkit.vnnlib.queries import Disjunct, Property, Query
from robustkit.vnnlib.reader import load_property, parse_property

__all__ = ["Disjunct", "Property", "Query", "load_property", "parse_property"]
