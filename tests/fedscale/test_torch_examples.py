from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, Subset, TensorDataset

from fedscale.errors import AppError, DataError
from fedscale.torch_learner.examples import Examples, aligned
from tests.fedscale.torch_samples import Rows, classes


class Stream(IterableDataset[tuple[Tensor, int]]):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        yield torch.zeros(2), 1


class Bare(torch.utils.data.Dataset[tuple[Tensor, int]]):
    def __getitem__(self, at: int) -> tuple[Tensor, int]:
        return torch.zeros(2), at


class Single(torch.utils.data.Dataset[Tensor]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, at: int) -> Tensor:
        return torch.zeros(2)


def test_arrays_are_not_copied() -> None:
    data = classes(6)
    examples = Examples.of_arrays(data.x, data.y)
    assert len(examples) == 6
    assert examples.features.numpy().base is data.x or np.shares_memory(examples.features.numpy(), data.x)
    assert np.shares_memory(examples.targets.numpy(), data.y)
    assert examples.classes == 3


@pytest.mark.parametrize(
    ("given", "expected", "count"),
    [
        (torch.tensor([1.5, 2.5], dtype=torch.float64), torch.tensor([1.5, 2.5]), 0),
        (torch.tensor([0, 4], dtype=torch.int16), torch.tensor([0, 4]), 5),
        (torch.tensor([True, False]), torch.tensor([1, 0]), 2),
        (torch.tensor([[3], [1]]), torch.tensor([3, 1]), 4),
        (torch.tensor([[0.5], [1.0]]), torch.tensor([0.5, 1.0]), 0),
        (torch.tensor([[1, 2], [0, 3]]), torch.tensor([[1, 2], [0, 3]]), 4),
    ],
)
def test_labels_become_what_torch_computes_with(given: Tensor, expected: Tensor, count: int) -> None:
    examples = Examples.of(torch.zeros(2, 3), given)
    assert torch.equal(examples.targets, expected)
    assert examples.targets.dtype == expected.dtype
    assert examples.classes == count


@pytest.mark.parametrize(("dtype", "expected"), [(torch.float64, torch.float32), (torch.float16, torch.float32), (torch.int64, torch.int64)])
def test_features_stay_integers_or_become_float32(dtype: torch.dtype, expected: torch.dtype) -> None:
    assert Examples.of(torch.ones(2, 3, dtype=dtype), torch.zeros(2)).features.dtype == expected


def test_torch_datasets_are_stacked() -> None:
    data = classes(9)
    whole = Examples.of_dataset(Rows(data))
    assert np.array_equal(whole.features.numpy(), data.x)
    assert np.array_equal(whole.targets.numpy(), data.y)
    part = Examples.of_dataset(Subset(Rows(data), [4, 2]))
    assert np.array_equal(part.targets.numpy(), data.y[[4, 2]])


def test_tensors_are_taken_as_they_are() -> None:
    features, targets = torch.rand(5, 2), torch.arange(5)
    examples = Examples.of_dataset(TensorDataset(features, targets))
    assert examples.features is features
    assert examples.targets is targets


@pytest.mark.parametrize("dataset", [Stream(), Bare()], ids=["iterable", "no length"])
def test_datasets_without_a_length_are_refused(dataset: torch.utils.data.Dataset[object]) -> None:
    with pytest.raises(DataError, match=r"without a length.*map-style"):
        Examples.of_dataset(dataset)


@pytest.mark.parametrize("dataset", [Single(), TensorDataset(torch.zeros(2)), TensorDataset(torch.zeros(0, 1), torch.zeros(0), torch.zeros(0))])
def test_datasets_without_pairs_are_refused(dataset: torch.utils.data.Dataset[object]) -> None:
    with pytest.raises(DataError, match=r"without rows of \(features, label\)"):
        Examples.of_dataset(dataset)


@pytest.mark.parametrize(("rows", "labels"), [(0, 0), (3, 2)])
def test_rows_and_labels_must_be_there_and_agree(rows: int, labels: int) -> None:
    with pytest.raises(DataError, match=f"{rows} rows and {labels} labels"):
        Examples.of(torch.zeros(rows, 2), torch.zeros(labels))


def test_one_output_loses_its_second_dimension_and_labels_become_floats() -> None:
    for outputs in (torch.ones(4, 1), torch.ones(4)):
        found, targets = aligned(outputs, torch.tensor([0, 1, 1, 0]), 2)
        assert found.shape == targets.shape == (4,)
        assert targets.dtype == torch.float32


def test_a_batch_of_one_row_is_no_exception() -> None:
    found, targets = aligned(torch.ones(1, 1), torch.tensor([1]), 2)
    assert found.shape == targets.shape == (1,)
    found, targets = aligned(torch.ones(1, 3), torch.tensor([1]), 2)
    assert found.shape == (1, 3)
    assert targets.dtype == torch.int64


def test_scores_of_classes_keep_whole_labels() -> None:
    outputs, labels = torch.ones(4, 3), torch.tensor([0, 2, 1, 0])
    found, targets = aligned(outputs, labels, 3)
    assert found is outputs
    assert targets is labels


@pytest.mark.parametrize(("outputs", "targets"), [((2, 5), (2, 5)), ((2, 3, 4, 4), (2, 4, 4)), ((2, 6, 9), (2, 6))])
def test_more_dimensions_pass_where_they_fit(outputs: tuple[int, ...], targets: tuple[int, ...]) -> None:
    found, labels = aligned(torch.zeros(outputs), torch.zeros(targets, dtype=torch.int64), 1)
    assert found.shape == outputs
    assert labels.is_floating_point() == (outputs == targets)


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (torch.zeros(4, 2), torch.zeros(4)),
        (torch.zeros(4, 1), torch.zeros(4, 3)),
        (torch.zeros(4), torch.zeros(4, 3, dtype=torch.int64)),
        (torch.zeros(4, 3, 2, 2), torch.zeros(4, dtype=torch.int64)),
    ],
)
def test_nothing_is_broadcast(outputs: Tensor, targets: Tensor) -> None:
    with pytest.raises(AppError, match=r"outputs of shape .* do not fit labels of shape"):
        aligned(outputs, targets, 1)


@pytest.mark.parametrize("outputs", [torch.zeros(()), torch.zeros(3, 4)])
def test_there_must_be_one_row_of_outputs_for_each_example(outputs: Tensor) -> None:
    with pytest.raises(AppError, match="for 4 examples"):
        aligned(outputs, torch.zeros(4, dtype=torch.int64), 1)


def test_labels_beyond_the_outputs_are_found_before_torch_does() -> None:
    assert aligned(torch.zeros(2, 3), torch.tensor([0, 1]), 3)[0].shape == (2, 3)
    with pytest.raises(AppError, match=r"too large for the model's 3 outputs.*from 0"):
        aligned(torch.zeros(2, 3), torch.tensor([0, 1]), 4)
