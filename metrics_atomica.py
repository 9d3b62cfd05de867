# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Predictions and labels -> numbers: `evaluate` metrics that work offline, know missing labels, and have confidence intervals.

Labels are `(n, num_tasks)`, or `(n,)` classes; NaN is missing. Predictions are `(n, num_tasks)` values or probabilities, or
`(n, num_classes)` probabilities. A number over several tasks is their mean; a task counts if the number is defined for it.
"""

import warnings

import evaluate
import numpy as np
from datasets import Features, List, Value
from scipy import stats
from sklearn import config_context, metrics


REGRESSION, CLASSES, MULTI_LABEL = "regression", "single_label_classification", "multi_label_classification"
REGRESSION_METRICS = ("mae", "rmse", "r2", "pearson", "spearman")
CLASS_METRICS = ("roc_auc", "pr_auc", "accuracy", "balanced_accuracy", "mcc", "f1")
PRIMARY = {REGRESSION: "rmse", CLASSES: "roc_auc", MULTI_LABEL: "roc_auc"}
LOWER_IS_BETTER = ("mae", "rmse", "loss")


def regression_scores(predictions, labels):
    """Two arrays `(n,)` without gaps -> metric -> number; correlations and R2 need two labels that differ."""
    if not len(labels):
        return dict.fromkeys(REGRESSION_METRICS, np.nan)
    found = {
        "mae": metrics.mean_absolute_error(labels, predictions),
        "rmse": metrics.root_mean_squared_error(labels, predictions),
    }
    varied = np.ptp(labels) > 0
    found["r2"] = metrics.r2_score(labels, predictions) if varied else np.nan
    varied = varied and np.ptp(predictions) > 0
    found["pearson"] = stats.pearsonr(labels, predictions)[0] if varied else np.nan
    found["spearman"] = stats.spearmanr(labels, predictions)[0] if varied else np.nan
    return {name: float(value) for name, value in found.items()}


def class_scores(probabilities, labels):
    """Probabilities `(n, num_classes)` and classes `(n,)` without gaps -> metric -> number. With two classes ROC-AUC, PR-AUC
    and F1 are those of the second; with more, means over the classes that occur. All need two classes that occur."""
    labels = labels.astype(np.int64)
    present = np.unique(labels)
    if len(present) < 2:
        return dict.fromkeys(CLASS_METRICS, np.nan)
    chosen = probabilities.argmax(1)
    two = probabilities.shape[1] == 2
    columns = [1] if two else present
    found = {
        "roc_auc": np.mean([metrics.roc_auc_score(labels == c, probabilities[:, c]) for c in columns]),
        "pr_auc": np.mean([metrics.average_precision_score(labels == c, probabilities[:, c]) for c in columns]),
        "accuracy": metrics.accuracy_score(labels, chosen),
        "balanced_accuracy": np.mean([(chosen[labels == c] == c).mean() for c in present]),
        "mcc": metrics.matthews_corrcoef(labels, chosen),
        "f1": metrics.f1_score(labels, chosen, labels=columns, average="macro", zero_division=0),
    }
    return {name: float(value) for name, value in found.items()}


def task_scores(problem, predictions, labels):
    """Metric -> number for each task, a list; classes of one column are one task. Shapes as in this module's first lines."""
    if problem == CLASSES:
        there = ~np.isnan(labels)
        return [class_scores(predictions[there], labels[there])]
    found = []
    for prediction, label in zip(predictions.T, labels.T):
        there = ~np.isnan(label)
        prediction, label = prediction[there], label[there]
        if problem == MULTI_LABEL:
            found.append(class_scores(np.stack([1 - prediction, prediction], axis=1), label))
        else:
            found.append(regression_scores(prediction, label))
    return found


def scores(problem, predictions, labels):
    """Metric -> mean over the tasks for which it is defined (NaN if none), and `num_tasks`, those that count for the main
    metric.

    Raises:
        `ValueError`: for an unknown problem, or shapes that do not fit.
    """
    if problem not in PRIMARY:
        raise ValueError(f"The problem is {problem!r}, expected one of {', '.join(PRIMARY)}.")
    predictions, labels = np.asarray(predictions, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    fits = labels.shape == predictions.shape[:1] if problem == CLASSES else labels.shape == predictions.shape
    if predictions.ndim != 2 or not fits:
        raise ValueError(f"Labels have shape {labels.shape}, predictions {predictions.shape}: they do not fit for {problem}.")
    with warnings.catch_warnings(), config_context(assume_finite=True, skip_parameter_validation=True):
        warnings.simplefilter("ignore")  # nearly constant arrays
        tasks = task_scores(problem, predictions, labels)
    names = REGRESSION_METRICS if problem == REGRESSION else CLASS_METRICS
    table = {name: [task[name] for task in tasks if not np.isnan(task[name])] for name in names}
    found = {name: float(np.mean(values)) if values else np.nan for name, values in table.items()}
    return {**found, "num_tasks": len(table[PRIMARY[problem]])}


class AtomicaMetric(evaluate.Metric):
    """`scores` as a metric of `evaluate`: `AtomicaMetric("regression").compute(predictions=..., references=...)`; nothing is
    downloaded. The problem is its `config_name`."""

    def __init__(self, config_name, **kwargs):
        super().__init__(config_name, **{"keep_in_memory": True, **kwargs})

    def _info(self):
        numbers = List(Value("float64"))
        references = Value("float64") if self.config_name == CLASSES else numbers
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=scores.__doc__,
            features=Features({"predictions": numbers, "references": references}),
        )

    def _compute(self, predictions, references):
        return scores(self.config_name, np.array(predictions), np.array(references, dtype=np.float64))


class RegressionMetric(AtomicaMetric):
    """MAE, RMSE, R2, Pearson and Spearman."""

    def __init__(self, config_name=REGRESSION, **kwargs):
        super().__init__(config_name, **kwargs)


class ClassMetric(AtomicaMetric):
    """ROC-AUC, PR-AUC, accuracy, balanced accuracy, MCC and F1 of classes that exclude each other."""

    def __init__(self, config_name=CLASSES, **kwargs):
        super().__init__(config_name, **kwargs)


class MultiLabelMetric(AtomicaMetric):
    """The same, each the mean over the labels of which both classes occur."""

    def __init__(self, config_name=MULTI_LABEL, **kwargs):
        super().__init__(config_name, **kwargs)


METRICS = {REGRESSION: RegressionMetric, CLASSES: ClassMetric, MULTI_LABEL: MultiLabelMetric}


def confidence_intervals(problem, predictions, labels, num_resamples=1000, seed=0, groups=None):
    """Bootstrap: metric -> (2.5 %, 97.5 %) over resampled rows; None where fewer than half of the resamples define it.

    Args:
        groups (`array` of shape `(n,)`): what is resampled as a whole, for rows that belong together (blocks of a complex).
    """
    groups = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(groups))[:-1]) if len(labels) else []
    rng, found = np.random.default_rng(seed), []
    for _ in range(num_resamples):
        drawn = rng.integers(len(members), size=len(members))
        rows = np.concatenate([members[i] for i in drawn])
        found.append(scores(problem, predictions[rows], labels[rows]))
    intervals = {}
    for name in REGRESSION_METRICS if problem == REGRESSION else CLASS_METRICS:
        values = np.array([row[name] for row in found])
        values = values[~np.isnan(values)]
        enough = len(values) and len(values) >= num_resamples / 2
        intervals[name] = tuple(float(x) for x in np.percentile(values, [2.5, 97.5])) if enough else None
    return intervals


def full_report(problem, predictions, labels, tasks=None, num_resamples=1000, seed=0, groups=None):
    """What a model card needs, ready for JSON.

    Args:
        tasks (`list[str]`): names of the columns of labels, for the numbers of each if there are several.
        num_resamples, seed, groups: as for `confidence_intervals`.

    Returns:
        `dict` of `num_examples` (rows with a label), `num_tasks` (of the main metric) and `all_tasks`, `metrics` (name ->
        value, low, high; None is undefined) and, with several tasks, `tasks` (name -> metric -> value).
    """
    predictions, labels = np.asarray(predictions, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    found = scores(problem, predictions, labels)
    intervals = confidence_intervals(problem, predictions, labels, num_resamples, seed, groups) if len(labels) else {}
    plain = lambda value: None if np.isnan(value) else value
    there = ~np.isnan(labels)
    report = {
        "num_examples": int((there if labels.ndim == 1 else there.any(1)).sum()),
        "num_tasks": found.pop("num_tasks"),
        "all_tasks": 1 if labels.ndim == 1 else labels.shape[1],
        "metrics": {},
    }
    for name, value in found.items():
        low, high = intervals.get(name) or (None, None)
        report["metrics"][name] = {"value": plain(value), "low": low, "high": high}
    if tasks is not None and len(tasks) > 1 and problem != CLASSES:
        rows = task_scores(problem, predictions, labels)
        report["tasks"] = {task: {name: plain(value) for name, value in row.items()} for task, row in zip(tasks, rows)}
    return report
