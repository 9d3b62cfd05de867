# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Fine-tunes or probes Atomica on labelled molecules and complexes, and predicts for new ones.

python run_finetune.py --model_name_or_path my-atomica --train_file solubility.csv --label_columns logS --output_dir soluble
python run_finetune.py --do_predict --model_name_or_path soluble --predict_file new.smi --output_dir predictions

The output folder holds the model with its processor, a card, the split, every prediction, and the numbers: on validation and
test set, with confidence intervals, beside those of simple models (--baselines). Options may also stand in one JSON file.
"""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from transformers import Trainer

from atomic_files import write_text
from atomica_hf import AtomicaCollator, AtomicaModel, StructureError
from finetuning_arguments import PROBES, check_options, parse
from finetuning_data import LabelledExamples, Labels, check_model, read_source
from finetuning_models import load_config, model_class, pooling_of, processor_of
from finetuning_probes import predict_probe, run_probe
from finetuning_report import write_predictions, write_results
from finetuning_task import build, prepare_task
from finetuning_training import checkpoint_of, make_trainer, mean_of, predict_rows, train_one
from hyperparameter_search import STUDY_FILE, TRIALS_FILE, search
from metrics_atomica import CLASSES
from script_arguments import run_script
from splitting import SETS, canonical_smiles, read_split, write_split


RECORD_FILE = "finetuning.json"
RECORD_KEYS = ("strategy", "columns", "problem", "classes", "of_blocks", "num_conformers", "members", "pooling")


# predicting ----------------------------------------------------------------------------------------------------------------


def read_record(folder):
    """What a run remembers of itself. Raises `StructureError` if the folder is not of one."""
    message = f"{folder}: not a folder that run_finetune.py wrote (no {RECORD_FILE} that can be read)."
    try:
        record = json.loads((Path(folder) / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StructureError("no_model", message) from error
    if not isinstance(record, dict) or not set(RECORD_KEYS) <= set(record):
        raise StructureError("no_model", message)
    return record


def load_member(cls, folder):
    """Raises `StructureError` if there is no model of this class."""
    try:
        return cls.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise StructureError("no_model", f"{folder}: no model that can be read ({str(error).splitlines()[0]}).") from error


def labels_of_record(record, num_rows):
    """`Labels` without values."""
    shape = (num_rows,) if record["classes"] is not None else (num_rows, len(record["columns"]))
    values = [None] * num_rows if record["of_blocks"] else np.full(shape, np.nan)
    return Labels(record["columns"], record["problem"], values, record["classes"], record["of_blocks"])


def predict_folder(folder, path, options):
    """A trained folder and a file -> (record, source, examples, predictions by row, each the mean over the members)."""
    record = read_record(folder)
    processor, models = processor_of(options, folder), []
    if record["strategy"] not in PROBES:
        cls = model_class(record["of_blocks"])
        models = [load_member(cls, Path(folder) / member) for member in record["members"]]
    source = read_source(path, processor, options.data.smiles_column, options.data.max_samples)
    data = dataclasses.replace(options.data, num_conformers=record["num_conformers"])
    is_energy = any(model.config.pooling == "pair_energy" for model in models)
    encoded = build(source, processor, dataclasses.replace(options, data=data), is_energy)
    if record["strategy"] in PROBES:
        return record, source, encoded, predict_probe(folder, record, encoded)
    members = []
    for model in models:
        check_model(encoded, model.config, path)
        arguments = dataclasses.replace(options.training, eval_strategy="no", load_best_model_at_end=False)
        trainer = Trainer(model, arguments, AtomicaCollator())
        members.append(predict_rows(trainer, encoded, record["problem"]))
    return record, source, encoded, mean_of(members)


def run_prediction(options, folder):
    """Writes the predictions of a trained folder for `--predict_file`."""
    data = options.data
    record, source, encoded, predictions = predict_folder(folder, data.predict_file, options)
    if not options.is_main:
        return
    name = f"predictions-{Path(data.predict_file).name.split('.')[0]}.csv"
    output = Path(data.predictions_file or Path(options.training.output_dir) / name)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_predictions(output, source, labels_of_record(record, len(source.rows)), encoded, predictions)
    print(f"{output}: predictions for {len(predictions)} of {len(source.rows)} rows.")


def pseudo_labels(options, task):
    """The teacher's predictions for the unlabelled file, as a function (config, scale) -> training examples.

    Raises:
        `StructureError`: if the teacher was trained for other labels.
    """
    labels = task.labels
    if options.run.teacher is None:
        return None
    record, source, encoded, predictions = predict_folder(options.run.teacher, options.run.unlabeled, options)
    if labels.of_blocks or (record["columns"], record["problem"], record["classes"]) != (
        labels.columns, labels.problem, labels.classes
    ):  # fmt: skip
        raise StructureError(
            "other_head",
            f"--teacher {options.run.teacher}: learnt {', '.join(record['columns'])} ({record['problem']}), "
            f"expected {', '.join(labels.columns)} ({labels.problem}).",
        )
    rows = sorted(predictions)
    held = [task.source.smiles[row] for part in SETS[1:] for row in task.rows(part)]
    held, more = set(canonical_smiles(held)) - {None}, canonical_smiles([source.smiles[row] for row in rows])
    task.notes.append(
        f"{sum(one in held for one in more)} of {len(rows)} molecules of --unlabeled are in validation or test set."
    )

    def examples(config, scale):
        values = np.stack([predictions[row] for row in rows]).astype(np.float32)
        full = np.full((len(source.rows), *values.shape[1:]), np.nan, dtype=np.float32)
        full[rows] = values if scale is None else (values - scale[0]) / scale[1]
        if labels.problem == CLASSES:
            full = np.where(np.isnan(full[:, 0]), np.nan, full.argmax(1))
        check_model(encoded, config, options.run.unlabeled)
        if record["pooling"] == config.pooling == "pair_energy":
            unit, wanted = load_config(options.run.teacher).energy_unit, config.energy_unit
            if unit != wanted:
                raise StructureError("other_unit", f"--teacher {options.run.teacher}: of {unit}, expected {wanted}.")
        return LabelledExamples(encoded, rows, config, full)

    return examples


# the run -------------------------------------------------------------------------------------------------------------------


def record_of(options, labels, members, pooling):
    """What `--do_predict` has to know."""
    return {
        "strategy": options.model.strategy, "columns": labels.columns, "problem": labels.problem, "classes": labels.classes,
        "of_blocks": labels.of_blocks, "num_conformers": options.data.num_conformers, "members": members,
        "pooling": pooling, "regularization": options.model.probe_regularization,
        "balanced": options.run.class_weights == "balanced", "seed": options.training.seed,
    }  # fmt: skip


def fingerprint(options, task):
    """What must not change when a run is resumed, besides the split and the configuration."""
    labels = task.labels
    values = labels.values if labels.of_blocks else labels.values.tolist()
    of_labels = hashlib.sha256(json.dumps([labels.columns, labels.problem, labels.classes, values]).encode()).hexdigest()[:16]
    run = options.run
    return {
        "strategy": options.model.strategy, "labels": of_labels, "num_conformers": options.data.num_conformers,
        "keep_hydrogens": options.model.keep_hydrogens,
        "class_weights": run.class_weights, "teacher": run.teacher and Path(run.teacher).name,
        "coordinate_noise": run.coordinate_noise, "noisy_nodes_weight": run.noisy_nodes_weight,
    }  # fmt: skip


def save_split(options, task, folder):
    """Writes split.json. Raises `StructureError` if a run that is resumed had another one, or other labels."""
    file, now = folder / "split.json", fingerprint(options, task)
    resumed = checkpoint_of(options, folder)
    before = file if file.exists() or resumed is None else Path(resumed).parent / "split.json"
    if before.exists() and options.training.resume_from_checkpoint:
        if read_split(before, len(task.source.rows)) != task.split:
            raise StructureError("bad_split", f"{before}: the run that is resumed had another split.")
        known = json.loads(before.read_text(encoding="utf-8")).get("run", {})
        for name in [name for name in now if name in known and known[name] != now[name]]:
            what = "other labels" if name == "labels" else f"{name} {known[name]!r}, expected {now[name]!r}"
            raise StructureError("other_run", f"{before}: the run that is resumed had {what}.")
    if options.is_main and not (file.exists() and resumed):
        folder.mkdir(parents=True, exist_ok=True)
        kind = "file" if options.data.split_file else options.data.split
        write_split(file, task.split, kind=kind, seed=options.data.split_seed, run=now)


def member_folders(options):
    """Seed -> where its model goes: the first in the folder itself, the others in folders inside it."""
    seeds = [options.training.seed + i for i in range(options.run.num_seeds)]
    return {seed: f"seed-{seed}" if i else "." for i, seed in enumerate(seeds)}


def parameters_of(cls, folder):
    return sum(parameter.numel() for parameter in cls.from_pretrained(folder).parameters())


def choose_hyperparameters(options, task, extra, processor, folder):
    """Puts the best values of a search into the options, and says so in the notes."""
    count, seed = options.run.hyperparameter_search, options.training.seed
    changes = {"save_strategy": "no", "load_best_model_at_end": False, "report_to": "none", "push_to_hub": False}
    trainer, _ = make_trainer(options, task, extra, processor, seed, folder, **changes)
    best = search(trainer, count, folder, seed, trained=checkpoint_of(options, folder) is not None)
    for name, value in best.items():
        setattr(options.training, name, value)
    values = ", ".join(f"{name} {value:.3g}" for name, value in best.items())
    task.notes.append(
        f"Best of {count} trials ({TRIALS_FILE}): {values}. The validation set chose them, so its numbers flatter the model."
    )
    print(task.notes[-1])


def train_all(options, task, processor, folder, pooling):
    """Every seed, one after another, and then the numbers of their mean."""
    extra = pseudo_labels(options, task)
    if options.run.hyperparameter_search:
        choose_hyperparameters(options, task, extra, processor, folder)
    found, members = [], member_folders(options)
    for seed, member in members.items():
        found.append((seed, *train_one(options, task, extra, processor, seed, folder / member)))
    if options.is_main:
        record = record_of(options, task.labels, list(members.values()), pooling)
        write_text(folder / RECORD_FILE, json.dumps(record, indent=1))
        average = mean_of([predictions for _, predictions, _ in found])
        first = found[0][2].state.log_history
        size = parameters_of(model_class(task.labels.of_blocks), folder)
        write_results(options, task, average, first, size, [(seed, predictions) for seed, predictions, _ in found])
    if options.training.push_to_hub:
        found[0][2].push_to_hub(commit_message="Upload model")


def main(argv=None):
    options = parse(sys.argv[1:] if argv is None else argv, __doc__)
    check_options(options)
    folder = Path(options.training.output_dir)
    if options.data.train_file is None:
        run_prediction(options, options.model.model_name_or_path or folder)
        return
    found = [checkpoint_of(options, folder / member) for member in member_folders(options).values()]
    searched = options.run.hyperparameter_search and (folder / STUDY_FILE).exists()
    if searched and not options.training.resume_from_checkpoint:
        raise StructureError(
            "usage",
            f"{folder} has a search of an earlier run: continue it with --resume_from_checkpoint latest, or name another "
            "folder.",
        )
    if str(options.training.resume_from_checkpoint).lower() in ("latest", "true") and not any(found) and not searched:
        raise StructureError("usage", f"--resume_from_checkpoint latest: no checkpoint in {folder}.")
    processor = processor_of(options)
    if options.training.do_predict:
        read_source(options.data.predict_file, processor, options.data.smiles_column, options.data.max_samples)
    task = prepare_task(options, processor)
    save_split(options, task, folder)
    pooling = pooling_of(options, len(processor.tokenizer), task.labels)
    if options.model.strategy in PROBES:
        record = record_of(options, task.labels, ["."], pooling)
        if options.is_main:
            predictions = run_probe(options, task, record, folder)
            write_text(folder / RECORD_FILE, json.dumps(record, indent=1))
            write_results(options, task, predictions, [], parameters_of(AtomicaModel, folder))
    else:
        train_all(options, task, processor, folder, pooling)
    if options.training.do_predict:
        run_prediction(options, folder)


if __name__ == "__main__":
    run_script(main, stopped="stopped; --resume_from_checkpoint latest goes on from the last checkpoint, if there is one.")
