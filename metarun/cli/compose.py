"""What was typed becomes jobs: Hydra composes the config of one run, or with -m of each run of a sweep."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from metarun import settings
from metarun.cli import CONF, mistakes, names
from metarun.cli.overrides import CONFIG, HYDRA, OVERRIDES, for_hydra, parsed, parted, places_of_code, quoted, signed
from metarun.cli.trust import check_targets
from metarun.construct import PLACE, marked, nearest, takes
from metarun.engine.ranks import Team, join
from metarun.errors import UserError
from metarun.settings import Job
from metarun.tracking import atomic


@dataclass
class Jobs:
    """How the one run or the runs of a sweep went."""

    process: int = field(default_factory=os.getpid)
    sweep: bool = False
    begun: int = 0
    failed: list[int] = field(default_factory=list)  # exit codes


def each_job(arguments: list[str], answer: Callable[[Job], int], added: tuple[str, ...] = ()) -> int:
    """Hands what was asked for, one job or all of a sweep, to `answer`, which returns an exit code; returns the worst.

    What is `added` wins over what was typed.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors arrive here whole, to be told in one line
    team = join()
    names.register(team)
    code = _answered(arguments, answer, added, team, Jobs())
    team.end(code)
    return code


def _answered(
    arguments: list[str], answer: Callable[[Job], int], added: tuple[str, ...], team: Team, jobs: Jobs
) -> int:
    try:
        sys.argv[1:] = [*team.broadcast(partial(hydra_arguments, arguments, team)), *added]
        sys.path += places_of_code(sys.argv[1:])
        _hydra(jobs, team, parted(arguments)[1], answer)()
        team.leave()
    except KeyboardInterrupt as stopped:
        team.tell_once()
        return mistakes.tell_stopped(stopped, sweep=jobs.sweep)
    except Exception as error:
        team.tell_once()
        return mistakes.tell(error)
    if jobs.failed and jobs.sweep:
        print(f"metarun: {len(jobs.failed)} of {jobs.begun} jobs failed.", file=sys.stderr)
    return min(jobs.failed, default=0)  # a bug's, if there was one


def hydra_arguments(arguments: list[str], team: Team) -> list[str]:
    """What Hydra is started with."""
    if team.size > 1 and {"-m", "--multirun"} & set(arguments):
        raise UserError("-m runs one job after the other, torchrun one job on many devices. Leave out one of them.")
    return for_hydra(arguments, CONF)


def _hydra(jobs: Jobs, team: Team, words: list[str], answer: Callable[[Job], int]) -> Callable[[], None]:
    """Hydra's main function, which reads sys.argv and calls `job` with each config; `words` are what was typed now."""

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def job(config: DictConfig) -> None:
        jobs.sweep = sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        name = f"job {HydraConfig.get().job.num} ({HydraConfig.get().job.override_dirname})" if sweep else ""
        jobs.begun += 1
        try:
            if sweep:
                print(f"{name}\n", flush=True)
            if code := answer(_job(config, team, words)):
                jobs.failed.append(code)
        except Exception as error:
            if not sweep:
                team.tell_once()
                sys.exit(mistakes.tell(error))
            jobs.failed.append(mistakes.tell(error, f"{name} failed: "))
            if os.getpid() != jobs.process:
                raise  # a launcher's worker: only Hydra can tell the process that waits
        finally:
            if team.rank == 0:
                names.forget(Path(HydraConfig.get().runtime.output_dir))

    return job


def _job(config: DictConfig, team: Team, words: list[str]) -> Job:
    """The composed config as the run takes it."""
    plain = _plain(config)
    settings.check_sections(plain)
    if plain["resume"] is not None:
        check_targets(plain, parsed(words), places_of_code(sys.argv[1:]))
    test_data, sources = _test_data(config), _sources(plain["data"])
    places = _anchored(plain, test_data, sources)
    runtime, typed = HydraConfig.get().runtime, HydraConfig.get().overrides.task
    folder = Path(runtime.output_dir)
    source = _source(plain["algo"].get("source"), folder, team)
    return Job(
        config=plain,
        choices={group: str(choice) for group, choice in runtime.choices.items()},
        test_data=test_data,
        folder=folder,
        label=names.typed_label(typed, folder) if plain["resume"] is not None else "",
        remember=partial(_remember, config, list(typed), places, folder),
        team=team,
        sources=sources,
        source=source,
    )


def _source(place: Any, folder: Path, team: Team) -> dict[str, Any] | None:
    """The checkpoint of the finished run that `algo.source` names, as seen from the run in `folder`."""
    if not isinstance(place, str):
        return None  # what is wrong with another value is told where all are checked
    from metarun.pretrained import opened  # torch takes a second to import; --cfg job must not wait for it

    named = f"algo.source={place}"
    if Path(place).resolve() == folder.resolve():
        raise UserError(f"{named} is the folder of this run itself. Name that of a finished one.")
    saved = team.broadcast(partial(opened, Path(place), named))
    check_targets({"backbone": saved["run"]["config"]["backbone"]}, None, places_of_code(sys.argv[1:]), named)
    return saved


def _anchored(
    config: dict[str, Any], test_data: dict[str, Any] | None, sources: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Makes places in the config absolute, and returns them by key: a run is resumed from other folders, too, and
    without the variables that named them."""
    if test_data and isinstance(test_data.get("root"), str):
        config["test"]["root"] = test_data["root"] = _absolute(test_data["root"])
    found = [(key, config[key.partition(".")[0]]) for key in settings.places(config)]
    for name, section in sources.items():
        found += [(key, section) for key in marked(PLACE, section, f"data.keys.{name}")]
    places: dict[str, Any] = {}
    for key, section in found:
        name = key.rpartition(".")[2]
        place = section.get(name)
        if isinstance(place, str):
            places[key] = section[name] = _absolute(place)
        elif isinstance(place, list):
            places[key] = section[name] = [_absolute(str(one)) for one in place]
    return places


def _absolute(path: str) -> str:
    return str(Path(os.path.expanduser(path)).absolute())


def _remember(config: DictConfig, typed: list[str], places: dict[str, Any], folder: Path) -> None:
    """Writes the record of a run that begins or goes on, each file whole or not at all."""
    for key, place in places.items():
        OmegaConf.update(config, key, place, force_add=True)
    own = [f"{'++' if key.count('.') > 1 else ''}{key}={_typed(place)}" for key, place in places.items()]
    words = [o.input_line for o in parsed(typed) if o.key_or_group not in places]
    hydra = OmegaConf.create({"hydra": HydraConfig.get()})
    atomic.replace(folder / CONFIG, OmegaConf.to_yaml(config).encode())
    atomic.replace(folder / HYDRA, OmegaConf.to_yaml(hydra).encode())
    atomic.replace(folder / OVERRIDES, signed(OmegaConf.to_yaml(OmegaConf.create([*words, *own]))).encode())


def _typed(place: str | list[str]) -> str:
    """One place or several, as they are typed."""
    return quoted(place) if isinstance(place, str) else f"[{','.join(map(quoted, place))}]"


def _test_data(config: DictConfig) -> dict[str, Any] | None:
    """The section of the data set that `test.data` names, but for what `test.keys` says of it."""
    if config.test.data is None:
        return None
    root = [] if config.test.root is None else [f"data.root={quoted(config.test.root)}"]
    return _section(str(config.test.data), "test.data", *root)


def _sources(data: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By name, the sections of the data sets that the chosen one names as its `sets`, with their `keys`.

    There are such where it takes `sources`: what the run builds of them.
    """
    sets, keys = data.get("sets"), data.get("keys") or {}
    if not isinstance(sets, list) or not isinstance(keys, Mapping) or not takes(data, "data", "sources"):
        return {}  # what is wrong with them is told where all values are checked
    found = {str(name): _section(str(name), "data.sets") for name in sets}
    for name, own in keys.items():
        if name not in found:
            raise UserError(f"data.keys names {name}, which is none of data.sets.{nearest(str(name), found)}")
        if not isinstance(own, Mapping):
            raise UserError(f"data.keys.{name}={own} holds no keys. Write data.keys={{{name}: {{key: value}}}}.")
        found[name] |= own
    return found


def _section(name: str, key: str, *words: str) -> dict[str, Any]:
    """That of the data set of a name, which `key` asks for."""
    try:
        section = _plain(
            hydra.compose("config", [f"data={quoted(name)}", *words]).data
        )  # quoted, a number is a name too
    except MissingConfigException as error:
        raise UserError(f"{key}={name}: there is no such data.{nearest(name, error.options or [])}") from error
    if takes(section, "data", "sources"):
        raise UserError(f"{key}={name}, which itself names data sets. Name one of those.")
    return section


def _plain(config: DictConfig) -> dict[str, Any]:
    """The config as plain dicts, with every reference between keys resolved."""
    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
