# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""What is wrong with prepared data: shards, looked at before training starts, and examples, looked at when a batch is made."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prepared_datasets import FEATURES, OPTIONAL_FEATURES, REPORT_FILE
from pretraining_arguments import UsageError


UNREAD = ("attention_mask", "block_origins", "atom_origins")  # columns that training does without
THREADS = 16  # that open shards, which on a network disk is waiting


# shards -----------------------------------------------------------------------------------------------------------------


def read_report(folder):
    """What `prepare_dataset.py` said of a dataset.

    Raises:
        `UsageError`: if that cannot be read.
    """
    path = Path(folder) / REPORT_FILE
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        [(shard["file"], shard["examples"]) for shard in report["shards"]], report["vocabulary"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{path}: not a report of prepare_dataset.py ({type(error).__name__}: {error}).") from error
    return report


def kind_of(type_):
    """Type of an Arrow column in words, without the width of its numbers: `lists of integers`."""
    depth = 0
    while pa.types.is_list(type_) or pa.types.is_large_list(type_):
        depth, type_ = depth + 1, type_.value_type
    is_text = lambda type_: pa.types.is_string(type_) or pa.types.is_large_string(type_)
    tests = (("integers", pa.types.is_integer), ("numbers", pa.types.is_floating), ("texts", is_text))
    return "lists of " * depth + next((word for word, test in tests if test(type_)), str(type_))


EXPECTED = {
    field.name: kind_of(field.type)
    for field in (*FEATURES.arrow_schema, *OPTIONAL_FEATURES.arrow_schema)
    if field.name not in UNREAD
}


def fault_of_shard(path, num_examples):
    """What the footer of a Parquet file tells against it, in words; None if it has the columns and examples expected."""
    if not path.is_file():
        return "is missing"
    try:
        with pq.ParquetFile(path) as file:
            found, schema = file.metadata.num_rows, file.schema_arrow
    except (OSError, pa.ArrowException) as error:
        size = f"{path.stat().st_size:,} bytes"
        return f"is no whole Parquet file ({size}; {str(error).splitlines()[0]})"
    missing = [name for name in EXPECTED if name not in schema.names and name not in OPTIONAL_FEATURES]
    if missing:
        return f"has no column {', '.join(missing)}, expected {', '.join(EXPECTED)}"
    for name, kind in EXPECTED.items():
        if name in schema.names and kind_of(schema.field(name).type) not in (kind, "null"):
            return f"has {kind_of(schema.field(name).type)} in the column {name}, expected {kind}"
    return None if found == num_examples else f"has {found} examples, expected {num_examples}"


def check_shards(folder):
    """Looks at the end of every shard, which says how many examples and which columns it has, not at the examples.

    Raises:
        `UsageError`: names the damaged shards, what was found and what was expected.
    """
    shards = [(Path(folder) / shard["file"], shard["examples"]) for shard in read_report(folder)["shards"]]
    with ThreadPoolExecutor(THREADS) as threads:
        faults = list(threads.map(lambda shard: fault_of_shard(*shard), shards))
    bad = [f"{path} {fault}" for (path, _), fault in zip(shards, faults) if fault]
    if bad:
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise UsageError(f"{len(bad)} of {len(shards)} shards are damaged: {'; '.join(bad[:3])}{more}.")


def unreadable(path, num_examples, error):
    """The error for a shard that breaks off where its footer promised more."""
    return UsageError(f"{path} cannot be read, expected {num_examples} examples ({str(error).splitlines()[0]}).")


def read_shards(folder):
    """Reads every column that training needs, to find the shard that cannot be read.

    Raises:
        `UsageError`: names it.
    """
    for shard in read_report(folder)["shards"]:
        path = Path(folder) / shard["file"]
        try:
            with pq.ParquetFile(path) as file:
                for _ in file.iter_batches(columns=[name for name in EXPECTED if name in file.schema_arrow.names]):
                    pass
        except (OSError, pa.ArrowException) as error:
            raise unreadable(path, shard["examples"], error) from error


# examples ---------------------------------------------------------------------------------------------------------------


class ExampleCheck:
    """What is wrong with an example, in words, None if nothing is: looked at whole, before it is cropped and perturbed."""

    def __init__(self, config):
        self.tokens, self.atoms = config.vocab_size, config.atom_vocab_size

    def __call__(self, example):
        missing = [name for name in EXPECTED if example.get(name) is None and name not in OPTIONAL_FEATURES]
        if missing:
            return f"no {', '.join(missing)}"
        num_blocks, num_atoms = len(example["input_ids"]), len(example["atom_ids"])
        if not num_blocks or not num_atoms:
            return f"{num_blocks} blocks and {num_atoms} atoms, expected at least one of each"
        for name, count, of in (
            ("token_type_ids", num_blocks, "blocks"), ("atom_to_block", num_atoms, "atoms"),
            ("positions", num_atoms, "atoms"), ("torsion_atoms", len(example["torsion_bonds"]), "torsion_bonds"),
        ):  # fmt: skip
            if len(example[name]) != count:
                return f"{len(example[name])} {name} for {count} {of}"
        positions = example["positions"]
        if positions.shape[1] != 3 if isinstance(positions, np.ndarray) else any(len(place) != 3 for place in positions):
            return "positions that are not three numbers each"
        not_finite = num_atoms - int(np.isfinite(np.asarray(positions, dtype=np.float64)).all(1).sum())
        if not_finite:
            return f"{not_finite} of {num_atoms} positions are not finite"
        for name, limit in (
            ("input_ids", self.tokens), ("atom_ids", self.atoms), ("atom_to_block", num_blocks),
            ("token_type_ids", len(example["segment_is_polymer"])), ("torsion_bonds", num_atoms),
        ):  # fmt: skip
            values = np.asarray(example[name])
            if values.size and not (values.dtype.kind in "iu" and 0 <= values.min() and values.max() < limit):
                return f"{name} from {values.min()} to {values.max()}, expected integers from 0 to {limit - 1}"
        turning = [atom for atoms in example["torsion_atoms"] for atom in atoms]
        if turning and not 0 <= min(turning) <= max(turning) < num_atoms:
            return f"torsion_atoms from {min(turning)} to {max(turning)}, expected 0 to {num_atoms - 1}"
        features = example.get("block_features")
        if features is not None and (
            len(features) != num_blocks or not np.isfinite(np.asarray(features, dtype=np.float64)).all()
        ):
            return f"{len(features)} block_features for {num_blocks} blocks, or some that are not finite"
        return None
