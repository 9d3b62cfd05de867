# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Structures -> vectors: one Parquet row per complex, block or atom.

python run_embedding.py --model_name_or_path my-atomica --input_file molecules.csv --output_file vectors.parquet
"""

import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers import AutoConfig, HfArgumentParser
from transformers.hf_argparser import HfArg

from atomica_hf import AtomicaModel, AtomicaProcessor, StructureError
from atomica_hf.processing_atomica import MODEL_INPUTS, pad_examples
from prepare_dataset import load_examples


LEVELS = ("complex", "block", "atom")


@dataclass
class EmbeddingArguments:
    model_name_or_path: str = HfArg(help="Folder or hub id of an Atomica model.")
    input_file: str = HfArg(help="What to embed: .smi .csv .sdf .pdb .cif, an index CSV, a folder, or a prepared dataset.")
    output_file: str = HfArg(help="Parquet file to write.")
    level: str = HfArg(default="complex", metadata={"choices": list(LEVELS)}, help="One vector per complex, block or atom.")
    max_samples: int | None = HfArg(default=None, help="Read only this many inputs.")
    max_blocks_per_batch: int = HfArg(default=2000, help="Blocks in one batch, padding included.")
    num_proc: int = HfArg(default=1, help="Processes that read the input.")
    device: str | None = HfArg(default=None, help="cpu, cuda, mps; by default the best there is.")
    dtype: str = HfArg(default="float32", metadata={"choices": ["float32", "float64"]}, help="Precision of the model.")


def best_device():
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load_model(name, dtype="float32", device="cpu"):
    """(`AtomicaModel` in evaluation mode, `AtomicaProcessor`) of a folder or hub id.

    Raises:
        `StructureError`: if there is no Atomica model.
    """
    try:
        config = AutoConfig.from_pretrained(name)
        if config.model_type != "atomica":
            raise ValueError(f"a checkpoint of model type {config.model_type!r}, expected 'atomica'")
        model = AtomicaModel.from_pretrained(name, dtype=getattr(torch, dtype))
        processor = AtomicaProcessor.from_pretrained(name)
    except (OSError, ValueError, SafetensorError) as error:
        raise StructureError("no_model", f"{name}: no Atomica model there: {str(error).splitlines()[0]}") from error
    if len(processor.tokenizer) != model.config.vocab_size:
        raise StructureError(
            "other_vocabulary",
            f"{name}: the model has {model.config.vocab_size} block tokens, the tokenizer {len(processor.tokenizer)}.",
        )
    try:
        return model.to(device).eval(), processor
    except (RuntimeError, AssertionError) as error:
        raise StructureError("no_device", f"--device {device}: {str(error).splitlines()[0]}") from error


def batches(sizes, max_blocks):
    """Indices in order of size, in groups of at most `max_blocks` blocks, padding included."""
    batch = []
    for index in np.argsort(sizes, kind="stable"):
        if batch and sizes[index] * (len(batch) + 1) > max_blocks:
            yield batch
            batch = []
        batch.append(int(index))
    if batch:
        yield batch


@torch.no_grad()
def embed(model, examples):
    """Examples of `AtomicaProcessor.encode` -> per example h_graph `(hidden,)`, h_block `(num_blocks, hidden)` and h_atom
    `(num_atoms, atom_hidden)`, as arrays."""
    batch = {name: value.to(model.device) for name, value in pad_examples(examples, MODEL_INPUTS).items()}
    batch["positions"] = batch["positions"].to(model.dtype)
    output = model(**batch)
    found = []
    for i, example in enumerate(examples):
        blocks, atoms = len(example["input_ids"]), len(example["atom_ids"])
        parts = (output.pooler_output[i], output.last_hidden_state[i, :blocks], output.atom_hidden_state[i, :atoms])
        found.append(tuple(part.cpu().numpy() for part in parts))
    return found


def rows(level, index, example, vectors, tokens):
    """Rows of the Parquet file for one example."""
    graph, blocks, atoms = vectors
    base = {"index": index, "name": example["name"]}
    if level == "complex":
        return [{**base, "embedding": graph}]
    segments = example["token_type_ids"]
    if level == "block":
        return [
            {
                **base,
                "block": i,
                "segment": segments[i],
                "token": tokens[token],
                "origin": example["block_origins"][i],
                "embedding": blocks[i],
            }
            for i, token in enumerate(example["input_ids"])
        ]
    return [
        {
            **base, "atom": i, "block": block, "segment": segments[block], "origin": example["block_origins"][block],
            "atom_name": example["atom_origins"][i], "embedding": atoms[i],
        }
        for i, block in enumerate(example["atom_to_block"])
    ]  # fmt: skip


def schema(level, dtype):
    columns = {
        "complex": [],
        "block": [("block", pa.int64()), ("segment", pa.int64()), ("token", pa.string()), ("origin", pa.string())],
        "atom": [
            ("atom", pa.int64()),
            ("block", pa.int64()),
            ("segment", pa.int64()),
            ("origin", pa.string()),
            ("atom_name", pa.string()),
        ],
    }[level]
    number = pa.float64() if dtype == "float64" else pa.float32()
    return pa.schema([("index", pa.int64()), ("name", pa.string()), *columns, ("embedding", pa.list_(number))])


def main(argv=None):
    parser = HfArgumentParser(EmbeddingArguments, description=__doc__)
    (arguments,) = parser.parse_args_into_dataclasses(argv)
    if arguments.max_blocks_per_batch < 1:
        raise StructureError(
            "usage", f"--max_blocks_per_batch is {arguments.max_blocks_per_batch}, expected a positive number."
        )
    output = Path(arguments.output_file)
    if output.is_dir():
        raise StructureError("usage", f"--output_file {output} is a folder, expected the name of a file.")
    device = arguments.device or best_device()
    model, processor = load_model(arguments.model_name_or_path, arguments.dtype, device)
    with tempfile.TemporaryDirectory() as cache:
        dataset, report = load_examples(arguments.input_file, processor, cache, arguments.num_proc, arguments.max_samples)
        sizes = np.array([len(ids) for ids in dataset.select_columns("input_ids")["input_ids"]])
        tokens = processor.tokenizer.convert_ids_to_tokens(range(len(processor.tokenizer)))
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = output.with_name(output.name + ".tmp")
        table_schema, written = schema(arguments.level, arguments.dtype), 0
        with (
            pq.ParquetWriter(temporary, table_schema) as writer,
            tqdm(total=len(dataset), desc="Embedding", unit="complex") as bar,
        ):
            for batch in batches(sizes, arguments.max_blocks_per_batch):
                examples = [dataset[index] for index in batch]
                found = []
                for index, example, vectors in zip(batch, examples, embed(model, examples)):
                    found += rows(arguments.level, index, example, vectors, tokens)
                    bar.update()
                writer.write_table(pa.Table.from_pylist(found, schema=table_schema))
                written += len(found)
        if arguments.level == "complex":  # in the order of the input; the other levels carry their index
            pq.write_table(pq.read_table(temporary).sort_by("index"), temporary)
        os.replace(temporary, output)
    report_file = output.with_name(output.name + ".report.json")
    report_file.write_text(json.dumps(report.to_dict(), indent=1), encoding="utf-8")
    print(f"{output}: {written} vectors, one per {arguments.level}. Input: {report.summary()}")


if __name__ == "__main__":
    try:
        main()
    except (StructureError, OSError) as error:
        sys.exit(f"run_embedding.py: error: {error}")
