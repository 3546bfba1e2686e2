"""One name, four places; imports point downwards; a YAML's keys are its target's arguments: held over every file."""

from __future__ import annotations

import ast
import inspect
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from metarun import settings
from metarun.bounds import Above, AtLeast, AtMost
from metarun.cli import CONF
from metarun.cli.help import comment
from metarun.construct import check, hints_of, prepared, takes, target_of
from metarun.engine.device import pick
from metarun.errors import UserError

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "metarun"
CHOICES = sorted(
    (folder.name, str(file.relative_to(folder).with_suffix("")))
    for folder in CONF.iterdir()
    for file in folder.rglob("*.yaml")
)
GIVEN: dict[str, set[str]] = {  # by the run, not by the YAML
    "algo": {"net", "balance", "source"},
    "balance": set(),
    "backbone": {"shape"},
    "sharing": {"make_trunk", "heads", "shape"},
    "data": {"sources"},
    "optim": {"params"},
    "schedule": {"step", "steps"},
}
BUILT = [(group, name) for group, name in CHOICES if group in GIVEN]

# What the files of a folder may import of metarun: rooms below their own, and their own. The story at the top, which is
# named file by file, and `cli` may import everything.
WORDS = {"types", "errors"}
ALLOWED = {
    "errors": set(),
    "metrics": set(),
    "bounds": set(),
    "construct": {"errors", "bounds"},
    "types": {"errors", "construct", "bounds"},
    "settings": {"errors", "construct", "bounds", "engine"},
    "maths": WORDS,
    "optim": WORDS,
    "balance": WORDS,
    "backbones": WORDS | {"maths"},
    "algos": WORDS | {"maths"},
    "engine": WORDS | {"maths"},
    "data": WORDS | {"engine"},
    "tracking": WORDS | {"metrics", "engine"},
    "report": {"errors", "metrics"},
    "interface": WORDS | {"engine"},
    "datasets": WORDS | {"construct", "settings", "interface", "engine"},
    "evaluate": WORDS | {"maths", "engine", "metrics"},
    "state": WORDS | {"engine"},
    "loop": WORDS | {"engine", "tracking", "metrics", "state"},
    "check": WORDS | {"maths", "engine", "evaluate", "loop", "state"},
}
TOP = {"build", "identity", "pretrained", "run", "result", "cli"}
ROOMS = {  # of choices -> group
    "algos": "algo",
    "balance": "balance",
    "backbones": "backbone",
    "backbones/sharing": "sharing",
    "data": "data",
}
OF_ONE_NAME = [(room, group) for room, group in ROOMS.items() if group != "backbone"]  # one module makes several
SILENT = ("__init__", "__main__")


def modules(room: str) -> dict[str, Path]:
    return {file.stem: file for file in (PACKAGE / room).glob("*.py") if file.stem not in SILENT}


def dotted(room: str, name: str) -> str:
    """A module of a room, as it is imported."""
    return f"metarun.{room}.{name}".replace("/", ".")


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


def section(group: str, name: str, *more: str) -> dict[str, Any]:
    """What the target of a choice is built from; some keys of an algorithm are for the run."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = OmegaConf.to_container(compose("config", [f"{group}={name}", *more])[group], resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items() if group != "algo" or key not in settings.COURSE}


def outside(hint: Any) -> Iterator[tuple[Any, Any]]:
    """For each bound within an annotation, a value that lies beyond it and one that lies on it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        yield from ((bound.bound, bound.bound + 1) for bound in arguments[1:] if isinstance(bound, Above))
        yield from ((bound.most + 1, bound.most) for bound in arguments[1:] if isinstance(bound, AtMost))
        for bound in (b for b in arguments[1:] if isinstance(b, AtLeast)):
            yield bound.least - 1, bound.least
            if bound.below < float("inf"):
                yield bound.below, bound.least
        yield from outside(arguments[0])
    elif origin in (typing.Union, types.UnionType):
        yield from (pair for argument in arguments for pair in outside(argument))
    elif origin is Sequence:
        yield from (([wrong], [right]) for wrong, right in outside(arguments[0]))


def bounded() -> Iterator[tuple[str, Any, str, Any, Any]]:
    """Section, target and key of every bound there is, with a value that is refused and one that is taken."""
    own = {"": settings.Root, "train": settings.Train, "val": settings.Val, "test": settings.Test, "device": pick}
    found: list[tuple[str, Any]] = list(own.items())
    for group, name in BUILT:
        content = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
        found.append((group, target_of(content.get(group, content), group)))
    for prefix, target in dict.fromkeys(found):
        for key, hint in hints_of(target).items():
            yield from ((prefix, target, key, wrong, right) for wrong, right in outside(hint))


BOUNDED = list(bounded())


@pytest.mark.parametrize(("room", "group"), ROOMS.items())
def test_every_choice_is_the_target_of_a_yaml_and_every_yaml_has_its_module(room: str, group: str) -> None:
    """A choice is a file that lies directly in its room; machinery lies in a folder below it."""
    assert {dotted(room, name) for name in modules(room)} == set(targets(group).values())


@pytest.mark.parametrize(("room", "group"), OF_ONE_NAME)
def test_a_yaml_its_module_and_its_test_have_one_name(room: str, group: str) -> None:
    assert {name: dotted(room, name) for name in modules(room)} == targets(group)


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


def test_every_algorithm_has_a_recipe_of_three_minutes() -> None:
    folder = CONF / "experiment" / "three_minutes"
    chosen = {}
    for file in folder.glob("*.yaml"):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", [f"experiment=three_minutes/{file.stem}"], return_hydra_config=True)
        chosen[file.stem] = config.hydra.runtime.choices.algo
    assert chosen == {name: name for group, name in CHOICES if group == "algo"}


@pytest.mark.parametrize(("group", "name"), BUILT)
def test_the_keys_of_a_yaml_are_the_arguments_of_its_target(group: str, name: str) -> None:
    values = section(group, name)
    target = target_of(values, group)
    arguments = inspect.signature(target).parameters
    keys = values.keys() - {"_target_"}
    wanted = arguments.keys() - GIVEN[group]
    if target.__module__.startswith("metarun."):
        assert keys == wanted
        assert all(a.default is inspect.Parameter.empty for a in arguments.values())
    else:
        assert keys <= wanted
        assert {n for n in wanted if arguments[n].default is inspect.Parameter.empty} <= keys


@pytest.mark.parametrize(("group", "name"), BUILT)
def test_the_values_of_a_yaml_are_what_its_target_takes(group: str, name: str) -> None:
    values = section(group, name)
    assert prepared(values, group, *(given for given in GIVEN[group] if takes(values, group, given)))


@pytest.mark.parametrize("data", [name for group, name in CHOICES if group == "data"])
@pytest.mark.parametrize("algo", [name for group, name in CHOICES if group == "algo"])
def test_no_data_set_gives_an_algorithm_a_key_it_does_not_have(algo: str, data: str) -> None:
    assert section("algo", algo, f"data={data}").keys() == section("algo", algo).keys()


@pytest.mark.parametrize("file", sorted((CONF / "pair").glob("*.yaml")), ids=lambda file: file.stem)
def test_what_an_algorithm_takes_on_a_data_set_is_named_after_both(file: Path) -> None:
    algo, _, data = file.stem.partition("_")
    assert {("algo", algo), ("data", data)} <= set(CHOICES)
    own = yaml.safe_load(file.read_text())
    with initialize_config_dir(str(CONF), version_base="1.3"):
        both, alone = (compose("config", [f"algo={algo}", *more]) for more in ([f"data={data}"], []))
    for name, keys in own.items():
        assert keys == {key: both[name][key] for key in keys} != {key: alone[name][key] for key in keys}
    values = section("algo", algo, f"data={data}")
    assert prepared(values, "algo", *(given for given in GIVEN["algo"] if takes(values, "algo", given)))


def test_bounds_are_found_in_every_section() -> None:
    sections = {prefix for prefix, *_ in BOUNDED}
    assert sections == {
        "",
        "train",
        "val",
        "test",
        "device",
        "algo",
        "balance",
        "backbone",
        "sharing",
        "data",
        "optim",
        "schedule",
    }


@pytest.mark.parametrize(("prefix", "target", "key", "wrong", "right"), BOUNDED)
def test_a_number_on_its_bound_is_taken_and_one_beyond_is_refused_in_one_line(
    prefix: str, target: Any, key: str, wrong: Any, right: Any
) -> None:
    check({key: right}, prefix, target)
    with pytest.raises(UserError) as told:
        check({key: wrong}, prefix, target)
    assert str(told.value).startswith(f"{prefix}.{key}={wrong}".lstrip("."))
    assert " is too " in str(told.value) and " Give " in str(told.value) and "\n" not in str(told.value)
