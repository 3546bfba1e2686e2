"""The rows of all files below each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metarun.data.columns.sheet import Column, Sheet, joined
from metarun.errors import shown


@dataclass(frozen=True)
class Whole:
    """R rows. `file` says of each which file it is of, `row` which row below that file's header, from 1 on."""

    columns: dict[str, Column]
    file: Tensor  # int64 [R]
    row: Tensor  # int64 [R]
    owners: dict[str, list[int]]  # the files that have a column
    stems: tuple[str, ...]  # the files' names without their suffix
    sources: tuple[str, ...]  # the files' names

    @staticmethod
    def of(sheets: Sequence[Sheet], names: Iterable[str], as_words: Sequence[str]) -> Whole:
        """The named columns, each of which some file has; those `as_words` are taken for words."""
        sizes, sources = [len(sheet.frame) for sheet in sheets], tuple(shown(sheet.path.name) for sheet in sheets)
        columns, owners = {}, {}
        for name in names:
            found = [sheet.column(name, name in as_words) if name in sheet.names else None for sheet in sheets]
            columns[name] = joined(found, sizes, sources, name)
            owners[name] = [file for file, column in enumerate(found) if column is not None]
        file = torch.arange(len(sheets)).repeat_interleave(torch.tensor(sizes))
        row = torch.cat([torch.arange(1, size + 1) for size in sizes])
        return Whole(columns, file, row, owners, tuple(shown(sheet.path.stem) for sheet in sheets), sources)

    def kept(self, rows: Tensor) -> Whole:
        """Those rows alone: bool [R]."""
        columns = {name: replace(column, values=column.values[rows]) for name, column in self.columns.items()}
        return replace(self, columns=columns, file=self.file[rows], row=self.row[rows])

    def of_file(self, name: str, file: int) -> Column:
        """A column with the values of one file alone; in all other rows there is none."""
        column, none = self.columns[name], torch.nan if self.columns[name].words is None else -1
        return replace(column, values=column.values.masked_fill(self.file != file, none))

    def there(self, name: str) -> Tensor:
        """Which rows are of a file that has the column: bool [R]."""
        return torch.isin(self.file, torch.tensor(self.owners[name]))

    def names(self, rows: Iterable[int]) -> list[str]:
        """Of some rows, for people."""
        places = [(self.sources[int(self.file[r])], int(self.row[r])) for r in rows]
        return [f"{source} row {row}" if len(self.sources) > 1 else f"row {row}" for source, row in places]
