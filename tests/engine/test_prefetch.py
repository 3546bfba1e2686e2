from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import count

import pytest
import torch

from metarun.engine.prefetch import prefetched

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threading.enumerate()
    yield
    assert threading.enumerate() == before


@pytest.mark.parametrize("length", [0, 1, 2, 5])
def test_it_gives_what_map_gives(length: int) -> None:
    assert list(prefetched(str, range(length), CPU)) == list(map(str, range(length)))


def test_the_next_is_made_while_this_one_is_used_and_none_beyond() -> None:
    made = [threading.Event() for _ in range(9)]
    results = prefetched(lambda item: made[item].set(), count(), CPU)
    assert not made[0].is_set()  # nothing is begun before it is asked for
    for step in range(4):
        next(results)
        assert made[step + 1].wait(10)
        assert not made[step + 2].is_set()
    results.close()


def test_it_is_made_in_another_thread() -> None:
    assert threading.get_ident() not in list(prefetched(lambda _: threading.get_ident(), range(3), CPU))


def test_an_error_comes_when_its_turn_comes() -> None:
    results = prefetched(lambda item: 1 // (2 - item), range(5), CPU)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_an_error_in_what_nobody_asked_for_is_nobodys() -> None:
    results = prefetched(lambda item: 1 // (1 - item), range(5), CPU)
    assert next(results) == 1
    results.close()
