from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedscale.data import Dataset, Population, from_arrays, from_frame, from_items, from_parquet, open_folder, save_folder
from fedscale.errors import DataError

pandas = pytest.importorskip("pandas")


def rows(at: int, count: int = 3) -> Dataset:
    """A client's rows, which say whose they are."""
    return from_arrays(np.full((count, 2), at + 0.5), np.arange(count) % 2, columns=("a", "b"))


class Maker:
    """Makes clients and notes for whom."""

    def __init__(self, make: Callable[[int], object] = rows) -> None:
        self.make, self.made = make, list[int]()

    def __call__(self, at: int) -> Dataset:
        self.made.append(at)
        return self.make(at)  # type: ignore[return-value]


def same(one: Dataset, other: Dataset) -> bool:
    return one.digest == other.digest


# ------------------------------------------------------------------------------------------------------- made when asked for


def test_a_hundred_thousand_clients_cost_nothing_until_somebody_asks() -> None:
    make = Maker()
    crowd = Population.lazy(100_000, make)
    assert (len(crowd), crowd.names[-1], "client-99999" in crowd, "client-100000" in crowd) == (100_000, "client-99999", True, False)
    assert repr(crowd) == "Population(100000 clients, made when asked for)"
    assert make.made == []
    assert same(crowd["client-41234"], rows(41234))
    assert make.made == [41234]


def test_the_last_few_clients_are_kept() -> None:
    make = Maker()
    crowd = Population.lazy(10, make, keep=2)
    for at in (1, 2, 1, 3, 2):
        crowd[f"client-{at:04d}"]
    assert make.made == [1, 2, 3, 2]
    assert crowd["client-0002"] is crowd["client-0002"]


def test_clients_may_have_names_of_their_own() -> None:
    crowd = Population.lazy(["zoe", "ada"], rows, rows=[3, 3])
    assert list(crowd) == list(crowd.names) == ["zoe", "ada"]
    assert same(crowd["ada"], rows(1))
    assert repr(crowd) == "Population(2 clients, 6 rows)"


@pytest.mark.parametrize("name", ["client-0009", "ada", "client-1"])
def test_nobody_is_made_up(name: str) -> None:
    with pytest.raises(KeyError):
        Population.lazy(9, rows)[name]


def test_sizes_are_known_where_they_are_told_or_held() -> None:
    assert Population.lazy(3, rows).sizes is None
    told = Population.lazy(3, rows, rows=7).sizes
    held = Population.of({"b": rows(0, 4), "a": rows(1, 2)}).sizes
    assert told is not None
    assert held is not None
    assert (told.tolist(), held.tolist()) == ([7, 7, 7], [4, 2])


@pytest.mark.parametrize(
    ("clients", "message"),
    [(0, "at least one client"), ([], "at least one client"), (["Ada"], r"'Ada' cannot be .*use 'ada'"), (["a", "a"], "two clients 'a'")],
)
def test_names_are_checked_at_once(clients: int | list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Population.lazy(clients, rows)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (lambda _: [1, 2], "'client-0001' is of type list"),
        (lambda at: rows(at).take([]), "'client-0001' has no rows"),
        (lambda at: from_arrays(np.zeros((2, 3)), [0, 1]), "'client-0001' has features of shape"),
    ],
)
def test_what_is_made_is_checked(odd: Callable[[int], object], message: str) -> None:
    crowd = Population.lazy(2, Maker(lambda at: rows(at) if at == 0 else odd(at)))
    assert len(crowd["client-0000"]) == 3
    with pytest.raises(DataError, match=message):
        crowd["client-0001"]


# -------------------------------------------------------------------------------------------------------------------- on disk


@pytest.mark.parametrize("told", [True, False])
def test_a_population_is_written_and_mapped(tmp_path: Path, told: bool) -> None:
    counts = [2, 5, 1, 3]
    made = Population.lazy(4, lambda at: rows(at, counts[at]), rows=counts if told else None)
    back = open_folder(save_folder(made, tmp_path / "crowd"))
    assert list(back.names) == list(made.names)
    assert back.sizes is not None
    assert back.sizes.tolist() == counts
    assert all(same(back[name], made[name]) for name in made)
    assert isinstance(back["client-0001"].x.base, np.memmap)
    back["client-0001"].x[:] = 0
    assert same(open_folder(tmp_path / "crowd")["client-0001"], made["client-0001"])


def test_names_of_their_own_survive_the_disk(tmp_path: Path) -> None:
    given = Population.of({"zoe": rows(1), "ada": rows(2, 4)})
    back = open_folder(save_folder(given, tmp_path))
    assert list(back) == ["zoe", "ada"]
    assert same(back["ada"], given["ada"])


def test_clients_may_lie_in_files_of_their_own(tmp_path: Path) -> None:
    for at, name in enumerate(("ben", "ada")):
        np.savez(tmp_path / f"{name}.npz", x=rows(at).x, y=rows(at).y, groups=np.arange(3))
    back = open_folder(tmp_path)
    assert list(back) == ["ada", "ben"]
    assert back["ben"].groups is not None
    assert back["ben"].x.tolist() == rows(0).x.tolist()


def test_labels_of_another_kind_are_not_written(tmp_path: Path) -> None:
    mixed = Population.lazy(2, lambda at: from_arrays(np.zeros((2, 1)), [0, 1] if at else [0.5, 1]))
    with pytest.raises(DataError, match="client 'client-0001'"):
        save_folder(mixed, tmp_path)


@pytest.mark.parametrize("name", ["x.npy", "ends.npy", "population.json"])
@pytest.mark.parametrize("damage", [b"", b"{}", None])
def test_a_damaged_population_is_named(tmp_path: Path, name: str, damage: bytes | None) -> None:
    save_folder(Population.lazy(2, rows), tmp_path)
    (tmp_path / name).unlink() if damage is None else (tmp_path / name).write_bytes(damage)
    with pytest.raises(DataError) as caught:
        open_folder(tmp_path)
    assert str(tmp_path) in caught.value.where


def test_files_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    save_folder(Population.lazy(2, rows), tmp_path)
    np.save(tmp_path / "ends.npy", np.array([3, 5]))
    with pytest.raises(DataError, match="damaged"):
        open_folder(tmp_path)


def test_a_clients_file_without_labels_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "ada.npz", x=np.zeros((2, 1)))
    (tmp_path / "ben.npz").write_bytes(b"no archive")
    for name in ("ada", "ben"):
        with pytest.raises(DataError, match=f"{name}.npz"):
            open_folder(tmp_path)[name]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        save_folder(Population.lazy(2, rows), tmp_path / "file" / "crowd")


# ------------------------------------------------------------------------------------------------------------------- adapters

FRAME = {"age": [50.0, 61.0, None], "sick": [0, 1, 1], "sex": [1, 0, 1], "ward": ["a", "b", "b"], "note": ["x", "y", "z"]}


def frame(**changes: object) -> object:
    return pandas.DataFrame(FRAME | changes)


def test_a_frame_is_a_dataset() -> None:
    found = from_frame(frame(), "sick", ["sex", "age"], group="ward", missing_policy="drop")
    assert (found.columns, found.x.tolist(), found.y.tolist()) == (("sex", "age"), [[1, 50], [0, 61]], [0, 1])
    assert found.groups is not None
    assert found.groups.tolist() == ["a", "b"]
    assert from_frame(frame(age=[1, 2, 3]).drop(columns=["note", "ward"]), "sick").columns == ("age", "sex")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label": "sik"}, "no column 'sik'.*'sick'"),
        ({"label": "sick", "columns": ["agee"]}, "no column 'agee'"),
        ({"label": "sick", "columns": ["note"]}, "values of column 'note' are not numbers"),
        ({"label": "sick", "columns": ["age"]}, "column 'age' has missing values"),
        ({"label": "sick", "columns": ["sex"], "missing_policy": "guess"}, "no policy 'guess'"),
        ({"label": "sick", "columns": ["sex"], "group": "wards"}, "no column 'wards'"),
    ],
)
def test_a_frame_that_does_not_serve(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        from_frame(frame(), **arguments)  # type: ignore[arg-type]
    assert "50" not in str(caught.value)


def test_parquet_is_read_by_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pandas, "read_parquet", lambda path: frame() if path == "rows.parquet" else None)
    assert len(from_parquet("rows.parquet", "sick", ["sex"])) == 3


@pytest.mark.parametrize(("error", "message"), [(ImportError("no engine"), "need pandas and pyarrow"), (OSError("gone"), "cannot be read")])
def test_parquet_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(pandas, "read_parquet", fail)
    with pytest.raises(DataError, match=message):
        from_parquet("rows.parquet", "sick")


@pytest.mark.requires("torch")
def test_torch_datasets_are_datasets() -> None:
    torch = pytest.importorskip("torch")
    items = torch.utils.data.TensorDataset(torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 1]))
    found = from_items(items)
    assert (found.x.tolist(), found.y.tolist(), found.y.dtype.name) == ([[0, 1], [2, 3], [4, 5]], [0, 1, 1], "int64")


@pytest.mark.parametrize(
    ("items", "message"),
    [(iter([1]), "no sequence of pairs"), ([], "no rows"), ([1, 2], "not pairs"), ([([1], 0), ([1, 2], 1)], "not pairs .* one shape")],
)
def test_items_that_are_no_rows(items: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_items(items)
