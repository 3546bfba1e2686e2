"""The ways to draw training tasks that a data set offers, by name."""

from __future__ import annotations

from collections.abc import Sequence

from metarun.errors import UserError


def one_size(key: str, size: int | Sequence[int], tasks: str) -> int:
    """The number, which is one: a span of numbers is refused."""
    if isinstance(size, int):
        return size
    raise UserError(f"{key}={[*size]}: {tasks} are all of one size. Give one number.")


def not_offered(way: str, data: str, offers: Sequence[str]) -> UserError:
    """Refuses to draw training tasks in a way that the data set of that name does not have."""
    *others, last = offers
    offered = f"{', '.join(others)} and {last}" if others else last
    return UserError(
        f"algo.trains_on={way}: data={data} offers {offered}. "
        "Take another data set, or an algorithm that trains on what this one offers."
    )
