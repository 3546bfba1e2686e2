"""One name, four places; imports point downwards; a YAML's keys are its target's arguments: held over every file."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from metarun.cli import CONF
from metarun.cli.help import comment
from metarun.construct import prepared, target_of

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "metarun"
CHOICES = sorted((folder.name, file.stem) for folder in CONF.iterdir() for file in folder.glob("*.yaml"))
BUILT = [(group, name) for group, name in CHOICES if group in ("algo", "backbone", "data", "optim", "schedule")]
GIVEN = {  # by the run, not by the YAML
    "algo": {"net", "task_heads"},
    "backbone": {"shape"},
    "data": set(),
    "optim": {"params"},
    "schedule": {"step", "steps"},
}

# What the files of a folder may import of metarun: rooms below their own, and their own. The story at the top, which is
# named file by file, and `cli` may import everything.
WORDS = {"types", "errors"}
ALLOWED = {
    "errors": set(),
    "types": {"errors"},
    "construct": {"errors"},
    "settings": {"errors", "construct"},
    "maths": WORDS,
    "optim": WORDS,
    "backbones": WORDS | {"maths"},
    "algos": WORDS | {"maths"},
    "engine": WORDS | {"maths"},
    "data": WORDS | {"engine"},
    "tracking": WORDS,
    "report": {"errors"},
    "evaluate": WORDS | {"maths", "engine"},
    "loop": WORDS | {"engine", "tracking"},
}
TOP = {"build", "run", "result", "cli"}
ROOMS = {"algos": "algo", "backbones": "backbone", "data": "data"}  # of choices -> group
SILENT = ("__init__", "__main__")


def modules(room: str) -> dict[str, Path]:
    return {file.stem: file for file in (PACKAGE / room).glob("*.py") if file.stem not in SILENT}


def imports(node: ast.AST) -> Iterator[str]:
    """Dotted names of all that is imported anywhere below a node, also for the type checker alone."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (f"{child.module}.{alias.name}" for alias in child.names)


def imported_files(file: Path) -> set[Path]:
    """The files of metarun that a file imports."""
    found = set()
    for name in imports(ast.parse(file.read_text())):
        parts = name.split(".")
        for end in (len(parts), len(parts) - 1):
            path = ROOT.joinpath(*parts[:end]).with_suffix(".py")
            if parts[0] == "metarun" and path.is_file():
                found.add(path)
    return found


def rooms(file: Path) -> set[str]:
    """The rooms of metarun that a file imports from."""
    names = (name.split(".") for name in imports(ast.parse(file.read_text())))
    return {name[1] for name in names if name[0] == "metarun" and len(name) > 1}


def targets(group: str) -> dict[str, str]:
    """The module each YAML of a group builds from."""
    return {name: str(section(group, name)["_target_"]).rpartition(".")[0] for g, name in CHOICES if g == group}


def section(group: str, name: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = OmegaConf.to_container(compose("config", [f"{group}={name}"])[group], resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


@pytest.mark.parametrize(("room", "group"), ROOMS.items())
def test_every_choice_is_the_target_of_a_yaml_and_every_yaml_has_its_module(room: str, group: str) -> None:
    """A choice is a file that lies directly in its room; machinery lies in a folder below it."""
    assert {f"metarun.{room}.{name}" for name in modules(room)} == set(targets(group).values())


@pytest.mark.parametrize(("room", "group"), [("algos", "algo"), ("data", "data")])
def test_a_yaml_its_module_and_its_test_have_one_name(room: str, group: str) -> None:
    assert {name: f"metarun.{room}.{name}" for name in modules(room)} == targets(group)


@pytest.mark.parametrize("room", ROOMS)
def test_every_choice_has_a_test_of_its_name(room: str) -> None:
    tested = {file.stem.removeprefix("test_") for file in (ROOT / "tests" / room).glob("test_*.py")}
    assert set(modules(room)) == {name for name in tested if not name.startswith("every_")}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_downwards(file: Path) -> None:
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if file.stem not in SILENT and room not in TOP:
        assert rooms(file) <= ALLOWED[room] | {room}


def test_every_room_has_a_row() -> None:
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert found - set(SILENT) == ALLOWED.keys() | TOP


def test_no_file_imports_itself_by_way_of_others() -> None:
    edges = {file: imported_files(file) for file in PACKAGE.rglob("*.py") if file.stem not in SILENT}
    left = set(edges)
    while free := {file for file in left if not edges[file] & left}:
        left -= free
    assert not {str(file.relative_to(PACKAGE)) for file in left}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_the_package_knows_nothing_of_its_benchmarks_and_tests(file: Path) -> None:
    names = {name.partition(".")[0] for name in imports(ast.parse(file.read_text()))}
    assert not names & {"benchmarks", "tests"}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_torchvision_is_imported_only_where_it_is_used(file: Path) -> None:
    body = ast.parse(file.read_text()).body
    top = ast.Module([node for node in body if not isinstance(node, ast.ClassDef | ast.FunctionDef)], [])
    assert not [name for name in imports(top) if name.partition(".")[0] == "torchvision"]


@pytest.mark.parametrize("name", sorted(modules("report")))
def test_the_report_reads_files_alone(name: str) -> None:
    foreign = {found.partition(".")[0] for found in imports(ast.parse(modules("report")[name].read_text()))}
    assert not foreign & {"torch", "hydra", "omegaconf"}


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_composes(group: str, name: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"{group}={name}"], return_hydra_config=True)
    assert config.hydra.runtime.choices[group] == name


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_opens_with_its_description_in_one_line(group: str, name: str) -> None:
    file = CONF / group / f"{name}.yaml"
    words = comment(file)
    assert 0 < len(words) < 100
    assert words in "".join(file.read_text().splitlines(keepends=True)[:2])


@pytest.mark.parametrize(("group", "name"), BUILT)
def test_the_keys_of_a_yaml_are_the_arguments_of_its_target(group: str, name: str) -> None:
    values = section(group, name)
    target = target_of(values, group)
    arguments = inspect.signature(target).parameters
    keys = values.keys() - {"_target_", "_partial_"}
    wanted = arguments.keys() - GIVEN[group]
    if target.__module__.startswith("metarun."):
        assert keys == wanted
        assert all(a.default is inspect.Parameter.empty for a in arguments.values())
    else:
        assert keys <= wanted
        assert {n for n in wanted if arguments[n].default is inspect.Parameter.empty} <= keys


@pytest.mark.parametrize(("group", "name"), BUILT)
def test_the_values_of_a_yaml_are_what_its_target_takes(group: str, name: str) -> None:
    assert prepared(section(group, name), group, *GIVEN[group])
