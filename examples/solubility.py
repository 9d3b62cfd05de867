# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Does pretraining help? One property of molecules, learnt from scratch, and from a briefly pretrained model in three ways,
beside simple models: one table, one figure.

    python examples/solubility.py --output_dir solubility-output
    python examples/solubility.py --data_file curated-solubility-dataset.csv --max_samples 1500 --output_dir solubility-output

Without a data file it takes solubility/curated-solubility-dataset.csv of the current folder, and where there is none the 214
shipped molecules with a label that RDKit computes, Crippen's logP: an exercise, not a measurement. The model is pretrained on
the molecules of the training set alone, without their labels. A run that was stopped goes on with the same command.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from atomic_files import save_figure, write_table, write_text  # noqa: E402


USUAL = Path("solubility") / "curated-solubility-dataset.csv"
LABELS = ("Solubility", "logS", "crippen_logp")  # columns that are taken without --label_column
WIDTHS = ("hidden_size", "atom_hidden_size", "edge_size")
PRETRAINING = {
    "max_blocks_per_batch": 300, "learning_rate": 0.01, "num_warmup_steps": 50, "max_grad_norm": 2.0, "checkpointing_steps": 50,
    "seed": 0,
}  # fmt: skip
STRATEGIES = {
    "scratch": "Atomica from scratch", "finetune": "Atomica pretrained, fine-tuned", "freeze": "Atomica pretrained, head only",
    "random_forest": "forest on vectors of Atomica pretrained", "ecfp4_random_forest": "forest on ECFP4",
    "descriptors_gradient_boosting": "boosting on RDKit descriptors", "mean": "mean of the training set",
}  # fmt: skip
METRICS = ("rmse", "mae", "pearson")


def read_rows(path):
    with open(path, newline="", encoding="utf-8-sig") as stream:
        return list(csv.DictReader(stream))


def shipped_rows():
    """The shipped molecules with Crippen's logP as RDKit computes it."""
    from rdkit import Chem
    from rdkit.Chem import Crippen

    rows = read_rows(ROOT / "examples" / "molecules.csv")
    logp = lambda smiles: f"{Crippen.MolLogP(Chem.MolFromSmiles(smiles)):.4f}"
    return [{"name": row["name"], "smiles": row["smiles"], "crippen_logp": logp(row["smiles"])} for row in rows]


def choose_rows(arguments):
    """(rows with `smiles` and a label, name of the label, what they are) as the options say."""
    path = arguments.data_file or (USUAL if USUAL.exists() else None)
    rows = shipped_rows() if path is None else read_rows(path)
    if not rows:
        sys.exit(f"{path}: no rows.")
    smiles = next((column for column in rows[0] if column.lower() == "smiles"), None)
    label = arguments.label_column or next((column for column in LABELS if column in rows[0]), None)
    for column, option in ((smiles, "a column called smiles"), (label, f"one of {', '.join(LABELS)}, or --label_column")):
        if column not in rows[0]:
            sys.exit(f"{path}: the columns are {', '.join(rows[0])}, expected {option}.")
    count = min(len(rows), arguments.max_samples or (len(rows) if path is None else 1500))
    rows = [{"smiles": row[smiles], label: row[label]} for row in (rows[i * len(rows) // count] for i in range(count))]
    what = "shipped molecules, Crippen's logP computed by RDKit" if path is None else f"rows of {Path(path).name}"
    return rows, label, f"{len(rows)} {what}"


def run(title, script, folder, finished, options):
    """Runs a script of the repository; one that was finished is passed over, one that was begun goes on."""
    print(f"\n== {title}", flush=True)
    if (folder / finished).exists():
        print(f"   was finished before: {folder}")
        return
    started, words = time.time(), [word for name, value in options.items() for word in (f"--{name}", *value)]
    if any(folder.glob("checkpoint-*/trainer_state.json")):
        words += ["--resume_from_checkpoint", "latest"]
    command = [sys.executable, ROOT / script, "--output_dir", folder, *words]
    if subprocess.run([str(word) for word in command]).returncode:
        sys.exit(f"{title}: {script} failed; what is wrong stands above.")
    print(f"   {time.time() - started:.0f} s", flush=True)


def results_of(output, strategies):
    """Model -> test set's metric -> value, low, high."""
    found = {}
    for strategy in strategies:
        results = json.loads((output / strategy / "metrics.json").read_text(encoding="utf-8"))["results"]
        found |= {name: report["test"]["metrics"] for name, report in results.items()}
    return {name: found[name] for name in STRATEGIES if name in found}


def table_of(results, what, label, sizes):
    entry = lambda m: "not defined" if m["value"] is None else f"{m['value']:.3f} [{m['low']:.3f}, {m['high']:.3f}]"
    lines = [
        f"{label} of {what}; {sizes['train']} to train on, {sizes['validation']} to choose the epoch by, {sizes['test']} to "
        "test; 95 % confidence intervals.",
        "",
        f"| model | {' | '.join(METRICS)} |",
        "|---" * (len(METRICS) + 1) + "|",
    ]
    lines += [f"| {STRATEGIES[name]} | {' | '.join(entry(found[m]) for m in METRICS)} |" for name, found in results.items()]
    return "\n".join(lines)


def draw(results, rows, label, path):
    """RMSE of every model with its confidence interval, and the test molecules as the fine-tuned model sees them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (bars, parity) = plt.subplots(1, 2, figsize=(10, 4), width_ratios=(1.3, 1))
    names = list(results)[::-1]
    values = [[results[name]["rmse"][key] for name in names] for key in ("value", "low", "high")]
    ends = [[v - low for v, low in zip(values[0], values[1])], [high - v for v, high in zip(values[0], values[2])]]
    colours = ["#1f77b4" if name in ("scratch", "finetune", "freeze", "random_forest") else "#999999" for name in names]
    bars.barh([STRATEGIES[name] for name in names], values[0], xerr=[[max(0, e) for e in end] for end in ends], color=colours)
    bars.set(xlabel=f"RMSE of {label} on the test set (less is better)")
    test = [row for row in rows if row["set"] == "test" and row[f"{label}_predicted"]]  # the others had no conformer
    points = [(float(row[label]), float(row[f"{label}_predicted"])) for row in test]
    parity.scatter(*zip(*points), s=12, alpha=0.7)
    ends = min(map(min, points)), max(map(max, points))
    parity.plot(ends, ends, color="#777777", linewidth=0.8)
    parity.set(xlabel=label, ylabel="predicted", title=STRATEGIES["finetune"])
    save_figure(figure, path)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="solubility-output", help="Where models, table and figure go.")
    parser.add_argument("--data_file", help="CSV with a column called smiles and one with numbers.")
    parser.add_argument("--label_column", help="The column with numbers.")
    parser.add_argument("--max_samples", type=int, help="So many rows, evenly from the file (1500 of a data file).")
    parser.add_argument("--split", default="random", help="random, scaffold or scaffold_balanced.")
    parser.add_argument("--max_train_steps", type=int, default=300, help="Optimizer steps of pretraining.")
    parser.add_argument("--num_train_epochs", type=int, default=20, help="Epochs of each training with labels.")
    parser.add_argument("--hidden_size", type=int, default=16, help="Channels of the model, which has two layers.")
    parser.add_argument("--cache_dir", help="Where built structures are kept (in the output folder).")
    arguments = parser.parse_args(argv)
    output, started = Path(arguments.output_dir).resolve(), time.time()
    rows, label, what = choose_rows(arguments)
    output.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("output_dir", "cache_dir")}
    known = output / "settings.json"
    if known.exists() and json.loads(known.read_text(encoding="utf-8")) != settings:
        sys.exit(f"{output} is of a run with other options; name another folder.")
    write_text(known, json.dumps(settings, indent=1))
    write_table(output / "data.csv", rows)
    print(what)

    pretrained, cache = output / "pretrained", arguments.cache_dir or output / "structures"
    common = {
        "train_file": [output / "data.csv"], "label_columns": [label], "problem_type": ["regression"], "cache_dir": [cache],
        "num_train_epochs": [arguments.num_train_epochs], "learning_rate": [0.003], "split_fractions": [0.7, 0.1, 0.2],
    }  # fmt: skip
    widths = {**dict.fromkeys(WIDTHS, arguments.hidden_size), "num_hidden_layers": 2}
    overrides = ",".join(f"{name}={value}" for name, value in widths.items())
    scratch = {"split": [arguments.split], "config_overrides": [overrides], "baselines": []}
    run("From scratch, and simple models", "run_finetune.py", output / "scratch", "README.md", {**common, **scratch})
    split = json.loads((output / "scratch" / "split.json").read_text(encoding="utf-8"))
    write_table(output / "pretraining.csv", [{"smiles": rows[row]["smiles"]} for row in split["train"]])
    options = {"train_file": output / "pretraining.csv", "max_train_steps": arguments.max_train_steps, **widths, **PRETRAINING}
    options = {name: [value] for name, value in options.items()}
    run("Pretraining on the training set without its labels", "run_pretraining.py", pretrained, "all_results.json", options)
    strategies = ["scratch", "finetune", "freeze", "random_forest"]
    for strategy in strategies[1:]:
        options = {
            "strategy": [strategy],
            "model_name_or_path": [pretrained],
            "split_file": [output / "scratch" / "split.json"],
        }
        run(STRATEGIES[strategy], "run_finetune.py", output / strategy, "README.md", {**common, **options})

    results = results_of(output, strategies)
    sizes = json.loads((output / "finetune" / "metrics.json").read_text(encoding="utf-8"))["rows"]  # those with a structure
    text = table_of(results, what, label, sizes)
    if label == LABELS[-1]:
        text += "\n\nThis logP is one of RDKit's descriptors: boosting on them has the answer among its inputs."
    write_text(output / "table.md", text + "\n")
    draw(results, read_rows(output / "finetune" / "predictions.csv"), label, output / "figure.png")
    print(f"\n{text}\n\nTable   {output / 'table.md'}\nFigure  {output / 'figure.png'}")
    print(f"Finished in {time.time() - started:.0f} s.")


if __name__ == "__main__":
    main()
