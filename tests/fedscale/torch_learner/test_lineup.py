from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedscale.sampling import Shuffle
from fedscale.torch_learner import lineup
from fedscale.torch_learner.lineup import Again, Once, Room, ordered, shares, side_by_side, taken

BATCH = 3


def clients(*sizes: int) -> list[Tensor]:
    """Rows of two numbers each, no two alike."""
    torch.manual_seed(1)
    return [torch.randn(size, 2) for size in sizes]


def orders(sizes: tuple[int, ...], steps: int) -> lineup.Orders:
    """What each client's steps take."""
    shuffle = Shuffle()
    return np.stack([ordered(shuffle, seed, rows, steps, BATCH) for seed, rows in enumerate(sizes)])


def both(sizes: tuple[int, ...], steps: int) -> tuple[Once, Again, Tensor]:
    """The same rows in both forms, and in the order of the steps by plain indexing."""
    parts, places = clients(*sizes), orders(sizes, steps)
    once = Once(taken(parts, places, torch.empty(*places.shape, 2)))
    again = Again(side_by_side(parts, torch.empty(len(parts), max(sizes), 2)), torch.from_numpy(places))
    return once, again, torch.stack([part[place] for part, place in zip(parts, torch.from_numpy(places), strict=True)])


@pytest.mark.parametrize(("sizes", "steps"), [((6, 6), 2), ((5, 6, 4), 2), ((9, 7), 1)])
def test_both_forms_know_the_rows_of_a_step_and_their_products(sizes: tuple[int, ...], steps: int) -> None:
    once, again, expected = both(sizes, steps)
    for step in range(steps):
        begin, end = step * BATCH, (step + 1) * BATCH
        rows, products = expected[:, begin:end], expected[:, begin:end] @ expected[:, :begin].transpose(1, 2)
        for seen in (once, again):
            assert torch.equal(seen.step(begin, end), rows)
            assert torch.allclose(seen.alike(begin, end), products, atol=1e-6)


def test_products_are_the_same_where_all_of_them_are_asked_for() -> None:
    once, again, expected = both((5, 6, 4), 2)
    whole = replace(once, whole=True)
    assert torch.allclose(whole.alike(3, 6), once.alike(3, 6), atol=1e-6)
    assert torch.allclose(whole.pairs, expected @ expected.mT, atol=1e-6)
    assert torch.allclose(again.pairs, again.rows @ again.rows.mT, atol=1e-6)


@pytest.mark.parametrize(("sizes", "steps"), [((6, 6), 2), ((5, 6, 4), 2), ((9, 7), 1)])
def test_both_forms_give_one_sum_over_all_rows(sizes: tuple[int, ...], steps: int) -> None:
    once, again, expected = both(sizes, steps)
    values = torch.randn(*expected.shape[:2], 4)
    total = torch.einsum("krn,kri->ni", values, expected)
    for seen in (once, again):
        assert torch.allclose(seen.returned(values).t() @ seen.rows.reshape(-1, 2), total, atol=1e-5)


def test_a_row_of_several_epochs_gets_the_sum_of_all_its_values() -> None:
    again = Again(clients(2)[0].unsqueeze(0), torch.tensor([[1, 0, 1, 0, 1]]))
    assert again.returned(torch.tensor([[[1.0], [2.0], [4.0], [8.0], [16.0]]])).tolist() == [[10.0], [21.0]]


def test_values_in_the_order_of_the_steps_stay_where_they_are() -> None:
    once, again, expected = both((6, 6), 2)
    values: dict[str, Tensor] = {"once": once.taken(once.rows), "again": again.taken(again.rows)}
    assert values["once"] is once.rows
    assert all(torch.equal(each, expected) for each in values.values())


def test_clients_with_fewer_rows_are_filled_with_zeros_whatever_lay_there() -> None:
    parts = clients(3, 1)
    out = side_by_side(parts, torch.full((2, 3, 2), 7.0))
    assert torch.equal(out[0], parts[0])
    assert torch.equal(out[1], torch.cat([parts[1], torch.zeros(2, 2)]))


@given(rows=st.integers(1, 20), steps=st.integers(1, 15), seed=st.integers(0, 2**63 - 1))
def test_an_order_takes_every_row_once_an_epoch_and_only_those_count(rows: int, steps: int, seed: int) -> None:
    order, share = ordered(Shuffle(), seed, rows, steps, BATCH), shares(rows, steps, BATCH)
    epoch = -(-rows // BATCH) * BATCH
    assert order.shape == tuple(share.shape) == (steps * BATCH,)
    for begin in range(0, len(order), epoch):
        counted = order[begin : begin + epoch][(share[begin : begin + epoch] > 0).numpy()]
        assert len(set(counted.tolist())) == len(counted)
        assert len(counted) == rows or begin + epoch > len(order)
    assert share.view(steps, BATCH).sum(1).tolist() == pytest.approx([1.0] * steps)


def test_an_order_is_that_of_a_client_alone() -> None:
    shuffle = Shuffle()
    shuffle.seed(9)
    first, second = shuffle.draw(5), shuffle.draw(5)
    order = ordered(Shuffle(), 9, 5, 4, BATCH)
    assert order.tolist() == [*first.tolist(), 0, *second.tolist(), 0]


def test_memory_is_used_again_and_grows_where_it_must() -> None:
    room = Room()
    large = room.shaped(4, 5)
    assert room.shaped(2, 3).data_ptr() == large.data_ptr()
    assert room.shaped(20).data_ptr() == large.data_ptr()
    assert room.shaped(3, 7).shape == (3, 7)
