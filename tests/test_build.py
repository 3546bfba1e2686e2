"""The parts of a run: what its validation and its meta-test have in common, which is nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metarun.build import build
from metarun.data.sinusoid import SinusoidSampler
from metarun.errors import UserError
from metarun.settings import Job

EQUAL = ("device=cpu", "val.seed=4", "test.seed=4", "val.tasks=50", "test.tasks=50")


@pytest.mark.parametrize("data", ["sinusoid", "folder"])
def test_validation_and_test_share_no_task_where_their_seeds_are_the_same(
    data: str, job: Callable[..., Job], write_images: Callable[..., Path], tmp_path: Path
) -> None:
    images = (
        (f"data.root={write_images(tmp_path / 'images')}", "data.size=8", "data.ways=2") if data == "folder" else ()
    )
    parts = build(job(f"data={data}", *images, *EQUAL))
    assert len(parts.val.tasks) == len(parts.test.tasks) == 50
    assert not set(parts.val.tasks) & set(parts.test.tasks)
    assert parts.val.fingerprint != parts.test.fingerprint
    assert not any(lots.equal(parts.test.draw[name]) for name, lots in parts.val.draw.items())


def test_a_seed_means_the_same_tasks_in_every_run_and_another_seed_others(job: Callable[..., Job]) -> None:
    one, same, other = (
        build(job("data=sinusoid", "device=cpu", f"seed={seed}", f"test.seed={test}")).test.fingerprint
        for seed, test in ((0, 2), (1, 2), (0, 3))
    )
    assert one == same != other


@pytest.mark.parametrize("tasks", [30, 50])
def test_a_data_set_that_deals_the_same_tasks_to_both_splits_is_refused(
    tasks: int, job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where there are more of one than of the other, so that their hashes differ."""
    true = SinusoidSampler.draw

    def careless(self: Any, count: int, _: torch.Generator) -> Any:
        return {name: lots[:count] for name, lots in true(self, 50, torch.Generator().manual_seed(0)).items()}

    monkeypatch.setattr(SinusoidSampler, "draw", careless)
    with pytest.raises(UserError) as error:
        build(job("data=sinusoid", *EQUAL, f"val.tasks={tasks}"))
    assert str(error.value) == (
        f"val.seed=4 and test.seed=4: {tasks} of the {tasks} validation tasks are test tasks too. "
        "Let data=sinusoid deal other tasks to val than to test."
    )


@pytest.mark.parametrize("split_seed", [0, 1])
def test_a_test_on_another_split_of_the_same_images_may_hold_no_class_that_was_trained_on(
    split_seed: int, job: Callable[..., Job], write_images: Callable[..., Path], tmp_path: Path
) -> None:
    made = job("data=folder", f"data.root={write_images(tmp_path / 'images')}", "data.size=8", "data.ways=2", *EQUAL)
    keys = {"splits": ["train", "val", "test"], "split_seed": split_seed}
    config = {**made.config, "test": {**made.config["test"], "data": "folder", "keys": keys}}
    alone, made = made, replace(made, config=config, test_data=made.config["data"])
    if split_seed == 0:  # the same split
        assert build(made).test.fingerprint == build(alone).test.fingerprint
        return
    with pytest.raises(UserError) as error:
        build(made)
    assert str(error.value).endswith(
        "of its 3 test classes are training or validation classes of data=folder, whose images are the same. "
        "Split both alike, name another test.root, or leave test.data out."
    )
