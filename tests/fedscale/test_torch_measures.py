from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, brier_score_loss, roc_auc_score
from torch import Tensor

from fedscale.errors import AppError
from fedscale.metrics import BINS, histogram_auc
from fedscale.torch_learner.measures import MEASURES

pytestmark = pytest.mark.requires("sklearn")


@pytest.fixture
def logits() -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(0.3, 2, 4000)).float()


@pytest.fixture
def labels(logits: Tensor) -> Tensor:
    noise = torch.from_numpy(np.random.default_rng(2).normal(0, 2, len(logits)))
    return (logits + noise > 0).long()


def two_columns(logits: Tensor) -> Tensor:
    """The same scores as two outputs."""
    shift = torch.linspace(-3, 3, len(logits))
    return torch.stack([shift, shift + logits], 1)


def one(name: str, outputs: Tensor, targets: Tensor) -> float:
    sums = MEASURES[name](outputs, targets)
    assert sums.shape == (1,)
    assert sums.dtype == np.float64
    return float(sums[0])


@pytest.mark.parametrize("columns", [1, 2])
def test_binary_metrics_agree_with_sklearn(logits: Tensor, labels: Tensor, columns: int) -> None:
    outputs, targets = (logits, labels.float()) if columns == 1 else (two_columns(logits), labels)
    chances = logits.sigmoid().numpy()
    assert one("accuracy", outputs, targets) / len(labels) == accuracy_score(labels, chances > 0.5)
    assert one("brier", outputs, targets) / len(labels) == pytest.approx(brier_score_loss(labels, chances), rel=1e-5)
    auc = histogram_auc(MEASURES["auc"](outputs, targets))
    assert auc == pytest.approx(roc_auc_score(labels, chances), abs=1 / BINS)


def test_sums_of_parts_are_the_sums_of_the_whole(logits: Tensor, labels: Tensor) -> None:
    for measure in MEASURES.values():
        whole = measure(logits, labels.float())
        parts = sum(measure(part, of.float()) for part, of in zip(logits.split(700), labels.split(700), strict=True))
        assert np.allclose(whole, parts, rtol=1e-6)


def test_a_logit_of_zero_is_the_first_class_in_both_forms() -> None:
    assert one("accuracy", torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])) == 2
    assert one("accuracy", torch.zeros(3, 2), torch.tensor([0, 0, 1])) == 2


def test_more_classes() -> None:
    outputs = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 5.0], [1.0, 3.0, 0.0], [0.0, 9.0, 1.0]])
    targets = torch.tensor([0, 2, 0, 1])
    assert one("accuracy", outputs, targets) == 3
    wanted = (outputs.softmax(1) - torch.eye(3)[targets]).square().sum()
    assert one("brier", outputs, targets) == pytest.approx(float(wanted))
    with pytest.raises(AppError, match="metric 'auc' needs one output or two"):
        MEASURES["auc"](outputs, targets)


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_metrics_of_classes_refuse_other_labels(name: str) -> None:
    with pytest.raises(AppError, match=f"metric '{name}' needs labels 0 and 1"):
        MEASURES[name](torch.zeros(3), torch.tensor([0.0, 1.0, 2.0]))
    with pytest.raises(AppError, match=f"metric '{name}' needs one output or two an example"):
        MEASURES[name](torch.zeros(3, 4), torch.zeros(3, 4))


def test_scores_that_are_not_finite_have_no_auc() -> None:
    with pytest.raises(AppError, match="not finite"):
        MEASURES["auc"](torch.tensor([0.0, torch.nan]), torch.tensor([0.0, 1.0]))
