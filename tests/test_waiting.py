"""The queue of a search gives the loosest branches first, and lets memory go."""

import torch

from robustkit.bounds.branches import Branches
from robustkit.verifiers.waiting import Queue


def branches(lower: list[float]) -> Branches:
    count = len(lower)
    some = torch.zeros((count, 5))
    bound, node = torch.tensor(lower), torch.arange(count)
    sign = some.to(torch.int8)
    return Branches(torch.zeros((count, 2)), bound, sign, some, some, bound, some, torch.zeros((count, 3)), node)


def test_the_loosest_come_first_over_all_that_was_pushed() -> None:
    queue = Queue()
    queue.push(branches([-1.0, -4.0, -2.0]))
    queue.push(branches([-3.0, -0.5]))
    assert len(queue) == 5
    assert queue.lowest == -4.0
    assert sorted(queue.pop(2, torch.device("cpu")).lower.tolist()) == [-4.0, -3.0]
    queue.push(branches([-9.0]))
    assert sorted(queue.pop(9, torch.device("cpu")).lower.tolist()) == [-9.0, -2.0, -1.0, -0.5]
    assert len(queue) == queue.bytes == 0


def test_every_branch_comes_out_once_and_memory_is_let_go() -> None:
    queue, lower = Queue(), torch.rand(400, generator=torch.Generator().manual_seed(0)).tolist()
    queue.push(branches(lower))
    whole, seen = queue.bytes, []
    for _ in range(10):
        taken = queue.pop(37, torch.device("cpu"))
        assert torch.equal(taken.lower, taken.offset), "every field is of the same branch"
        seen += taken.lower.tolist()
    assert sorted(seen) == sorted(torch.tensor(lower).sort().values[:370].tolist())
    assert queue.bytes < whole / 2
