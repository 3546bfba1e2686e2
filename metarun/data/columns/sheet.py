"""CSV and Parquet files, read as columns of numbers or of words."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from metarun.errors import UserError, few, shown

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL")  # how a CSV says that there is no value
SEPARATORS = ",;\t"
PARQUET = (".parquet", ".pq")
SUFFIXES = (".csv", ".tsv", *PARQUET)


@dataclass(frozen=True)
class Column:
    """Numbers, float64 [R], NaN where one is missing; or words by their places in a sorted list, int64 [R], then -1."""

    values: Tensor
    words: tuple[str, ...] | None = None

    @property
    def missing(self) -> Tensor:
        """bool [R]"""
        return self.values.isnan() if self.words is None else self.values < 0


@dataclass(frozen=True)
class Sheet:
    """One file. Nothing is made of a column before it is asked for."""

    path: Path
    frame: Any  # polars.DataFrame

    @staticmethod
    def read(path: Path) -> Sheet:
        """Refuses what is no table with named columns and at least one row."""
        pl, parquet = _polars(), path.suffix.lower() in PARQUET
        if not os.path.isfile(path):
            raise UserError(f"data.root={shown(path)}: there is no such file. Name a CSV or Parquet file, or a folder.")
        try:
            frame = _parquet(pl, path) if parquet else _csv(pl, path)
        except pl.exceptions.NoDataError as error:
            raise UserError(
                f"{shown(path)} is empty. Give a file with a line of column names and rows below."
            ) from error
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
            reason = str(error).strip().split("\n")[0].rstrip(".")
            kind = "Parquet" if parquet else "CSV"
            raise UserError(f"{shown(path)} cannot be read as {kind} ({reason}). Mend or remove it.") from error
        if not len(frame):
            raise UserError(f"{shown(path)} has column names and no rows. Add some.")
        return Sheet(path, frame)

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return list(self.frame.columns)

    def column(self, name: str, as_words: bool) -> Column:
        """Numbers where its values are; `as_words`, those are words too. Text among numbers is refused."""
        pl, series = _polars(), self.frame[name]
        kind = series.dtype
        if kind.is_nested() or kind.is_temporal() or kind == pl.Binary:
            raise UserError(
                f"{shown(self.path)}: the column {name} holds {kind}, which is no number and no text. Leave it out by "
                "data.inputs, or make numbers of it."
            )
        if not kind.is_numeric():
            series = series.cast(pl.String)
        numbers = series.cast(pl.Float64, strict=False)
        text = series.is_not_null() & numbers.is_null()
        if 2 * text.sum() > series.is_not_null().sum():  # text, of which some may look like numbers
            return _words(pl, series)
        if text.any() and not as_words:
            row = int(text.arg_true()[0])
            raise UserError(
                f"{shown(self.path)}: row {row + 1} below the header has {series[row]!r:.60} in the column {name}, "
                f"whose other values are numbers. Mend it, or take all of them as words: data.classes=[{name}]."
            )
        return _words(pl, series) if text.any() else self._numbers(name, numbers, as_words)

    def _numbers(self, name: str, series: Any, as_words: bool) -> Column:
        values = torch.tensor(series.fill_null(float("nan")).to_numpy())
        if len(row := values.isinf().nonzero()):
            raise UserError(
                f"{shown(self.path)}: row {int(row[0]) + 1} below the header has {float(values[row[0]])} in the column "
                f"{name}, which is no finite number. Mend it."
            )
        if not as_words:
            return Column(values)
        known, place = values[~values.isnan()].unique(return_inverse=True)
        places = torch.full(values.shape, -1)
        places[~values.isnan()] = place
        return Column(places, tuple(str(int(v)) if v == int(v) else str(v) for v in known.tolist()))


def joined(columns: Sequence[Column | None], rows: Sequence[int], sources: Sequence[str], name: str) -> Column:
    """One column of all files' rows below each other; in a file that has none, each value is missing."""
    there = [(column, source) for column, source in zip(columns, sources, strict=True) if column is not None]
    numbers, text = ([source for c, source in there if (c.words is None) == kind] for kind in (True, False))
    if numbers and text:
        raise UserError(f"the column {name} holds numbers in {numbers[0]} and words in {text[0]}. Rename one of them.")
    if numbers:
        empty = [torch.full((count,), torch.nan, dtype=torch.float64) for count in rows]
        return Column(torch.cat([e if c is None else c.values for c, e in zip(columns, empty, strict=True)]))
    words = tuple(sorted({word for c, _ in there for word in c.words or ()}))
    place, parts = {word: i for i, word in enumerate(words)}, []
    for column, count in zip(columns, rows, strict=True):
        own = () if column is None or column.words is None else column.words
        places = torch.tensor([*(place[word] for word in own), -1])  # the last one: of -1
        parts.append(places[torch.full((count,), -1) if column is None else column.values])
    return Column(torch.cat(parts), words)


def _polars() -> ModuleType:
    try:
        import polars
    except ImportError as error:
        raise UserError(
            "data=table reads files with polars, which is not installed. Type: pip install 'metarun[table]'"
        ) from error
    return polars


def _parquet(pl: ModuleType, path: Path) -> Any:
    frame = pl.read_parquet(path, glob=False)
    return _renamed(path, frame, frame.columns)


def _csv(pl: ModuleType, path: Path) -> Any:
    """All values as text, stripped of blanks."""
    with path.open("rb") as file:
        first = file.readline(2**20).decode("utf-8", "replace")
    separator = max(SEPARATORS, key=first.count)
    options: dict[str, Any] = {"separator": separator, "infer_schema": False, "glob": False}
    header = pl.read_csv(path, has_header=False, n_rows=1, **options).row(0)
    frame = _renamed(path, pl.read_csv(path, **options), header)
    return frame.with_columns(pl.all().str.strip_chars().replace(dict.fromkeys(MISSING)))


def _renamed(path: Path, frame: Any, header: Sequence[str | None]) -> Any:
    """With the names that the file gives its columns, each in one line; one without a name is left out."""
    names = [" ".join((name or "").split()) for name in header]
    if twice := [name for name in dict.fromkeys(names) if name and names.count(name) > 1]:
        raise UserError(f"{shown(path)} has {few(twice)} twice among its column names. Rename one of each.")
    frame.columns = [name or f"\0{i}" for i, name in enumerate(names)]
    return frame.select([name for name in names if name])


def _words(pl: ModuleType, series: Any) -> Column:
    words = series.drop_nulls().unique().sort().to_list()
    places = series.cast(pl.Enum(words)).to_physical().cast(pl.Int64).fill_null(-1)
    return Column(torch.tensor(places.to_numpy()), tuple(words))
