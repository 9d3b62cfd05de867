# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""How fast one worker of prepare_dataset.py is: structures, or molecules built from SMILES, per second, for each input.

python benchmarks/preparation.py complexes/ molecules.smi dimers.sdf.gz --max_samples 200
"""

import argparse
import sys
import tempfile
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402
import pyarrow.compute as pc  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from atomica_hf import ROOT, StructureError  # noqa: E402
from dataset_shards import prepare  # noqa: E402
from model_loading import load_processor  # noqa: E402


def row(path, processor, max_samples):
    """Prepares one input in this process, into a folder that is thrown away; a row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "dataset"
        report = prepare([path], output, processor, max_samples=max_samples, progress=False)
        found = report["inputs"][0]
        ids = [pq.read_table(output / shard["file"], columns=["input_ids", "atom_ids"]) for shard in report["shards"]]
        stored = sum(shard["bytes"] for shard in report["shards"])
    blocks, atoms = (
        np.median(np.concatenate([pc.list_value_length(table[name]).to_numpy() for table in ids]))
        for name in ("input_ids", "atom_ids")
    )
    return (
        Path(path).name, found["read"], found["kept"], found["rejected"], f"{blocks:.0f}", f"{atoms:.0f}",
        f"{found['seconds']:.1f}", f"{found['read'] / found['seconds']:.1f}", f"{stored / found['kept'] / 1000:.1f}",
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("inputs", nargs="+", help="What prepare_dataset.py reads.")
    parser.add_argument("--processor", default=str(ROOT), help="Folder or hub id with processor and tokenizer.")
    parser.add_argument("--max_samples", type=int, help="Read only this many files, records or rows of each input.")
    arguments = parser.parse_args()
    processor = load_processor(arguments.processor)
    processor.encode(processor.read("CCO")[0])  # what happens once should not be counted
    print("| input | read | kept | rejected | blocks (median) | atoms (median) | seconds | read per second | kB each |")
    print("|---|---|---|---|---|---|---|---|---|")
    for path in arguments.inputs:
        print(f"| {' | '.join(map(str, row(path, processor, arguments.max_samples)))} |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (StructureError, OSError) as error:
        sys.exit(f"preparation.py: error: {error}")
