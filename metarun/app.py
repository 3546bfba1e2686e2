"""The command line: Hydra's entry, the verbs, and what a mistake is answered with."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from metarun import command_line, mistakes, page

if TYPE_CHECKING:
    from metarun.run import Order

HERE = Path(__file__).parent
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"

OmegaConf.register_new_resolver("metarun.label", command_line.label, replace=True)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(config: DictConfig) -> None:
    """One job: a run, alone or in a sweep."""
    from metarun.run import run  # torch takes a second to import; --help must not wait for it

    try:
        run(_order(config))
    except Exception as error:
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            sys.exit(mistakes.tell(error, CONF))
        mistakes.tell(error, CONF, f"job {HydraConfig.get().job.num} failed: ")
        raise


def main() -> None:
    """metarun ..."""
    arguments = sys.argv[1:]
    if arguments in (["--help"], ["-h"], ["help"]):
        print(page.help_page(CONF))
        return
    if arguments[:1] == ["report"]:
        from metarun.report.command import report

        sys.exit(report(arguments[1:]))
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors arrive here whole, to be told in one line
    sys.path.append(os.getcwd())  # a user's own algorithm or network beside their ./conf
    try:
        sys.argv[1:] = command_line.rewritten(arguments, CONF)
        job()
    except KeyboardInterrupt as stopped:
        sys.exit(mistakes.tell_stopped(stopped))
    except Exception as error:
        sys.exit(mistakes.tell(error, CONF))


def _order(config: DictConfig) -> Order:
    from metarun.run import Order

    runtime = HydraConfig.get().runtime
    folder = Path(runtime.output_dir)
    return Order(
        config=_plain(config),
        choices={group: str(choice) for group, choice in runtime.choices.items()},
        test_data=_test_data(config),
        folder=folder,
        label=command_line.label(",".join(command_line.added(HydraConfig.get().overrides.task, folder))) or "test",
    )


def _test_data(config: DictConfig) -> dict[str, Any] | None:
    """The section of the data set that `test.data` names."""
    if config.test.data is None:
        return None
    overrides = [f"data={config.test.data}"]
    if config.test.root is not None:
        overrides.append(f"data.root='{config.test.root}'")
    return _plain(hydra.compose("config", overrides).data)


def _plain(config: DictConfig) -> dict[str, Any]:
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
