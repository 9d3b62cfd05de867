# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""What a fine-tuning leaves behind: numbers beside those of simple models, predictions, pictures, and a card."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from atomic_files import save_figure, write_table, write_text
from baselines import BASELINES, mean_prediction, predict_baseline
from finetuning_arguments import PROBES
from metrics_atomica import CLASSES, MULTI_LABEL, PRIMARY, REGRESSION, full_report
from model_card import front_matter, markdown_table
from splitting import SETS


def stack(predictions, rows):
    """Row -> prediction, as one array like the labels of `Task.targets`."""
    parts = [predictions[row] for row in rows]
    return np.concatenate(parts) if parts[0].ndim == 2 else np.stack(parts)


def _cells(labels, label, prediction):
    """Columns of one row of predictions.csv."""
    blank = lambda value: "" if value is None or np.isnan(value) else float(value)
    if labels.of_blocks:
        values = None if prediction is None else (prediction if labels.classes is not None else prediction[:, 0]).tolist()
        column = labels.columns[0]
        return {
            column: "" if label is None else json.dumps(label),
            f"{column}_predicted": "" if values is None else json.dumps(values),
        }
    if labels.classes is not None:
        column, cells = labels.columns[0], {}
        cells[column] = "" if np.isnan(label) else labels.classes[int(label)]
        cells[f"{column}_predicted"] = "" if prediction is None else labels.classes[int(prediction.argmax())]
        for i, name in enumerate(labels.classes):
            cells[f"{column}_probability_{name}"] = "" if prediction is None else float(prediction[i])
        return cells
    ending, cells = "predicted" if labels.problem == REGRESSION else "probability", {}
    for i, column in enumerate(labels.columns):
        cells[column] = blank(label[i])
        cells[f"{column}_{ending}"] = "" if prediction is None else float(prediction[i])
    return cells


def write_predictions(path, source, labels, encoded, predictions, split=None):
    """CSV with every row of the input: number (from 0), name, SMILES, set, labels, predictions, and why it was rejected."""
    part_of = {row: part for part, rows in (split or {}).items() for row in rows}
    rows = []
    for row, name in enumerate(source.names):
        reason = ": ".join(encoded.rejected.get(row, ())) if row in encoded.rejected else ""
        base = {"row": row, "name": name, "smiles": source.smiles[row] or "", "set": part_of.get(row, "")}
        rows.append({**base, **_cells(labels, labels.values[row], predictions.get(row)), "reason": reason})
    write_table(path, rows)


def report_of(task, predictions, num_bootstrap):
    """Set -> numbers of validation and test set."""
    found = {}
    for part in SETS[1:]:
        rows = task.rows(part)
        if rows:
            targets, groups = task.targets(rows)
            names = task.labels.columns
            found[part] = full_report(task.problem, stack(predictions, rows), targets, names, num_bootstrap, groups=groups)
    return found


def baseline_reports(options, task):
    """Name -> numbers of simple models on the same rows. Labels of blocks have the mean only, and so have inputs without
    molecules."""
    train, others = task.rows("train"), [row for part in SETS[1:] for row in task.rows(part)]
    targets, _ = task.targets(train)
    num_classes = None if task.labels.classes is None else len(task.labels.classes)
    smiles, found = task.source.smiles, {}
    names = BASELINES if not task.labels.of_blocks and any(smiles) else BASELINES[:1]
    for name in tqdm(names, desc="Baselines", disable=not options.shows_progress):
        if task.labels.of_blocks:
            sizes = {row: len(task.block_labels(row)) for row in others}
            predictions = {row: mean_prediction(task.problem, targets, sizes[row], num_classes) for row in others}
        else:
            arguments = ([smiles[row] for row in train], targets, [smiles[row] for row in others], num_classes)
            predictions = dict(zip(others, predict_baseline(name, task.problem, *arguments, seed=options.training.seed)))
        found[name] = report_of(task, predictions, options.run.num_bootstrap)
    return found


def plots(task, predictions, log, folder):
    """Pictures: parity or ROC of validation and test set, and the learning curve. Returns their names; none without
    matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return []
    figure, axis = plt.subplots(figsize=(4.2, 4))
    for part, colour in (("validation", "#1f77b4"), ("test", "#d62728")):
        rows = task.rows(part)
        if rows:
            targets, _ = task.targets(rows)
            (_parity if task.problem == REGRESSION else _roc)(axis, stack(predictions, rows), targets, part, colour)
    name = "parity.png" if task.problem == REGRESSION else "roc.png"
    low, high = (min(axis.get_xlim()[0], axis.get_ylim()[0]), max(axis.get_xlim()[1], axis.get_ylim()[1]))
    axis.plot([low, high], [low, high], color="#777777", linewidth=0.8)
    labels = ("label", "predicted") if task.problem == REGRESSION else ("false positive rate", "true positive rate")
    axis.set(xlabel=labels[0], ylabel=labels[1], title=", ".join(task.labels.columns)[:50])
    axis.legend(fontsize=8)
    save_figure(figure, folder / name)
    return [name] + (["learning_curve.png"] if _learning_curve(plt, task, log, folder / "learning_curve.png") else [])


def _parity(axis, predictions, targets, part, colour):
    axis.scatter(targets.ravel(), predictions.ravel(), s=8, alpha=0.6, color=colour, label=part)


def _roc(axis, predictions, targets, part, colour):
    """All tasks or classes pooled."""
    from sklearn.metrics import roc_curve

    if targets.ndim == 1:
        there = ~np.isnan(targets)
        truth = np.eye(predictions.shape[1])[targets[there].astype(np.int64)]
        predictions = predictions[there]
        truth, predictions = (truth[:, 1:], predictions[:, 1:]) if truth.shape[1] == 2 else (truth, predictions)
        targets = truth
    there = ~np.isnan(targets)
    if len(np.unique(targets[there])) == 2:
        false, true, _ = roc_curve(targets[there], predictions[there])
        axis.plot(false, true, color=colour, label=part)


def _learning_curve(plt, task, log, path):
    train = [(row["epoch"], row["loss"]) for row in log if "loss" in row]
    name = f"eval_{PRIMARY[task.problem]}"
    held_out = [(row["epoch"], row["eval_loss"], row.get(name, np.nan)) for row in log if "eval_loss" in row]
    if not train or not held_out:
        return False
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.2))
    axes[0].plot(*zip(*train), label="train")
    axes[0].plot([row[0] for row in held_out], [row[1] for row in held_out], label="validation")
    axes[0].set(xlabel="epoch", ylabel="loss")
    axes[0].legend(fontsize=8)
    axes[1].plot([row[0] for row in held_out], [row[2] for row in held_out], color="#d62728")
    axes[1].set(xlabel="epoch", ylabel=f"{PRIMARY[task.problem]} (validation)")
    save_figure(figure, path)
    return True


CARD = """\
{front_matter}
# {name}

An Atomica model of {parameters:,} parameters that predicts {columns} ({problem}), made with `--strategy {strategy}`{start}.
{usage}
## Data

`{file}`: {rows} rows, of which {rejected} could not be used. Split: {split}; {sizes} rows. The rows of each set are in
`split.json`, every prediction is in `predictions.csv`.
{notes}

## Results

95 % confidence intervals in brackets (bootstrap over {unit}, {resamples} resamples).

{tables}
{pictures}
## Options

```json
{options}
```

The mathematics of the model is that of ATOMICA (Fang et al., bioRxiv 2025.04.02.646906).
"""
USAGE = """
```python
from transformers import {auto}, AutoProcessor

folder = "path/to/this/folder"
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = {auto}.from_pretrained(folder, trust_remote_code=True).eval()
logits = model(**processor({example}, return_tensors="pt")).logits  # {meaning}
```

For files: `python run_finetune.py --do_predict --model_name_or_path this-folder --predict_file new.csv --output_dir out`
"""
EXAMPLES = ('"CC(=O)Oc1ccccc1C(=O)O"', '[("CC(=O)O", "CC(N)=O")]')  # aspirin; acetic acid and acetamide
MEANINGS = {
    REGRESSION: "in the units of the labels",
    CLASSES: "softmax gives the probabilities of the classes in config.id2label",
    MULTI_LABEL: "sigmoid gives the probability of each label in config.id2label",
}


def _entry(metric):
    if metric["value"] is None:
        return "not defined"
    interval = "" if metric["low"] is None else f" [{_short(metric['low'])}, {_short(metric['high'])}]"
    return f"{_short(metric['value'])}{interval}"


def _short(number):
    """Three decimals, or three digits of what is very large or small."""
    return f"{number:.3f}" if number == 0 or 0.01 <= abs(number) < 1e5 else f"{number:.3g}"


def result_table(results, part):
    """Markdown: models down, metrics across, for one set."""
    first = next(iter(results.values()))[part]
    names = list(first["metrics"])
    tasks = f", {first['num_tasks']} of {first['all_tasks']} tasks with both classes" if first["all_tasks"] > 1 else ""
    rows = [[name, *(_entry(report[part]["metrics"][metric]) for metric in names)] for name, report in results.items()]
    heading = f"On the {part} set ({first['num_examples']} labelled{tasks}):"
    return "\n".join([heading, "", markdown_table(["model", *names], rows)])


def model_card(options, task, results, pictures, num_parameters):
    """Text of the card."""
    data, labels = options.data, task.labels
    token = "AutoModelForTokenClassification" if labels.of_blocks else "AutoModelForSequenceClassification"
    usage = "" if options.model.strategy in PROBES else USAGE.format(
        auto=token, meaning=MEANINGS[labels.problem], example=EXAMPLES[task.is_energy]
    )  # fmt: skip
    parts = next(iter(results.values()))
    given = {
        name: value for part in (options.model, options.data, options.run) for name, value in dataclasses.asdict(part).items()
    }
    given |= {
        name: getattr(options.training, name)
        for name in ("num_train_epochs", "learning_rate", "per_device_train_batch_size", "weight_decay", "seed")
    }
    for name in (
        "model_name_or_path", "processor_name_or_path", "config_name", "train_file", "split_file", "predict_file",
        "predictions_file", "teacher", "unlabeled", "cache_dir",
    ):  # fmt: skip
        given[name] = given[name] and Path(given[name]).name
    start = f" from {given['model_name_or_path']}" if given["model_name_or_path"] else ""
    metrics = next(iter(parts.values()))["metrics"]
    return CARD.format(
        front_matter=front_matter((labels.problem.replace("_", "-"),), options.model.model_name_or_path, metrics),
        name=Path(options.training.output_dir).resolve().name,
        parameters=num_parameters,
        columns=", ".join(f"`{column}`" for column in labels.columns),
        problem=labels.problem.replace("_", " "),
        strategy=options.model.strategy,
        start=start,
        usage=usage,
        file=given["train_file"],
        rows=len(task.source.rows),
        rejected=len(task.encoded.rejected),
        split=f"`{given['split_file']}`" if data.split_file else f"`{data.split}`",
        sizes=", ".join(f"{part} {len(task.rows(part))}" for part in SETS),
        notes="".join(f"\n- {note}" for note in task.notes),
        unit="complexes" if labels.of_blocks else "rows",
        resamples=options.run.num_bootstrap,
        tables="\n\n".join(result_table(results, part) for part in parts),
        pictures="\n".join(["", *(f"![{name}]({name})" for name in pictures), ""]) if pictures else "",
        options=json.dumps({name: value for name, value in given.items() if value not in (None, [], False)}, indent=1),
    )


def write_results(options, task, predictions, log, num_parameters, members=()):
    """metrics.json, predictions.csv, pictures and the card; prints the numbers.

    Args:
        predictions (`dict`): row -> prediction.
        log (`list`): what the Trainer logged.
        num_parameters (`int`): of the model, for the card.
        members (`list` of (seed, predictions)): of an ensemble.
    """
    folder = Path(options.training.output_dir)
    results = {options.model.strategy: report_of(task, predictions, options.run.num_bootstrap)}
    for seed, member in members if len(members) > 1 else ():
        results[f"seed {seed}"] = report_of(task, member, options.run.num_bootstrap)
    if options.run.baselines:
        results |= baseline_reports(options, task)
    write_predictions(folder / "predictions.csv", task.source, task.labels, task.encoded, predictions, task.split)
    numbers = {
        "results": results,
        "rows": {part: len(task.rows(part)) for part in SETS},
        "rejected": task.encoded.report.to_dict()["rejected"],
        "lost_conformers": task.encoded.lost_conformers,
        "notes": task.notes,
        "log": log,
    }
    write_text(folder / "metrics.json", json.dumps(numbers, indent=1))
    pictures = plots(task, predictions, log, folder)
    write_text(folder / "README.md", model_card(options, task, results, pictures, num_parameters))
    for part in next(iter(results.values())):
        print(f"\n{result_table(results, part)}")
    print("\n" + "\n".join(task.notes))
    print(f"\nSaved the model, its card and predictions in {folder}.")
