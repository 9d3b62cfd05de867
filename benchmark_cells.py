# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""The cells of run_benchmark.py: what is to be made, whether it was made already, and the making."""

import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import json
import platform
import re
import shutil
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from huggingface_hub import snapshot_download
from rdkit import rdBase
from tqdm.auto import tqdm

import run_finetune
from atomic_files import write_text
from atomica_hf import ROOT, AtomicaProcessor, StructureError
from baselines import BASELINES, predict_baseline
from benchmark_tasks import NAME, TASKS, BenchmarkTask
from finetuning_arguments import STRATEGIES, check_options, parse
from finetuning_data import Encoded, read_labels, read_source
from finetuning_models import load_config
from finetuning_report import write_predictions
from finetuning_task import split_rows
from metrics_atomica import CLASSES, PRIMARY, REGRESSION
from splitting import SETS


SCRATCH = "scratch"  # a model without weights, and the strategy of that name
CHECKPOINT_FILES = ("*.safetensors", "*.bin", "*.index.json", "*config.json", "vocab.*", "*token*.json")
RANDOM_PROBE = "random_linear_probe"  # on vectors of the configuration of a model, with random weights
CHECKPOINT_STRATEGIES = (*STRATEGIES, RANDOM_PROBE)
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
    files = [file for pattern in CHECKPOINT_FILES for file in sorted(Path(folder).glob(pattern))]
    if not any(file.suffix in (".safetensors", ".bin") for file in files):
        raise StructureError("no_model", f"{folder}: no weights there, expected model.safetensors and config.json.")
    found = hashlib.sha256()
    for file in files:
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
        load_config(folder)
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
    for section in (*(["linear_probe"] if row.strategy == RANDOM_PROBE else []), row.strategy, task.name):
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
    if row.strategy in (SCRATCH, RANDOM_PROBE) or row.model == BASELINE:
        options["strategy"] = "linear_probe" if row.strategy == RANDOM_PROBE else SCRATCH
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
            options = parse(words)
        check_options(options)
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


@functools.lru_cache(maxsize=16)
def load_task(words, name):
    """What is known of a task without building a structure: (source, labels, split). `words` is a tuple of options."""
    options = check_words(list(words), name)
    processor = AtomicaProcessor.from_pretrained(ROOT)
    source = read_source(options.data.train_file, processor, options.data.smiles_column)
    excluded = [column for column in (options.data.split_column, options.data.group_column) if column]
    labels = read_labels(source, options.data.label_columns, options.data.problem_type, None, False, excluded)
    return source, labels, split_rows(source, labels, options.data)


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
