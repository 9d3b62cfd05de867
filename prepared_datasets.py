# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Datasets that `prepare_dataset.py` wrote: their columns, opening them, and what a model reads of them."""

import contextlib
import hashlib
import json
from pathlib import Path

from datasets import (
    Dataset,
    Features,
    List,
    Value,
    concatenate_datasets,
    disable_progress_bars,
    enable_progress_bars,
    load_from_disk,
)  # fmt: skip
from datasets.utils import are_progress_bars_disabled

from atomica_hf import StructureError


_INTEGERS, _TEXTS = List(Value("int64")), List(Value("string"))
FEATURES = Features(
    {
        "name": Value("string"),
        "input_ids": _INTEGERS,
        "token_type_ids": _INTEGERS,
        "attention_mask": _INTEGERS,
        "atom_ids": _INTEGERS,
        "atom_to_block": _INTEGERS,
        "positions": List(List(Value("float32"))),
        "block_origins": _TEXTS,
        "atom_origins": _TEXTS,
        "torsion_bonds": List(_INTEGERS),
        "torsion_atoms": List(_INTEGERS),
        "segment_is_polymer": _INTEGERS,
    }
)
OPTIONAL_FEATURES = Features(  # columns that `load_prepared` leaves out if no example has a value; null in the shards
    {
        "label": Value("float64"),
        "modality_ids": Value("int64"),
        "block_features": List(List(Value("float32"))),
        "atom_charges": _INTEGERS,
    }
)
REPORT_FILE = "read_report.json"
JOURNAL_FILE = "journal.jsonl"


def is_prepared(path) -> bool:
    return (Path(path) / REPORT_FILE).exists() or (Path(path) / "dataset_info.json").exists()


def vocabulary_hash(tokenizer) -> str:
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return hashlib.sha256("\n".join(tokens).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _no_bars():
    """Without the bars of `datasets`: what takes time, the reading, has one of its own."""
    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()


def check_made_for(path, report, tokenizer, keep_hydrogens=None):
    """
    Raises:
        `StructureError`: if the dataset with this report was made with another vocabulary than the tokenizer's, or (unless
            `keep_hydrogens` is None) with hydrogens where the reader leaves them out, or the other way round.
    """
    now, before = vocabulary_hash(tokenizer), report.get("vocabulary")
    if before != now:
        raise StructureError("other_vocabulary", f"{path}: was made with the vocabulary {before}, but the tokenizer has {now}.")
    has_hydrogens = report.get("settings", {}).get("keep_hydrogens", False)
    if keep_hydrogens is not None and has_hydrogens != keep_hydrogens:
        found = f"with{'' if has_hydrogens else 'out'} hydrogens, which"
        expected = "are not kept here; say --keep_hydrogens." if has_hydrogens else "are kept here; prepare it with them."
        raise StructureError("other_hydrogens", f"{path}: was prepared {found} {expected}")


def load_prepared(path, tokenizer, cache_dir=None, keep_hydrogens=None) -> Dataset:
    """A dataset that `prepare_dataset.py` wrote, of now or of earlier versions. It stays on disk: `datasets` keeps a copy that
    it can address by index in `cache_dir`, by default in its own cache (`HF_DATASETS_CACHE`).

    Raises:
        `StructureError`: if a shard or columns are missing, or it was made for another reader; see `check_made_for`.
    """
    path = Path(path)
    file = path / REPORT_FILE
    if not any((path / name).exists() for name in (REPORT_FILE, "dataset_info.json")):
        raise StructureError("not_prepared", f"{path}: no dataset there, expected a folder that prepare_dataset.py wrote.")
    try:
        report = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if (path / "dataset_info.json").exists():
            dataset = load_from_disk(str(path))
        else:
            shards = [str(path / shard["file"]) for shard in report["shards"]]
            with _no_bars():
                dataset = Dataset.from_parquet(shards, cache_dir=cache_dir and str(cache_dir))
            unused = [name for name in OPTIONAL_FEATURES if name not in report["columns"] and name in dataset.column_names]
            dataset = dataset.remove_columns(unused)
        dataset[:1]
    except Exception as error:  # whatever datasets and Arrow raise for a damaged folder
        raise StructureError("not_prepared", f"{path}: cannot be opened as a dataset: {error.__cause__ or error}.") from error
    if not len(dataset):
        raise StructureError("empty_dataset", f"{path}: a dataset without examples.")
    missing = [name for name in FEATURES if name not in dataset.column_names]
    if missing:
        raise StructureError("not_prepared", f"{path}: a dataset without the columns {', '.join(missing)}.")
    check_made_for(path, report, tokenizer, keep_hydrogens)
    return dataset


def join_datasets(datasets) -> Dataset:
    """Datasets one after another; a label or modality that only some have is None in the others.

    Raises:
        `StructureError`: if only some have block features, or they are of different widths.
    """
    widths = []
    for dataset in datasets:
        features = dataset[0].get("block_features") if "block_features" in dataset.column_names else None
        widths.append(len(features[0]) if features else 0)
    if len(set(widths)) > 1:
        raise StructureError(
            "other_block_features",
            f"The inputs have block features of the widths {', '.join(map(str, widths))} (0 is none), expected one for all.",
        )
    return concatenate_datasets(list(datasets))


def _has_gaps(dataset, column):
    tables = dataset.select_columns([column]).with_format("arrow").iter(batch_size=10_000)
    return any(table[column].null_count for table in tables)


def for_model(dataset, config, name="the input") -> Dataset:
    """The dataset without the optional columns that a model of this configuration does not read.

    Raises:
        `StructureError`: if the model needs a column that is missing, or has gaps.
    """
    needed = config.optional_inputs
    for column, wanted in needed.items():
        if wanted and (column not in dataset.column_names or _has_gaps(dataset, column)):
            raise StructureError("other_model", f"The model needs {column}, which {name} does not have for every example.")
    return dataset.remove_columns([c for c, wanted in needed.items() if not wanted and c in dataset.column_names])
