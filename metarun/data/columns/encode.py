"""Columns as a network takes them: inputs as one float vector a row, targets as classes or scaled values.

All that is learned from data, means, spreads and the words there are, is of the rows that train.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.data.columns.sheet import Column
from metarun.errors import UserError, few, one_line
from metarun.types import Head

MOST_WORDS = 1000  # of one input: each takes a place in the vector
FEW_WORDS = 20  # so many may be all different


class Inputs(NamedTuple):
    """All rows' vectors, and what was done on the way, in words for people."""

    x: Tensor  # float32 [R, D]
    told: list[str]


class Target(NamedTuple):
    """One head's targets for all rows."""

    head: Head
    y: Tensor  # int64 [R], -100 where there is none; or float32 [R, 1], then NaN
    scale: str  # of a value: how it was scaled, for people


def inputs(columns: Mapping[str, Column], there: Mapping[str, Tensor], train: Tensor, named: bool) -> Inputs:
    """Numbers with mean 0 and variance 1 in training, a missing one 0; a word as a 1 in its place, or nowhere.

    `there` says of each column which rows are of a file that has it, bool [R]; others are not told as missing. Columns
    that tell nothing are left out: constants, and words that nearly every row has of its own. Where the user `named`
    the inputs, they are refused.
    """
    parts, told = [], []
    for name, column in columns.items():
        known = ~column.missing & train
        if why := _useless(column, known):
            if named:
                raise UserError(f"data.inputs: the column {name} {why}, so it tells nothing. Leave it out.")
            told.append(f"{name} is left out: it {why}")
            continue
        parts.append(_numbers(name, column.values, known) if column.words is None else _hot(column, known))
        told += _gaps(name, column, there[name], parts[-1])
    if not parts:
        why = f" ({'; '.join(told)})" if told else ""
        raise UserError(f"data.inputs: no column is left to predict from{why}. Add columns to the file.")
    return Inputs(torch.cat(parts, 1), told)


def target(name: str, column: Column, train: Tensor, names: Callable[[list[int]], list[str]]) -> Target:
    """Words are classes, numbers a value with mean 0 and variance 1 in training. What cannot be learned is refused.

    `name` is the head's; `names` tells those of rows, for people.
    """
    known = ~column.missing
    if not known.any():
        raise UserError(f"data.targets: {name} has no value in any row. Fill the column in, or leave it out.")
    if not (known & train).any():
        raise UserError(f"data.targets: no row that trains has a value of {name}. Add rows, or change data.split.")
    seen = column.values[known & train].unique()
    if len(seen) < 2:
        only = f"{float(seen[0]):g}" if column.words is None else one_line(column.words[int(seen[0])])
        raise UserError(f"data.targets: {name} is {only} in every row that trains, so there is nothing to learn.")
    if column.words is not None:
        y = _classes(name, column, seen, names)
        return Target(Head("class", len(seen), gaps=not bool(known.all())), y, "")
    mean, spread = column.values[known & train].mean(), column.values[known & train].std(correction=0)
    y = ((column.values - mean) / spread).float()
    _check_finite(name, y[known])
    return Target(Head("value", 1, gaps=not bool(known.all())), y[:, None], f"({name} - {mean:.6g}) / {spread:.6g}")


def _classes(name: str, column: Column, seen: Tensor, names: Callable[[list[int]], list[str]]) -> Tensor:
    """The places [R] among the classes that training has; a class that is elsewhere alone is refused."""
    words = column.words or ()
    place = torch.full((len(words) + 1,), -100)  # the last one: of -1
    place[seen] = torch.arange(len(seen))
    y = place[column.values]
    if len(strange := (~column.missing & (y < 0)).nonzero().flatten()):
        first = int(column.values[strange[0]])
        rows = names((column.values == first).nonzero().flatten().tolist())
        raise UserError(
            f"data.targets: the class {one_line(words[first])} of {name} is in no row that trains, but in {len(rows)} "
            f"to validate or test ({few(rows, 5)}). Add rows of it, take these out, or try another data.split_seed."
        )
    return y


def _useless(column: Column, known: Tensor) -> str:
    """Why a column tells nothing; empty where it may tell something."""
    different = len(column.values[known].unique())
    if different < 2:
        return "is the same in every row that trains" if different else "has no value in any row that trains"
    if column.words is not None and different > max(FEW_WORDS, min(MOST_WORDS, int(known.sum()) // 2)):
        return f"has {different:,} different words in {int(known.sum()):,} rows that train"
    return ""


def _numbers(name: str, values: Tensor, known: Tensor) -> Tensor:
    mean, spread = values[known].mean(), values[known].std(correction=0)
    x = ((values - mean) / spread).float().nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    _check_finite(name, x)
    return x[:, None]


def _check_finite(name: str, x: Tensor) -> None:
    if not x.isfinite().all():
        raise UserError(f"the column {name} has numbers too large or too far apart to be scaled. Mend or leave it out.")


def _hot(column: Column, known: Tensor) -> Tensor:
    seen = column.values[known].unique()
    place = torch.full((len(column.words or ()) + 1,), len(seen))  # of unseen words and of -1: cut off below
    place[seen] = torch.arange(len(seen))
    return F.one_hot(place[column.values], len(seen) + 1)[:, :-1].float()


def _gaps(name: str, column: Column, there: Tensor, x: Tensor) -> list[str]:
    """In words, how many rows have no value, or a word that training does not know."""
    missing = column.missing & there
    if column.words is None:
        return [f"{int(missing.sum()):,} missing values of {name} are its mean"] if missing.any() else []
    unseen = (x.sum(1) == 0) & ~column.missing
    told = [f"{int(missing.sum()):,} missing values of {name} are no word of it"] if missing.any() else []
    return told + ([f"{int(unseen.sum()):,} rows have a {name} that training has not"] if unseen.any() else [])
