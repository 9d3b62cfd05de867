# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Structures -> vectors: one Parquet row per complex, block or atom.

python run_embedding.py --model_name_or_path my-atomica --input_file molecules.csv --output_file vectors.parquet
python run_embedding.py --model_name_or_path my-atomica --input_file complexes.csv --output_file vectors.parquet \\
    --representations h_graph z_interface --pooling mean_component_normalized --segment 1
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
from atomica_hf.modeling_atomica import REPRESENTATION_POOLINGS, REPRESENTATIONS, check_representations
from atomica_hf.processing_atomica import MODEL_INPUTS, pad_examples
from prepare_dataset import for_model, load_examples


LEVELS = {"complex": "h_graph", "block": "h_block", "atom": "h_atom"}  # with what is written for it by default


@dataclass
class EmbeddingArguments:
    model_name_or_path: str = HfArg(help="Folder or hub id of an Atomica model.")
    input_file: str = HfArg(help="What to embed: .smi .csv .sdf .pdb .cif, an index CSV, a folder, or a prepared dataset.")
    output_file: str = HfArg(help="Parquet file to write.")
    level: str = HfArg(default="complex", metadata={"choices": list(LEVELS)}, help="One vector per complex, block or atom.")
    representations: list[str] = HfArg(
        default_factory=list,
        metadata={"choices": list(REPRESENTATIONS)},
        help="Instead of --level: one column of each name. Names of blocks give a row per block, of atoms a row per atom, and "
        "all others a row per complex, with lists in it where blocks or atoms are among them.",
    )
    pooling: str | None = HfArg(
        default=None,
        metadata={"choices": list(REPRESENTATION_POOLINGS)},
        help="For z_graph and z_interface: the first to train a head on, the second to compare with a cosine.",
    )
    segment: int | None = HfArg(default=None, help="For h_interface and z_interface: which partner, 0 or 1.")
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


def level_of(names):
    """Level of the rows: of blocks or atoms if all names are, else of complexes."""
    levels = {"atom" if name.endswith("atom") else "block" if name.endswith("block") else "complex" for name in names}
    return levels.pop() if len(levels) == 1 else "complex"


def model_inputs(config):
    """Columns of a dataset that a model reads."""
    optional = (("modality_ids", config.num_modalities), ("block_features", config.block_feature_sizes))
    return [*MODEL_INPUTS, *(name for name, needed in optional if needed)]


@torch.no_grad()
def embed(model, examples, names=("h_graph",), pooling=None, segment=None):
    """Examples of `AtomicaProcessor.encode` -> for each a dictionary of name -> array `(width,)`, `(num_blocks, width)` or
    `(num_atoms, width)`; names, pooling and segment as for `get_representations`."""
    batch = {key: value.to(model.device) for key, value in pad_examples(examples, model_inputs(model.config)).items()}
    batch["positions"] = batch["positions"].to(model.dtype)
    vectors = model.get_representations(names, pooling, segment, **batch)
    vectors = {name: value.cpu().numpy() for name, value in vectors.items()}
    found = []
    for i, example in enumerate(examples):
        sizes = {"block": len(example["input_ids"]), "atom": len(example["atom_ids"])}
        found.append({name: value[i, : sizes.get(name.split("_")[1])] for name, value in vectors.items()})
    return found


def rows(level, index, example, vectors, tokens):
    """Rows of the Parquet file for one example; `vectors` are columns -> arrays."""
    base = {"index": index, "name": example["name"]}
    names, origins = [tokens[token] for token in example["input_ids"]], example["block_origins"]
    if level == "complex":
        parts = {"tokens": names, "block_origins": origins, "atom_names": example["atom_origins"]}
        return [{**base, **parts, **{column: list(array) for column, array in vectors.items()}}]
    segments, found = example["token_type_ids"], []
    for i, block in enumerate(range(len(names)) if level == "block" else example["atom_to_block"]):
        row = {**base, level: i, "block": block, "segment": segments[block], "origin": origins[block], "token": names[block]}
        if level == "atom":
            row["atom_name"] = example["atom_origins"][i]
        found.append({**row, **{column: array[i] for column, array in vectors.items()}})
    return found


def schema(level, columns, dtype):
    """Of the Parquet file; `columns` are names of columns -> names of representations."""
    vector, texts = pa.list_(pa.float64() if dtype == "float64" else pa.float32()), pa.list_(pa.string())
    fields = [("index", pa.int64()), ("name", pa.string())]
    if level == "complex":
        nested = {column for column, name in columns.items() if level_of([name]) != "complex"}
        if nested:
            fields += [("tokens", texts), ("block_origins", texts), ("atom_names", texts)]
        return pa.schema(fields + [(column, pa.list_(vector) if column in nested else vector) for column in columns])
    fields += [("atom", pa.int64())] if level == "atom" else []
    fields += [("block", pa.int64()), ("segment", pa.int64()), ("token", pa.string()), ("origin", pa.string())]
    fields += [("atom_name", pa.string())] if level == "atom" else []
    return pa.schema(fields + [(column, vector) for column in columns])


def read_input(arguments, model, processor, cache):
    """Dataset of what is to be embedded, indices of those that can be, and the report."""
    dataset, report = load_examples(arguments.input_file, processor, cache, arguments.num_proc, arguments.max_samples)
    dataset = for_model(dataset, model.config, arguments.input_file)
    usable = list(range(len(dataset)))
    if arguments.segment is not None:
        segments = [max(ids) for ids in dataset.select_columns("token_type_ids")["token_type_ids"]]
        usable = [index for index in usable if segments[index] >= arguments.segment]
        for index in sorted(set(range(len(dataset))) - set(usable)):
            name = dataset[index]["name"]
            report.kept -= 1
            message = f"{segments[index] + 1} segments, none is number {arguments.segment}."
            report.reject(name, StructureError("no_segment", message))
        if not usable:
            raise StructureError("no_segment", f"{arguments.input_file}: nothing has a segment {arguments.segment}.")
    return dataset, usable, report


def main(argv=None):
    parser = HfArgumentParser(EmbeddingArguments, description=__doc__)
    (arguments,) = parser.parse_args_into_dataclasses(argv)
    if arguments.max_blocks_per_batch < 1:
        raise StructureError(
            "usage", f"--max_blocks_per_batch is {arguments.max_blocks_per_batch}, expected a positive number."
        )
    names = arguments.representations or [LEVELS[arguments.level]]
    columns = {name: name for name in names} if arguments.representations else {"embedding": names[0]}
    if arguments.representations and arguments.level != "complex":
        raise StructureError("usage", "--level and --representations exclude each other: the names have a level of their own.")
    try:
        check_representations(names, arguments.pooling, arguments.segment)
    except ValueError as error:
        raise StructureError("usage", f"--representations, --pooling, --segment: {error}") from error
    if arguments.segment is not None and arguments.segment < 0:
        raise StructureError("usage", f"--segment is {arguments.segment}, expected 0 or more.")
    output = Path(arguments.output_file)
    if output.is_dir():
        raise StructureError("usage", f"--output_file {output} is a folder, expected the name of a file.")
    device = arguments.device or best_device()
    model, processor = load_model(arguments.model_name_or_path, arguments.dtype, device)
    level, max_blocks = level_of(names), arguments.max_blocks_per_batch
    if model.config.attend_to_padding:
        print("This model attends to padding: complexes are embedded one by one, so that no vector depends on others.")
        max_blocks = 1
    with tempfile.TemporaryDirectory() as cache:
        dataset, usable, report = read_input(arguments, model, processor, cache)
        sizes = np.array([len(ids) for ids in dataset.select_columns("input_ids")["input_ids"]])[usable]
        tokens = processor.tokenizer.convert_ids_to_tokens(range(len(processor.tokenizer)))
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = output.with_name(f"{output.name}.{os.getpid()}.tmp")
        table_schema, written = schema(level, columns, arguments.dtype), 0
        with (
            pq.ParquetWriter(temporary, table_schema) as writer,
            tqdm(total=len(usable), desc="Embedding", unit="complex") as bar,
        ):
            for batch in batches(sizes, max_blocks):
                examples, found = [dataset[usable[i]] for i in batch], []
                all_vectors = embed(model, examples, names, arguments.pooling, arguments.segment)
                for i, example, vectors in zip(batch, examples, all_vectors):
                    vectors = {column: vectors[name] for column, name in columns.items()}
                    found += rows(level, usable[i], example, vectors, tokens)
                    bar.update()
                found = [{key: row[key] for key in table_schema.names} for row in found]
                writer.write_table(pa.Table.from_pylist(found, schema=table_schema))
                written += len(found)
        if level == "complex":  # in the order of the input; the other levels carry their index
            pq.write_table(pq.read_table(temporary).sort_by("index"), temporary)
        os.replace(temporary, output)
    report_file = output.with_name(output.name + ".report.json")
    report_file.write_text(json.dumps(report.to_dict(), indent=1), encoding="utf-8")
    widths = model.representation_widths(arguments.pooling)
    wide = ", ".join(f"{name} {widths[name]}" for name in names)
    print(f"{output}: {written} vectors, one per {level}. Widths: {wide}. Input: {report.summary()}")


if __name__ == "__main__":
    try:
        main()
    except (StructureError, OSError) as error:
        sys.exit(f"run_embedding.py: error: {error}")
