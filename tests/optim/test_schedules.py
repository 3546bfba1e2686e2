from __future__ import annotations

import pytest

from metarun.optim import schedules


def test_constant_is_one() -> None:
    assert [schedules.constant(step, 10) for step in (0, 5, 9)] == [1, 1, 1]


def test_linear_goes_straight_from_one_to_final() -> None:
    assert [schedules.linear(step, 4, 0.0) for step in range(5)] == [1, 0.75, 0.5, 0.25, 0]
    assert schedules.linear(2, 4, 0.2) == pytest.approx(0.6)


def test_cosine_is_half_a_cosine() -> None:
    """1, ½(1 + cos 45°) = 0.853553, ½, ½(1 − cos 45°) = 0.146447, 0; stretched between 1 and final."""
    values = [1, 0.853553, 0.5, 0.146447, 0]
    assert [schedules.cosine(step, 4, 0.0, 0) for step in range(5)] == pytest.approx(values, abs=1e-6)
    stretched = [0.1 + 0.9 * v for v in values]
    assert [schedules.cosine(step, 4, 0.1, 0) for step in range(5)] == pytest.approx(stretched, abs=1e-6)


def test_cosine_rises_during_warmup_and_starts_its_fall_from_one() -> None:
    assert [schedules.cosine(step, 8, 0.0, 4) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert schedules.cosine(6, 8, 0.0, 4) == pytest.approx(0.5)


def test_a_warmup_of_all_steps_never_falls() -> None:
    assert schedules.cosine(3, 4, 0.0, 4) == 1


def test_step_multiplies_after_each_every() -> None:
    assert [schedules.step(s, 10, every=3, factor=0.5) for s in range(8)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
