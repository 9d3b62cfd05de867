# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Numbers of run_benchmark.py: means over seeds, paired differences, bootstrap intervals, molecules in common."""

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rdkit import rdBase
from scipy.stats import rankdata
from scipy.stats import t as student_t
from tqdm.auto import tqdm

from atomica_hf import ROOT, AtomicaProcessor, StructureError
from benchmark_cells import read_cell, task_of
from benchmark_tasks import BenchmarkTask
from finetuning_data import read_source
from metrics_atomica import CLASSES, LOWER_IS_BETTER, scores
from splitting import SETS, canonical_smiles, shared_molecules


def _weighted_auc(scores_of, positive, weights):
    """ROC-AUC of one column for each row of weights `(resamples, n)`; NaN where one class is missing."""
    order = np.argsort(scores_of, kind="stable")
    weights, positive, ordered = weights[:, order], positive[order], scores_of[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # equal scores are one step
    high, low = (np.add.reduceat(weights * chosen, starts, axis=1) for chosen in (positive, ~positive))
    below = np.cumsum(low, axis=1) - low
    pairs = high.sum(1) * low.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, (high * (below + low / 2)).sum(1) / pairs, np.nan)


def _weighted_correlation(x, y, weights):
    """Pearson for each row of weights; x and y are `(n,)` or `(resamples, n)`."""
    total = weights.sum(1, keepdims=True)
    x, y = (value - (weights * value).sum(1, keepdims=True) / total for value in np.broadcast_arrays(x, y, weights)[:2])
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights * x * y).sum(1) / np.sqrt((weights * x**2).sum(1) * (weights * y**2).sum(1))


def _weighted_ranks(values, weights):
    """Mean ranks `(resamples, n)` of values that occur as often as the weights say."""
    step = rankdata(values, method="dense").astype(int) - 1
    counts = np.zeros((len(weights), step.max() + 1))
    np.add.at(counts.T, step, weights.T)
    below = np.cumsum(counts, axis=1) - counts
    return (below + (counts + 1) / 2)[:, step]


def resampled_scores(metric, problem, predictions, labels, weights):
    """A metric for many resamples at once: the same numbers as `metrics_atomica.scores` on rows repeated as often as each row
    of weights says.

    Args:
        metric (`str`), problem (`str`): of `metrics_atomica`.
        predictions, labels (`array`): shapes as there.
        weights (`array` of shape `(resamples, n)`): how often each row was drawn.

    Returns:
        `array` of shape `(resamples,)`, NaN where it is not defined.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if metric not in ("mae", "rmse", "pearson", "spearman", "roc_auc") or (problem == CLASSES and predictions.shape[1] > 2):
        drawn = [np.repeat(np.arange(len(labels)), row.astype(int)) for row in weights]
        return np.array([scores(problem, predictions[rows], labels[rows])[metric] for rows in drawn])
    if problem == CLASSES:
        predictions, labels = predictions[:, 1:], labels[:, None]
    columns = []
    for prediction, label in zip(predictions.T, labels.T):
        there = ~np.isnan(label)
        prediction, label, weight = prediction[there], label[there], weights[:, there]
        total = weight.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            if not there.any():
                columns.append(np.full(len(weights), np.nan))
            elif metric == "roc_auc":
                columns.append(_weighted_auc(prediction, label == 1, weight))
            elif metric == "mae":
                columns.append(weight @ np.abs(prediction - label) / total)
            elif metric == "rmse":
                columns.append(np.sqrt(weight @ (prediction - label) ** 2 / total))
            elif metric == "pearson":
                columns.append(_weighted_correlation(prediction, label, weight))
            else:
                ranks = _weighted_ranks(prediction, weight), _weighted_ranks(label, weight)
                columns.append(_weighted_correlation(*ranks, weight))
    table = np.stack(columns)
    defined = ~np.isnan(table)
    with np.errstate(invalid="ignore"):
        return np.where(defined, table, 0).sum(0) / np.where(defined.any(0), defined.sum(0), np.nan)


@dataclass
class Entry:
    """A row of the scoreboard in one task.

    Args:
        values (`dict`): metric -> array over the seeds.
        seeds (`list[int]`): that were finished.
        interval (`tuple`): 95 %, of the mean of the first metric.
        difference (`Difference`): to the reference; None for the reference itself.
        unseen (`float`): mean of the first metric on molecules that are not in the training set; None if all or none are.
        ratio (`float`): error of the mean predictor, divided by this one's.
    """

    values: dict
    seeds: list
    interval: tuple
    difference: "Difference | None" = None
    unseen: float | None = None
    ratio: float | None = None

    def mean(self, metric):
        return float(np.mean(self.values[metric]))

    def spread(self, metric):
        """Standard deviation over the seeds; None for one seed."""
        return float(np.std(self.values[metric], ddof=1)) if len(self.seeds) > 1 else None


@dataclass
class Difference:
    """Of two rows, over the seeds that both have.

    Args:
        mean (`float`): of the first metric.
        interval (`tuple`): 95 %, of a bootstrap over seeds and test rows: what would hold for other molecules.
        over_seeds (`tuple`): 95 %, of Student's t over the seeds: what would hold for other seeds on these molecules; None for
            one seed.
        seeds (`int`): how many.
    """

    mean: float
    interval: tuple | None
    over_seeds: tuple | None
    seeds: int


def difference_of(ones, others, interval):
    """`Difference` of the values of two rows, seed by seed."""
    values = np.asarray(ones) - np.asarray(others)
    over_seeds = None
    if len(values) > 1 and not np.isnan(values).any():
        reach = student_t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
        over_seeds = float(values.mean() - reach), float(values.mean() + reach)
    return Difference(float(values.mean()), interval, over_seeds, len(values))


@dataclass
class Summary:
    """One task of the scoreboard.

    Args:
        entries (`dict`): name of the row -> `Entry`.
        sizes (`dict`): set -> rows, least and most over the cells, in words.
        notes (`list[str]`): what the numbers rest on.
    """

    task: BenchmarkTask
    entries: dict
    sizes: dict
    notes: list


def _interval(values, num_resamples):
    defined = values[~np.isnan(values)]
    if not len(defined) or len(defined) < num_resamples / 2:
        return None
    return tuple(float(x) for x in np.percentile(defined, [2.5, 97.5]))


def draws_of(task, predictions, num_resamples):
    """How often each resample takes each seed, `(resamples, seeds)`, and each test row of each seed, a list of
    `(resamples, n)`. Seeds with the same test rows share what is drawn, so that a molecule counts as one."""
    rng = np.random.default_rng(int(hashlib.sha256(task.name.encode()).hexdigest()[:8], 16))
    drawn = {}
    for found in predictions:
        key, size = found.rows.tobytes(), len(found.rows)
        if key not in drawn:
            drawn[key] = rng.multinomial(size, np.full(size, 1 / size), size=num_resamples)
    seeds = rng.multinomial(len(predictions), np.full(len(predictions), 1 / len(predictions)), size=num_resamples)
    return seeds, [drawn[found.rows.tobytes()] for found in predictions]


def _resampled_mean(task, found, seeds, rows):
    """Resampled means of the first metric over seeds, `(resamples,)`; arguments as `draws_of` gives them."""
    table = [resampled_scores(task.metric, task.problem_type, p.predictions, p.labels, w) for p, w in zip(found, rows)]
    return (np.stack(table, axis=1) * seeds).sum(1) / seeds.sum(1)


def summarise(task, cells, results, reference, num_resamples):
    """The numbers of one task.

    Args:
        cells (`list[Cell]`): of the task.
        results (`dict`): folder of a cell -> its result.
        reference (`str`): name of the row that others are compared with.

    Returns:
        `Summary`; its entries are the rows of which at least one seed was finished.
    """
    found = {}
    for cell in cells:
        if results[cell.folder]["status"] == "done":
            found[cell.row.name, cell.seed] = read_cell(cell, results[cell.folder])
    notes, sizes, common = [], {}, {}
    for seed in sorted({seed for _, seed in found}):
        of_seed = [p for (_, other), p in found.items() if other == seed]
        common[seed] = functools.reduce(np.intersect1d, [p.rows for p in of_seed])
        most = max(len(p.rows) for p in of_seed)
        if len(common[seed]) < most:
            notes.append(
                f"Seed {seed}: {len(common[seed])} of {most} test rows count, those that all rows of the table predict."
            )
    found = {key: p.take(common[key[1]]) for key, p in found.items() if len(common[key[1]])}
    for part in SETS:
        counts = sorted({p.sizes[part] if part != "test" else len(p.rows) for p in found.values()})
        sizes[part] = " to ".join(str(count) for count in dict.fromkeys([*counts[:1], *counts[-1:]]))
    rejected = {}
    for (name, _), p in found.items():
        for code, count in p.rejected.items():
            rejected.setdefault((code, count), []).append(name)
    for (code, count), names in rejected.items():
        notes.append(f"{count} rows rejected ({code}): {', '.join(dict.fromkeys(names))}.")
    cell_of = {(cell.row.name, cell.seed): cell for cell in cells}
    entries = {}
    for name in dict.fromkeys(cell.row.name for cell in cells):
        seeds = sorted(seed for other, seed in found if other == name)
        if seeds:
            entries[name] = _entry(task, name, seeds, found, reference, cell_of, num_resamples)
    if "mean" in entries and task.metric in LOWER_IS_BETTER:
        for entry in entries.values():
            entry.ratio = entries["mean"].mean(task.metric) / entry.mean(task.metric)
    return Summary(task, entries, sizes, notes)


def _entry(task, name, seeds, found, reference, cell_of, num_resamples):
    mine = [found[name, seed] for seed in seeds]
    tables = [scores(task.problem_type, p.predictions, p.labels) for p in mine]
    values = {metric: np.array([table[metric] for table in tables]) for metric in task.metrics}
    drawn = draws_of(task, mine, num_resamples)
    entry = Entry(values, seeds, _interval(_resampled_mean(task, mine, *drawn), num_resamples))
    both = [seed for seed in seeds if (reference, seed) in found]
    if name != reference and both:
        pairs = [[found[who, seed] for seed in both] for who in (name, reference)]
        drawn = draws_of(task, pairs[0], num_resamples)
        resampled = [_resampled_mean(task, side, *drawn) for side in pairs]
        points = [[scores(task.problem_type, p.predictions, p.labels)[task.metric] for p in side] for side in pairs]
        entry.difference = difference_of(*points, _interval(resampled[0] - resampled[1], num_resamples))
    unseen = []
    for seed, p in zip(seeds, mine):
        rows = p.take(unseen_rows(cell_of[name, seed]))
        if 0 < len(rows.rows) < len(p.rows):
            unseen.append(scores(task.problem_type, rows.predictions, rows.labels)[task.metric])
    entry.unseen = float(np.mean(unseen)) if unseen else None
    return entry


# leakage --------------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=16)
def _canonical(smiles):
    with rdBase.BlockLogs():
        return canonical_smiles(smiles)


def unseen_rows(cell):
    """Test rows whose canonical SMILES no training row has; all where there are no SMILES."""
    source, _, split = task_of(cell)
    if not any(source.smiles):
        return np.array(split["test"])
    canonical = _canonical(tuple(source.smiles))
    train = {canonical[row] for row in split["train"]} - {None}
    return np.array([row for row in split["test"] if canonical[row] not in train], dtype=int)


def corpus_molecules(paths, progress=True):
    """Canonical SMILES of everything in files with SMILES or structures, or in prepared datasets whose examples are named by
    their SMILES.

    Returns:
        (`set[str]`, `list[str]`): the molecules, and a line on each file.

    Raises:
        `StructureError`: if a file is missing, or has no molecule that can be read.
    """
    processor, molecules, lines = AtomicaProcessor.from_pretrained(ROOT), set(), []
    for path in paths:
        if not Path(path).exists():
            raise StructureError("missing_file", f"{path}: no such file or folder.")
        source = read_source(path, processor)
        smiles = source.names if source.kind == "prepared" else source.smiles
        found = set()
        with rdBase.BlockLogs(), tqdm(total=len(smiles), desc="Corpus", unit="row", disable=not progress) as bar:
            for start in range(0, len(smiles), 5000):
                found |= set(canonical_smiles(smiles[start : start + 5000]))
                bar.update(len(smiles[start : start + 5000]))
        found -= {None}
        if not found:
            hint = "; name the files that it was prepared from" if source.kind == "prepared" else ""
            raise StructureError("no_smiles", f"{path}: no SMILES that can be read{hint}.")
        molecules |= found
        lines.append(f"{Path(path).name} ({len(found):,} different molecules in {len(smiles):,} rows)")
    return molecules, lines


def leakage(task, cells, molecules):
    """Lines on molecules of validation and test set that are also in the training set, or in the corpus.

    Args:
        molecules (`set[str]`): of the corpus; None if it was not given.
    """
    splits = {}
    for cell in cells:
        source, _, split = task_of(cell)
        if not any(source.smiles):
            return ["Molecules in common: not checked, there are no SMILES."]
        splits[json.dumps(split)] = split
    canonical = _canonical(tuple(source.smiles))
    readable = lambda rows: [row for row in rows if canonical[row] is not None]
    lines, sizes = [], {part: sum(len(readable(split[part])) for split in splits.values()) for part in SETS}
    over = "" if len(splits) == 1 else f" (over {len(splits)} splits)"

    def say(counts, where):
        parts = [f"{counts[part]} of {sizes[part]} {part} molecules" for part in ("test", "validation")]
        lines.append(f"{' and '.join(parts)}{over} {where}.")

    inside = [shared_molecules(source.smiles, split) for split in splits.values()]
    say({part: sum(one[part] for one in inside) for part in SETS[1:]}, "have the canonical SMILES of a training molecule")
    if molecules is None:
        lines.append("In the pretraining corpus: not checked.")
        return lines
    found = {part: sum(canonical[row] in molecules for s in splits.values() for row in readable(s[part])) for part in SETS[1:]}
    say(found, "have the canonical SMILES of one in the pretraining corpus")
    return lines
