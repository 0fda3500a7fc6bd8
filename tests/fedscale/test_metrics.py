from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedscale.errors import AppError
from fedscale.metrics import BINS, HIGHER_IS_BETTER, LOGIT_SPAN, Metric, histogram_auc, pooled, score_histogram

Scores = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
STEP = 2 * LOGIT_SPAN / BINS


def patients(seed: int, size: int = 400, separation: float = 1.0) -> tuple[Scores, Labels]:
    """Logits of a model that tells the classes apart to some degree; always some of each class."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([[0, 1], rng.integers(0, 2, size - 2)])
    return rng.normal(separation * (2 * labels - 1), 1.5), labels


def sklearn_auc(scores: Scores, labels: Labels) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))


@pytest.mark.requires("sklearn")
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("separation", [-1.0, 0.0, 0.3, 1.0, 3.0])
def test_the_auc_is_sklearns_on_the_binned_scores_and_close_on_the_raw_ones(seed: int, separation: float) -> None:
    scores, labels = patients(seed, separation=separation)
    binned = np.floor((np.clip(scores, -LOGIT_SPAN, LOGIT_SPAN * (1 - 1e-12)) + LOGIT_SPAN) / STEP)
    auc = histogram_auc(score_histogram(scores, labels))
    assert auc == pytest.approx(sklearn_auc(binned, labels), abs=1e-12)
    assert auc == pytest.approx(sklearn_auc(scores, labels), abs=2e-3)


@pytest.mark.requires("sklearn")
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(2, 60), min_size=1, max_size=5))
def test_summed_histograms_give_the_auc_of_all_patients_together(seed: int, sizes: list[int]) -> None:
    sites = [patients(seed + at, size) for at, size in enumerate(sizes)]
    total = sum((score_histogram(*site) for site in sites), np.zeros(2 * BINS))
    scores, labels = (np.concatenate(part) for part in zip(*sites, strict=True))
    assert (total == score_histogram(scores, labels)).all()
    assert histogram_auc(total) == pytest.approx(sklearn_auc(np.floor((np.clip(scores, -8, 7.999999) + 8) / STEP), labels), abs=1e-12)


def test_the_auc_of_all_is_not_the_mean_of_the_aucs() -> None:
    """Two sites that rank perfectly inside, one with higher scores for all: only the pooled histogram sees it."""
    low, high = (score_histogram(np.array(scores), np.array([0, 1])) for scores in ([-4.0, -3.0], [3.0, 4.0]))
    assert (histogram_auc(low), histogram_auc(high), histogram_auc(low + high)) == (1.0, 1.0, 0.75)


@pytest.mark.parametrize(
    ("scores", "labels", "auc"),
    [
        ([1.0, -1.0], [1, 0], 1.0),
        ([-1.0, 1.0], [1, 0], 0.0),
        ([0.0, 0.0], [1, 0], 0.5),
        ([100.0, 50.0], [1, 0], 0.5),
        ([0.0, 1.0, 2.0], [0, 1, 0], 0.5),
        ([1.0, 2.0], [1, 1], None),
        ([1.0], [0], None),
        ([], [], None),
    ],
)
def test_auc_by_hand(scores: list[float], labels: list[int], auc: float | None) -> None:
    assert histogram_auc(score_histogram(np.array(scores, np.float32), np.array(labels, np.int64))) == auc


def test_every_score_has_its_bin() -> None:
    edges = np.array([-1e9, -8.0, -8.0 + STEP, 0.0, 8.0 - STEP, 8.0, 1e9])
    histogram = score_histogram(edges, np.ones(7, np.int64))
    assert {int(at): int(histogram[at]) for at in np.flatnonzero(histogram)} == {0: 2, 1: 1, BINS // 2: 1, BINS - 1: 3}
    assert (histogram.shape, histogram.dtype, histogram[BINS:].any()) == ((2 * BINS,), np.float64, False)


@pytest.mark.parametrize("labels", [[0, 2], [-1, 1], [5, 5]])
def test_labels_of_other_classes_are_refused(labels: list[int]) -> None:
    with pytest.raises(AppError) as caught:
        score_histogram(np.zeros(2), np.array(labels))
    assert str(caught.value) == "metric 'auc' needs labels 0 and 1; use accuracy for more than two classes"


@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(score: float) -> None:
    with pytest.raises(AppError) as caught:
        score_histogram(np.array([0.0, score]), np.array([0, 1]))
    assert str(caught.value) == "metric 'auc' met a score that is not finite; lower the learning rate"


def test_how_wide_metrics_are() -> None:
    assert (Metric.named("auc"), Metric.named("loss"), Metric.named("brier")) == (Metric("auc", 512), Metric("loss", 1), Metric("brier", 1))
    assert {"accuracy", "auc"} == HIGHER_IS_BETTER


def test_pooled_values() -> None:
    sums = {"loss": np.array([6.0]), "auc": score_histogram(np.array([1.0, -1.0]), np.array([1, 0]))}
    assert pooled(sums, 12.0) == {"loss": 0.5, "auc": 1.0}
    assert pooled({**sums, "auc": np.zeros(2 * BINS)}, 12.0) == {"loss": 0.5}
    assert pooled(sums, 0.0) == {}
