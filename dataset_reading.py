# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Inputs of every kind -> examples, on one process or many."""

import contextlib
import functools
import hashlib
import itertools
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np

from atomica_hf import ROOT, ReadReport, StructureError
from atomica_hf.structure_atomica import (
    INDEX_COLUMNS,
    TABLE_SUFFIXES,
    index_file,
    list_inputs,
    read_table,
    suffix_of,
)
from engines import run_tasks
from original_data import is_original, read_original_examples
from prepared_datasets import JOURNAL_FILE, is_prepared, load_prepared, vocabulary_hash


# one piece of work ----------------------------------------------------------------------------------------------------------


def _finite(example):
    for key, dtype in (("positions", np.float32), ("block_features", np.float32), ("label", np.float64)):
        with np.errstate(over="ignore"):
            if example.get(key) is not None and not np.isfinite(np.asarray(example[key], dtype=dtype)).all():
                raise StructureError("not_finite", f"{example['name']}: {key} has numbers that {dtype.__name__} cannot hold.")
    return example


def _encode(processor, task):
    """(place, piece of work) -> (place, (name, examples with their notes, errors)); never raises for bad input. A piece may
    hold several structures (one for each copy of a ligand), of which the good ones are kept; none if it takes too long."""
    place, (name, function, arguments) = task
    examples, errors = [], []

    def encode(structure):
        return _finite(processor.encode(structure))

    def attempt(call, *values):
        try:
            return call(*values)
        except StructureError as error:
            errors.append(error)
        except Exception as error:  # one bad structure must not stop ten thousand; it is named and counted like the others
            errors.append(StructureError("unexpected_error", f"{name}: {type(error).__name__}: {error}"))

    found = attempt(function, *arguments)
    for structure in found if isinstance(found, list) else [found]:
        example = None if structure is None else attempt(encode, structure)
        if example is not None:
            examples.append((example, structure.notes))
    return place, (name, examples, errors)


def _failed(task, code, why):
    """The same for a piece of which nothing came back."""
    place, (name, _, _) = task
    return place, (name, [], [StructureError(code, f"{name}: {why}.")])


# inputs ---------------------------------------------------------------------------------------------------------------------


def _is_listed(path):
    return not is_prepared(path) and not is_original(path)


def _records(path, processor, max_samples):
    """Yields what `_encode` gives for every record of ATOMICA's data."""
    report = ReadReport()

    def taken():
        rows, report.rejected = report.rejected, []
        return [(name, [], [StructureError(code, message)]) for name, code, message in rows]

    for example in read_original_examples(path, len(processor.tokenizer), report, max_samples, progress=False):
        yield from taken()
        notes, report.notes = report.notes, Counter()
        yield _encode_again(example, notes)
    yield from taken()


def _encode_again(example, notes=()):
    try:
        return example["name"], [(_finite(example), notes)], []
    except StructureError as error:
        return example["name"], [], [error]


def read_pieces(inputs, processor, options, max_samples=None, begin=(0, 0), **engine):
    """Yields ((number of the input, number of the piece in it), (name, examples with their notes, errors)) in the order of the
    inputs, from `begin` on; whatever the engine (see `run_tasks`), the same."""
    for listed, group in itertools.groupby(range(begin[0], len(inputs)), lambda i: _is_listed(inputs[i])):
        group = list(group)
        if listed:
            tasks = (
                ((i, n), piece)
                for i in group
                for n, piece in enumerate(list_inputs(inputs[i], options)[:max_samples])
                if (i, n) >= begin
            )
            yield from run_tasks(functools.partial(_encode, processor), tasks, failed=_failed, **engine)
            continue
        for i in group:
            if is_prepared(inputs[i]):
                rows = itertools.islice(load_prepared(inputs[i], processor.tokenizer), max_samples)
                results = (_encode_again(row) for row in rows)
            else:
                results = _records(inputs[i], processor, max_samples)
            yield from (((i, n), result) for n, result in enumerate(results) if (i, n) >= begin)


def number_of_pieces(path, processor, options, max_samples):
    """Number of pieces of an input, None if only reading it tells.

    Raises:
        `StructureError`: if it is missing, or of a kind that is not known.
    """
    path = Path(path)
    if (path / JOURNAL_FILE).exists() and not is_prepared(path):
        raise StructureError("not_prepared", f"{path}: is half-written; finish it with the command that began it.")
    if is_prepared(path):
        dataset = load_prepared(path, processor.tokenizer, keep_hydrogens=processor.keep_hydrogens)
        if processor.return_charges and "atom_charges" not in dataset.column_names:
            raise StructureError("no_charges", f"{path}: was prepared without charges; prepare it with --return_charges.")
        return min(len(dataset), max_samples or len(dataset))
    if is_original(path) and path.exists():
        return None
    return len(list_inputs(path, options)[:max_samples])


def read_examples(path, processor, report, num_proc=1, max_samples=None, options=None, time_limit=None):
    """Yields the examples of a file or folder; what cannot be read goes into `report`.

    Args:
        path (`str` or `Path`): anything `list_inputs` knows, a file of ATOMICA's records, or a prepared dataset.
        processor (`AtomicaProcessor`): encodes each structure.
        report (`ReadReport`): counts.
        num_proc (`int`): processes that read structures; the order of examples does not depend on it.
        max_samples (`int`): read only this many inputs.
        options (`ReadOptions`): those of the processor by default.
        time_limit (`float`): for one structure, in seconds.
    """
    options = options or processor.read_options
    pieces = read_pieces([Path(path)], processor, options, max_samples, num_proc=num_proc, time_limit=time_limit)
    with contextlib.closing(pieces):
        for _, (name, examples, errors) in pieces:
            for error in errors:
                report.reject(name, error)
            for example, notes in examples:
                report.keep(notes)
                yield example


def files_of(path):
    """The files that an input consists of, with size and time: whether it has changed.

    Raises:
        `StructureError`: if it is missing.
    """
    if not path.exists():
        raise StructureError("missing_file", f"{path}: no such file or folder.")
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    if not path.is_dir() and suffix_of(path) in TABLE_SUFFIXES and not is_original(path):  # an index and the files it names
        rows = read_table(path)
        if all(column in rows[0] for column in INDEX_COLUMNS):
            named = {index_file(path, row) for row in rows}
            files += sorted(file for file in named if file.is_file())
    return [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]


def hash_of(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def settings_of(processor, options, max_samples):
    """What an example depends on, besides its input."""
    reading = ("tokenization", "component", "molecule", "protonation", "macromolecule", "structure", "processing")
    files = [*(f"{name}_atomica.py" for name in reading), "original_data.py", "plain_pickle.py"]
    return {
        **asdict(options),
        "keep_hydrogens": processor.keep_hydrogens,
        "return_charges": processor.return_charges,
        "max_samples": max_samples,
        "vocabulary": vocabulary_hash(processor.tokenizer),
        "fragments": hash_of([processor.tokenizer.fragments, processor.tokenizer.atom_order]),
        "code": hash_of([hashlib.sha256((ROOT / name).read_bytes()).hexdigest() for name in files]),
    }
