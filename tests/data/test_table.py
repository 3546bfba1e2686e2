"""Small files with known content: what becomes of their columns, their rows and their mistakes."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from metarun.data.draw.table import TableData
from metarun.errors import UserError
from metarun.types import Head

CPU = torch.device("cpu")
Load = Callable[..., TableData]
HOUSES = 50


def houses() -> dict[str, list[Any]]:
    """Row m: area m, a city of three, a customer of ten, a kind of two, a price of 3m + 7."""
    m = range(HOUSES)
    return {
        "area": [float(i) for i in m],
        "city": [("Lima", "Oslo", "Rome")[i % 3] for i in m],
        "customer": [f"c{i // 5}" for i in m],
        "kind": [("flat", "villa")[i % 2] for i in m],
        "price": [3.0 * i + 7 for i in m],
    }


def write(path: Path, content: dict[str, list[Any]], **changes: list[Any]) -> Path:
    frame = pl.DataFrame({**content, **changes}, strict=False)
    frame.write_parquet(path) if path.suffix == ".parquet" else frame.write_csv(path)
    return path


@pytest.fixture
def load(configured: Callable[..., Any]) -> Load:
    def loaded(root: Any, *targets: str, **keys: Any) -> TableData:
        places = [str(one) for one in root] if isinstance(root, list) else str(root)
        return configured("table", root=places, targets=list(targets), **keys).load(CPU)

    return loaded


def everything(data: TableData, head: str) -> torch.Tensor:
    """All rows' targets of a head, in the order of the file."""
    rows = data.splits.values()
    place = torch.cat([one.image for one in rows])
    return torch.cat([one.targets[head] for one in rows])[place.argsort()]


def refused(load: Load, root: Any, *targets: str, **keys: Any) -> str:
    with pytest.raises(UserError) as error:
        load(root, *targets, **keys)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["houses.csv", "houses.parquet"])
def test_words_are_classes_and_numbers_values_with_mean_0_and_variance_1_in_training(
    load: Load, tmp_path: Path, name: str
) -> None:
    data = load(write(tmp_path / name, houses()), "kind", "price")
    assert data.splits["test"].heads == {"kind": Head("class", 2), "price": Head("value", 1)}
    assert everything(data, "kind").tolist() == [i % 2 for i in range(HOUSES)]  # flat, villa
    price = data.splits["train"].targets["price"].double()
    assert float(price.mean()) == pytest.approx(0, abs=1e-6)
    assert float(price.square().mean()) == pytest.approx(1, abs=1e-6)
    assert everything(data, "price")[:, 0].diff().std() < 1e-6  # price goes up evenly
    assert (data.metric, data.offers) == ("kind/accuracy", ("episodes", "rows"))


def test_the_scale_of_a_value_is_told_so_that_predictions_have_a_unit(load: Load, tmp_path: Path) -> None:
    data = load(write(tmp_path / "houses.csv", houses()), "price")
    price = torch.tensor(houses()["price"])[data.splits["train"].image].double()
    assert data.protocol["values"] == f"(price - {price.mean():.6g}) / {price.std(correction=0):.6g}"
    assert data.metric == "mse"


def test_inputs_are_numbers_scaled_by_training_and_one_place_for_every_word(load: Load, tmp_path: Path) -> None:
    data = load(write(tmp_path / "houses.csv", houses()), "price", inputs=["area", "city"])
    assert data.shape == (4,) and data.images.dtype == torch.float32
    area = torch.arange(float(HOUSES), dtype=torch.float64)
    seen = area[data.splits["train"].image]
    expected = ((area - seen.mean()) / seen.std(correction=0)).float()
    torch.testing.assert_close(data.images[:, 0], expected)
    assert data.images[:, 1:].equal(torch.eye(3)[torch.arange(HOUSES) % 3])


def test_all_other_columns_are_inputs_but_the_group(load: Load, tmp_path: Path) -> None:
    path = write(tmp_path / "houses.csv", houses())
    assert load(path, "price").shape == (1 + 3 + 10 + 2,)  # area, city, customer, kind
    assert load(path, "price", group="customer").shape == (1 + 3 + 2,)


def test_what_validates_and_tests_has_no_part_in_any_scale(load: Load, tmp_path: Path) -> None:
    """Values of other rows are changed: inputs and targets of those that train stay as they are."""
    before = load(write(tmp_path / "houses.csv", houses()), "price", inputs=["area"])
    train = set(before.splits["train"].image.tolist())
    area = [a if i in train else 1e6 for i, a in enumerate(houses()["area"])]
    price = [p if i in train else -1e6 for i, p in enumerate(houses()["price"])]
    after = load(write(tmp_path / "houses.csv", houses(), area=area, price=price), "price", inputs=["area"])
    rows = before.splits["train"].image
    assert after.images[rows].equal(before.images[rows])
    assert after.splits["train"].targets["price"].equal(before.splits["train"].targets["price"])


def test_missing_targets_count_for_nothing_and_are_told(
    load: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kind = [None if i in (3, 4) else k for i, k in enumerate(houses()["kind"])]
    price = [None if i in (4, 8, 9) else p for i, p in enumerate(houses()["price"])]
    data = load(write(tmp_path / "houses.csv", houses(), kind=kind, price=price), "kind", "price")
    assert all(head.gaps for head in data.splits["train"].heads.values())
    assert sum(len(rows.image) for rows in data.splits.values()) == HOUSES - 1  # row 4 has no target at all
    kinds, prices = everything(data, "kind"), everything(data, "price")
    assert (kinds == -100).nonzero().flatten().tolist() == [3]
    assert prices.isnan().any(1).nonzero().flatten().tolist() == [7, 8]
    assert "2 missing values of kind count for nothing; 3 missing values of price count" in caplog.text


def test_missing_inputs_are_the_mean_and_no_word_and_are_told(
    load: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    area = [None if i == 7 else a for i, a in enumerate(houses()["area"])]
    city = [None if i == 9 else c for i, c in enumerate(houses()["city"])]
    data = load(write(tmp_path / "houses.csv", houses(), area=area, city=city), "price", inputs=["area", "city"])
    assert float(data.images[7, 0]) == 0 and data.images[9, 1:].tolist() == [0, 0, 0]
    assert "1 missing values of area are its mean; 1 missing values of city are no word of it" in caplog.text


def test_a_word_that_training_has_not_is_no_place(load: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = load(write(tmp_path / "houses.csv", houses()), "price", inputs=["area", "city"])
    row = int(plain.splits["test"].image[0])
    city = ["Bern" if i == row else c for i, c in enumerate(houses()["city"])]
    data = load(write(tmp_path / "houses.csv", houses(), city=city), "price", inputs=["area", "city"])
    assert data.shape == plain.shape and data.images[row, 1:].tolist() == [0, 0, 0]
    assert "1 rows have a city that training has not" in caplog.text


def test_columns_that_tell_nothing_are_left_out_and_told(
    load: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "houses.csv", houses(), id=[f"n{i}" for i in range(HOUSES)], era=[1] * HOUSES)
    assert load(path, "price").shape == load(write(tmp_path / "plain.csv", houses()), "price").shape
    assert "id is left out: it has 30 different words in 30 rows that train" in caplog.text
    assert "era is left out: it is the same in every row that trains" in caplog.text
    assert "data.inputs: the column id has 30 different words" in refused(load, path, "price", inputs=["area", "id"])


def test_numbers_are_classes_and_categories_where_that_is_said(
    load: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "houses.csv", houses(), rooms=[i % 4 for i in range(HOUSES)])
    assert load(path, "rooms").splits["test"].heads == {"rooms": Head("value", 1)}
    assert "rooms is a value; if its few whole numbers are classes, say data.classes=[rooms]" in caplog.text
    data = load(path, "rooms", classes=["rooms"])
    assert data.splits["test"].heads == {"rooms": Head("class", 4)}
    assert everything(data, "rooms").tolist() == [i % 4 for i in range(HOUSES)]
    assert load(path, "price", inputs=["rooms"], classes=["rooms"]).shape == (4,)


def test_rows_are_dealt_by_shares_and_seed(load: Load, tmp_path: Path) -> None:
    path = write(tmp_path / "houses.csv", houses())
    data, again, other = load(path, "price"), load(path, "price"), load(path, "price", split_seed=1)
    sizes = {name: len(rows.image) for name, rows in data.splits.items()}
    assert sizes == {"train": 30, "val": 10, "test": 10} and "30/10/10 rows" in data.protocol["split"]
    assert sorted(torch.cat([rows.image for rows in data.splits.values()]).tolist()) == [*range(HOUSES)]
    assert data.splits["val"].image.equal(again.splits["val"].image) and data.fingerprint == again.fingerprint
    assert not data.splits["val"].image.equal(other.splits["val"].image) and data.fingerprint != other.fingerprint


def test_no_group_is_in_two_splits(load: Load, tmp_path: Path) -> None:
    data = load(write(tmp_path / "houses.csv", houses()), "price", group="customer")
    groups = [{i // 5 for i in rows.image.tolist()} for rows in data.splits.values()]
    assert [len(g) for g in groups] == [6, 2, 2] and len(set.union(*groups)) == 10
    assert data.protocol["split"] == "by customer (seed 0): 30/10/10 rows"


@pytest.mark.parametrize("changed", ["area", "price"])
def test_the_fingerprint_tells_inputs_and_targets(load: Load, tmp_path: Path, changed: str) -> None:
    before = load(write(tmp_path / "houses.csv", houses()), "price")
    values = houses()[changed]
    values[11] += 0.5
    assert (
        load(write(tmp_path / "houses.csv", houses(), **{changed: values}), "price").fingerprint != before.fingerprint
    )


def cars() -> dict[str, list[Any]]:
    m = range(40)
    return {
        "area": [2.0 * i for i in m],
        "age": [float(i) for i in m],
        "price": [100.0 - i for i in m],
        "rusty": [("no", "yes")[i // 20] for i in m],
    }


def test_each_file_is_a_task_with_rows_and_heads_of_its_own(load: Load, tmp_path: Path) -> None:
    paths = [write(tmp_path / "houses.csv", houses()), write(tmp_path / "cars.csv", cars())]
    data = load(paths, "kind", "price", "rusty", inputs=["area", "age"])
    heads = data.splits["train"].heads
    assert list(heads) == ["kind", "houses/price", "cars/price", "rusty"]
    assert all(head.gaps and not head.alone for head in heads.values())
    assert data.offers == ("episodes", "group", "rows") and data.splits["train"].parts == (30, 24)
    batch = data.tasks("group", 16)
    drawn = batch.gather(batch.draw(8, torch.Generator().manual_seed(0)))
    assert drawn.x.shape == (2, 16, 2)
    known = {name: (y >= 0 if heads[name].kind == "class" else ~y.isnan()[..., 0]) for name, y in drawn.y.items()}
    assert {name: k.all(1).tolist() for name, k in known.items()} == {
        "kind": [True, False],
        "houses/price": [True, False],
        "cars/price": [False, True],
        "rusty": [False, True],
    }
    assert all(k.all(1).equal(k.any(1)) for k in known.values())
    assert drawn.x[0, :, 1].eq(0).all()  # houses have no age


def test_heads_stand_alone_where_each_file_has_one_and_rows_are_not_mixed(load: Load, tmp_path: Path) -> None:
    data = load([write(tmp_path / "houses.csv", houses()), write(tmp_path / "cars.csv", cars())], "kind", "rusty")
    for by, alone in (("group", True), ("rows", False)):
        assert [head.alone for head in data.tasks(by, 8).heads.values()] == [alone, alone]


def test_a_folder_of_files_is_all_of_them(load: Load, tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.parquet", houses()), write(tmp_path / "b.csv", cars())]
    (tmp_path / "notes.txt").write_text("no table")
    (tmp_path / ".hidden.csv").write_text("x\n1\n")
    assert load(tmp_path, "price").fingerprint == load(paths, "price").fingerprint


def test_a_test_task_has_rows_of_one_file(load: Load, tmp_path: Path) -> None:
    paths = [write(tmp_path / "houses.csv", houses()), write(tmp_path / "cars.csv", cars())]
    drawn = load(paths, "kind", "rusty").episodes("test", 1, 0, 4)
    y = drawn.gather(drawn.draw(100, torch.Generator().manual_seed(0))).query.y
    assert (y["kind"] >= 0).all(1).tolist() == (y["rusty"] < 0).all(1).tolist() == [True, True, False, False]


def test_separators_blanks_marks_and_nameless_columns_of_a_csv(load: Load, tmp_path: Path) -> None:
    """As spreadsheets and pandas write them: a byte-order mark, semicolons, an index without a name."""
    lines = ["; area ;price"] + [f"{i}; {i} ;{'NA' if i == 3 else i * i}" for i in range(30)]
    (tmp_path / "x.csv").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    data = load(tmp_path / "x.csv", "price")
    assert data.shape == (1,) and sum(len(rows.image) for rows in data.splits.values()) == 29


def test_a_name_over_two_lines_is_one(load: Load, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('"living\narea",price\n' + "\n".join(f"{i},{i * i}" for i in range(30)))
    assert load(tmp_path / "x.csv", "price", inputs=["living area"]).shape == (1,)


@pytest.mark.parametrize(("kind", "shown"), [("when", "Datetime"), ("list", "List(Int64)")])
def test_what_is_no_number_and_no_text_is_refused(load: Load, tmp_path: Path, kind: str, shown: str) -> None:
    values = [datetime(2026, 1, 1) if kind == "when" else [1, 2]] * HOUSES
    path = write(tmp_path / "houses.parquet", houses(), more=values)
    assert f"the column more holds {shown}" in refused(load, path, "price")
    assert load(path, "price", inputs=["area"]).shape == (1,)


def test_truth_is_a_class_of_two(load: Load, tmp_path: Path) -> None:
    path = write(tmp_path / "houses.parquet", houses(), old=[i % 3 == 0 for i in range(HOUSES)])
    assert everything(load(path, "old"), "old").tolist() == [int(i % 3 == 0) for i in range(HOUSES)]


def test_text_in_a_numeric_column_is_named_with_its_row(load: Load, tmp_path: Path) -> None:
    path = write(tmp_path / "houses.csv", houses(), area=[*map(str, range(49)), "4o"])
    error = refused(load, path, "price")
    assert error.startswith(f"{path}: row 50 below the header has '4o' in the column area, whose other values are")
    assert refused(load, path, "area").startswith(f"{path}: row 50 ")
    assert load(path, "price", inputs=["customer"]).shape == (10,)  # nobody asked for it


def test_a_class_never_seen_in_training_is_named_with_its_rows(load: Load, tmp_path: Path) -> None:
    held_out = load(write(tmp_path / "houses.csv", houses()), "price").splits["val"].image[:2].tolist()
    kind = ["castle" if i in held_out else k for i, k in enumerate(houses()["kind"])]
    error = refused(load, write(tmp_path / "houses.csv", houses(), kind=kind), "kind")
    rows = ", ".join(f"row {i + 1}" for i in held_out)
    assert f"the class castle of kind is in no row that trains, but in 2 to validate or test ({rows})" in error


@pytest.mark.parametrize(
    ("keys", "changes", "message"),
    [
        ({"targets": []}, {}, "data.targets=[] names no column. There are: area, city,"),
        ({"targets": ["prise"]}, {}, "data.targets: there is no column prise. Did you mean price?"),
        ({"inputs": ["aera"]}, {}, "data.inputs: there is no column aera. Did you mean area?"),
        ({"inputs": ["price"]}, {}, "data.inputs and data.targets both name price"),
        ({"classes": ["kinds"]}, {}, "data.classes: there is no column kinds. Did you mean kind?"),
        ({"group": "custmer"}, {}, "data.group=custmer: no such column in "),
        ({"split": [0.5, 0.5]}, {}, "data.split=[0.5, 0.5] is no list of three shares"),
        ({"split": [0.98, 0.01, 0.01]}, {}, "data.split=[0.98, 0.01, 0.01] deals 49/1/0 rows of houses.csv to"),
        ({}, {"price": [None] * HOUSES}, "data.targets: price has no value in any row"),
        ({}, {"price": [5] * HOUSES}, "data.targets: price is 5 in every row that trains"),
        ({"targets": ["kind"]}, {"kind": ["flat"] * HOUSES}, "data.targets: kind is flat in every row that trains"),
        ({"inputs": ["area"]}, {"area": [1] * HOUSES}, "data.inputs: the column area is the same in every row"),
        ({"inputs": ["area"]}, {"area": [None] * HOUSES}, "data.inputs: the column area has no value in any row"),
        ({}, {"area": [math.inf, *range(49)]}, "/houses.csv: row 1 below the header has inf in the column area"),
    ],
)
def test_what_cannot_be_is_refused(
    load: Load, tmp_path: Path, keys: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    given = {"targets": ["price"], **keys}
    path = write(tmp_path / "houses.csv", houses(), **changes)
    assert message in refused(load, path, *given.pop("targets"), **given)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"", "x.csv is empty"),
        ("x.csv", b"a,b\n", "x.csv has column names and no rows"),
        ("x.csv", b"a,b,a\n1,2,3\n", "x.csv has a twice among its column names"),
        ("x.csv", b"a,b\n1,2\n3,4,5\n", "x.csv cannot be read as CSV (found more fields"),
        ("x.csv", b'a,b\n"1,2\n3,4\n', "x.csv cannot be read as CSV (could not parse"),
        ("x.csv", b"a,b\n\xff\xfe,2\n", "x.csv cannot be read as CSV (invalid utf-8"),
        ("x.parquet", b"a,b\n1,2\n", "x.parquet cannot be read as Parquet ("),
        ("x.csv", b"a\n" + b"\n".join(b"%d" % i for i in range(40)), "no column is left to predict from"),
    ],
)
def test_a_file_that_is_no_table_is_named(load: Load, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in refused(load, tmp_path / name, "a")


def test_files_that_are_not_there_are_named(load: Load, tmp_path: Path) -> None:
    assert f"data.root={tmp_path / 'no.csv'}: there is no such file" in refused(load, tmp_path / "no.csv", "a")
    assert f"data.root={tmp_path} holds no file that ends in .csv" in refused(load, tmp_path, "a")
    assert refused(load, [], "a").startswith("data.root=[] names no file")


def test_files_that_do_not_go_together_are_refused(load: Load, tmp_path: Path) -> None:
    first, second = write(tmp_path / "houses.csv", houses()), write(tmp_path / "cars.csv", cars())
    assert f"{second} has none of data.targets" in refused(load, [first, second], "kind")
    assert f"data.group=customer: no such column in {second}" in refused(
        load, [first, second], "price", group="customer"
    )
    write(second, cars(), area=["big", "small"] * 20)
    assert "the column area holds numbers in houses.csv and words in cars.csv" in refused(
        load, [first, second], "price"
    )
    assert "two files are called houses" in refused(load, [first, first], "price")


def test_without_polars_the_remedy_is_told(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "houses.csv", houses())
    monkeypatch.setitem(sys.modules, "polars", None)
    assert refused(load, path, "price").endswith("not installed. Type: pip install 'metarun[table]'")


@pytest.mark.parametrize("targets", ["[kind,price]", "price"])
def test_a_run_resumes_from_another_folder(
    metarun: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, targets: str
) -> None:
    write(tmp_path / "houses.csv", houses())
    write(tmp_path / "cars.csv", cars())
    words = ("algo=mtl", "data=table", "data.root=[houses.csv,cars.csv]", f"data.targets={targets}", "parallel=vmap")
    first = metarun(*words, "data.queries=4", "train.steps=2", "val.every=2", f"hydra.run.dir={tmp_path / 'run'}")
    assert first.code == 0, first.err
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = metarun(f"resume={tmp_path / 'run'}", "train.steps=3")
    assert again.code == 0, again.err
