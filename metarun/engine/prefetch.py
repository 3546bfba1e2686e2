"""Work that is begun one step before it is needed, in a thread of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch.utils._pytree import tree_leaves

Item = TypeVar("Item")


def prefetched(make: Callable[[Item], Any], items: Iterable[Item], device: torch.device) -> Generator[Any, None, None]:
    """As map(make, items), but each is begun when the one before it is asked for. Closing it waits for the thread.

    On CUDA `make` has a stream of its own: on the common one it would queue behind the work it is to run beside.
    """
    stream = None
    if device.type == "cuda":
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))

    def begin(item: Item) -> Any:
        with torch.cuda.stream(stream):
            made = make(item)
        if stream is not None:
            stream.synchronize()  # here, where waiting costs nothing
        return made

    def hand_over(made: Any) -> Any:
        if stream is not None:
            for leaf in tree_leaves(made):
                if isinstance(leaf, torch.Tensor):
                    leaf.record_stream(torch.cuda.current_stream(device))  # else its memory is reused too early
        return made

    pool, begun = ThreadPoolExecutor(1), deque[Future[Any]]()
    if device.type == "cpu":  # whose cores are all in use: threads beside them would make each other wait
        threads = torch.get_num_threads()
        pool.submit(torch.set_num_threads, 1).result()
        torch.set_num_threads(threads)  # for threads to come, which take the last number that was set
    try:
        for item in items:
            begun.append(pool.submit(begin, item))
            if len(begun) > 1:
                yield hand_over(begun.popleft().result())
        while begun:
            yield hand_over(begun.popleft().result())
    finally:
        pool.shutdown(cancel_futures=True)
