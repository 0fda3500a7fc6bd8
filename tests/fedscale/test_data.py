"""Datasets and populations: shapes and dtypes, splitting and joining, spreading, checking, and what is never shown."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedscale import identity, partition
from fedscale.data import MIN_ROWS, Dataset, Population, check, from_arrays
from fedscale.errors import ConfigError, DataError

relaxed = settings(deadline=None, max_examples=60)

KINDS: dict[str, dict[str, float | str]] = {"iid": {}, "dirichlet": {"alpha": 0.3}, "shards": {"per_client": 2}, "quantity": {"alpha": 0.5}}


def make(n: int = 60, classes: int = 3, *, columns: tuple[str, ...] = ("age", "dose"), groups: bool = True) -> Dataset:
    """A dataset whose first feature is the number of its row."""
    rows = np.arange(n)
    x = np.column_stack((rows, rows % 4)).astype(np.float32)
    return from_arrays(x, rows % classes, [f"patient {row // 2}" for row in rows] if groups else None, columns)


def rows_of(data: Dataset) -> list[int]:
    return [int(value) for value in data.x[:, 0]]


def same(first: Dataset, second: Dataset) -> bool:
    return first.digest == second.digest


# Building


def test_features_become_float32_and_whole_labels_int64() -> None:
    data = from_arrays([[1, 2], [3, 4]], [0.0, 1.0])
    assert data.x.dtype == np.float32
    assert data.y.dtype == np.int64
    assert (data.x.tolist(), data.y.tolist(), data.groups, data.columns) == ([[1, 2], [3, 4]], [0, 1], None, ())
    assert len(data) == 2


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 1, 8, 8), (0, 5)])
def test_features_have_any_shape_behind_the_rows(shape: tuple[int, ...]) -> None:
    data = from_arrays(np.ones(shape), np.zeros(shape[0]))
    assert data.x.shape == shape
    assert len(data) == shape[0]


def test_arrays_of_the_right_dtype_are_not_copied() -> None:
    x, y = np.ones((3, 2), np.float32), np.array([0, 1, 0])
    data = from_arrays(x, y)
    assert np.shares_memory(data.x, x)
    assert np.shares_memory(data.y, y)


@pytest.mark.requires("pandas")
def test_data_frames_are_read_as_they_are() -> None:
    import pandas as pd

    frame = pd.DataFrame({"age": [61, 47], "dose": [0.5, 1.0], "sick": [True, False], "ward": ["north", "south"]})
    data = from_arrays(frame[["age", "dose"]], frame["sick"], frame["ward"], list(frame.columns[:2]))
    assert (data.columns, data.y.tolist()) == (("age", "dose"), [1, 0])
    assert data.groups is not None
    assert data.groups.tolist() == ["north", "south"]
    with pytest.raises(DataError, match="the features are not numbers"):
        from_arrays(frame, frame["sick"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": [[1], [2]], "y": [0]}, r"features of shape \(2, 1\) and labels of shape \(1,\) \(there must be one label a row\)"),
        ({"x": [[1], [2]], "y": [[0], [1]]}, r"labels of shape \(2, 1\)"),
        ({"x": 3.0, "y": 1}, r"features of shape \(\) and labels of shape \(\)"),
        ({"x": [["SECRET"]], "y": [0]}, "the features are not numbers"),
        ({"x": [[1]], "y": ["SECRET"]}, "the labels are not numbers"),
        ({"x": [[1, 2], [3]], "y": [0, 1]}, "the features are not one array"),
        ({"x": [[1e39]], "y": [0]}, "the features hold a number that is too large"),
        ({"x": [[1]], "y": [1e39]}, "the labels hold a number that is too large"),
        ({"x": [[1]], "y": [0], "groups": ["a", "b"]}, "the groups do not fit"),
        ({"x": [[1]], "y": [0], "groups": [0.5]}, "the groups do not fit"),
        ({"x": [[1]], "y": [0], "groups": [None]}, "the groups do not fit"),
        ({"x": [[1]], "y": [0], "columns": ("a", "b")}, "2 names for features of shape"),
        ({"x": [[1, 2]], "y": [0], "columns": ("a", "a")}, "each feature needs one name of its own"),
        ({"x": [[[1]]], "y": [0], "columns": ("a",)}, "1 names for features of shape"),
        ({"x": [1], "y": [0], "columns": ("a",)}, "1 names for features of shape"),
    ],
)
def test_what_does_not_fit_is_refused_without_showing_it(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        from_arrays(**arguments)
    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.ones((2, 1)), np.zeros(2, np.int64)),
        (np.ones((2, 1), np.float32), np.zeros(2, np.int32)),
        (np.ones((2, 1), np.float32), np.zeros(2)),
        (np.ones((2, 1), ">f4"), np.zeros(2, np.int64)),
    ],
)
def test_a_dataset_holds_no_other_dtypes(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> None:
    with pytest.raises(DataError, match="features of dtype") as caught:
        Dataset(x, y)
    assert caught.value.hint == "build the dataset with from_arrays"


def test_whole_float32_labels_stay_what_they_are_when_asked_for() -> None:
    assert Dataset(np.ones((2, 1), np.float32), np.array([1, 2], np.float32)).y.dtype == np.float32


def test_a_dataset_is_frozen_and_compares_by_identity() -> None:
    data = make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.y = data.y  # type: ignore[misc]
    assert data == data  # noqa: PLR0124
    assert data != make()
    assert {data: "itself"}[data] == "itself"


def test_repr_shows_shapes_only() -> None:
    data = from_arrays(np.array([[12345, 6], [7, 8]]), [98765, 1], ["SECRET", "b"])
    assert repr(data) == "Dataset(2 rows, x [2] float32, y int64)"
    assert repr(Population.of({"a": data, "b": data})) == "Population(2 clients, 4 rows)"


# Digest


def test_the_digest_is_pinned() -> None:
    assert make(4).digest == "48ab0f343faf615adbf60fce1b2490739b3d08e499cd91866777c3bd72823c4f"


def test_the_digest_depends_on_everything_and_nothing_else() -> None:
    data = make()
    assert data.groups is not None
    x, y = data.x.copy(), data.y.copy()
    x[3, 1] += 1
    y[5] += 1
    others = [
        dataclasses.replace(data, x=x),
        dataclasses.replace(data, y=y),
        dataclasses.replace(data, y=data.y.astype(np.float32)),
        dataclasses.replace(data, groups=None),
        dataclasses.replace(data, groups=data.groups[::-1]),
        dataclasses.replace(data, columns=("dose", "age")),
        dataclasses.replace(data, columns=()),
        dataclasses.replace(data, x=data.x.reshape(-1, 1, 2), columns=()),
        data.take(range(59)),
    ]
    assert len({data.digest, *(other.digest for other in others)}) == len(others) + 1
    assert dataclasses.replace(data, x=np.asfortranarray(data.x), groups=data.groups.astype("U99")).digest == data.digest


def test_the_digest_of_a_view_is_that_of_its_copy() -> None:
    data = make()
    view = Dataset(data.x[::2], data.y[::2])
    assert same(view, Dataset(view.x.copy(), view.y.copy()))


def test_an_empty_dataset_has_a_digest() -> None:
    assert same(make().take([]), make().take(np.empty(0, np.int64)))


# Taking, splitting, joining


def test_take_keeps_order_repeats_and_groups() -> None:
    taken = make().take([7, 2, 7])
    assert rows_of(taken) == [7, 2, 7]
    assert taken.y.tolist() == [1, 2, 1]
    assert taken.groups is not None
    assert taken.groups.tolist() == ["patient 3", "patient 1", "patient 3"]
    assert taken.columns == ("age", "dose")


def test_take_copies() -> None:
    data = make()
    taken = data.take([0, 1])
    assert not np.shares_memory(taken.x, data.x)
    assert not np.shares_memory(taken.y, data.y)


@pytest.mark.parametrize("indices", [[60], [-1], [0.5], [True] * 60, [[0]], ["0"]])
def test_take_refuses_what_are_no_rows(indices: npt.ArrayLike) -> None:
    with pytest.raises(DataError, match="not row positions of a dataset of 60 rows"):
        make().take(indices)


@relaxed
@given(n=st.integers(0, 90), classes=st.integers(1, 4), holdout=st.floats(0, 0.99), seed=st.integers(0, 2**32))
def test_a_split_loses_nothing_and_keeps_some_for_training(n: int, classes: int, holdout: float, seed: int) -> None:
    data = make(n, classes, groups=False)
    train, held_out = data.split(holdout, seed)
    assert sorted(rows_of(train) + rows_of(held_out)) == list(range(n))
    assert len(train) > 0 or n == 0
    assert (len(held_out) > 0) == (n >= 2 and holdout > 0)
    again = data.split(holdout, seed)
    assert same(train, again[0])
    assert same(held_out, again[1])


def test_a_split_is_stratified_by_class() -> None:
    y = np.repeat([0, 1], [90, 10])
    _, held_out = from_arrays(np.ones((100, 1)), y).split(0.2, 4)
    assert np.bincount(held_out.y).tolist() == [18, 2]


def test_a_split_of_numbers_works_too() -> None:
    train, held_out = from_arrays(np.ones((40, 1)), np.linspace(0, 1, 40)).split(0.25, 4)
    assert (len(train), len(held_out)) == (30, 10)


def test_another_seed_splits_otherwise() -> None:
    assert not same(make().split(0.3, 0)[1], make().split(0.3, 1)[1])


@pytest.mark.parametrize("holdout", [-0.1, 1.0, float("nan")])
def test_a_holdout_that_is_no_fraction_is_refused(holdout: float) -> None:
    with pytest.raises(DataError, match="not a fraction"):
        make().split(holdout, 0)


def test_concat_undoes_a_partition() -> None:
    data = make()
    joined = Dataset.concat(list(data.partition("iid", 7, seed=3).values()))
    assert same(joined.take(np.argsort(joined.x[:, 0])), data)
    assert same(Dataset.concat([data]), data)


def test_concat_of_whole_and_other_labels_is_float32() -> None:
    joined = Dataset.concat([from_arrays([[1]], [3]), from_arrays([[2]], [0.5])])
    assert joined.y.dtype == np.float32
    assert joined.y.tolist() == [3.0, 0.5]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "no datasets to join"),
        ([make(), from_arrays(np.ones((2, 3)), [0, 1])], r"a dataset has features of shape \(3,\), the first one \(2,\)"),
        ([make(), make(columns=("dose", "age"))], "other columns than the first one, or another order"),
        ([make(), make(groups=False)], "groups differ in kind"),
        ([make(), from_arrays(np.ones((2, 2)), [0, 1], [4, 5], ("age", "dose"))], "groups differ in kind"),
    ],
)
def test_concat_refuses_datasets_of_another_layout(parts: list[Dataset], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Dataset.concat(parts)


# Spreading over clients


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clients", [2, 5, 12])
def test_a_partition_holds_every_row_once_and_is_decided_by_the_seed(kind: str, clients: int) -> None:
    data = make(120)
    population = data.partition(kind, clients, seed=8, **KINDS[kind])
    assert population.names == tuple(f"client-{at:04d}" for at in range(clients))
    assert sorted(row for part in population.values() for row in rows_of(part)) == list(range(120))
    assert all(len(part) > 0 for part in population.values())
    assert all(part.columns == data.columns and part.groups is not None for part in population.values())
    again = data.partition(kind, clients, seed=8, **KINDS[kind])
    assert all(same(population[name], again[name]) for name in population)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_is_zero_by_default_and_matters(kind: str) -> None:
    data = make(120)
    first, second = (data.partition(kind, 5, seed, **KINDS[kind]) for seed in (0, 1))
    by_default = data.partition(kind, 5, **KINDS[kind])  # type: ignore[arg-type]
    assert all(same(by_default[name], first[name]) for name in first)
    assert any(not same(first[name], second[name]) for name in first)


def test_shards_limit_the_labels_a_client_sees() -> None:
    population = make(120, 10).partition("shards", 10, per_client=2)
    assert max(np.unique(part.y).size for part in population.values()) <= 2


@pytest.mark.parametrize("column", ["dose", 1])
def test_a_column_gives_one_client_for_each_value(column: str | int) -> None:
    population = make().partition("column", column=column)
    assert population.names == ("0", "1", "2", "3")
    assert all(set(part.x[:, 1].tolist()) == {float(name)} for name, part in population.items())
    assert sum(len(part) for part in population.values()) == 60


def test_groups_give_clients_when_no_column_is_named() -> None:
    population = from_arrays(np.arange(5).reshape(5, 1), np.zeros(5), ["Zürich", "Bern", "Bern", "zurich", "Genève"]).partition("column")
    assert {name: rows_of(part) for name, part in population.items()} == {"bern": [1, 2], "geneve": [4], "zurich": [0], "zurich-2": [3]}


def test_the_number_of_clients_of_a_column_is_checked_when_given() -> None:
    assert len(make().partition("column", 4, column="dose")) == 4
    with pytest.raises(DataError, match="the column has 4 distinct values, not 5; leave clients out"):
        make().partition("column", 5, column="dose")


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        (make(), {"kind": "diricle", "clients": 3}, "there is no partition 'diricle'; use one of iid, dirichlet"),
        (make(), {"kind": "iid"}, "partition 'iid' needs the number of clients"),
        (make(), {"kind": "iid", "clients": 61}, "60 rows cannot be spread over 61 clients"),
        (make(), {"kind": "iid", "clients": 0}, "at least one client"),
        (make(), {"kind": "iid", "clients": 3, "seed": -1}, "the seed is negative"),
        (make(), {"kind": "iid", "clients": 3, "alpha": 1.0}, "takes no option 'alpha'"),
        (make(), {"kind": "dirichlet", "clients": 3}, "needs the option 'alpha'"),
        (make(), {"kind": "dirichlet", "clients": 3, "alpha": "0.5"}, "option 'alpha' is not a number"),
        (make(), {"kind": "shards", "clients": 3, "per_client": 1.5}, "not a whole number"),
        (make(), {"kind": "column", "column": "dosis"}, "there is no column 'dosis'; did you mean 'dose'"),
        (make(), {"kind": "column", "column": 2}, r"there is no such column \(positions go from 0 to 1\)"),
        (make(), {"kind": "column", "column": -1}, "there is no such column"),
        (make(), {"kind": "column", "column": 0.5}, "there is no such column"),
        (make(groups=False), {"kind": "column"}, "needs the option 'column' .the dataset has no groups either"),
        (from_arrays(np.ones((3, 2, 2)), [0, 1, 2]), {"kind": "column", "column": 0}, "have no columns"),
        (from_arrays([[np.nan]], [0]), {"kind": "column", "column": 0}, "missing values"),
        (from_arrays(np.ones((9, 1)), np.linspace(0, 1, 9)), {"kind": "dirichlet", "clients": 2, "alpha": 1.0}, "not classes"),
    ],
)
def test_a_partition_that_cannot_be_made_is_refused(data: Dataset, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        data.partition(**arguments)


# Populations


def test_a_population_is_an_ordered_mapping() -> None:
    north, south = make(4), make(6)
    population = Population.of({"north": north, "a-south": south})
    assert population.names == tuple(population) == ("north", "a-south")
    assert len(population) == 2
    assert population["a-south"] is south
    assert dict(population) == {"north": north, "a-south": south}
    assert "north" in population
    assert "west" not in population
    with pytest.raises(KeyError, match="west"):
        population["west"]


def test_a_population_cannot_be_changed() -> None:
    parts = {"north": make(4)}
    population = Population.of(parts)
    parts["south"] = make(6)
    assert population.names == ("north",)
    with pytest.raises(TypeError):
        population["south"] = make(6)  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        population._parts = {}  # type: ignore[misc]


def test_a_population_can_be_copied_to_another_process() -> None:
    population = make().partition("iid", 3)
    twin = copy.deepcopy(population)
    assert twin.names == population.names
    assert all(same(twin[name], population[name]) for name in population)


def test_clients_of_one_population_have_labels_of_one_dtype() -> None:
    whole, other = from_arrays([[1]], [3]), from_arrays([[2]], [0.5])
    population = Population.of({"whole": whole, "other": other})
    assert {part.y.dtype for part in population.values()} == {np.dtype(np.float32)}
    assert population["whole"].y.tolist() == [3.0]
    assert Population.of({"whole": whole})["whole"].y.dtype == np.int64


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "at least one client"),
        ({"north": make(4), "south": make(4).take([])}, "client 'south' has no rows"),
        ({"north": make(4), "south": make(4, columns=("dose", "age"))}, "client 'south' has other columns"),
        ({"north": make(4), "south": from_arrays(np.ones((4, 3)), np.ones(4))}, r"client 'south' has features of shape \(3,\)"),
        ({"Nord Spital": make(4)}, "'Nord Spital' cannot be a client's name; use 'nord-spital'"),
        ({"../north": make(4)}, "use 'north'"),
        ({"": make(4)}, "use 'site'"),
        ({"n" * 64: make(4)}, "cannot be a client's name"),
        ({"north\n": make(4)}, "cannot be a client's name"),
    ],
)
def test_a_population_that_does_not_hold_together_is_refused(parts: Mapping[str, Dataset], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Population.of(parts)


def test_the_rule_of_client_names_is_that_of_node_names() -> None:
    for name in ("a", "0", "a.b_c-d", "a" * 63, "a" * 64, "-a", ".a", "A", "a b", "", "a\n", "é"):
        try:
            allowed = bool(identity.valid_name(name))
        except ConfigError:
            allowed = False
        assert (partition.NAME.fullmatch(name) is not None) == allowed, name


# Checking


def fine() -> Dataset:
    return make(20)


def spoil(change: Callable[[Dataset], None]) -> Dataset:
    data = fine()
    change(data)
    return data


def test_nothing_is_said_of_sound_data() -> None:
    assert check(fine()) == []
    assert check(from_arrays(np.arange(20.0).reshape(20, 1), np.linspace(0, 1, 20))) == []
    assert check(from_arrays(np.random.Generator(np.random.Philox(0)).normal(size=(20, 1, 4, 4)), np.arange(20) % 2)) == []


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (make(MIN_ROWS - 1), "there are fewer than 10 rows"),
        (spoil(lambda data: data.x.__setitem__((3, 1), np.nan)), "the features hold NaN (column 'dose')"),
        (spoil(lambda data: data.x.__setitem__(3, np.nan)), "the features hold NaN (columns 'age', 'dose')"),
        (spoil(lambda data: data.x.__setitem__((3, 0), -np.inf)), "the features hold infinite numbers (column 'age')"),
        (spoil(lambda data: data.x.__setitem__((slice(None), 1), 0)), "the features hold one value only (column 'dose')"),
        (from_arrays(np.full((20, 2, 2), np.nan), np.arange(20) % 2), "the features hold NaN"),
        (from_arrays(np.full(20, np.inf), np.arange(20) % 2), "the features hold infinite numbers"),
        (from_arrays(np.arange(20), [np.nan, *np.linspace(0, 1, 19)]), "the labels hold NaN"),
        (from_arrays(np.arange(20), [np.inf, *np.linspace(0, 1, 19)]), "the labels hold infinite numbers"),
        (spoil(lambda data: data.y.__setitem__(slice(None), 2)), "every label is the same"),
        (from_arrays(np.arange(20), np.full(20, 0.5)), "every label is the same"),
        (from_arrays(np.arange(20), np.arange(20) % 2 * 2 - 1), "a class label is negative"),
    ],
)
def test_each_problem_is_found(data: Dataset, problem: str) -> None:
    assert check(data) == [problem]


def test_all_problems_are_listed_together() -> None:
    assert check(from_arrays([[np.nan, np.inf]], [-1], columns=("a", "b"))) == [
        "there are fewer than 10 rows",
        "the features hold NaN (column 'a')",
        "the features hold infinite numbers (column 'b')",
        "every label is the same",
        "a class label is negative",
    ]
    assert check(fine().take([])) == ["there are fewer than 10 rows"]


def test_numbers_that_are_no_classes_may_be_negative() -> None:
    assert check(from_arrays(np.arange(20), np.arange(20) - 10)) == []


def test_columns_without_names_may_be_constant() -> None:
    assert check(from_arrays(np.ones((20, 64)), np.arange(20) % 2)) == []


# The cost of the import


def test_importing_data_loads_numpy_and_the_standard_library_only() -> None:
    script = "import sys, fedscale.data; print(*sorted({name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name for name in done.stdout.split() if not name.startswith(("_", "editable"))}
    assert loaded - {"sitecustomize", "usercustomize"} == {"fedscale", "numpy"}


def test_a_split_never_parts_the_rows_of_one_patient() -> None:
    data = make(n=60)
    train, held = data.split(0.3, seed=4)
    assert train.groups is not None
    assert held.groups is not None
    assert not set(train.groups.tolist()) & set(held.groups.tolist())
    assert (len(train) + len(held), len(held)) == (60, 18)
