# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints and simple models on many tasks, with several seeds: one scoreboard.

python run_benchmark.py --data_dir data --tasks moleculenet --models small=my-atomica --strategies finetune scratch --seeds 3 \\
    --finetune_options '{"num_train_epochs": 20}' --output_dir out
python run_benchmark.py --list

A cell is one task, model, strategy and seed, made by run_finetune.py. The same command again makes what is missing. Keys of
--finetune_options are options of run_finetune.py; under the name of a task or strategy stand those for it alone.
"""

import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import json
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HOME
from rdkit import rdBase
from scipy.stats import rankdata
from tqdm.auto import tqdm
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

import run_finetune
from atomic_files import save_figure, write_table, write_text
from atomica_hf import ROOT, AtomicaProcessor, StructureError
from baselines import BASELINES, predict_baseline
from benchmark_tasks import (
    NAME,
    TASKS,
    BenchmarkTask,
    choose_tasks,
    describe,
    find_data,
    read_tasks,
)
from finetuning_data import Encoded, read_labels, read_source
from finetuning_report import write_predictions
from metrics_atomica import CLASSES, LOWER_IS_BETTER, PRIMARY, REGRESSION, scores
from splitting import SETS, canonical_smiles, shared_molecules


CHECKPOINT_STRATEGIES = run_finetune.STRATEGIES
SCRATCH = "scratch"  # a model without weights, and the strategy of that name
BASELINE = "baseline"
RESULT_FILE, LOG_FILE, PREDICTIONS_FILE = "result.json", "log.txt", "predictions.csv"
KEPT_FILES = (RESULT_FILE, LOG_FILE, PREDICTIONS_FILE, "metrics.json", "split.json", "learning_curve.png")
# what run_benchmark.py decides, and an option of --finetune_options may not
OWN_OPTIONS = (
    "train_file", "output_dir", "model_name_or_path", "strategy", "seed", "label_columns", "smiles_column", "problem_type",
    "split", "split_column", "group_column", "split_file", "split_fractions", "split_seed", "cache_dir", "baselines",
    "num_bootstrap", "block_labels", "do_predict", "predict_file", "predictions_file", "resume_from_checkpoint", "push_to_hub",
    "disable_tqdm",
)  # fmt: skip
NO_MATTER = ("preprocessing_num_workers", "dataloader_num_workers", "logging_steps", "per_device_eval_batch_size")


@dataclass
class BenchmarkArguments:
    data_dir: str | None = HfArg(default=None, help="Folder with the data of the tasks; --list says which files.")
    tasks: list[str] = HfArg(
        default_factory=lambda: ["moleculenet"], help="Names of tasks or of groups (moleculenet, complexes), or all."
    )
    task_file: str | None = HfArg(default=None, help="JSON or CSV with tasks of your own; see docs/benchmarks.md.")
    models: list[str] = HfArg(
        default_factory=list,
        help="Folders or hub ids of checkpoints, also as name=path; scratch is a model without weights, of the configuration "
        "that --finetune_options gives.",
    )
    strategies: list[str] = HfArg(
        default_factory=lambda: ["finetune"],
        metadata={"choices": list(CHECKPOINT_STRATEGIES)},
        help="What is done with each checkpoint. scratch trains its configuration without its weights.",
    )
    seeds: int = HfArg(default=3, help="How many seeds; each trains everything once.")
    first_seed: int = HfArg(default=0, help="The first of the seeds.")
    output_dir: str | None = HfArg(default=None, help="Folder for the cells and the scoreboard.")
    finetune_options: str = HfArg(
        default="{}", help="Options of run_finetune.py as JSON, or a file with it; see the first lines above."
    )
    baselines: bool = HfArg(default=True, help="Also train simple models: mean, ECFP4 forest, descriptor boosting.")
    reference: str | None = HfArg(
        default=None,
        help="Row of the table that others are compared with; by default the first from scratch, else the first model.",
    )
    pretraining_corpus: list[str] = HfArg(
        default_factory=list, help="Files with SMILES, or prepared datasets, that the checkpoints were pretrained on."
    )
    num_bootstrap: int = HfArg(default=1000, help="Resamples for the 95 %% intervals.")
    in_process: bool = HfArg(
        default=False, help="Make all cells in this process: starts faster, but a crash of one ends the others too."
    )
    keep_models: bool = HfArg(default=False, help="Keep the trained model of each cell; otherwise only its predictions.")
    redo_changed: bool = HfArg(default=False, help="Make finished cells again whose options, data or weights have changed.")
    cache_dir: str = HfArg(default=str(Path(HF_HOME) / "atomica"), help="Where built structures are kept, for all cells.")
    disable_tqdm: bool = HfArg(default=False, help="Show no progress bars.")
    list: bool = HfArg(default=False, help="List the tasks and where their data is expected, and do nothing else.")


# what is to be done -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of the scoreboard: a checkpoint and what is done with it, or a simple model.

    Args:
        model, strategy (`str`): names; a simple model is a strategy of the model `baseline`.
        path (`str`): folder of the checkpoint; None for others.
        weights (`str`): hash of the files of the checkpoint.
    """

    model: str
    strategy: str
    path: str | None = None
    weights: str | None = None

    @property
    def name(self):
        if self.model in (BASELINE, SCRATCH):
            return self.strategy
        return f"{self.model}, {self.strategy}"


@dataclass(frozen=True)
class Cell:
    """One number of one seed. `fingerprint` is all that the number depends on; `options` are those of run_finetune.py."""

    task: BenchmarkTask
    row: Row
    seed: int
    folder: Path
    options: dict
    fingerprint: dict

    @property
    def name(self):
        return f"{self.task.name}, {self.row.name}, seed {self.seed}"


def usage(condition, message):
    if condition:
        raise StructureError("usage", message)


def weights_hash(folder):
    """Hash of what a checkpoint does: its weights, configuration, tokenizer and processor.

    Raises:
        `StructureError`: if there are no weights.
    """
    files = [file for end in ("*.safetensors", "*.bin", "*.json", "*.txt") for file in sorted(Path(folder).glob(end))]
    if not any(file.suffix in (".safetensors", ".bin") for file in files):
        raise StructureError("no_model", f"{folder}: no weights there, expected model.safetensors and config.json.")
    found = hashlib.sha256()
    for file in files:
        if file.name not in ("trainer_state.json", "metrics.json", "split.json", "finetuning.json"):
            found.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


def checkpoint_folder(path):
    """A folder, or a hub id, which is downloaded. Raises `StructureError` if it is neither."""
    if Path(path).is_dir():
        return str(Path(path).resolve())
    usage(Path(path).exists(), f"--models {path}: a file, expected the folder of a model.")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path):
        raise StructureError("no_model", f"--models {path}: no such folder.")
    try:
        return snapshot_download(path)
    except Exception as error:  # of the network, or of the Hub
        raise StructureError(
            "no_model", f"--models {path}: neither a folder nor a model on the Hub that can be loaded ({error})."
        ) from error


def rows_of(models, strategies, with_baselines):
    """Models and strategies -> rows of the scoreboard.

    Raises:
        `StructureError`: for a model that is not there, a name that cannot be used or is used twice, or no row at all.
    """
    rows, names = [], set()
    for given in models:
        name, path = given.split("=", 1) if "=" in given else (Path(given).name, given)
        usage(
            not NAME.fullmatch(name), f"--models {given}: the name {name!r} needs letters, digits and . _ + -; use name=path."
        )
        usage(name in names, f"--models names {name!r} twice; call one of them otherwise with name=path.")
        names.add(name)
        if given == SCRATCH:
            rows.append(Row(SCRATCH, SCRATCH))
            continue
        usage(name in (SCRATCH, BASELINE), f"--models {given}: {name!r} has a meaning here; use name=path.")
        folder = checkpoint_folder(path)
        run_finetune.load_config(folder)
        weights = weights_hash(folder)
        rows += [Row(name, strategy, folder, weights) for strategy in dict.fromkeys(strategies)]
    if with_baselines:
        rows += [Row(BASELINE, name) for name in BASELINES]
    usage(not rows, "Nothing to do: no --models, and --no_baselines.")
    return rows


def read_options(text):
    """--finetune_options -> dictionary. Raises `StructureError` if it is not one."""
    given = text
    try:
        if not text.lstrip().startswith("{"):
            text = Path(text).read_text(encoding="utf-8")
        options = json.loads(text)
    except (OSError, ValueError) as error:
        raise StructureError("usage", f"--finetune_options {given}: neither JSON nor a file with it ({error}).") from error
    usage(not isinstance(options, dict), f"--finetune_options {given}: expected an object such as {{}}.")
    return options


def options_for(given, task, row, names):
    """The options that hold for a task and a row: the general ones, then those of the strategy, then those of the task.

    Args:
        given (`dict`): `--finetune_options`.
        names (`set[str]`): of tasks and strategies, whose values are options too.
    """
    merged = {name: value for name, value in given.items() if name not in names}
    for section in (row.strategy, task.name):
        part = given.get(section, {})
        usage(not isinstance(part, dict), f"--finetune_options: {section} is {part!r}, expected an object with options.")
        merged |= part
    wrong = [name for name in merged if name in OWN_OPTIONS]
    usage(wrong, f"--finetune_options: {', '.join(wrong)} is decided by run_benchmark.py.")
    if row.model != SCRATCH:  # the others have a configuration
        merged = {name: value for name, value in merged.items() if name not in ("config_name", "config_overrides")}
    return merged


def own_options(task, data, row, seed, cache_dir):
    """What run_benchmark.py itself decides about a run of run_finetune.py."""
    options = {
        "train_file": str(data.path), "label_columns": list(data.label_columns), "smiles_column": task.smiles_column,
        "problem_type": task.problem_type, "seed": seed, "cache_dir": str(cache_dir), "num_bootstrap": 0,
    }  # fmt: skip
    if task.split == "column":
        options["split_column"] = task.split_column
    elif task.split == "group":
        options["group_column"] = task.group_column
    else:
        options["split"] = task.split
    if task.split != "column":
        options |= {"split_fractions": list(task.split_fractions), "split_seed": seed if task.resplit else 0}
    if row.strategy == SCRATCH or row.model == BASELINE:
        options["strategy"] = SCRATCH
        if row.path:
            options |= {"config_name": row.path, "processor_name_or_path": row.path}
    else:
        options |= {"strategy": row.strategy, "model_name_or_path": row.path}
    if task.metric != PRIMARY[task.problem_type]:
        options["metric_for_best_model"] = task.metric
    return options


def words_of(options):
    """Options -> words of a command line."""
    words = []
    for name, value in options.items():
        if value is not None:
            values = value if isinstance(value, list | tuple) else [value]
            words += [f"--{name}", *(json.dumps(one) if isinstance(one, dict) else str(one) for one in values)]
    return words


def check_words(words, name):
    """Raises `StructureError` if run_finetune.py would refuse them, before anything is run."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            options = run_finetune.parse(words)
        run_finetune.check_options(options)
    except SystemExit as error:  # of argparse
        raise StructureError("usage", f"{name}: {complaint.getvalue().strip().splitlines()[-1]}") from error
    except StructureError as error:
        raise StructureError(error.code, f"{name}: {error}") from error
    return options


def make_cells(arguments, tasks, data, rows):
    """Cells of the whole command, task by task.

    Raises:
        `StructureError`: if options are wrong.
    """
    given = read_options(arguments.finetune_options)
    known = {*(task.name for task in (*TASKS, *tasks)), *CHECKPOINT_STRATEGIES}
    known_names = {name for name in given if name in known and isinstance(given[name], dict)}
    cells, seeds = [], range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    for task in tasks:
        for row in rows:
            if row.model == BASELINE and row.strategy not in task.baselines:
                continue
            chosen = {} if row.model == BASELINE else options_for(given, task, row, known_names)
            for seed in seeds:
                own = own_options(task, data[task.name], row, seed, arguments.cache_dir)
                options = own | chosen
                folder = Path(arguments.output_dir) / "cells" / task.name / row.model / row.strategy / f"seed-{seed}"
                if seed == seeds[0]:
                    check_words(words_of({**options, "output_dir": folder / "run"}), f"{task.name}, {row.name}")
                fingerprint = {
                    "task": task.settings(), "data": data[task.name].hash, "labels": data[task.name].label_columns,
                    "weights": row.weights, "strategy": row.strategy,
                    "seed": seed, "options": {name: value for name, value in chosen.items() if name not in NO_MATTER},
                }  # fmt: skip
                cells.append(Cell(task, row, seed, folder, options, json.loads(json.dumps(fingerprint))))
    usage(not cells, "No cells: none of the tasks has one of the rows.")
    return cells


def differences(before, now, prefix=""):
    """What is unlike in two fingerprints, in words."""
    found = []
    for name in sorted({*before, *now}):
        one, other = before.get(name), now.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            found += differences(one, other, f"{prefix}{name} ")
        elif one != other:
            one, other = (str(v)[:12] if name in ("data", "weights") else repr(v) for v in (one, other))
            found.append(f"{prefix}{name} was {one}, is now {other}")
    return found


def read_result(cell):
    """What a cell left behind; None if it was not finished, or its files were cut."""
    try:
        found = json.loads((cell.folder / RESULT_FILE).read_text(encoding="utf-8"))
        complete = found["status"] == "failed" or (cell.folder / PREDICTIONS_FILE).exists()
        return found if complete and isinstance(found["fingerprint"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def pending(cells, redo_changed):
    """Cells that have to be made: those that are not there, failed, or were made with something else.

    Raises:
        `StructureError`: for finished cells of another kind, without `redo_changed`.
    """
    todo, changed = [], []
    for cell in cells:
        found = read_result(cell)
        unlike = found is not None and found["status"] == "done" and found["fingerprint"] != cell.fingerprint
        if unlike:
            changed.append(f"  {cell.name}: {'; '.join(differences(found['fingerprint'], cell.fingerprint))}")
        if unlike or found is None or found["status"] != "done":
            todo.append(cell)
    if changed and not redo_changed:
        more = [f"  ... and {len(changed) - 10} more"] * (len(changed) > 10)
        raise StructureError(
            "other_run",
            f"{len(changed)} finished cells were made with something else; use another --output_dir, or --redo_changed:\n"
            + "\n".join([*changed[:10], *more]),
        )
    return todo


# cells --------------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=16)
def load_task(words, name):
    """What is known of a task without building a structure: (source, labels, split). `words` is a tuple of options."""
    options = check_words(list(words), name)
    processor = AtomicaProcessor.from_pretrained(ROOT)
    source = read_source(options.data.train_file, processor, options.data.smiles_column)
    excluded = [column for column in (options.data.split_column, options.data.group_column) if column]
    labels = read_labels(source, options.data.label_columns, options.data.problem_type, None, False, excluded)
    return source, labels, run_finetune.split_rows(source, labels, options.data)


def task_of(cell):
    """`load_task` for a cell; the same for all rows, and for all seeds unless each has its own split."""
    names = ("train_file", "label_columns", "smiles_column", "problem_type", "split", "split_column", "group_column",
             "split_fractions", "split_seed")  # fmt: skip
    options = {name: cell.options[name] for name in names if name in cell.options}
    return load_task(tuple(words_of({**options, "output_dir": "unused"})), cell.task.name)


def make_baseline(cell):
    """Trains a simple model on all rows with a label and a molecule, and predicts validation and test set."""
    source, labels, split = task_of(cell)
    train, others = split["train"], split["validation"] + split["test"]
    num_classes = None if labels.classes is None else len(labels.classes)
    smiles = [[source.smiles[row] for row in rows] for rows in (train, others)]
    if cell.row.strategy != "mean" and not any(smiles[0]):
        raise StructureError("no_smiles", f"{source.path}: {cell.row.strategy} needs SMILES, and there are none.")
    with rdBase.BlockLogs():
        found = predict_baseline(
            cell.row.strategy, labels.problem, smiles[0], labels.values[train], smiles[1], num_classes, cell.seed
        )
    used = {*train, *others}
    rejected = {row: ("unused", "no label, no molecule, or in no set") for row in range(len(source.rows)) if row not in used}
    encoded = Encoded([[] for _ in source.rows], None, rejected)
    write_predictions(cell.folder / PREDICTIONS_FILE, source, labels, encoded, dict(zip(others, found)), split)
    return {"columns": labels.columns, "problem": labels.problem, "classes": labels.classes}


def make_model(cell, in_process, keep):
    """Runs run_finetune.py for a cell; its folder then has the predictions and the numbers."""
    run = cell.folder / "run"
    words = words_of({**cell.options, "output_dir": run, "disable_tqdm": True})
    with open(cell.folder / LOG_FILE, "w", encoding="utf-8") as log:
        if in_process:
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                run_finetune.main(words)
        else:
            command = [sys.executable, str(ROOT / "run_finetune.py"), *words]
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
            if done.returncode:
                raise StructureError("failed", _last_words(cell.folder / LOG_FILE, done.returncode))
    record = run_finetune.read_record(run)
    for name in KEPT_FILES:
        if (run / name).exists():
            shutil.copy(run / name, cell.folder / name)
    if not keep:
        shutil.rmtree(run)
    return {name: record[name] for name in ("columns", "problem", "classes")}


def _last_words(log, code):
    """Why a process ended: the last line it wrote, and how it ended if it was killed."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    why = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
    last = lines[-1].removeprefix("run_finetune.py: error: ") if lines else "it wrote nothing"
    return f"{last} ({why}; see {log.name} of the cell)"


def versions():
    """Of what numbers depend on."""
    import rdkit
    import sklearn
    import torch
    import transformers

    code = hashlib.sha256()
    for file in sorted(ROOT.glob("*.py")):
        code.update(file.read_bytes())
    return {
        "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
        "rdkit": rdkit.__version__, "scikit-learn": sklearn.__version__, "numpy": np.__version__, "code": code.hexdigest()[:12],
    }  # fmt: skip


def make_cell(cell, arguments):
    """Makes a cell and writes its result, the last file, whatever happens. Returns why it failed, or None."""
    shutil.rmtree(cell.folder, ignore_errors=True)
    cell.folder.mkdir(parents=True)
    start, result, reason = time.monotonic(), {}, None
    try:
        if cell.row.model == BASELINE:
            result = make_baseline(cell)
        else:
            result = make_model(cell, arguments.in_process, arguments.keep_models)
        read_cell(cell, result)  # it has predictions for the test set, and they can be read
    except (Exception, SystemExit) as error:
        reason = str(error) if isinstance(error, StructureError) else f"{type(error).__name__}: {error}"
        with open(cell.folder / LOG_FILE, "a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
    status = {"status": "failed", "reason": reason} if reason else {"status": "done"}
    result = {
        **status, **result, "fingerprint": cell.fingerprint, "versions": versions(),
        "seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip
    write_text(cell.folder / RESULT_FILE, json.dumps(result, indent=1))
    return reason


def make_all(cells, arguments):
    """Makes cells one after another; returns how many failed."""
    failed = 0
    with tqdm(cells, unit="cell", disable=arguments.disable_tqdm) as bar:
        for cell in bar:
            bar.set_description(cell.name)
            reason = make_cell(cell, arguments)
            if reason:
                failed += 1
                tqdm.write(f"failed: {cell.name}: {reason}", file=sys.stderr)
    return failed


# numbers --------------------------------------------------------------------------------------------------------------------


@dataclass
class Predictions:
    """Test rows of a cell, in the order of the rows.

    Args:
        rows (`np.ndarray` of shape `(n,)`): numbers of the rows.
        labels, predictions (`np.ndarray`): as `metrics_atomica` wants them.
        sizes (`dict`): set -> rows with a prediction (of the training set, rows in it).
        rejected (`dict`): reason -> rows.
    """

    rows: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    sizes: dict
    rejected: dict

    def take(self, rows):
        """Those of these rows that are here, in the order of the rows."""
        chosen = np.isin(self.rows, rows)
        return dataclasses.replace(
            self, rows=self.rows[chosen], labels=self.labels[chosen], predictions=self.predictions[chosen]
        )


def read_cell(cell, result):
    """Predictions of a finished cell.

    Raises:
        `StructureError`: if the file is not what run_finetune.py writes.
    """
    path, problem = cell.folder / PREDICTIONS_FILE, result["problem"]
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            table = list(csv.DictReader(stream))
        if problem == CLASSES:
            column = result["columns"][0]
            labels, wanted = [column], [f"{column}_probability_{name}" for name in result["classes"]]
        else:
            ending = "predicted" if problem == REGRESSION else "probability"
            labels, wanted = result["columns"], [f"{column}_{ending}" for column in result["columns"]]
        test = [row for row in table if row["set"] == "test" and row[wanted[0]] != ""]
        number = lambda text: float(text) if text != "" else np.nan
        truth = [[row[column] for column in labels] for row in test]
        if problem == CLASSES:
            truth = np.array([result["classes"].index(row[0]) if row[0] else np.nan for row in truth], dtype=np.float64)
        else:
            truth = np.array([list(map(number, row)) for row in truth], dtype=np.float64)
        found = np.array([[number(row[column]) for column in wanted] for row in test], dtype=np.float64)
        numbers = np.array([int(row["row"]) for row in test])
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise StructureError("bad_predictions", f"{path}: cannot be read ({type(error).__name__}: {error}).") from error
    if not len(test):
        raise StructureError("bad_predictions", f"{path}: no prediction for the test set.")
    sizes = {part: sum(row["set"] == part and not row["reason"] for row in table) for part in SETS}
    rejected = {}
    for row in table:
        if row["reason"]:
            code = row["reason"].split(":")[0]
            rejected[code] = rejected.get(code, 0) + 1
    return Predictions(numbers, truth, found, sizes, rejected)


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
        difference (`tuple`): mean of its difference to the reference, low, high, seeds; None for the reference itself.
        unseen (`float`): mean of the first metric on molecules that are not in the training set; None if all or none are.
        ratio (`float`): error of the mean predictor, divided by this one's.
    """

    values: dict
    seeds: list
    interval: tuple
    difference: tuple | None = None
    unseen: float | None = None
    ratio: float | None = None

    def mean(self, metric):
        return float(np.mean(self.values[metric]))

    def spread(self, metric):
        """Standard deviation over the seeds; None for one seed."""
        return float(np.std(self.values[metric], ddof=1)) if len(self.seeds) > 1 else None


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
        point = [np.mean([scores(task.problem_type, p.predictions, p.labels)[task.metric] for p in side]) for side in pairs]
        entry.difference = (float(point[0] - point[1]), _interval(resampled[0] - resampled[1], num_resamples), len(both))
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
            raise StructureError("missing_file", f"--pretraining_corpus {path}: no such file or folder.")
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
            raise StructureError("no_smiles", f"--pretraining_corpus {path}: no SMILES that can be read{hint}.")
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


# the scoreboard -------------------------------------------------------------------------------------------------------------


def _number(value):
    if value is None or np.isnan(value):
        return "not defined"
    return f"{value:.3f}" if value == 0 or 0.01 <= abs(value) < 1e5 else f"{value:.3g}"


def _with_spread(entry, metric):
    mean, spread = entry.mean(metric), entry.spread(metric)
    if spread is None or np.isnan(spread):
        return _number(mean)
    return f"{_number(mean)} ± {spread:.3f}" if 0.01 <= abs(mean) < 1e5 else f"{mean:.3g} ± {spread:.2g}"


def _best(summary):
    """Name of the best row in the first metric; None if it is defined for none."""
    metric = summary.task.metric
    means = {name: entry.mean(metric) for name, entry in summary.entries.items() if not np.isnan(entry.mean(metric))}
    if not means:
        return None
    return min(means, key=means.get) if metric in LOWER_IS_BETTER else max(means, key=means.get)


def _arrow(metric):
    return f"{metric} {'↓' if metric in LOWER_IS_BETTER else '↑'}"


def _markdown(header, lines):
    return "\n".join([f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(line)} |" for line in lines)])


def _main_table(summaries, names, most):
    best = [_best(summary) for summary in summaries]
    lines = []
    for name in names:
        cells = []
        for summary, winner in zip(summaries, best):
            entry = summary.entries.get(name)
            text = "" if entry is None else _with_spread(entry, summary.task.metric)
            text += f" ({len(entry.seeds)} seeds)" if entry is not None and len(entry.seeds) < most else ""
            cells.append(f"**{text}**" if name == winner and text else text)
        lines.append([name, *cells])
    return _markdown(["model", *(f"{s.task.heading}, {_arrow(s.task.metric)}" for s in summaries)], lines)


def _in_brackets(pair):
    return "" if pair is None else f" [{_number(pair[0])}, {_number(pair[1])}]"


def _task_section(summary, reference, leaks, data):
    task, metric = summary.task, summary.task.metric
    units = f" in {task.units}" if task.units else ""
    sizes = ", ".join(f"{part} {summary.sizes[part]}" for part in SETS)
    lines = [f"### {task.heading}", "", f"`{data.path.name}`: {', '.join(data.label_columns)}{units}; {task.source}; licence: "
             f"{task.licence}. Split: {task.split_in_words()}; rows: {sizes}.", ""]  # fmt: skip
    columns = [*task.metrics]
    show_unseen = any(entry.unseen is not None for entry in summary.entries.values())
    show_ratio = any(entry.ratio is not None for entry in summary.entries.values())
    header = ["model", "seeds", f"{_arrow(metric)} [95 %]", *map(_arrow, columns[1:])]
    header += [f"{metric} minus that of {reference} [95 %]"] * (reference in summary.entries)
    header += [f"{metric}, molecules not in training"] * show_unseen + ["better than the mean, times"] * show_ratio
    table = []
    for name, entry in summary.entries.items():
        cells = [name, str(len(entry.seeds)), _with_spread(entry, metric) + _in_brackets(entry.interval)]
        cells += [_with_spread(entry, other) for other in columns[1:]]
        if reference in summary.entries:
            found = entry.difference
            cells.append("" if found is None else f"{found[0]:+.3f}{_in_brackets(found[1])}")
        cells += [_number(entry.unseen) if entry.unseen is not None else ""] * show_unseen
        cells += [f"{entry.ratio:.2f}" if entry.ratio is not None else ""] * show_ratio
        table.append(cells)
    notes = [*data.notes, *leaks, *summary.notes]
    return "\n".join([*lines, _markdown(header, table), "", *(f"- {note}" for note in notes), ""])


def scoreboard(arguments, summaries, rows, reference, leaks, data, failures, corpus, used, left_over):
    """Text of scoreboard.md."""
    names = [row.name for row in rows]
    groups = {}
    for summary in summaries:
        groups.setdefault(summary.task.group, []).append(summary)
    seeds = list(range(arguments.first_seed, arguments.first_seed + arguments.seeds))
    text = ["# Scoreboard", ""]
    for group, members in groups.items():
        there = [name for name in names if any(name in summary.entries for summary in members)]
        text += [f"## {group}", "", _main_table(members, there, len(seeds)), ""]
    text += [
        f"Test sets; mean ± standard deviation over the seeds {', '.join(map(str, seeds))}; best in bold; ↓ less is better, "
        "↑ more is better. Over several labels a number is the mean of those for which it is defined; missing labels are left "
        "out.",
        "",
        f"Intervals: bootstrap, {arguments.num_bootstrap} resamples, each of the seeds and of the test rows (the same for all "
        "models; with few seeds too narrow). Differences are between cells of the same seed.",
        "",
        "![scoreboard](scoreboard.png)",
        "",
        "## Tasks",
        "",
    ]
    text += [_task_section(summary, reference, leaks[summary.task.name], data[summary.task.name]) for summary in summaries]
    if corpus:
        text += [f"Pretraining corpus: {'; '.join(corpus)}. Compared are whole rows: canonical SMILES with stereochemistry, "
                 "salts and charges; other forms of a molecule are not found.", ""]  # fmt: skip
    if failures:
        text += ["## Failed cells", "", *(f"- {cell.name}: {reason}" for cell, reason in failures), ""]
    text += ["## How it was made", "", "```", arguments.command, "```", ""]
    for versions_of, count in used.items():
        text.append(f"- {count} cells: {versions_of}")
    if len(used) > 1:
        text.append("- The cells were made with different versions: compare them with care.")
    if left_over:
        text.append(f"- {left_over} other cells in the folder do not belong to this command and are not in the table.")
    return "\n".join(text) + "\n"


def wide_rows(summaries, rows):
    """Lines of scoreboard.csv."""
    lines = []
    for row in rows:
        line = {"row": row.name, "model": row.model, "strategy": row.strategy}
        for summary in summaries:
            entry, key = summary.entries.get(row.name), f"{summary.task.name} {summary.task.metric}"
            spread = None if entry is None else entry.spread(summary.task.metric)
            line[f"{key} mean"] = "" if entry is None else entry.mean(summary.task.metric)
            line[f"{key} sd"] = "" if spread is None else spread
            line[f"{key} seeds"] = 0 if entry is None else len(entry.seeds)
        lines.append(line)
    return lines


def difference_rows(summaries, reference):
    """Lines of differences.csv; none without a reference."""
    lines = []
    for summary in summaries:
        for name, entry in summary.entries.items():
            if entry.difference is not None:
                point, pair, seeds = entry.difference
                low, high = pair or ("", "")
                lines.append({"task": summary.task.name, "row": name, "reference": reference, "metric": summary.task.metric,
                              "difference": point, "low": low, "high": high, "seeds": seeds})  # fmt: skip
    return lines


def cell_rows(cells, results, summaries):
    """Lines of cells.csv: every cell, with its numbers or why it has none."""
    tables = {summary.task.name: summary.entries for summary in summaries}
    metrics = list(dict.fromkeys(metric for cell in cells for metric in cell.task.metrics))
    lines = []
    for cell in cells:
        result, entry = results[cell.folder], tables.get(cell.task.name, {}).get(cell.row.name)
        line = {"task": cell.task.name, "row": cell.row.name, "model": cell.row.model, "strategy": cell.row.strategy,
                "seed": cell.seed, "status": result["status"], "seconds": result["seconds"]}  # fmt: skip
        there = entry is not None and cell.seed in entry.seeds and result["status"] == "done"
        for metric in metrics:
            known = there and metric in entry.values
            line[metric] = float(entry.values[metric][entry.seeds.index(cell.seed)]) if known else ""
        lines.append({**line, "reason": result.get("reason", "")})
    return lines


def draw(summaries, rows, path):
    """One panel for each task: means with their 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [row.name for row in rows if any(row.name in summary.entries for summary in summaries)]
    across = min(4, len(summaries))
    down = -(-len(summaries) // across)
    size = (1.2 + 2.6 * across, down * (0.9 + 0.28 * len(names)))
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False, sharey=True)
    for axis, summary in zip(axes.flat, summaries):
        for place, name in enumerate(names):
            entry = summary.entries.get(name)
            if entry is None or np.isnan(entry.mean(summary.task.metric)):
                continue
            colour = "#d62728" if name == _best(summary) else "#1f77b4"
            if entry.interval is not None:
                axis.plot(entry.interval, [place, place], color=colour, linewidth=1.2)
            axis.plot(entry.mean(summary.task.metric), place, "o", color=colour, markersize=4)
        axis.set_title(summary.task.heading, fontsize=9)
        axis.set_xlabel(_arrow(summary.task.metric), fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(axis="x", linewidth=0.3)
    for axis in axes.flat[len(summaries) :]:
        axis.set_visible(False)
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].set_ylim(len(names) - 0.5, -0.5)
    save_figure(figure, path, dpi=150)


def choose_reference(given, rows):
    """Name of the row to compare with: the one given, else the first from scratch, the first model, or the first of all.

    Raises:
        `StructureError`: if the one given is not there.
    """
    names = [row.name for row in rows]
    usage(given is not None and given not in names, f"--reference {given!r} is no row; there are {'; '.join(names)}.")
    models = [row.name for row in rows if row.model != BASELINE]
    scratch = [row.name for row in rows if row.strategy == SCRATCH]
    return given or [*scratch, *models, *names][0]


def report(arguments, tasks, data, rows, cells, molecules, corpus):
    """Writes the tables and the picture from the cells that are there; returns the text of the first."""
    results = {cell.folder: read_result(cell) for cell in cells}
    cells = [cell for cell in cells if results[cell.folder] is not None]
    reference = choose_reference(arguments.reference, rows)
    summaries, leaks = [], {}
    for task in tasks:
        mine = [cell for cell in cells if cell.task.name == task.name]
        if any(results[cell.folder]["status"] == "done" for cell in mine):
            summaries.append(summarise(task, mine, results, reference, arguments.num_bootstrap))
            leaks[task.name] = leakage(task, mine, molecules)
    failures = [(c, results[c.folder]["reason"]) for c in cells if results[c.folder]["status"] == "failed"]
    used = {}
    for cell in cells:
        words = ", ".join(f"{name} {version}" for name, version in results[cell.folder]["versions"].items())
        used[words] = used.get(words, 0) + 1
    folder = Path(arguments.output_dir)
    mine = {cell.folder.resolve() for cell in cells}
    left_over = sum(file.parent.resolve() not in mine for file in (folder / "cells").rglob(RESULT_FILE))
    write_table(folder / "cells.csv", cell_rows(cells, results, summaries))
    if not summaries:
        return None
    write_table(folder / "scoreboard.csv", wide_rows(summaries, rows))
    lines = difference_rows(summaries, reference)
    if lines:
        write_table(folder / "differences.csv", lines)
    draw(summaries, rows, folder / "scoreboard.png")
    text = scoreboard(arguments, summaries, rows, reference, leaks, data, failures, corpus, used, left_over)
    write_text(folder / "scoreboard.md", text)
    return text


# the run --------------------------------------------------------------------------------------------------------------------


def parse(argv):
    parser = HfArgumentParser(BenchmarkArguments, description=__doc__)
    try:
        (arguments,) = parser.parse_args_into_dataclasses(argv)
    except ValueError as error:
        raise StructureError("usage", str(error)) from error
    arguments.command = "python run_benchmark.py " + shlex.join(argv)
    return arguments


def check_arguments(arguments):
    """Raises `StructureError` for what is missing or cannot be."""
    usage(arguments.data_dir is None, "--data_dir is missing: the folder with the data; --list says what is expected there.")
    usage(not Path(arguments.data_dir).is_dir(), f"--data_dir {arguments.data_dir}: no such folder.")
    usage(arguments.output_dir is None, "--output_dir is missing: a folder for the cells and the scoreboard.")
    usage(Path(arguments.output_dir).is_file(), f"--output_dir {arguments.output_dir} is a file, expected a folder.")
    usage(arguments.seeds < 1, f"--seeds is {arguments.seeds}, expected at least 1.")
    usage(arguments.num_bootstrap < 0, f"--num_bootstrap is {arguments.num_bootstrap}, expected at least 0.")


def main(argv=None):
    """Returns how many cells failed."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    own = read_tasks(arguments.task_file) if arguments.task_file else ()
    if arguments.list:
        print(describe(choose_tasks(["all"], own)))
        return 0
    check_arguments(arguments)
    tasks = choose_tasks(arguments.tasks, own)
    rows = rows_of(arguments.models, arguments.strategies, arguments.baselines)
    folder = Path(arguments.output_dir)
    data = {task.name: find_data(task, arguments.data_dir, folder / "data" / task.name) for task in tasks}
    cells = make_cells(arguments, tasks, data, rows)
    rows = [row for row in rows if any(cell.row == row for cell in cells)]
    choose_reference(arguments.reference, rows)
    for cell in {(cell.task.name, cell.seed): cell for cell in cells}.values():
        task_of(cell)  # what is wrong with the data shows before what takes long
    todo = pending(cells, arguments.redo_changed)
    molecules, corpus = None, []
    if arguments.pretraining_corpus:
        molecules, corpus = corpus_molecules(arguments.pretraining_corpus, not arguments.disable_tqdm)
    skipped = len(cells) - len(todo)
    if skipped:
        print(f"{skipped} of {len(cells)} cells are finished already.")
    failed = make_all(todo, arguments)
    text = report(arguments, tasks, data, rows, cells, molecules, corpus)
    if text is not None:
        print(text.split("## Tasks")[0].strip())
    print(f"\n{len(todo) - failed} cells done, {failed} failed, {skipped} skipped because they were finished; see {folder}.")
    return failed


if __name__ == "__main__":
    try:
        sys.exit(1 if main() else 0)
    except (StructureError, OSError) as error:
        sys.exit(f"run_benchmark.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit("run_benchmark.py: stopped; the same command goes on where it was.")
