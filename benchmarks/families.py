# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""How often the nearest of the 214 shipped molecules is of the same family (penicillins, opioids, ...), for several read-outs
of a pretrained model and of the same one with random weights.

    python benchmarks/families.py [--model_name_or_path my-atomica] [--seeds 3]
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
import torch


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from atomica_hf import ROOT, AtomicaModel  # noqa: E402
from model_card import markdown_table  # noqa: E402
from model_loading import load_model  # noqa: E402
from run_embedding import batches, embed  # noqa: E402


POOLING = "mean_component_normalized"


def vectors_of(model, encoded):
    """Read-out -> array `(molecules, width)`."""
    found = {}
    for batch in batches([len(example["input_ids"]) for example in encoded], 1000):
        for i, one in zip(batch, embed(model, [encoded[i] for i in batch], ("h_graph", "h_block", "z_graph"), POOLING)):
            found[i] = {"h_graph": one["h_graph"], "mean of h_block": one["h_block"][1:].mean(0), "z_graph": one["z_graph"]}
    return {name: np.stack([found[i][name] for i in range(len(encoded))]).astype(float) for name in found[0]}


def shares(vectors, families):
    """Share of molecules whose nearest, by the cosine, is of their family, and of the five nearest that are."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    same = families[np.argsort(-cosines, axis=1)[:, :5]] == families[:, None]
    return same[:, 0].mean(), same.mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", default=str(ROOT))
    parser.add_argument("--seeds", type=int, default=3, help="models with random weights")
    arguments = parser.parse_args()
    model, processor = load_model(arguments.model_name_or_path)
    with open(ROOT / "examples" / "molecules.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    families = np.array([row["family"] for row in rows])
    encoded = [processor.encode(processor.read(row["smiles"])[0]) for row in rows]
    found = {"pretrained": [vectors_of(model, encoded)], "random weights": []}
    for seed in range(arguments.seeds):
        torch.manual_seed(seed)
        found["random weights"].append(vectors_of(AtomicaModel(model.config).eval(), encoded))
    table = []
    for name, runs in found.items():
        for readout in runs[0]:
            nearest, five = np.mean([shares(run[readout], families) for run in runs], axis=0)
            table.append([name, readout, f"{100 * nearest:.0f} %", f"{100 * five:.0f} %"])
    chance = np.mean([(families == family).sum() - 1 for family in families]) / (len(families) - 1)
    table.append(["chance", "", f"{100 * chance:.0f} %", f"{100 * chance:.0f} %"])
    print(markdown_table(["model", "read-out", "nearest of the same family", "of the five nearest"], table))


if __name__ == "__main__":
    main()
