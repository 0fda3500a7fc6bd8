"""Every way to spread rows over clients: what always holds, what each kind promises, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedscale import partition
from fedscale.errors import DataError

relaxed = settings(deadline=None, max_examples=80)

Labels = npt.NDArray[np.int64]
Spread = Callable[[Labels, int, np.random.Generator], list[partition.Indices]]

SPREADS: dict[str, Spread] = {
    "iid": lambda labels, clients, rng: partition.iid(labels.size, clients, rng),
    "dirichlet-skewed": lambda labels, clients, rng: partition.dirichlet(labels, clients, 0.01, rng),
    "dirichlet-even": lambda labels, clients, rng: partition.dirichlet(labels, clients, 100.0, rng),
    "shards": lambda labels, clients, rng: partition.shards(labels, clients, 2, rng),
    "quantity-skewed": lambda labels, clients, rng: partition.quantity(labels.size, clients, 0.01, rng),
    "quantity-even": lambda labels, clients, rng: partition.quantity(labels.size, clients, 100.0, rng),
}


@st.composite
def problems(draw: st.DrawFn) -> tuple[Labels, int]:
    """Labels and a number of clients for which every kind, shards of two included, has a solution."""
    clients = draw(st.integers(2, 12))
    classes = draw(st.integers(1, 2 * clients))
    extra = draw(st.lists(st.integers(0, classes - 1), max_size=80))
    labels = [*range(classes), *extra, *([0] * max(0, 2 * clients - classes - len(extra)))]
    return np.array(draw(st.permutations(labels)), np.int64), clients


def balanced(classes: int, rows_each: int) -> Labels:
    return np.tile(np.arange(classes), rows_each)


def sizes(parts: Sequence[partition.Indices]) -> npt.NDArray[np.int64]:
    return np.array([part.size for part in parts])


def mean_share_of_top_class(parts: Sequence[partition.Indices], labels: Labels) -> float:
    return float(np.mean([np.bincount(labels[part]).max() / part.size for part in parts]))


def is_partition(parts: Sequence[partition.Indices], n: int, clients: int) -> bool:
    """Whether ascending, non-empty int64 parts hold every row exactly once."""
    whole = np.array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    sound = [part.dtype == np.int64 and part.size > 0 and bool(np.all(np.diff(part) > 0)) for part in parts]
    return len(parts) == clients and whole and all(sound)


# What holds for every kind


@pytest.mark.parametrize("kind", SPREADS)
@relaxed
@given(problem=problems(), seed=st.integers(0, 2**64))
def test_every_row_goes_to_exactly_one_client_and_none_is_empty(kind: str, problem: tuple[Labels, int], seed: int) -> None:
    labels, clients = problem
    assert is_partition(SPREADS[kind](labels, clients, partition.generator(seed)), labels.size, clients)


@pytest.mark.parametrize("kind", SPREADS)
@relaxed
@given(problem=problems(), seed=st.integers(0, 2**64))
def test_the_seed_decides_alone(kind: str, problem: tuple[Labels, int], seed: int) -> None:
    labels, clients = problem
    first, second = (SPREADS[kind](labels, clients, partition.generator(seed)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", SPREADS)
def test_another_seed_gives_other_parts(kind: str) -> None:
    labels = balanced(10, 30)
    first, second = (SPREADS[kind](labels, 6, partition.generator(seed)) for seed in (0, 1))
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", SPREADS)
def test_one_row_a_client_is_enough_and_fewer_are_refused(kind: str) -> None:
    two_each = np.arange(8, dtype=np.int64) // 2
    clients = 4 if kind == "shards" else 8
    assert is_partition(SPREADS[kind](two_each, clients, partition.generator(0)), 8, clients)
    with pytest.raises(DataError, match="8 rows cannot be spread over 9 clients"):
        SPREADS[kind](two_each, 9, partition.generator(0))


@pytest.mark.parametrize("kind", SPREADS)
@pytest.mark.parametrize("clients", [0, -1])
def test_no_clients_are_refused(kind: str, clients: int) -> None:
    with pytest.raises(DataError, match="at least one client"):
        SPREADS[kind](balanced(2, 5), clients, partition.generator(0))


@pytest.mark.parametrize("kind", SPREADS)
def test_one_client_gets_everything(kind: str) -> None:
    labels = balanced(2, 5)
    (only,) = SPREADS[kind](labels, 1, partition.generator(3))
    assert np.array_equal(only, np.arange(10))


@pytest.mark.parametrize("kind", ["dirichlet-even", "shards"])
def test_kinds_by_class_refuse_labels_that_are_no_classes(kind: str) -> None:
    with pytest.raises(DataError, match="not classes") as caught:
        SPREADS[kind](np.linspace(0, 1, 20, dtype=np.float32), 4, partition.generator(0))
    assert "'quantity'" in caught.value.hint


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf"), 1e7])
def test_an_alpha_out_of_range_is_refused(alpha: float) -> None:
    rng = partition.generator(0)
    with pytest.raises(DataError, match="alpha is out of range"):
        partition.dirichlet(balanced(2, 10), 4, alpha, rng)
    with pytest.raises(DataError, match="alpha is out of range"):
        partition.quantity(20, 4, alpha, rng)


@pytest.mark.parametrize("alpha", [1e-300, 1e-6, 1e6])
def test_an_extreme_alpha_still_gives_a_partition(alpha: float) -> None:
    labels = balanced(3, 40)
    assert is_partition(partition.dirichlet(labels, 50, alpha, partition.generator(1)), 120, 50)
    assert is_partition(partition.quantity(120, 50, alpha, partition.generator(1)), 120, 50)


# What each kind promises


@relaxed
@given(n=st.integers(1, 200), seed=st.integers(0, 1000), data=st.data())
def test_iid_parts_are_of_one_size(n: int, seed: int, data: st.DataObject) -> None:
    clients = data.draw(st.integers(1, n))
    found = sizes(partition.iid(n, clients, partition.generator(seed)))
    assert found.max() - found.min() <= 1


def test_iid_parts_are_shuffled() -> None:
    first = partition.iid(1000, 2, partition.generator(0))[0]
    assert 150 < np.count_nonzero(first < 500) < 350


def test_dirichlet_skew_grows_as_alpha_falls() -> None:
    labels = balanced(10, 200)
    skews = [mean_share_of_top_class(partition.dirichlet(labels, 20, alpha, partition.generator(5)), labels) for alpha in (100.0, 1.0, 0.1, 0.01)]
    assert skews == sorted(skews)
    assert skews[0] < 0.2
    assert skews[-1] > 0.7


def test_dirichlet_with_a_large_alpha_keeps_the_classes_even() -> None:
    labels = balanced(4, 500)
    for part in partition.dirichlet(labels, 5, 1e6, partition.generator(0)):
        assert np.abs(np.bincount(labels[part], minlength=4) - 100).max() <= 2
    assert sizes(partition.dirichlet(balanced(1, 10), 2, 1e6, partition.generator(0))).tolist() == [5, 5]


def test_dirichlet_picks_rows_of_a_class_at_random() -> None:
    labels = np.zeros(1000, np.int64)
    parts = partition.dirichlet(labels, 2, 1e6, partition.generator(0))
    assert 150 < np.count_nonzero(parts[0] < 500) < 350


def test_dirichlet_gives_clients_that_draw_nothing_one_row_of_the_largest() -> None:
    labels = np.zeros(300, np.int64)
    found = sizes(partition.dirichlet(labels, 100, 1e-6, partition.generator(0)))
    assert sorted(found.tolist())[:-1] == [1] * 99
    assert found.max() == 201


def test_an_empty_client_is_given_a_random_row_of_the_client_that_has_most() -> None:
    handed = set()
    for seed in range(20):
        parts = partition._fill_empty([np.array([0, 1]), np.array([], np.int64), np.arange(2, 10)], partition.generator(seed))
        assert is_partition(parts, 10, 3)
        assert parts[0].tolist() == [0, 1]
        handed.add(int(parts[1][0]))
    assert len(handed) > 3


def test_dirichlet_accepts_labels_of_any_value() -> None:
    labels = np.array([-7, 1_000_000_007] * 20, np.int64)
    assert is_partition(partition.dirichlet(labels, 4, 0.5, partition.generator(0)), 40, 4)


@relaxed
@given(problem=problems(), per_client=st.integers(1, 4), seed=st.integers(0, 1000))
def test_shards_give_at_most_so_many_labels_a_client(problem: tuple[Labels, int], per_client: int, seed: int) -> None:
    labels, clients = problem
    count = clients * per_client
    if not np.unique(labels).size <= count <= labels.size:
        with pytest.raises(DataError, match=f"cannot be cut into {count} shards"):
            partition.shards(labels, clients, per_client, partition.generator(seed))
        return
    parts = partition.shards(labels, clients, per_client, partition.generator(seed))
    assert is_partition(parts, labels.size, clients)
    assert max(np.unique(labels[part]).size for part in parts) <= per_client


def test_shards_are_even_where_the_labels_are() -> None:
    labels = balanced(10, 60)
    parts = partition.shards(labels, 30, 2, partition.generator(0))
    assert set(sizes(parts).tolist()) == {20}


def test_shards_of_a_common_label_are_no_larger_than_need_be() -> None:
    labels = np.repeat(np.arange(3), [80, 10, 10])
    parts = partition.shards(labels, 10, 1, partition.generator(0))
    assert sorted(sizes(parts).tolist()) == [10] * 10


def test_shards_are_dealt_out_at_random() -> None:
    labels = np.repeat(np.arange(10), 20)
    parts = partition.shards(labels, 10, 2, partition.generator(0))
    assert any(np.ptp(labels[part]) > 1 for part in parts)


@pytest.mark.parametrize("per_client", [0, -2])
def test_shards_need_one_a_client(per_client: int) -> None:
    with pytest.raises(DataError, match="at least one shard a client"):
        partition.shards(balanced(2, 10), 2, per_client, partition.generator(0))


def test_quantity_skew_grows_as_alpha_falls() -> None:
    spreads = [float(np.std(sizes(partition.quantity(2000, 20, alpha, partition.generator(2))))) for alpha in (1000.0, 10.0, 1.0, 0.1)]
    assert spreads == sorted(spreads)
    assert spreads[0] < 5
    assert spreads[-1] > 100


def test_quantity_leaves_the_labels_alone() -> None:
    labels = np.repeat([0, 1], 1000)
    large = [part for part in partition.quantity(2000, 10, 1.0, partition.generator(0)) if part.size > 200]
    assert large
    assert all(0.35 < labels[part].mean() < 0.65 for part in large)


@relaxed
@given(st.lists(st.one_of(st.integers(-5, 5), st.floats(-2, 2, width=16)), min_size=1, max_size=60))
def test_column_gives_one_client_for_each_value(values: list[float]) -> None:
    array = np.array(values, np.float32)
    parts = partition.column(array)
    assert is_partition(parts, array.size, np.unique(array).size)
    held = [np.unique(array[part]).tolist() for part in parts]
    assert all(len(distinct) == 1 for distinct in held)
    assert [distinct[0] for distinct in held] == np.unique(array).tolist()


def test_column_takes_text() -> None:
    parts = partition.column(np.array(["lyon", "bern", "lyon", "aachen"]))
    assert [part.tolist() for part in parts] == [[3], [1], [0, 2]]


def test_column_refuses_missing_values_and_no_rows() -> None:
    with pytest.raises(DataError, match="missing values"):
        partition.column(np.array([1.0, np.nan], np.float32))
    with pytest.raises(DataError, match="no rows"):
        partition.column(np.empty(0, np.float32))


# Train and held-out rows


@relaxed
@given(labels=st.lists(st.integers(0, 4), max_size=80), fraction=st.floats(0, 0.999), seed=st.integers(0, 2**64))
def test_a_holdout_is_a_partition_of_the_asked_size(labels: list[int], fraction: float, seed: int) -> None:
    n = len(labels)
    train, held = partition.holdout(np.array(labels, np.int64), fraction, seed)
    assert np.array_equal(np.sort(np.concatenate((train, held))), np.arange(n))
    assert np.all(np.diff(train) > 0)
    assert np.all(np.diff(held) > 0)
    if n >= 2 and fraction > 0:
        assert train.size > 0
        assert held.size == min(max(round(n * fraction), 1), n - 1)
    else:
        assert held.size == 0


@relaxed
@given(counts=st.lists(st.integers(2, 60), min_size=2, max_size=5), fraction=st.floats(0.05, 0.6), seed=st.integers(0, 1000))
def test_a_holdout_keeps_the_proportions_of_classes(counts: list[int], fraction: float, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    train, held = partition.holdout(labels, fraction, seed)
    expected = held.size * np.array(counts) / labels.size
    assert np.abs(np.bincount(labels[held], minlength=len(counts)) - expected).max() < 2
    if fraction <= 0.5:
        assert np.unique(labels[train]).size == len(counts)


@pytest.mark.parametrize("seed", range(5))
def test_a_rare_class_keeps_its_only_row_for_training(seed: int) -> None:
    labels = np.array([0] * 5 + [1] + [2] * 5, np.int64)
    train, held = partition.holdout(labels, 0.6, seed)
    assert held.size == 7
    assert 5 in train


def test_a_holdout_of_singletons_is_still_of_the_asked_size() -> None:
    train, held = partition.holdout(np.arange(4, dtype=np.int64), 0.5, 0)
    assert (train.size, held.size) == (2, 2)
    train, held = partition.holdout(np.array([3, 8], np.int64), 0.9, 0)
    assert (train.size, held.size) == (1, 1)


def test_a_holdout_of_numbers_is_drawn_from_all_rows() -> None:
    values = np.linspace(0, 1, 200, dtype=np.float32)
    _, held = partition.holdout(values, 0.25, 0)
    assert held.size == 50
    assert 10 < np.count_nonzero(held < 100) < 40


def test_a_holdout_does_not_change_between_versions_of_numpy() -> None:
    _, classes = partition.holdout(np.arange(20) % 3, 0.25, 3)
    _, numbers = partition.holdout(np.linspace(0, 1, 20, dtype=np.float32), 0.25, 3)
    assert classes.tolist() == [0, 1, 2, 12, 16]
    assert numbers.tolist() == [0, 1, 2, 10, 16]


def test_another_seed_holds_out_other_rows() -> None:
    labels = balanced(2, 50)
    assert partition.holdout(labels, 0.3, 0)[1].tolist() != partition.holdout(labels, 0.3, 1)[1].tolist()


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, float("nan")])
def test_a_holdout_that_is_no_fraction_is_refused(fraction: float) -> None:
    with pytest.raises(DataError, match="not a fraction"):
        partition.holdout(balanced(2, 5), fraction, 0)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (np.array([0, 1, 1, 0]), True),
        (np.array([True, False]), True),
        (np.array([0, 1]), True),
        (np.array([5]), True),
        (np.empty(0, np.int64), True),
        (np.arange(3), False),
        (np.arange(1000) % 100, True),
        (np.arange(1000) % 101, False),
        (np.array([0.0, 1.0, 1.0], np.float32), False),
    ],
)
def test_labels_are_classes_when_they_are_few_integers(labels: npt.NDArray[Any], classes: bool) -> None:
    assert partition.is_classes(labels) is classes


@pytest.mark.parametrize("seed", [-1, -(2**40)])
def test_a_negative_seed_is_refused(seed: int) -> None:
    with pytest.raises(DataError, match="seed is negative"):
        partition.generator(seed)
    with pytest.raises(DataError, match="seed is negative"):
        partition.holdout(balanced(2, 5), 0.2, seed)


# Kinds and options by name


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("iid", {}, None),
        ("dirichlet", {"alpha": 0.5}, 0.5),
        ("shards", {"per_client": 2}, 2),
        ("quantity", {"alpha": 1}, 1),
        ("column", {"column": "ward"}, "ward"),
        ("column", {}, None),
    ],
)
def test_each_kind_has_its_option(kind: str, options: dict[str, float | str], expected: float | str | None) -> None:
    assert partition.option_of(kind, options) == expected


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("dirichlett", {}, "there is no partition 'dirichlett'; use one of iid, dirichlet, shards, quantity, column"),
        ("iid", {"alpha": 1.0}, "partition 'iid' takes no option 'alpha'"),
        ("dirichlet", {"beta": 1.0}, "partition 'dirichlet' takes no option 'beta'; it takes alpha="),
        ("dirichlet", {"alpha": 1.0, "per_client": 2}, "partition 'dirichlet' takes no option 'per_client'; it takes alpha="),
        ("quantity", {}, "partition 'quantity' needs the option 'alpha'; pass alpha="),
        ("shards", {}, "partition 'shards' needs the option 'per_client'; pass per_client="),
    ],
)
def test_a_wrong_kind_or_option_says_what_is_right(kind: str, options: dict[str, float | str], message: str) -> None:
    with pytest.raises(DataError) as caught:
        partition.option_of(kind, options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("kind", "option", "same_as"),
    [("iid", None, "iid"), ("dirichlet", 100, "dirichlet-even"), ("shards", 2.0, "shards"), ("quantity", np.float32(100), "quantity-even")],
)
def test_spread_finds_the_function_of_a_kind(kind: str, option: float | None, same_as: str) -> None:
    labels = balanced(4, 20)
    found = partition.spread(kind, labels, 5, option, partition.generator(9))
    expected = SPREADS[same_as](labels, 5, partition.generator(9))
    assert [part.tolist() for part in found] == [part.tolist() for part in expected]


@pytest.mark.parametrize("option", ["0.5", True, None])
def test_an_option_that_is_no_number_is_refused(option: str | bool | None) -> None:
    with pytest.raises(DataError, match="option 'alpha' is not a number"):
        partition.spread("dirichlet", balanced(2, 10), 2, option, partition.generator(0))


@pytest.mark.parametrize("option", [1.5, float("inf"), float("nan")])
def test_shards_come_in_whole_numbers(option: float) -> None:
    with pytest.raises(DataError, match="not a whole number"):
        partition.spread("shards", balanced(2, 10), 2, option, partition.generator(0))


# Names


def test_client_names_sort_in_order() -> None:
    assert partition.client_names(3) == ["client-0000", "client-0001", "client-0002"]
    many = partition.client_names(10_001)
    assert (many[0], many[-1]) == ("client-00000", "client-10000")
    assert many == sorted(many)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (np.float32(1), "1"),
        (np.float32(2.3), "2.3"),
        (np.float32(-9), "minus-9"),
        (np.float32(1e20), "1e20"),
        (np.float32(1e-5), "1e-05"),
        (np.int64(-4), "minus-4"),
        ("Hôpital Saint-Louis", "hopital-saint-louis"),
        ("  Ward #3 / East ", "ward-3-east"),
        ("STRASSE_ß", "strasse_ss"),
        ("-9", "9"),
        ("10.0", "10.0"),
        ("../../etc/passwd", "etc-passwd"),
        ("病院", "site"),
        ("", "site"),
        ("x" * 200, "x" * 48),
    ],
)
def test_a_value_becomes_a_readable_name(value: object, name: str) -> None:
    assert partition.value_names([value]) == [name]


def test_values_that_read_the_same_are_numbered() -> None:
    assert partition.value_names(["A", "a", "a-2", "á", "?"]) == ["a", "a-2", "a-2-2", "a-3", "site"]


@relaxed
@given(st.lists(st.one_of(st.text(max_size=70), st.integers(), st.floats(allow_nan=False)), max_size=30))
def test_names_are_always_valid_and_distinct(values: list[object]) -> None:
    names = partition.value_names(values)
    assert len(set(names)) == len(names) == len(values)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", name) for name in names)


def test_alone_each_row_draws_by_its_own_content() -> None:
    rng = np.random.default_rng(3)
    features, labels = rng.normal(size=(4000, 3)).astype(np.float32), rng.integers(0, 2, 4000)
    held = partition.alone(features, labels, 0.2, 7)
    assert held.mean() == pytest.approx(0.2, abs=0.03)
    order = rng.permutation(4000)[:2500]
    assert np.array_equal(partition.alone(features[order], labels[order], 0.2, 7), held[order]), "neither order nor company matters"
    assert not np.array_equal(partition.alone(features, labels, 0.2, 8), held)
    assert not partition.alone(features, labels, 0.0, 7).any()


def test_alone_whole_groups_draw_by_their_name() -> None:
    features, labels, groups = np.zeros((600, 1), np.float32), np.arange(600) % 2, np.array([f"p{at % 150}" for at in range(600)])
    held = partition.alone(features, labels, 0.3, 1, groups)
    assert all(len(set(held[groups == name])) == 1 for name in set(groups))
    some = groups != "p7"
    assert np.array_equal(partition.alone(features[some], labels[some], 0.3, 1, groups[some]), held[some])
    assert 0.15 < held.mean() < 0.45
