"""The data sets of a run: the one that is trained on, and the one that is tested on."""

from __future__ import annotations

import re
from typing import Any

import torch

from metarun.construct import check, construct, shown, takes
from metarun.engine.room import Room
from metarun.errors import UserError
from metarun.interface import fulfilled
from metarun.settings import Job
from metarun.types import Data, Source

KEY = re.compile(r"(?<![\w./])data\.(\w+)(?=[=.\s])")


def loaded(job: Job, device: torch.device) -> tuple[Data, Data]:
    """The data set that is trained on, and the one that is tested on."""
    _check_test_data(job)
    data = _of_section(job.sections["data"], "data", device, **_sources(job))
    if job.test_data is None:
        return data, data
    other = _tested_on(job, data.shape, device)
    if other.shape != data.shape:
        raise UserError(
            f"test.data={job.test.data} has inputs of shape {list(other.shape)}, the training data "
            f"{list(data.shape)}: a meta-test across data sets needs the same."
        )
    if data.fingerprint == other.fingerprint:
        _refuse_known(job, data, other)
    return data, other


def _refuse_known(job: Job, data: Data, other: Data) -> None:
    """Two splits of the same images: what is a test class of one may be a training class of the other."""
    trained = {name for split in ("train", "val") for name in data.classes.get(split, ())}
    tested = other.classes.get("test", ())
    if known := sum(name in trained for name in tested):
        raise UserError(
            f"test.data={job.test.data}: {known} of its {len(tested)} test classes are training or validation classes "
            f"of data={job.choices['data']}, whose images are the same. Split both alike, name another test.root, or "
            "leave test.data out."
        )


def _check_test_data(job: Job) -> None:
    """Refuses keys of another data set for the meta-test, before any is loaded."""
    if job.test_data is not None:
        check({**job.test_data, **(job.test.keys or {})}, "test.keys")
        return
    for key, value in (("root", job.test.root), ("keys", job.test.keys)):
        if value is not None:
            raise UserError(
                f"test.{key}={shown(value)} is about the data set that test.data names. Name it, as test.data=folder."
            )


def _tested_on(job: Job, shape: tuple[int, ...], device: torch.device) -> Data:
    """Another data set for the meta-test, with its own keys where they were typed. Else its images are made the size
    and colour of the run's, and all that it has is for tasks of the test."""
    assert job.test_data is not None
    test = job.test
    fitting: dict[str, Any] = {"ways": test.ways, "shots": test.shots, "queries": test.queries, "splits": ["test"]}
    if len(shape) == 3:
        fitting |= {"size": shape[1], "colour": shape[0] == 3}
    own = {key: value for key, value in fitting.items() if key in job.test_data}
    try:
        return _of_section({**job.test_data, **own, **(test.keys or {})}, "test.keys", device)
    except UserError as error:
        raise UserError(KEY.sub(_as_typed, str(error))) from error


def _as_typed(found: re.Match[str]) -> str:
    """A key of `data` in an error, as the same key of the meta-test's data set is typed."""
    return f"test.{found[1]}" if found[1] in ("root", "ways", "shots", "queries") else f"test.keys.{found[1]}"


def _sources(job: Job) -> dict[str, Any]:
    """The data sets that the chosen one names, where it takes them."""
    if not takes(job.sections["data"], "data", "sources"):
        return {}
    prefixed = {name: (section, f"data.keys.{name}") for name, section in job.sources.items()}
    return {"sources": {name: fulfilled(construct(*own), Source, own[1]) for name, own in prefixed.items()}}


def _of_section(section: Any, prefix: str, device: torch.device, **given: Any) -> Data:
    source = fulfilled(construct(section, prefix, **given), Source, prefix)
    with Room(prefix, f"Lower what sets its size: metarun --cfg job shows the keys of {prefix}"):
        return fulfilled(source.load(device), Data, prefix)
