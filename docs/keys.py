"""The tables of docs/algorithms/, written from the YAML of each algorithm and the types of its fields.

python -m docs.keys     # writes them anew into the pages
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import yaml

from metarun.bounds import Above, AtLeast, AtMost
from metarun.cli.help import comment
from metarun.construct import describe, hints_of, shown, target_of
from metarun.settings import Course

ROOT = Path(__file__).parents[1]
PAGES, CONF = ROOT / "docs" / "algorithms", ROOT / "conf" / "algo"
KEY = re.compile(r"^  (\w+):[^#]*(?:#\s*(.*))?$")
OPEN, CLOSE = "<!-- keys -->", "<!-- /keys -->"


def main() -> None:
    for page in PAGES.glob("*.md"):
        page.write_text(written(page), encoding="utf-8")


def written(page: Path) -> str:
    """A page with its table as it has to be."""
    table = index() if page.stem == "README" else keys(page.stem)
    before, _, rest = page.read_text(encoding="utf-8").partition(OPEN)
    return f"{before}{OPEN}\n\n{table}\n{CLOSE}{rest.partition(CLOSE)[2]}"


def index() -> str:
    """All algorithms, each with the first line of its YAML."""
    return "".join(f"- [{file.stem}]({file.stem}.md): {comment(file)}\n" for file in sorted(CONF.glob("*.yaml")))


def keys(name: str) -> str:
    """The keys of an algorithm, and those of other sections that its YAML sets."""
    file = CONF / f"{name}.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    hints, words = {**hints_of(target_of(content["algo"], "algo")), **hints_of(Course)}, comments(file)
    rows = [
        f"| `algo.{key}` | {_cell(shown(value))} | {_cell(takes(hints[key]))} | {_cell(words[key])} |"
        for key, value in content["algo"].items()
        if key != "_target_"
    ]
    table = "\n".join(["| key | default | takes | what it is; a sensible range |", "|---|---|---|---|", *rows, ""])
    others = [f"`{key}={shown(value)}`" for key, value in _others(content)]
    return table + (f"\nIt also sets {', '.join(others)}.\n" if others else "")


def comments(file: Path) -> dict[str, str]:
    """What a YAML says of each key of its `algo:`."""
    rest = file.read_text(encoding="utf-8").partition("\nalgo:\n")[2].splitlines()
    found = (KEY.match(line) for line in takewhile(lambda line: line.startswith(" "), rest))
    return {match[1]: (match[2] or "").strip() for match in found if match}


def takes(hint: Any) -> str:
    """The values that a field takes, in words."""
    return ", ".join([describe(hint).removeprefix("one of "), *_bounds(hint)])


def _bounds(hint: Any) -> Iterator[str]:
    for bound in typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ():
        if isinstance(bound, AtLeast):
            yield f"{bound.least} or more" + ("" if bound.below == float("inf") else f", less than {bound.below}")
        if isinstance(bound, Above):
            yield f"more than {bound.bound}"
        if isinstance(bound, AtMost):
            yield f"{bound.most} or less"
    for inner in typing.get_args(hint):
        yield from _bounds(inner)


def _others(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for choice in content.get("defaults", []):
        for group, name in choice.items():
            yield group.removeprefix("override /"), name
    for section, values in content.items():
        if section not in ("algo", "defaults"):
            yield from ((f"{section}.{key}", value) for key, value in values.items())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
