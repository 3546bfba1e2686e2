"""Rows dealt to splits: one by one, or in groups that stay together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metarun.data.columns.sheet import Column
from metarun.errors import UserError

SPLITS = ("train", "val", "test")


def check_shares(shares: Sequence[float]) -> None:
    if len(shares) != 3 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"data.split={[*shares]} is no list of three shares like [0.6,0.2,0.2] that sum to 1.")


def dealt(sizes: Tensor, shares: Sequence[float], generator: torch.Generator) -> Tensor:
    """Which split each unit goes to, 0, 1 or 2 [U], for units of so many rows [U].

    Units are shuffled and laid end to end; where the middle of one lies tells its split. So the shares of rows come out
    as near as whole units allow.
    """
    order = torch.randperm(len(sizes), generator=generator)
    laid = sizes[order].double()
    middle = (laid.cumsum(0) - laid / 2) / laid.sum()
    splits = torch.empty_like(order)
    splits[order] = torch.bucketize(middle, torch.tensor(shares[:-1], dtype=torch.float64).cumsum(0))
    return splits


def by_row(sheet: Tensor, shares: Sequence[float], seed: int) -> Tensor:
    """The split of each row [R]; the rows of each file are dealt alone. `sheet` says which file a row is of."""
    generator, splits = torch.Generator().manual_seed(seed), torch.empty_like(sheet)
    for file in sheet.unique():
        rows = sheet == file
        splits[rows] = dealt(torch.ones(int(rows.sum())), shares, generator)
    return splits


def by_group(groups: Column, shares: Sequence[float], seed: int) -> Tensor:
    """The split of each row [R]: none shares a group with another. Rows without a group are one together."""
    _, unit, sizes = groups.values.nan_to_num(nan=torch.inf).unique(return_inverse=True, return_counts=True)
    return dealt(sizes, shares, torch.Generator().manual_seed(seed))[unit]
