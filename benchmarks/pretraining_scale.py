# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""How a pretraining run starts on a large corpus: seconds until the first batch, memory, and batches per second.

    python benchmarks/pretraining_scale.py --examples 1000000 --folder scratch/corpus

makes a synthetic prepared dataset (once; blocks and atoms are random, sizes log-normal) and measures, each in a process of its
own: by index for the first time, when `datasets` makes its copy; by index again; and as a stream. Memory is read from
/proc (Linux): `anonymous` is what the process holds itself, `resident` also counts the pages of mapped files, which the system
takes back when it needs them.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SHARD = 5000
ATOMS_PER_BLOCK = 5
MEDIAN_BLOCKS = 12


def shard_table(rng, first, count, vocab_size):
    """`count` examples with random blocks: one segment or two, a global each, atoms at random places."""
    import numpy as np
    import pyarrow as pa

    from prepared_datasets import FEATURES, OPTIONAL_FEATURES

    schema = type(FEATURES)({**FEATURES, **OPTIONAL_FEATURES}).arrow_schema
    blocks = np.clip(rng.lognormal(np.log(MEDIAN_BLOCKS), 0.6, count).astype(int), 4, 400)
    ends = np.r_[0, blocks.cumsum()]
    inside = np.arange(ends[-1]) - np.repeat(ends[:-1], blocks)
    half = np.repeat(np.where(rng.random(count) < 0.5, blocks // 2, blocks), blocks)
    segments = (inside >= half).astype(np.int64)
    is_global = (inside == 0) | (inside == half)
    per_block = np.where(is_global, 1, ATOMS_PER_BLOCK)
    atoms = np.add.reduceat(per_block, ends[:-1])
    to_block = np.repeat(inside, per_block)
    atom_ends = np.r_[0, atoms.cumsum()]

    def lists(values, offsets):
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))

    total = int(atom_ends[-1])
    places = rng.normal(scale=6, size=(total, 3)).astype(np.float32)
    empty = lists(np.zeros(0, np.int64), np.zeros(1, np.int32))
    empties = pa.ListArray.from_arrays(pa.array(np.zeros(count + 1, np.int32)), empty.slice(0, 0))
    columns = {
        "name": pa.array([f"synthetic {first + i}" for i in range(count)]),
        "input_ids": lists(np.where(is_global, 3, rng.integers(4, vocab_size, len(inside))), ends),
        "token_type_ids": lists(segments, ends),
        "attention_mask": lists(np.ones(len(inside), np.int64), ends),
        "atom_ids": lists(np.where(np.repeat(is_global, per_block), 2, rng.integers(8, 11, total)), atom_ends),
        "atom_to_block": lists(to_block, atom_ends),
        "positions": pa.ListArray.from_arrays(
            pa.array(atom_ends, pa.int32()), lists(places.ravel(), np.arange(0, 3 * total + 1, 3))
        ),
        "block_origins": lists(np.zeros(0, str), np.zeros(count + 1, np.int32)),
        "atom_origins": lists(np.zeros(0, str), np.zeros(count + 1, np.int32)),
        "torsion_bonds": empties,
        "torsion_atoms": empties,
        "segment_is_polymer": lists(np.zeros(2 * count, np.int64), np.arange(0, 2 * count + 1, 2)),
    }
    arrays = [columns.get(name, pa.nulls(count)).cast(schema.field(name).type) for name in schema.names]
    return pa.Table.from_arrays(arrays, schema=schema)


def make_corpus(folder, examples):
    """A folder as `prepare_dataset.py` writes it."""
    import numpy as np
    import pyarrow.parquet as pq

    from atomica_hf import AtomicaProcessor
    from prepared_datasets import REPORT_FILE, vocabulary_hash

    tokenizer = AtomicaProcessor.from_pretrained(ROOT).tokenizer
    folder.mkdir(parents=True)
    shards = []
    for first in range(0, examples, SHARD):
        count = min(SHARD, examples - first)
        table = shard_table(np.random.default_rng(first), first, count, len(tokenizer))
        file = f"data-{len(shards):05d}.parquet"
        pq.write_table(table, folder / file, compression="zstd", row_group_size=1000)
        shards.append({"file": file, "examples": count, "bytes": (folder / file).stat().st_size})
    report = {"columns": [], "shards": shards, "vocabulary": vocabulary_hash(tokenizer), "kept": examples}
    (folder / REPORT_FILE).write_text(json.dumps(report), encoding="utf-8")
    return sum(shard["bytes"] for shard in shards)


def memory_gib():
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmHWM", "VmRSS", "RssAnon"))}
    return {"resident": kib["VmRSS"] / 2**20, "anonymous": kib["RssAnon"] / 2**20, "largest": kib["VmHWM"] / 2**20}


def measure(folder, streaming, batches, workers, started):
    """Of one start: seconds and memory at each stage, as JSON."""
    import itertools

    from accelerate import Accelerator

    from atomica_hf import AtomicaConfig, AtomicaPreTrainingCollator, AtomicaProcessor
    from pretraining_arguments import DataArguments
    from pretraining_data import load_training_data

    found = {"imports": time.time() - started}
    processor = AtomicaProcessor.from_pretrained(ROOT)
    config = AtomicaConfig(vocab_size=len(processor.tokenizer))
    data = DataArguments(train_file=[str(folder)], streaming=streaming, dataloader_num_workers=workers)
    collator = AtomicaPreTrainingCollator(config=config)
    loaded = load_training_data(
        data, 0, processor, config, Accelerator(cpu=True), folder.parent / "cache", (collator, collator, None)
    )
    found["data"] = time.time() - started
    stream = loaded.train.batches(0, loaded.train.start)
    next(stream)
    found["first batch"] = time.time() - started
    found["at start"] = memory_gib()
    begun = time.time()
    complexes = sum(batch.num_complexes for batch in itertools.islice(stream, batches))
    found["complexes per second"] = complexes / (time.time() - begun)
    found[f"after {batches} batches"] = memory_gib()
    print(json.dumps(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1_000_000, help="Examples of the corpus.")
    parser.add_argument("--folder", type=Path, required=True, help="Where the corpus is, or is made.")
    parser.add_argument("--batches", type=int, default=200, help="Batches to draw after the start.")
    parser.add_argument("--workers", type=int, default=0, help="Processes that make batches.")
    parser.add_argument("--measure", choices=["indexed", "streamed"], help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(
            arguments.folder, arguments.measure == "streamed", arguments.batches, arguments.workers, arguments.started
        )
    started = time.time()
    if not arguments.folder.exists():
        size = make_corpus(arguments.folder, arguments.examples)
        print(f"{arguments.examples} examples, {size / 2**30:.2f} GiB of Parquet, made in {time.time() - started:.0f} s")
    cache = {"HF_DATASETS_CACHE": str(arguments.folder.parent / "cache"), "HF_HUB_OFFLINE": "1"}
    for title, kind in (("by index, first time", "indexed"), ("by index, again", "indexed"), ("as a stream", "streamed")):
        command = [sys.executable, __file__, "--folder", arguments.folder, "--batches", arguments.batches, "--workers",
                   arguments.workers, "--measure", kind, "--started", time.time()]  # fmt: skip
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, env={**os.environ, **cache}, encoding="utf-8"
        )
        if done.returncode:
            sys.exit(done.stderr)
        print(f"\n{title}")
        for name, value in json.loads(done.stdout.splitlines()[-1]).items():
            if isinstance(value, dict):
                print(f"  memory {name}: " + ", ".join(f"{kind} {gib:.2f} GiB" for kind, gib in value.items()))
            else:
                print(f"  {name}: {value:.1f}" + ("" if "per" in name else " s"))


if __name__ == "__main__":
    main()
