"""What a run is: its config and its data, which every checkpoint remembers and a resumed run is held against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from metarun.build import Parts
from metarun.errors import UserError, few, one_line
from metarun.settings import CHOSEN, Job
from metarun.types import Data, Heads

KEPT = ("algo", "balance", "data", "backbone", "sharing", "optim")  # choices that a run keeps for its life
SHOWN = 3  # class names in a message


def identity(job: Job, parts: Parts) -> dict[str, Any]:
    """All that a checkpoint needs to be understood without the folder that it lies in."""
    return {
        "config": {**job.config, "resume": None},  # the same in every session
        "choices": job.choices,
        "data": _contents(parts.data),
        "test_data": _contents(parts.test_data),
        "shape": list(parts.data.shape),
        "heads": _sizes(parts.tested(0).net.heads),
        "trained": _sizes(parts.sampler.heads),
    }


def _sizes(heads: Heads) -> dict[str, Any]:
    return {name: [head.kind, head.size] for name, head in heads.items()}


def _contents(data: Data) -> dict[str, Any]:
    return {
        "fingerprint": data.fingerprint,
        "classes": {split: list(names) for split, names in data.classes.items()},
    }


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"the checkpoint to resume does not tell what its run is ({one_line(error)}). Start the run anew."
        ) from error


@_readable()
def hold_choices(job: Job, saved: Any) -> None:
    """Refuses to go on with a run by another algorithm or network than it was begun with."""
    then = saved["choices"] if saved else job.choices  # an older version did not remember
    for group in KEPT:
        now = job.choices[group]
        before = then[group] if group in CHOSEN else then.get(group, str(None))  # an older version had fewer groups
        if now != before:
            raise UserError(
                f"{group}={now}: the run in {job.folder} was begun with {group}={before}. "
                "Leave it out, or start a new run."
            )


@_readable()
def hold_data(job: Job, parts: Parts, saved: Any) -> None:
    """Refuses to go on with a run, or to repeat its meta-test, on other data than it was begun with."""
    if not saved:
        return
    if not job.only_tests:
        _hold_data(job, "data", saved, _contents(parts.data))
    own = saved["config"]["test"]
    if (job.test.data, job.test.keys) == (own["data"], own.get("keys")):  # else it is tested on others on purpose
        _hold_data(job, "test_data", saved, _contents(parts.test_data))


def _hold_data(job: Job, key: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    then = saved[key]
    if then == now:
        return
    section = "data" if key == "data" or job.test.data is None else "test"
    before, here = (config[section].get("root") for config in (saved["config"], job.config))
    places = "" if here == before else f" They lay in {before}, and are read from {here} now."
    raise UserError(
        f"the data are not those that the run in {job.folder} was begun with: "
        f"{_difference(then['classes'], now['classes'])}.{places} Give back what was there, or start a new run."
    )


def _difference(then: Mapping[str, Sequence[str]], now: Mapping[str, Sequence[str]]) -> str:
    """In words, what classes came, went or changed their split."""
    was, are = ({name: split for split, names in c.items() for name in names} for c in (then, now))
    words = {
        "new classes": [name for name in are if name not in was],
        "classes are missing": [name for name in was if name not in are],
        "classes changed their split": [
            f"{name} from {was[name]} to {are[name]}" for name in was if name in are and was[name] != are[name]
        ],
    }
    told = [f"{len(names)} {what} ({few(names, SHOWN)})" for what, names in words.items() if names]
    return ", ".join(told) or "their content has changed"
