"""The branches that a search has not decided yet."""

from __future__ import annotations

import heapq

import torch

from robustkit.bounds.branches import Branches


class Queue:
    """Branches that wait, in the main memory, the loosest first."""

    def __init__(self) -> None:
        self._order: list[tuple[float, int, int]] = []
        self._sets: dict[int, tuple[Branches, dict[int, int]]] = {}
        self._pushed = 0

    def __len__(self) -> int:
        return len(self._order)

    @property
    def lowest(self) -> float:
        """The least bound of those that wait."""
        return self._order[0][0]

    @property
    def bytes(self) -> int:
        """Memory that they take."""
        return sum(one.bytes for one, _ in self._sets.values())

    def push(self, branches: Branches) -> None:
        """Take in branches."""
        if len(branches):
            self._pushed += 1
            self._sets[self._pushed] = branches.to("cpu"), {row: row for row in range(len(branches))}
            for row, lower in enumerate(branches.lower.tolist()):
                heapq.heappush(self._order, (lower, self._pushed, row))

    def pop(self, count: int, device: torch.device) -> Branches:
        """Give up to ``count`` of the loosest branches."""
        taken: dict[int, list[int]] = {}
        for _ in range(min(count, len(self._order))):
            _, number, row = heapq.heappop(self._order)
            taken.setdefault(number, []).append(row)
        return Branches.together([self._take(number, rows) for number, rows in taken.items()]).to(device)

    def _take(self, number: int, rows: list[int]) -> Branches:
        """Take rows out of a set, and let go of the memory of those that are gone once they are most of it."""
        branches, places = self._sets[number]
        found = branches[torch.tensor([places.pop(row) for row in rows])]
        if not places:
            del self._sets[number]
        elif 4 * len(places) < len(branches):
            left = torch.tensor(list(places.values()))
            self._sets[number] = branches[left], {row: place for place, row in enumerate(places)}
        return found
