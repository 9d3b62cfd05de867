import numpy as np
import pytest
from sklearn import metrics as sk

from metrics_atomica import CLASSES, METRICS, MULTI_LABEL, REGRESSION, confidence_intervals, full_report, scores


NAN = np.nan


def test_numbers_by_hand():
    found = scores(REGRESSION, [[1.0], [2.0], [5.0]], [[1.0], [4.0], [4.0]])
    assert found["mae"] == 1.0 and found["rmse"] == pytest.approx(np.sqrt(5 / 3)) and found["r2"] == pytest.approx(1 - 5 / 6)
    found = scores(CLASSES, [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7]], [0, 1, 0, 1])
    assert found["accuracy"] == 0.75 and found["roc_auc"] == 1.0 and found["balanced_accuracy"] == 0.75
    assert found["f1"] == pytest.approx(0.8) and found["mcc"] == pytest.approx(1 / np.sqrt(3))


def test_missing_labels_do_not_count():
    full = scores(REGRESSION, [[1.0], [2.0], [5.0]], [[1.5], [4.0], [3.0]])
    assert scores(REGRESSION, [[1.0], [9.0], [2.0], [5.0]], [[1.5], [NAN], [4.0], [3.0]]) == full
    labels = np.array([[0, 1, 1], [1, 1, NAN], [1, NAN, 0], [0, 1, NAN]])
    probabilities = np.array([[0.2, 0.5, 0.9], [0.7, 0.4, 0.1], [0.1, 0.8, 0.3], [0.3, 0.1, 0.6]])
    found = scores(MULTI_LABEL, probabilities, labels)
    assert found["num_tasks"] == 2  # the second has one class only
    assert found["roc_auc"] == pytest.approx((sk.roc_auc_score(labels[:, 0], probabilities[:, 0]) + 1) / 2)
    report = full_report(MULTI_LABEL, probabilities, labels, ["a", "b", "c"], num_resamples=50)
    assert (report["num_examples"], report["num_tasks"], report["all_tasks"]) == (4, 2, 3)
    assert report["tasks"]["b"]["roc_auc"] is None and report["tasks"]["c"]["roc_auc"] == 1.0


def test_many_classes_equal_scikit_learn():
    rng = np.random.default_rng(0)
    probabilities, labels = rng.dirichlet(np.ones(4), 80), rng.integers(4, size=80)
    found = scores(CLASSES, probabilities, labels)
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(labels, probabilities, multi_class="ovr"))
    assert found["f1"] == pytest.approx(sk.f1_score(labels, probabilities.argmax(1), average="macro"))
    assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, probabilities.argmax(1)))
    labels[labels == 3] = 0  # a class that does not occur is no reason to fail
    assert 0 < scores(CLASSES, probabilities, labels)["roc_auc"] < 1


def test_what_is_not_defined_is_nan():
    assert np.isnan(scores(CLASSES, [[0.5, 0.5], [0.1, 0.9]], [1, 1])["roc_auc"])
    constant = scores(REGRESSION, [[1.0], [1.0]], [[1.0], [2.0]])
    assert constant["rmse"] == pytest.approx(np.sqrt(0.5)) and np.isnan(constant["pearson"])
    assert full_report(REGRESSION, np.zeros((0, 1)), np.zeros((0, 1)))["metrics"]["rmse"]["value"] is None
    with pytest.raises(ValueError, match=r"\(2,\), predictions \(3, 1\)"):
        scores(REGRESSION, np.zeros((3, 1)), np.zeros(2))
    with pytest.raises(ValueError, match="expected one of regression"):
        scores("clustering", np.zeros((3, 1)), np.zeros((3, 1)))


def test_confidence_intervals_cover_and_repeat():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(40):
        errors = rng.normal(size=(60, 1))
        low, high = confidence_intervals(REGRESSION, errors, np.zeros((60, 1)), 200, seed=trial)["rmse"]
        covered += low <= 1.0 <= high
    assert 33 <= covered <= 40  # of 40 intervals of 95 %
    first, again, other = (confidence_intervals(REGRESSION, errors, np.zeros((60, 1)), 50, seed)["mae"] for seed in (0, 0, 1))
    assert first == again != other


def test_rows_that_belong_together_are_drawn_together():
    labels = np.repeat(np.random.default_rng(2).normal(size=(8, 1)), 50, axis=0)
    alone = confidence_intervals(REGRESSION, np.zeros((400, 1)), labels, 100)["rmse"]
    together = confidence_intervals(REGRESSION, np.zeros((400, 1)), labels, 100, groups=np.repeat(np.arange(8), 50))["rmse"]
    assert together[1] - together[0] > 3 * (alone[1] - alone[0])


@pytest.mark.parametrize("problem", METRICS)
def test_the_same_through_evaluate(problem):
    rng = np.random.default_rng(3)
    predictions = rng.dirichlet(np.ones(3), 20) if problem == CLASSES else rng.random((20, 2))
    labels = rng.integers(3, size=20).astype(float) if problem == CLASSES else rng.integers(2, size=(20, 2)).astype(float)
    labels[3] = NAN
    metric = METRICS[problem]()
    assert metric.compute(predictions=predictions, references=labels) == scores(problem, predictions, labels)
    for half in (slice(0, 10), slice(10, 20)):
        metric.add_batch(predictions=predictions[half], references=labels[half])
    assert metric.compute() == scores(problem, predictions, labels)
