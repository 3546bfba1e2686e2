"""Class folders: which images lie in a folder of classes, whatever else lies there."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from metarun.data.images.decode import suffixes
from metarun.errors import UserError, few, shown

IGNORED = {"thumbs.db", "desktop.ini", "__macosx", "__pycache__"}

Classes = dict[str, list[Path]]  # a class's name -> its files


@dataclass(frozen=True)
class Tree:
    """What was met in the folders of one data set."""

    entered: dict[tuple[int, int], Path]  # a folder's device and inode -> where
    skipped: list[Path] = field(default_factory=list)  # files that are no images by their suffix

    @staticmethod
    def of(root: Path) -> Tree:
        """Those that `root` lies in count as entered: a link to one would lead through half of the disk."""
        return Tree({_identity(folder): folder for folder in Path(os.path.realpath(root)).parents})

    def classes(self, base: Path) -> Classes:
        """Every folder below `base` with images in it, by its path; what lies in `base` itself is no class's."""
        found: Classes = {}
        hollow: list[str] = []
        waiting = [base]
        while waiting:
            folder = waiting.pop()
            folders, files = self._inside(folder)
            waiting += reversed(folders)
            if folder == base:
                continue
            images: list[Path] = []
            for file in files:
                (images if file.suffix.lower() in suffixes() else self.skipped).append(file)
            name = shown(folder.relative_to(base).as_posix())
            if images and name in found:
                raise UserError(f"{shown(base)} has two class folders that are shown as {name}. Rename one.")
            if images:
                found[name] = images
            elif not folders:
                hollow.append(shown(folder))
        if hollow:
            more = f", nor have {few(hollow[1:])}" if hollow[1:] else ""
            words = f"The class folder {hollow[0]} has no images{more}. Add some or remove it. {self.left_out()}"
            raise UserError(words.strip())
        if not found:
            raise UserError(
                f"data.root={shown(base)} has no class folders. Give a folder with one folder of images per class."
            )
        return found

    def _inside(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """The folders and the files in a folder, sorted."""
        try:
            other = self.entered.setdefault(_identity(folder), folder)
            if other != folder:  # followed, a link to a parent has no end, and a link to a class makes two of it
                raise UserError(f"{shown(folder)} and {shown(other)} are the same folder. Remove the link.")
            with os.scandir(folder) as entries:
                inside = sorted((entry.name, _is_folder(entry)) for entry in entries if not hidden(entry.name))
        except OSError as error:
            raise UserError(f"{shown(folder)} cannot be read ({error.strerror}). Mend or remove it.") from error
        folders, files = ([folder / name for name, is_folder in inside if is_folder is kind] for kind in (True, False))
        return folders, files

    def left_out(self) -> str:
        """A sentence on the files that were skipped, by suffix; empty where there are none."""
        if not self.skipped:
            return ""
        kinds = Counter(shown(file.suffix.lower()) or "none" for file in self.skipped)
        counts = few([f"{kind}: {count}" for kind, count in kinds.most_common()], 5)
        return f"Files skipped, whose suffix is no image's: {len(self.skipped)} ({counts})."


def hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in IGNORED


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Also a link to one; a link to nowhere, or one that cannot be followed, is none."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))
