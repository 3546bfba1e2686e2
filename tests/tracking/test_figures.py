"""Figures: real steps, percent, and every image of an episode in its place."""

from __future__ import annotations

import sys

import pytest
import torch

from metarun.tracking import figures


def by_step(metric: str, steps: list[int]) -> dict[str, object]:
    return {"by_step": [{"step": k, metric: {"mean": 0.5 + k / 100, "ci95": 0.01, "tasks": 9}} for k in steps]}


def test_the_curve_shows_percent_at_the_real_steps() -> None:
    axes = figures.adaptation_curve(by_step("accuracy", [0, 1, 5, 10])).axes[0]
    assert list(axes.get_xticks()) == [0, 1, 5, 10]
    assert list(axes.lines[0].get_ydata()) == pytest.approx([50, 51, 55, 60])
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((49, 61))
    assert "%" in axes.get_ylabel()


def test_regression_shows_squared_error() -> None:
    axes = figures.adaptation_curve(by_step("mse", [0, 1])).axes[0]
    assert list(axes.lines[0].get_ydata()) == pytest.approx([0.5, 0.51])
    assert "squared error" in axes.get_ylabel()


def test_null_in_a_file_is_a_gap_in_the_curve() -> None:
    test = by_step("accuracy", [0, 1])
    test["by_step"][1]["accuracy"] = {"mean": None, "ci95": None, "tasks": 9}
    assert torch.tensor(figures.adaptation_curve(test).axes[0].lines[0].get_ydata()).isnan().tolist() == [False, True]


def test_heads_have_a_curve_each_in_the_panel_of_their_metric() -> None:
    right, error = {"accuracy": {"mean": 0.5, "ci95": 0.1}}, {"mse": {"mean": 0.2, "ci95": 0.1}}
    heads = {"heads": {"left": right, "right": right, "ink": error}}
    accuracies, errors = figures.adaptation_curve({"by_step": [{"step": 0, **heads}]}).axes
    assert [text.get_text() for text in accuracies.get_legend().get_texts()] == ["left accuracy", "right accuracy"]
    assert (accuracies.get_ylabel(), errors.get_ylabel()) == ("test accuracy (%)", "test ink mean squared error")
    assert [list(line.get_ydata()) for line in accuracies.lines] == [[50], [50]]
    assert [list(line.get_ydata()) for line in errors.lines] == [[0.2]]


@pytest.mark.parametrize("count", [2, 12, 13, 50])
def test_pairs_of_heads_have_a_colour_each_and_a_number_where_there_is_room(count: int) -> None:
    heads = [f"head number {i} of a long name" for i in range(count)]
    cells = [[1.0 if a == b else -0.5 for a in range(count)] for b in range(count)]
    axes = figures.pairs(heads, cells, "cosine").axes[0]
    image = axes.images[0]
    assert image.get_array().tolist() == cells and image.get_clim() == (-1, 1)
    assert [text.get_text() for text in axes.get_yticklabels()] == [f"{head[:19]}…" for head in heads]
    assert [text.get_text() for text in axes.texts][:2] == (["1.00", "-0.50"] if count <= 12 else [])


def test_a_figure_needs_no_pyplot() -> None:
    sys.modules.pop("matplotlib.pyplot", None)
    figures.adaptation_curve(by_step("accuracy", [0]))
    assert "matplotlib.pyplot" not in sys.modules


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_of_an_episode_stands_in_the_row_of_its_way(channels: int) -> None:
    ways, shots, queries, size = 3, 2, 4, 64
    # the value of an image tells its way and its column
    values = torch.arange(ways)[None, :] * 0.3 + torch.arange(shots + queries)[:, None] * 0.01 + 0.01
    images = values.reshape(-1, 1, 1, 1).expand(-1, channels, size, size)
    picture = figures.episode_picture(images[: ways * shots], images[ways * shots :], ways)
    assert picture.shape[0] == channels
    middles = picture[0, size // 2 + 4 :: size + 8][:ways]
    for way, row in enumerate(middles):
        seen = [value for value in row.unique_consecutive().tolist() if value != figures.GREY]
        assert seen == pytest.approx([way * 0.3 + column * 0.01 + 0.01 for column in range(shots + queries)])


def test_of_many_images_the_first_ten_are_shown_on_each_side() -> None:
    few = figures.episode_picture(torch.zeros(30, 1, 8, 8), torch.ones(20, 1, 8, 8), ways=2)
    many = figures.episode_picture(torch.zeros(60, 1, 8, 8), torch.ones(200, 1, 8, 8), ways=2)
    assert few.equal(many)


def test_the_gap_lies_between_support_and_query() -> None:
    picture = figures.grid(torch.zeros(1, 4, 1, 64, 64), left=1)
    _, lengths = (picture[0, 32] == figures.GREY).int().unique_consecutive(return_counts=True)
    grey = lengths[::2].tolist()
    assert len(grey) == 5
    assert grey[1] == max(grey) > 2 * grey[2]


def test_bytes_and_normalised_floats_are_shown_between_black_and_white() -> None:
    assert figures.grid(torch.full((1, 1, 1, 8, 8), 255, dtype=torch.uint8)).max() == 1
    normalised = figures.grid(torch.randn(2, 2, 3, 8, 8))
    assert normalised.min() == 0 and normalised.max() == 1
    assert figures.grid(torch.rand(1, 1, 2, 8, 8)).shape[0] == 1
