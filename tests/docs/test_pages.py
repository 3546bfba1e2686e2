"""Every algorithm has a page, whose table is that of its YAML and its code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from docs.keys import CONF, PAGES, comments, index, keys, written

ALGOS = sorted(file.stem for file in CONF.glob("*.yaml"))
SECTIONS = ["Keys", "Metrics", "Details that matter", "Numbers", "Reference"]


def test_there_is_a_page_for_every_algorithm_and_no_other() -> None:
    assert sorted(page.stem for page in PAGES.glob("*.md")) == sorted([*ALGOS, "README"])


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_the_table_of_a_page_is_that_of_the_code(page: Path) -> None:
    assert written(page) == page.read_text(encoding="utf-8"), "python -m docs.keys writes it anew"


@pytest.mark.parametrize("name", ALGOS)
def test_a_page_has_all_its_sections_in_order(name: str) -> None:
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    assert "arXiv" in text or "doi" in text.lower() or name == "mtl"
    assert "[the table of all](README.md#numbers)" in text


@pytest.mark.parametrize("name", ALGOS)
def test_every_key_of_an_algorithm_is_explained_in_its_yaml(name: str) -> None:
    file = CONF / f"{name}.yaml"
    asked = yaml.safe_load(file.read_text(encoding="utf-8"))["algo"].keys() - {"_target_"}
    told = comments(file)
    assert asked == told.keys() - {"_target_"} and all(len(told[key]) > 5 for key in asked)


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_a_table_says_default_type_bounds_and_words() -> None:
    table = keys("metasgd")
    assert "| `algo.inner_steps` | 1 | a whole number, 0 or more, less than 1001 | steps within" in table
    assert "It also sets `test.adapt_steps=1`." in table
    assert "- [metasgd](metasgd.md): Meta-SGD: a learned step size for every parameter\n" in index()
