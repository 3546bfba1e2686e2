"""Timing in turns, processes of their own, and what is made of the figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from statistics import linear_regression
from typing import Any, TypeVar

import numpy as np
import torch

Key = TypeVar("Key")
Result = TypeVar("Result")


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def in_turns(
    pieces: Mapping[Key, Callable[[int], Any]],
    repeats: int,
    target: float,
    device: torch.device,
    before: Callable[[], Any] = lambda: None,
) -> dict[Key, list[float]]:
    """Seconds per step of `piece(steps)`, `repeats` times each: A B C, A B C, ... in about `target` seconds each.

    `before` each of them something can be done that is not timed.
    """
    steps = {}
    for key, piece in pieces.items():
        seconds(partial(piece, 1), device)  # warm-up
        steps[key] = max(1, round(target / seconds(partial(piece, 1), device)))
    taken: dict[Key, list[float]] = {key: [] for key in pieces}
    for _ in range(repeats):
        for key, piece in pieces.items():
            before()
            taken[key].append(seconds(partial(piece, steps[key]), device) / steps[key])
    return taken


def repeated(work: Callable[[], Any]) -> Callable[[int], None]:
    """A piece of so many calls."""

    def piece(steps: int) -> None:
        for _ in range(steps):
            work()

    return piece


def alone(function: Callable[..., Result], *args: Any) -> Result:
    """function(*args) in a fresh process, whose memory is then its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """b of cost = a · sizeᵇ, by least squares of the logarithms."""
    return linear_regression(np.log(sizes).tolist(), np.log(costs).tolist()).slope
