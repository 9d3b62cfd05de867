# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Files of molecules and complexes -> a dataset of examples, which `run_pretraining.py` and the rest read without delay.

python prepare_dataset.py molecules.csv dimers.sdf.gz --output_dir prepared

Files of ATOMICA's processed data (`.pkl`, `.jsonl`, `.json`, `.parquet`; see `convert_original_data.py`) are read too.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
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
from datasets.arrow_writer import ArrowWriter
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from atomica_hf import ROOT, AtomicaProcessor, ReadReport, StructureError
from atomica_hf.structure_atomica import (
    INDEX_COLUMNS,
    TABLE_SUFFIXES,
    index_file,
    list_inputs,
    read_table,
    suffix_of,
)
from original_data import is_original, read_original_examples


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
OPTIONAL_FEATURES = Features(  # columns that a dataset has if any of its examples has a value
    {"label": Value("float64"), "modality_ids": Value("int64"), "block_features": List(List(Value("float32")))}
)
REPORT_FILE = "read_report.json"
WRITTEN_AT_ONCE = 200  # examples


def _encode(processor, work):
    """One piece of work -> (name, examples with their notes, errors); never raises for bad input. A piece may hold several
    structures (one for each copy of a ligand), of which the good ones are kept."""
    name, function, arguments = work
    examples, errors = [], []

    def attempt(call, *values):
        try:
            return call(*values)
        except StructureError as error:
            errors.append(error)
        except Exception as error:  # one bad structure must not stop ten thousand; it is named and counted like the others
            errors.append(StructureError("unexpected_error", f"{name}: {type(error).__name__}: {error}"))

    found = attempt(function, *arguments)
    for structure in found if isinstance(found, list) else [found]:
        example = None if structure is None else attempt(processor.encode, structure)
        if example is not None:
            examples.append((example, structure.notes))
    return name, examples, errors


_worker_processor = None


def _start_worker(processor):
    global _worker_processor
    _worker_processor = processor


def _encode_in_worker(work):
    return _encode(_worker_processor, work)


def read_examples(path, processor, report, num_proc=1, max_samples=None, progress=True):
    """Yields the examples of a file or folder; what cannot be read goes into `report`.

    Args:
        path (`str` or `Path`): anything `list_inputs` knows, or a file of ATOMICA's records.
        processor (`AtomicaProcessor`): encodes each structure.
        report (`ReadReport`): counts.
        num_proc (`int`): processes that read structures; the order of examples does not depend on it.
        max_samples (`int`): read only this many inputs.
    """
    if is_original(path):
        yield from read_original_examples(path, len(processor.tokenizer), report, max_samples, progress)
        return
    work = list_inputs(path, processor.read_options)[:max_samples]
    pool = None
    if num_proc > 1:
        context = multiprocessing.get_context("spawn")  # forking a process that has run torch threads can hang
        pool = context.Pool(num_proc, initializer=_start_worker, initargs=(processor,))
        results = pool.imap(_encode_in_worker, work, chunksize=16)
    else:
        results = (_encode(processor, item) for item in work)
    try:
        bar = tqdm(results, total=len(work), desc=f"Reading {Path(path).name}", disable=not progress, unit="structure")
        for name, examples, errors in bar:
            for error in errors:
                report.reject(name, error)
            for example, notes in examples:
                report.keep(notes)
                yield example
    finally:
        if pool is not None:
            pool.terminate()


def is_prepared(path) -> bool:
    return (Path(path) / "dataset_info.json").exists()


def vocabulary_hash(tokenizer) -> str:
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return hashlib.sha256("\n".join(tokens).encode()).hexdigest()[:16]


def load_prepared(path, tokenizer) -> Dataset:
    """A dataset that `prepare_dataset.py` wrote.

    Raises:
        `StructureError`: if columns are missing, or it was made with another vocabulary.
    """
    try:
        dataset = load_from_disk(str(path))
        dataset[:1]
    except Exception as error:  # whatever datasets and Arrow raise for a damaged folder
        raise StructureError("not_prepared", f"{path}: cannot be opened as a dataset: {error}.") from error
    if not len(dataset):
        raise StructureError("empty_dataset", f"{path}: a dataset without examples.")
    missing = [name for name in FEATURES if name not in dataset.column_names]
    if missing:
        raise StructureError("not_prepared", f"{path}: a dataset without the columns {', '.join(missing)}.")
    report = Path(path) / REPORT_FILE
    made_with = json.loads(report.read_text(encoding="utf-8")).get("vocabulary") if report.exists() else None
    if made_with != vocabulary_hash(tokenizer):
        raise StructureError(
            "other_vocabulary",
            f"{path}: was made with the vocabulary {made_with}, but the tokenizer has {vocabulary_hash(tokenizer)}.",
        )
    return dataset


def _save(dataset, folder):
    """Without the bars of `datasets`: what takes time, the reading, has one of its own."""
    disable_progress_bars()
    try:
        dataset.save_to_disk(str(folder))
    finally:
        enable_progress_bars()


def _write_report(folder, report, processor):
    data = {**report.to_dict(), "vocabulary": vocabulary_hash(processor.tokenizer)}
    (Path(folder) / REPORT_FILE).write_text(json.dumps(data, indent=1), encoding="utf-8")


def write_dataset(examples, folder):
    """Examples -> a dataset in `folder`, a few of them in memory at a time.

    Returns:
        Number of examples; nothing is written if there are none.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrow = folder.with_name(f"{folder.name}.arrow")
    count, found = 0, set()
    try:
        with ArrowWriter(
            features=Features({**FEATURES, **OPTIONAL_FEATURES}), path=str(arrow), writer_batch_size=WRITTEN_AT_ONCE
        ) as writer:
            for example in examples:
                count += 1
                found.update(name for name in OPTIONAL_FEATURES if example.get(name) is not None)
                writer.write({**dict.fromkeys(OPTIONAL_FEATURES), **example})
            writer.finalize()
        if count:
            _save(
                Dataset.from_file(str(arrow)).select_columns([*FEATURES, *(n for n in OPTIONAL_FEATURES if n in found)]), folder
            )
    finally:
        arrow.unlink(missing_ok=True)
    return count


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


def for_model(dataset, config, name="the input") -> Dataset:
    """The dataset without the optional columns that a model of this configuration does not read.

    Raises:
        `StructureError`: if the model needs a column that is missing, or has gaps.
    """
    needed = {"modality_ids": config.num_modalities > 0, "block_features": bool(config.block_feature_sizes)}
    for column, wanted in needed.items():
        if wanted and (column not in dataset.column_names or None in dataset[column]):
            raise StructureError("other_model", f"The model needs {column}, which {name} does not have for every example.")
    return dataset.remove_columns([c for c, wanted in needed.items() if not wanted and c in dataset.column_names])


def load_examples(path, processor, cache_dir, num_proc=1, max_samples=None, progress=True):
    """Any input, prepared or not -> (`datasets.Dataset` of examples, `ReadReport`).

    What is read is kept in `cache_dir` and found there again as long as input, processor and `max_samples` are the same.

    Raises:
        `StructureError`: if nothing could be read.
    """
    if max_samples is not None and max_samples < 1:
        raise StructureError("usage", f"The number of samples to read is {max_samples}, expected at least 1.")
    if is_prepared(path):
        dataset = load_prepared(path, processor.tokenizer)
        dataset = dataset.select(range(min(len(dataset), max_samples))) if max_samples else dataset
        return dataset, ReadReport(kept=len(dataset))
    path = Path(path)
    if not path.exists() or not is_original(path):
        list_inputs(path)  # a missing or unknown input is an error before anything is written
    key = hashlib.sha256(json.dumps(_description(path, processor, max_samples), sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(cache_dir) / f"{path.name.split('.')[0]}-{key}"
    if not is_prepared(folder):
        report = ReadReport()
        temporary = Path(f"{folder}.{os.getpid()}.tmp")
        try:
            write_dataset(read_examples(path, processor, report, num_proc, max_samples, progress), temporary / "dataset")
            if not report.kept:
                raise StructureError("nothing_usable", f"{path}: no usable example.\n{report.summary()}")
            _write_report(temporary / "dataset", report, processor)
            try:
                os.replace(temporary / "dataset", folder)
            except OSError:
                if not is_prepared(folder):  # another process has written the same in the meantime
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    saved = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    rejected = [(row["name"], row["reason"], row["message"]) for row in saved["rejected"]]
    return load_from_disk(str(folder)), ReadReport(saved["kept"], rejected, Counter(saved["notes"]))


def _description(path, processor, max_samples):
    """What an example depends on, for recognising it again."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    if not path.is_dir() and suffix_of(path) in TABLE_SUFFIXES:  # an index depends on the files it names
        rows = read_table(path)
        if all(column in rows[0] for column in INDEX_COLUMNS):
            named = {index_file(path, row) for row in rows}
            files += sorted(file for file in named if file.is_file())
    code = [
        f"{name}_atomica.py" for name in ("tokenization", "component", "molecule", "macromolecule", "structure", "processing")
    ]
    if is_original(path):
        code += ["original_data.py", "plain_pickle.py"]
    return {
        "files": [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files],
        "fragments": processor.tokenizer.fragments,
        "atom_order": processor.tokenizer.atom_order,
        "reading": repr(processor.read_options),
        "max_samples": max_samples,
        "code": [hashlib.sha256((ROOT / name).read_bytes()).hexdigest() for name in code],
    }


@dataclass
class PrepareArguments:
    output_dir: str = field(metadata={"help": "Folder for the dataset; must not exist."})
    processor: str = field(default=str(ROOT), metadata={"help": "Folder or hub id with processor and tokenizer."})
    num_proc: int = field(default=1, metadata={"help": "Processes that read."})
    max_samples: int | None = field(default=None, metadata={"help": "Read only this many inputs of each file."})
    seed: int = field(default=0, metadata={"help": "Seed of the conformers built from SMILES."})


def load_processor(name, seed=0) -> AtomicaProcessor:
    """The processor of a folder or hub id.

    Raises:
        `StructureError`: if there is none.
    """
    try:
        processor = AtomicaProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise StructureError("no_processor", f"{name}: no Atomica processor there ({error}).") from error
    processor.seed = seed
    return processor


def prepare(inputs, output, processor, num_proc=1, max_samples=None) -> ReadReport:
    """Reads all inputs into one dataset, a folder that did not exist before and is there only when complete.

    Raises:
        `StructureError`: if the folder exists, an input cannot be read, or nothing in it.
    """
    output = Path(output)
    if output.exists():
        raise StructureError("output_exists", f"{output} exists already; name a new folder.")
    parts, total = [], ReadReport()
    cache, temporary = Path(f"{output}.parts"), Path(f"{output}.tmp")
    try:
        for path in inputs:
            dataset, report = load_examples(path, processor, cache, num_proc, max_samples)
            print(f"{path}: {report.summary()}", file=sys.stderr)
            parts.append(dataset)
            total.kept += report.kept
            total.rejected += report.rejected
            total.notes.update(report.notes)
        _save(join_datasets(parts), temporary)
        _write_report(temporary, total, processor)
        os.replace(temporary, output)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)
    return total


def main(argv=None):
    parser = HfArgumentParser(PrepareArguments, description=__doc__)
    parser.add_argument(
        "inputs", nargs="+", help=".smi .csv .tsv .sdf .pdb .cif (also .gz), an index CSV, folders of these, or ATOMICA's data"
    )
    arguments, rest = parser.parse_args_into_dataclasses(argv)
    output = Path(arguments.output_dir)
    if arguments.seed < 0 or arguments.num_proc < 1:
        raise StructureError("usage", f"--seed {arguments.seed} --num_proc {arguments.num_proc}: expected at least 0 and 1.")
    processor = load_processor(arguments.processor, arguments.seed)
    prepare(rest.inputs, output, processor, arguments.num_proc, arguments.max_samples)
    sizes = np.array([len(ids) for ids in load_from_disk(str(output)).select_columns("input_ids")["input_ids"]])
    print(f"{output}: {len(sizes)} examples, {sizes.sum()} blocks (median {np.median(sizes):.0f}, largest {sizes.max()}).")


if __name__ == "__main__":
    try:
        main()
    except (StructureError, OSError) as error:
        sys.exit(f"prepare_dataset.py: error: {error}")
