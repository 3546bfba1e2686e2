"""What a number or a name may be. A bound stands in the annotation of the field that it bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

LARGEST, SMALLEST = 2.0**128, 2.0**-126  # what 32-bit numbers lie below, and the least that keeps all digits
LONGEST = 100  # bytes of a name: a date stands before it, and a file's name may have 255


@dataclass(frozen=True)
class AtLeast:
    """Bounds of a number: `least` or more, and less than `below` where that is given."""

    least: float
    below: float = math.inf

    def complaint(self, value: float) -> str:
        """What is wrong with a number, and the remedy; empty where it lies within the bounds."""
        if self.least <= value < self.below:
            return ""
        upper = "" if self.below == math.inf else f", but less than {self.below}"
        return f" is too {'small' if value < self.least else 'large'}. Give {self.least} or more{upper}."


@dataclass(frozen=True)
class Above:
    """The bound of a number that has to be more than `bound`."""

    bound: float

    def complaint(self, value: float) -> str:
        """As that of AtLeast."""
        return "" if value > self.bound else f" is too small. Give more than {self.bound}."


@dataclass(frozen=True)
class AtMost:
    """The upper bound of a number, which it may reach."""

    most: float

    def complaint(self, value: float) -> str:
        """As that of AtLeast."""
        return "" if value <= self.most else f" is too large. Give {self.most} or less."


@dataclass(frozen=True)
class FileName:
    """What a text has to be to stand in the name of a file or a folder."""

    def complaint(self, value: str) -> str:
        """As that of AtLeast."""
        if "/" in value or "\0" in value:
            return " cannot be a part of a folder's name. Leave out every /."
        return f" is too long. Give at most {LONGEST} letters." if len(value.encode()) > LONGEST else ""


@dataclass(frozen=True)
class Rising:
    """What a list of two numbers has to be to say from where to where."""

    def complaint(self, value: int | Sequence[int]) -> str:
        """As that of AtLeast."""
        rises = isinstance(value, int) or value[0] < value[1]
        return "" if rises else " does not rise. Give the fewest and then the most, as [1,5], or one number."


BOUNDS = (AtLeast, Above, AtMost, FileName, Rising)

Count = Annotated[int, AtLeast(1)]  # 1, 2, 3, ...
Natural = Annotated[int, AtLeast(0)]  # 0, 1, 2, ...
VAST = 1_000_001  # beyond any task
Size = Annotated[int, AtLeast(1, below=VAST)]  # of a task: its ways, and the images of each
Span = Annotated[Size | tuple[Size, Size], Rising()]  # one number, or the fewest and the most, as [5,20]
SpanOrNone = Annotated[Annotated[int, AtLeast(0, below=VAST)] | tuple[Size, Size], Rising()]  # the same, or 0
Seed = Annotated[int, AtLeast(0, below=2**63)]  # what a generator of torch takes
Steps = Annotated[int, AtLeast(0, below=1001)]  # within one task: nothing ends them before their time
Rate = Annotated[float, AtLeast(0)]
Positive = Annotated[float, Above(0)]
Share = Annotated[float, AtLeast(0, below=1)]
Side = Annotated[int, AtLeast(1, below=4097)]  # of an image, in pixels


def ends(span: int | Sequence[int]) -> tuple[int, int]:
    """The fewest and the most."""
    fewest, most = (span, span) if isinstance(span, int) else span
    return fewest, most


def beyond_machine(value: float, kind: type) -> str:
    """What is wrong with a number that no 64-bit integer, or no 32-bit float, holds, and the remedy; else empty."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return f" is too {'large' if value > 0 else 'small'} for 64 bits. Give a number of fewer digits."
    if kind is int:
        return ""
    if not math.isfinite(value):
        return " is not finite. Give a number."
    if abs(value) >= LARGEST:
        return " is too large for a 32-bit number. Give one between -3.4e38 and 3.4e38."
    near = 0 < abs(value) < SMALLEST
    return " is too near to 0 for a 32-bit number. Give 0, or 1.2e-38 or more." if near else ""
