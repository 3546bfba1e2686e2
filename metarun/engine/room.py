"""Whether there is memory for what a key asks for: told before it is taken, since a system that runs out kills."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from metarun.engine.device import free_memory
from metarun.types import UserError

MAKERS = {
    *(torch.empty, torch.zeros, torch.ones, torch.full, torch.eye, torch.arange),
    *(torch.rand, torch.randn, torch.randint, torch.randperm),
}
ASIDE = ("generator", "pin_memory", "out", "device")  # what says nothing of a tensor's size
SMALL = 2**26  # bytes: to ask for the free memory each time would take longer than to take it


class Room(TorchFunctionMode):
    """While it is entered, a new tensor that memory cannot hold is refused: `what` names the keys that it is for.

    With `copies`, so many of all that is made meanwhile have to fit.
    """

    def __init__(self, what: str, remedy: str, copies: int = 0) -> None:
        super().__init__()
        self.what = what
        self.remedy = remedy
        self.copies = copies
        self.made = 0.0  # bytes

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in MAKERS and (device := torch.device(kwargs.get("device") or "cpu")).type != "meta":
            size = _bytes(func, args, kwargs)
            self.made += size
            self.check(self.copies * self.made if self.copies else size, device)
        return func(*args, **kwargs)

    def check(self, needed: float, device: torch.device) -> None:
        """Refuses so many bytes where they are more than the device has."""
        if needed > SMALL and needed > (free := free_memory(device)):
            size = f"{needed / 1e9:,.0f} GB" if needed < math.inf else "more than can be counted"
            raise UserError(
                f"{self.what} takes {size} of memory at once, and {device} has {free / 1e9:.1f} GB free. {self.remedy}."
            )


def _bytes(func: Callable[..., Any], args: Any, kwargs: Any) -> float:
    """What a tensor will take, as one without content tells."""
    plain = {key: value for key, value in kwargs.items() if key not in ASIDE}
    try:
        return func(*args, **plain, device="meta").nbytes
    except (RuntimeError, OverflowError):  # more than 64 bits count
        return math.inf
