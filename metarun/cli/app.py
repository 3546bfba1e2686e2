"""The command line: Hydra's entry, the verbs, and what a mistake is answered with."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import metarun
from metarun import settings
from metarun.cli import help as page
from metarun.cli import mistakes
from metarun.cli import overrides as command_line
from metarun.construct import nearest
from metarun.engine.ranks import Team, join
from metarun.errors import UserError

if TYPE_CHECKING:
    from metarun.settings import Job

HERE = Path(metarun.__file__).parent
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"


@dataclass
class Tally:
    """How the one job or the jobs of a sweep went."""

    process: int = field(default_factory=os.getpid)
    sweep: bool = False
    jobs: int = 0
    failed: list[int] = field(default_factory=list)  # exit codes


def main() -> None:
    """metarun ..."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["report"]:
        from metarun.cli.report import report

        sys.exit(report(arguments[1:]))
    if {"--help", "-h"} & set(arguments) or arguments == ["help"]:
        with suppress(BrokenPipeError):  # metarun --help | head
            print(page.help_page(CONF, Path("conf")), flush=True)
            return
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what the interpreter flushes at its end
    elif "--version" in arguments:
        print(f"metarun {metarun.__version__}")
    else:
        sys.exit(_hydra(arguments))


def _hydra(arguments: list[str]) -> int:
    """Runs what was asked for, alone or as a sweep, and returns the exit code."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors arrive here whole, to be told in one line
    logging.raiseExceptions = False  # a full disk is told once, not at each line of run.log
    OmegaConf.register_new_resolver("metarun.label", command_line.label, replace=True)
    OmegaConf.register_new_resolver("metarun.sweep", command_line.sweep_name, replace=True)
    team = join()
    OmegaConf.register_new_resolver(
        "metarun.free", lambda f: team.broadcast(partial(free, f)), replace=True, use_cache=True
    )
    tally = Tally()
    try:
        sys.argv[1:] = team.broadcast(partial(_rewritten, arguments, team))
        if team.rank:
            sys.argv.append("hydra.output_subdir=null")
        sys.path += command_line.places_of_code(sys.argv[1:])
        _entry(tally, team)()
        team.leave()
    except KeyboardInterrupt as stopped:
        team.tell_once()
        return mistakes.tell_stopped(stopped, sweep=tally.sweep)
    except Exception as error:
        team.tell_once()
        return mistakes.tell(error, CONF)
    if tally.failed:
        print(f"metarun: {len(tally.failed)} of {tally.jobs} jobs failed.", file=sys.stderr)
    return min(tally.failed, default=0)  # a bug's, if there was one


def _rewritten(arguments: list[str], team: Team) -> list[str]:
    if team.size > 1 and {"-m", "--multirun"} & set(arguments):
        raise UserError("-m runs one job after the other, torchrun one job on many devices. Leave out one of them.")
    return command_line.rewritten(arguments, CONF)


def _entry(tally: Tally, team: Team) -> Callable[[], None]:
    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def job(config: DictConfig) -> None:
        """One job: a run, alone or in a sweep."""
        tally.sweep = sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        name = f"job {HydraConfig.get().job.num} ({HydraConfig.get().job.override_dirname})" if sweep else ""
        tally.jobs += 1
        try:
            from metarun.run import run  # torch takes a second to import; --help must not wait for it

            if sweep:
                print(f"{name}\n", flush=True)
            run(_order(config, team))
        except Exception as error:
            if not sweep:
                team.tell_once()
                sys.exit(mistakes.tell(error, CONF))
            tally.failed.append(mistakes.tell(error, CONF, f"{name} failed: "))
            if os.getpid() != tally.process:
                raise  # a launcher's worker: only Hydra can tell the process that waits

    return job


def free(folder: str) -> str:
    """The folder, or its first free namesake, taken here and now: two runs of one second get two directories."""
    for number in count(1):
        name = folder if number == 1 else f"{folder}-{number}"
        try:
            os.makedirs(name)
            return name
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(
                f"cannot make {name}: {error.strerror}. Change the directory, or name a folder with hydra.run.dir=DIR."
            ) from error
    raise AssertionError("there are always more numbers")


def _order(config: DictConfig, team: Team) -> Job:
    from metarun.settings import Job

    plain = _plain(config)
    settings.check_sections(plain)
    runtime = HydraConfig.get().runtime
    folder = Path(runtime.output_dir)
    return Job(
        config=plain,
        choices={group: str(choice) for group, choice in runtime.choices.items()},
        test_data=_test_data(config),
        folder=folder,
        label=command_line.typed_label(HydraConfig.get().overrides.task, folder),
        remember=partial(_remember, config, list(HydraConfig.get().overrides.task), folder / ".hydra"),
        team=team,
    )


def _remember(config: DictConfig, overrides: list[str], folder: Path) -> None:
    """What a resumed run goes on with; Hydra itself writes that of a fresh one."""
    OmegaConf.save(config, folder / "config.yaml")
    OmegaConf.save(OmegaConf.create(overrides), folder / "overrides.yaml")


def _test_data(config: DictConfig) -> dict[str, Any] | None:
    """The section of the data set that `test.data` names."""
    if config.test.data is None:
        return None
    overrides = [f"data={config.test.data}"]
    if config.test.root is not None:
        overrides.append(f"data.root={command_line.quoted(config.test.root)}")
    try:
        return _plain(hydra.compose("config", overrides).data)
    except MissingConfigException as error:
        near = nearest(str(config.test.data), error.options or [])
        raise UserError(f"test.data={config.test.data}: there is no such data.{near}") from error


def _plain(config: DictConfig) -> dict[str, Any]:
    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
