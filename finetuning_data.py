# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Labelled molecules and complexes -> examples of the model, with what could not be read counted and named.

`read_source` takes a table with SMILES, an SDF file with properties, an index of complexes, a prepared dataset, or the name of
a dataset on the Hub; `read_labels` its columns of labels; `encode_source` builds the structures, and keeps them on disk.
"""

import functools
import hashlib
import json
import math
import multiprocessing
import re
import sqlite3
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import datasets
import numpy as np
import torch
from rdkit import Chem
from tqdm.auto import tqdm

from atomica_hf import ROOT, ReadReport, StructureError
from atomica_hf.molecule_atomica import sdf_records
from atomica_hf.processing_atomica import MODEL_INPUTS
from atomica_hf.structure_atomica import (
    INDEX_COLUMNS,
    SMILES_COLUMNS,
    format_of,
    index_file,
    list_inputs,
    read_table,
    structure_from_smiles,
)
from metrics_atomica import CLASSES, MULTI_LABEL, REGRESSION
from prepared_datasets import FEATURES, OPTIONAL_FEATURES, is_prepared, load_prepared, vocabulary_hash


NAME_COLUMNS = ("name", "id", "mol_id", "cmpd_chemblid", "pdb_id")
MISSING = ("", "nan", "na", "n/a", "none", "null")
_TABLES = ("csv", "tsv", "parquet", "smi")
_DESCRIPTION = ("pdb_id", *INDEX_COLUMNS, "lig_code", "lig_smiles", "lig_resi")  # columns of an index
_LARGEST = 1e30  # label; the model computes in 32 bits
_CLOSEST = 1e-5  # labels, relative to the largest
_LOOKED_AT = 50  # values of a column, to see whether it holds SMILES
_NOT_READING = (
    "modeling",
    "geometry",
    "graph",
    "convolution_triton",
    "configuration",
    "elements",
    "energy",
    "data_collator",
    "metrics",
)  # code that no example depends on


# what is read -----------------------------------------------------------------------------------------------------------


@dataclass
class Piece:
    """Work that gives one structure, or several of one complex. `content` is all that the result depends on, besides how it is
    read."""

    name: str
    function: object
    arguments: tuple
    content: str


@dataclass
class Source:
    """Rows of an input, and how each becomes a structure.

    Args:
        path (`str`): where it came from.
        kind (`str`): `smiles`, `index` (of complexes), `records` (of SDF and the like), `files` or `prepared`.
        rows (`list[dict]`): column -> value, a text or what a dataset holds.
        names (`list[str]`): of the rows.
        smiles (`list[str]`): of the molecule, or of the ligand; None where there is none.
        smiles_column (`str`): for `kind="smiles"`.
        pieces (`list[Piece]`): one per row, but for `smiles` and `prepared`.
        dataset (`datasets.Dataset`): of a prepared one.
        notes (`list[str]`): lines for people on what is odd about it.
    """

    path: str
    kind: str
    rows: list
    names: list
    smiles: list
    smiles_column: str | None = None
    pieces: list | None = None
    dataset: object = None
    notes: list = field(default_factory=list)

    @functools.cached_property
    def columns(self):
        return list(dict.fromkeys(column for row in self.rows for column in row))

    def column(self, name):
        """Values of a column, None where a row has none.

        Raises:
            `StructureError`: if there is no such column.
        """
        if name not in self.columns:
            raise StructureError("no_column", f"{self.path}: no column {name!r}; there are {', '.join(self.columns)}.")
        return [row.get(name) for row in self.rows]


def _text(value):
    return "" if value is None else str(value).strip()


def _is_smiles(text):
    return len(text.split()) == 1 and Chem.MolFromSmiles(text, sanitize=False) is not None


def find_smiles_column(rows, path, given=None):
    """The column with SMILES: the one given, or the only one with such a name, or else with such values; None if there is none.

    Raises:
        `StructureError`: if the one given is missing, or several could be meant.
    """
    columns = list(rows[0])
    if given is not None:
        if given not in columns:
            raise StructureError("no_column", f"{path}: no column {given!r} for SMILES; there are {', '.join(columns)}.")
        return given

    def holds_smiles(column):
        values = [text for text in (_text(row.get(column)) for row in rows) if text][:_LOOKED_AT]
        return bool(values) and sum(map(_is_smiles, values)) >= 0.8 * len(values)

    likely = [column for column in columns if column.lower() in SMILES_COLUMNS or "smiles" in column.lower()]
    found = [column for column in likely if holds_smiles(column)] or [c for c in columns if c not in likely and holds_smiles(c)]
    if len(found) > 1:
        raise StructureError(
            "ambiguous_smiles", f"{path}: the columns {', '.join(found)} all hold SMILES; choose one with --smiles_column."
        )
    return found[0] if found else likely[0] if len(likely) == 1 else None


def read_source(path, processor, smiles_column=None, max_samples=None):
    """Anything that can be trained on or predicted for -> `Source`.

    Args:
        path (`str`): a file, a folder of structure files, a prepared dataset, or a name on the Hub.
        processor (`AtomicaProcessor`): how structures are read.
        smiles_column (`str`): where it is not clear.
        max_samples (`int`): read only this many rows.

    Raises:
        `StructureError`: if it is missing, empty or unclear.
    """
    file = Path(path)
    if file.exists() and is_prepared(file):
        return _prepared_source(file, processor, max_samples)
    if not file.exists():
        if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", str(path)) or file.suffix:
            raise StructureError("missing_file", f"{path}: no such file or folder.")
        return _smiles_source(path, _hub_rows(path)[:max_samples], smiles_column)
    kind = "folder" if file.is_dir() else format_of(file)
    if kind in _TABLES:
        notes = []
        rows = read_table(file, notes, strict=True)[:max_samples]
        if smiles_column is None and all(column in rows[0] for column in INDEX_COLUMNS):
            return replace(_index_source(file, rows, processor), notes=notes)
        return replace(_smiles_source(path, rows, smiles_column), notes=notes)
    work = list_inputs(file, processor.read_options)[:max_samples]
    if kind == "sdf":
        return _sdf_source(file, work)
    pieces = [Piece(*piece, _content(piece[2])) for piece in work]
    names = [piece.name for piece in pieces]
    return Source(str(path), "files", [{"name": name} for name in names], names, [None] * len(names), pieces=pieces)


def _smiles_source(path, rows, smiles_column):
    column = find_smiles_column(rows, path, smiles_column)
    if column is None:
        raise StructureError(
            "no_smiles_column",
            f"{path}: no column with SMILES; the columns are {', '.join(rows[0])}. Name it (--smiles_column).",
        )
    if smiles_column is None and _is_smiles(column) and any(_number(other) is not None for other in rows[0]):
        raise StructureError(
            "no_header",
            f"{path}: the first line is {', '.join(rows[0])}, expected names of columns (else name {column!r} with "
            "--smiles_column).",
        )
    smiles = [_text(row.get(column)) for row in rows]
    title = next((c for c in rows[0] if c.lower() in NAME_COLUMNS and c != column), None)
    names = [(title and _text(row.get(title))) or text or f"row {i}" for i, (row, text) in enumerate(zip(rows, smiles), 1)]
    return Source(str(path), "smiles", rows, names, smiles, column)


def _index_source(file, rows, processor):
    pieces = []
    for row, piece in zip(rows, list_inputs(file, processor.read_options)):
        structure = index_file(file, row)
        data = structure.read_bytes() if structure.is_file() else b""
        chosen = {name: _text(row.get(name)) for name in _DESCRIPTION if name != "pdb_path"}
        pieces.append(Piece(*piece, json.dumps([hashlib.sha256(data).hexdigest(), chosen])))
    names = [_text(row.get("pdb_id")) or piece.name for row, piece in zip(rows, pieces)]
    return Source(str(file), "index", rows, names, [_text(row.get("lig_smiles")) or None for row in rows], pieces=pieces)


def _content(arguments):
    """Of structure files, their bytes; else what is in the arguments, the record of a file."""
    parts = []
    for value in arguments:
        is_path = isinstance(value, str) and "\n" not in value and Path(value).is_file()
        parts.append(hashlib.sha256(Path(value).read_bytes()).hexdigest() if is_path else str(value))
    return json.dumps(parts)


def _sdf_source(file, work):
    pieces, rows, smiles = [Piece(*piece, _content(piece[2])) for piece in work], [], []
    for piece in pieces:
        (_, text), supplier = next(iter(sdf_records(piece.arguments[1]))), Chem.SDMolSupplier()
        supplier.SetData(text, sanitize=False, removeHs=False)
        mol = next(iter(supplier), None)
        rows.append({"name": piece.name, **({} if mol is None else mol.GetPropsAsDict())})
        smiles.append(_smiles_of(mol))
    return Source(str(file), "records", rows, [piece.name for piece in pieces], smiles, pieces=pieces)


def _smiles_of(mol):
    """SMILES of a molecule as it stands in a file; None if RDKit cannot sanitise it."""
    if mol is None:
        return None
    try:
        Chem.SanitizeMol(mol)
        return Chem.MolToSmiles(Chem.RemoveHs(mol)) or None
    except (Chem.MolSanitizeException, ValueError):
        return None


def _prepared_source(file, processor, max_samples):
    dataset = load_prepared(file, processor.tokenizer, keep_hydrogens=processor.keep_hydrogens)
    dataset = dataset.select(range(min(len(dataset), max_samples))) if max_samples else dataset
    inputs = {*FEATURES, *OPTIONAL_FEATURES} - {"name", "label"}
    labels = dataset.select_columns([column for column in dataset.column_names if column not in inputs])
    rows = labels.to_list()
    return Source(str(file), "prepared", rows, [row["name"] for row in rows], [None] * len(rows), dataset=dataset)


def _hub_rows(name):
    try:
        found = datasets.load_dataset(name)
    except Exception as error:  # of the network, the Hub, or one of many formats
        raise StructureError(
            "no_dataset",
            f"{name}: neither a file here nor a dataset on the Hub that can be loaded ({type(error).__name__}: {error}).",
        ) from error
    rows = [{"split": split, **row} for split, part in found.items() for row in part.to_list()]
    if not rows:
        raise StructureError("empty_dataset", f"{name}: a dataset without rows.")
    return rows


# labels -----------------------------------------------------------------------------------------------------------------


@dataclass
class Labels:
    """Labels of the rows of a source.

    Args:
        columns (`list[str]`): their names.
        problem (`str`): one of `metrics_atomica.PRIMARY`.
        values (`np.ndarray`): `(n, num_columns)`, or classes `(n,)`; NaN is missing. Of blocks, a list with a list, a
            dictionary or None for each row.
        classes (`list[str]`): names of the classes, in order of their numbers; None for other problems.
        of_blocks (`bool`): whether they belong to blocks.
    """

    columns: list
    problem: str
    values: object
    classes: list | None = None
    of_blocks: bool = False

    @property
    def num_labels(self):
        return len(self.columns) if self.classes is None else len(self.classes)

    @property
    def names(self):
        return list(self.columns) if self.classes is None else list(self.classes)


def is_missing(value):
    return value is None or (isinstance(value, float) and math.isnan(value)) or _text(value).lower() in MISSING


def _number(value):
    """A finite number, or None; only as it stands in tables, not 1_000 or digits of other scripts, which Python reads."""
    if isinstance(value, str) and ("_" in value or not value.isascii()):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _is_numeric(rows, column):
    values = [row.get(column) for row in rows]
    there = [value for value in values if not is_missing(value)]
    return bool(there) and all(_number(value) is not None for value in there)


def choose_label_columns(source, given=None, excluded=()):
    """Names of the columns with labels: those given (`["all"]` is every column of numbers), or the one called `label`, or the
    only one with numbers.

    Raises:
        `StructureError`: if one is missing, or it is not clear which are meant.
    """
    no_labels = {source.smiles_column, *excluded, *(_DESCRIPTION if source.kind == "index" else ())}
    columns = [column for column in source.columns if column not in no_labels and column.lower() not in NAME_COLUMNS]
    numeric = [column for column in columns if _is_numeric(source.rows, column)]
    if given and list(given) != ["all"]:
        for column in given:
            source.column(column)
            if column in (source.smiles_column, *excluded):
                use = "the SMILES" if column == source.smiles_column else "the split"
                raise StructureError("bad_labels", f"--label_columns names {column!r}, which is the column of {use}.")
        if len(set(given)) < len(given):
            raise StructureError("bad_labels", f"--label_columns names a column twice: {', '.join(given)}.")
        return list(given)
    if given:
        if not numeric:
            raise StructureError("no_labels", f"{source.path}: no column of numbers; there are {', '.join(source.columns)}.")
        return numeric
    named = [column for column in columns if column.lower() in ("label", "labels")]
    found = named if len(named) == 1 else numeric if numeric else columns
    if len(found) != 1:
        raise StructureError(
            "ambiguous_labels",
            f"{source.path}: it is not clear which column has the labels; name one or several with --label_columns "
            f"(or 'all'). Candidates: {', '.join(found) or 'none'}; columns: {', '.join(source.columns)}.",
        )
    return found


def _numbers(source, columns):
    """Columns -> array `(n, num_columns)`, NaN where blank.

    Raises:
        `StructureError`: for what is not a number.
    """
    found = np.full((len(source.rows), len(columns)), np.nan)
    for j, column in enumerate(columns):
        for i, value in enumerate(source.column(column)):
            if not is_missing(value):
                number = _number(value)
                if number is None:
                    raise StructureError(
                        "not_numeric",
                        f"{source.path}: row {i + 1} ({source.names[i]}): {column} is {value!r}, expected a number.",
                    )
                found[i, j] = number
    return found


def _class_names(source, column, limit):
    """Distinct values of a column, numbers in their order and before names.

    Raises:
        `StructureError`: if there are more than `limit`.
    """
    texts = {_text(value) for value in source.column(column) if not is_missing(value)}
    if len(texts) > limit:
        example = next((text for text in sorted(texts) if _number(text) is None), sorted(texts)[0])
        raise StructureError(
            "not_numeric",
            f"{source.path}: {column} has {len(texts)} different values (for example {example!r}): neither numbers to predict "
            f"nor classes, of which there may be {limit}.",
        )
    return sorted(texts, key=lambda text: (0, _number(text), text) if _number(text) is not None else (1, 0.0, text))


def _plain_class(text):
    number = _number(text)
    return str(int(number)) if number is not None and number == int(number) else text


def guess_problem(source, columns):
    """The kind of problem that columns of labels pose: names, or 0 and 1, are classes; other numbers are for regression.

    Raises:
        `StructureError`: for a column of numbers and words, or several columns of names.
    """
    kinds = set()
    for column in columns:
        there = [value for value in source.column(column) if not is_missing(value)]
        words = [value for value in there if _number(value) is None]
        if words and len(words) < len(there):
            raise StructureError(
                "not_numeric",
                f"{source.path}: {column} has numbers, and words such as {words[0]!r}, expected one or the other.",
            )
        binary = {_number(value) for value in there} <= {0.0, 1.0}
        kinds.add("names" if words else "binary" if binary else "numbers")
    if len(columns) == 1:
        return REGRESSION if kinds == {"numbers"} else CLASSES
    if "names" in kinds:
        raise StructureError("not_numeric", f"{source.path}: of several label columns each must have numbers.")
    return MULTI_LABEL if kinds == {"binary"} else REGRESSION


def read_labels(source, given=None, problem=None, classes=None, of_blocks=False, excluded=()):
    """The labels of a source.

    Args:
        given (`list[str]`): names of the columns; see `choose_label_columns`.
        problem (`str`): see `guess_problem`.
        classes (`list[str]`): names of the classes in the order of a model that was trained before.
        of_blocks (`bool`): each label is a list with one value per block, or a dictionary from the origin of a block, such as
            `A:GLY:12`, to its value; as JSON in a file.
        excluded: columns that are no labels.

    Raises:
        `StructureError`: if they are missing, not numbers, of one class only, or do not fit the problem.
    """
    columns = choose_label_columns(source, given, excluded)
    if of_blocks:
        return _block_labels(source, columns, problem)
    problem = problem or guess_problem(source, columns)
    if problem == CLASSES and len(columns) > 1:
        raise StructureError("bad_labels", f"Classes that exclude each other stand in one column, not in {', '.join(columns)}.")
    if problem == CLASSES:
        found = _class_labels(source, columns[0], classes)
    else:
        found = Labels(columns, problem, _numbers(source, columns))
    _check_labels(source, found)
    return found


def _class_labels(source, column, classes):
    there = sum(not is_missing(value) for value in source.column(column))
    names = list(dict.fromkeys(map(_plain_class, _class_names(source, column, max(2, min(1000, there // 2))))))
    unknown = [name for name in names if classes is not None and name not in classes]
    if unknown:
        raise StructureError(
            "bad_labels", f"{source.path}: {column} has the class {unknown[0]!r}, expected {', '.join(classes)}."
        )
    names = names if classes is None else list(classes)
    number = {name: float(i) for i, name in enumerate(names)}
    values = [np.nan if is_missing(value) else number[_plain_class(_text(value))] for value in source.column(column)]
    return Labels([column], CLASSES, np.array(values), names)


def _check_labels(source, labels):
    values = labels.values.reshape(len(source.rows), -1)
    for column, value in zip(labels.columns, values.T):
        there = value[~np.isnan(value)]
        if not len(there):
            raise StructureError("no_labels", f"{source.path}: {column} has no label at all.")
        if labels.problem == MULTI_LABEL and not np.isin(there, (0, 1)).all():
            wrong = there[~np.isin(there, (0, 1))][0]
            raise StructureError("bad_labels", f"{source.path}: {column} has the label {wrong:g}, expected 0 or 1.")
        if labels.problem == CLASSES and len(labels.classes) < 2:
            blank = f" ({len(value) - len(there)} rows are blank, nan, none, ...)" if len(there) < len(value) else ""
            raise StructureError(
                "one_class", f"{source.path}: {column} has one class only, {labels.classes[0]!r}{blank}, expected two."
            )
        if labels.problem == REGRESSION:
            _check_numbers(source, column, there)
    if labels.problem == MULTI_LABEL:
        flat = values[~np.isnan(values)]
        if len(np.unique(flat)) < 2:
            raise StructureError("one_class", f"{source.path}: all labels are {flat[0]:g}, expected both 0 and 1.")


def _check_numbers(source, column, numbers):
    """Raises `StructureError` for labels that are all alike, or that 32 bits cannot hold or tell apart."""
    largest = np.abs(numbers).max()
    if largest > _LARGEST:
        raise StructureError(
            "bad_labels", f"{source.path}: {column} has the label {largest:g} in size, expected at most {_LARGEST:g}."
        )
    spread = np.ptp(numbers)
    if len(numbers) > 1 and spread == 0:
        raise StructureError("one_class", f"{source.path}: {column} is {numbers[0]:g} everywhere: nothing to learn.")
    if len(numbers) > 1 and spread < max(_CLOSEST * largest, 1 / _LARGEST):
        raise StructureError(
            "bad_labels",
            f"{source.path}: the labels of {column} differ by at most {spread:g} at sizes up to {largest:g}: too little for "
            "32 bits. Subtract a constant, or choose another unit.",
        )


def _block_labels(source, columns, problem):
    if len(columns) != 1:
        raise StructureError("bad_labels", f"Labels of blocks stand in one column, not in {', '.join(columns)}.")
    values, cells = [], []
    for i, value in enumerate(source.column(columns[0])):
        if isinstance(value, str) and not is_missing(value):
            try:
                value = json.loads(value)
            except ValueError:
                value = [value]
        if is_missing(value) if not isinstance(value, (list, dict)) else not value:
            values.append(None)
            continue
        if not isinstance(value, (list, dict)):
            raise StructureError(
                "bad_labels",
                f"{source.path}: row {i + 1} ({source.names[i]}): {columns[0]} is {value!r}, expected a list with a label per "
                'block, or {"A:GLY:12": label, ...}.',
            )
        values.append(value)
        cells += [cell for cell in (value.values() if isinstance(value, dict) else value) if not is_missing(cell)]
    if not cells:
        raise StructureError("no_labels", f"{source.path}: {columns[0]} has no label at all.")
    wrong = [cell for cell in cells if isinstance(cell, (list, dict))]
    words = [cell for cell in cells if _number(cell) is None]
    if wrong:
        raise StructureError(
            "bad_labels", f"{source.path}: {columns[0]} has the label {wrong[0]!r} of a block, expected one value."
        )
    if words and len(words) < len(cells):
        raise StructureError(
            "not_numeric",
            f"{source.path}: {columns[0]} has numbers, and words such as {words[0]!r}, expected one or the other.",
        )
    numeric = not words
    if problem is None:
        problem = CLASSES if not numeric or {_number(cell) for cell in cells} <= {0.0, 1.0} else REGRESSION
    if problem != CLASSES and not numeric:
        raise StructureError("not_numeric", f"{source.path}: {columns[0]} has the label {words[0]!r}, expected numbers.")
    if problem == REGRESSION:
        _check_numbers(source, columns[0], np.array([_number(cell) for cell in cells]))
    if problem == MULTI_LABEL and not {_number(cell) for cell in cells} <= {0.0, 1.0}:
        other = next(cell for cell in cells if _number(cell) not in (0.0, 1.0))
        raise StructureError("bad_labels", f"{source.path}: {columns[0]} has the label {other!r}, expected 0 or 1.")
    classes, convert = None, float
    if problem == CLASSES:
        classes = sorted({_plain_class(_text(cell)) for cell in cells})
        convert = lambda cell: float(classes.index(_plain_class(_text(cell))))
        if len(classes) < 2:
            raise StructureError("one_class", f"{source.path}: {columns[0]} has one class only, {classes[0]!r}, expected two.")
    number = lambda cell: np.nan if is_missing(cell) else convert(cell)
    plain = lambda value: {k: number(c) for k, c in value.items()} if isinstance(value, dict) else [number(c) for c in value]
    return Labels(columns, problem, [None if value is None else plain(value) for value in values], classes, True)


def align_block_labels(label, example):
    """A list or dictionary of labels -> array `(num_blocks,)`, NaN where there is none. A list has a label for every block, or
    for every block that is not global.

    Raises:
        `StructureError`: if a list has another length, or a dictionary names a block that is not there.
    """
    origins, ids = example["block_origins"], np.asarray(example["input_ids"])
    ordinary = np.flatnonzero(ids != 3)
    found = np.full(len(ids), np.nan)
    if label is None:
        return found
    if isinstance(label, dict):
        if not set(label) & set(origins):
            raise StructureError(
                "label_length", f"{example['name']}: no block is named like {next(iter(label))!r}; one is {origins[-1]!r}."
            )
        for i in ordinary:
            found[i] = label.get(origins[i], np.nan)
    elif len(label) in (len(ids), len(ordinary)):
        found[ordinary if len(label) == len(ordinary) else slice(None)] = label
    else:
        raise StructureError(
            "label_length",
            f"{example['name']}: {len(label)} labels, expected {len(ordinary)} (or {len(ids)} with global blocks).",
        )
    return found


def reject_unaligned(labels, source, encoded):
    """Rejects the rows whose labels do not fit their blocks."""
    for row, label in enumerate(labels.values):
        try:
            for item in encoded.items[row] if label is not None else ():
                align_block_labels(label, encoded.store.example(item))
        except StructureError as error:
            encoded.reject(row, source.names[row], error)
            encoded.report.kept -= 1


def reject_lone(source, encoded):
    """Rejects the rows with an example of a single segment, which has no interaction energy.

    Raises:
        `StructureError`: if nothing is left.
    """
    for row, items in enumerate(encoded.items):
        if any(max(encoded.store.example(item)["token_type_ids"]) == 0 for item in items):
            message = f"{source.names[row]}: a lone molecule, expected a complex: an interaction energy is of two partners."
            encoded.reject(row, source.names[row], StructureError("one_segment", message))
            encoded.report.kept -= 1
    if not any(encoded.items):
        raise StructureError("nothing_usable", f"{source.path}: no complex is in it.\n{encoded.report.summary()}")


# structures ---------------------------------------------------------------------------------------------------------------


class ExampleStore:
    """Examples on disk, by a hash of all they depend on; what failed is remembered with its reason. Several processes may
    read and write it, and a run that was stopped loses nothing that it finished.

    Args:
        path (`str` or `Path`): an SQLite file, made if it does not exist.
    """

    def __init__(self, path):
        self.path, self._connections = Path(path), {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.connection as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS pieces (key TEXT PRIMARY KEY, value BLOB)")
        except sqlite3.Error as error:
            raise StructureError("bad_cache", f"{path}: no store of structures that can be used ({error}).") from error

    def __getstate__(self):
        return {"path": self.path, "_connections": {}}

    @property
    def connection(self):
        """Of this process: SQLite forbids to share one."""
        process = multiprocessing.current_process().pid
        if process not in self._connections:
            self._connections = {process: sqlite3.connect(self.path, timeout=60)}
        return self._connections[process]

    def load(self, key):
        """`{"examples": [...]}` or `{"error": [code, message]}`; None if it is not there."""
        row = self.connection.execute("SELECT value FROM pieces WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(zlib.decompress(row[0]))

    def save(self, values):
        """Writes key -> value at once. A failure, which may be a slow machine's, replaces nothing: others may be reading it."""
        with self.connection as connection:
            for failed, rule in ((False, "REPLACE"), (True, "IGNORE")):
                rows = [(k, zlib.compress(json.dumps(v).encode())) for k, v in values.items() if ("error" in v) == failed]
                connection.executemany(f"INSERT OR {rule} INTO pieces VALUES (?, ?)", rows)

    def example(self, item):
        key, part = item
        example = self.load(key)["examples"][part]
        return {**example, **{name: np.array(example[name]) for name in MODEL_INPUTS}}


class PreparedExamples:
    """The same for a prepared dataset."""

    def __init__(self, dataset):
        self.dataset = dataset

    def example(self, item):
        example = self.dataset[item[0]]
        return {name: value for name, value in example.items() if name != "label" and not name.startswith("torsion")}


_KEPT = (*MODEL_INPUTS, "atom_charges", "name", "block_origins", "modality_ids")
_processor = None


def _start_worker(processor):
    global _processor
    torch.set_num_threads(1)
    _processor = processor


def _build_in_worker(piece):
    return _build(_processor, piece)


def _build(processor, piece):
    """One piece -> what the store keeps of it; never raises for bad input."""
    name, function, arguments = piece
    plain = lambda value: value.tolist() if isinstance(value, np.ndarray) else value
    try:
        found = function(*arguments)
        structures = found if isinstance(found, list) else [found]
        examples = [processor.encode(structure) for structure in structures]
        return {"examples": [{k: plain(v) for k, v in e.items() if k in _KEPT} for e in examples]}
    except StructureError as error:
        return {"error": [error.code, str(error)], "name": name}
    except Exception as error:  # one bad structure must not stop ten thousand; it is named and counted like the others
        return {"error": ["unexpected_error", f"{name}: {type(error).__name__}: {error}"], "name": name}


def reading_hash(processor):
    """What an example depends on besides its input: options, vocabulary and code."""
    options = asdict(replace(processor.read_options, seed=0, num_conformers=1))
    options |= {"keep_hydrogens": processor.keep_hydrogens, "return_charges": processor.return_charges}
    files = sorted(ROOT.glob("*_atomica.py"))
    code = [hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.stem.removesuffix("_atomica") not in _NOT_READING]
    tokenizer = processor.tokenizer
    parts = [options, vocabulary_hash(tokenizer), tokenizer.fragments, tokenizer.atom_order, code, list(_KEPT)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@dataclass
class Encoded:
    """Examples of a source.

    Args:
        items (`list[list]`): of each row, its examples in the store (conformers, copies of a ligand); empty if it was rejected.
        store: gives an example for an item.
        rejected (`dict`): row -> (code, message).
        report (`ReadReport`): the same for people.
        lost_conformers (`int`): conformers that failed in rows that have others.
    """

    items: list
    store: object
    rejected: dict = field(default_factory=dict)
    report: ReadReport = field(default_factory=ReadReport)
    lost_conformers: int = 0

    def reject(self, row, name, error):
        self.items[row] = []
        self.rejected[row] = (error.code, str(error))
        self.report.reject(name, error)


def _row_pieces(source, seed, num_conformers):
    if source.kind != "smiles":
        return [[piece] for piece in source.pieces]
    return [
        [
            Piece(name, structure_from_smiles, (text, name, seed + i), json.dumps([text, seed + i]))
            for i in range(num_conformers)
        ]
        for name, text in zip(source.names, source.smiles)
    ]


def _build_missing(missing, processor, store, num_proc, progress):
    """Builds pieces, a dictionary by key, and stores them as they come."""
    work = [(piece.name, piece.function, piece.arguments) for piece in missing.values()]
    waiting = {}
    with tqdm(total=len(work), desc="Building structures", unit="structure", disable=not progress) as bar:

        def keep(results):
            for key, value in zip(missing, results):
                waiting[key] = value
                bar.update()
                if len(waiting) >= 100:
                    store.save(waiting)
                    waiting.clear()

        try:
            if num_proc == 1:
                keep(_build(processor, piece) for piece in work)
            else:
                context = multiprocessing.get_context("spawn")
                with ProcessPoolExecutor(num_proc, context, initializer=_start_worker, initargs=(processor,)) as pool:
                    keep(pool.map(_build_in_worker, work, chunksize=4))
        finally:
            store.save(waiting)


def _renamed(value, name):
    """Code and message of a stored failure, for a row that may have another name than the one it was stored for."""
    code, message = value["error"]
    return code, name + message.removeprefix(value["name"]) if message.startswith(value["name"]) else message


def encode_source(source, processor, store, num_conformers=1, num_proc=1, progress=True):
    """Builds what the store does not have yet.

    Args:
        source (`Source`): what to build.
        processor (`AtomicaProcessor`): its seed is that of the first conformer.
        store (`ExampleStore`): where examples are kept.
        num_conformers (`int`): of each SMILES.
        num_proc (`int`): processes; the result does not depend on it.

    Returns:
        `Encoded`.

    Raises:
        `StructureError`: if nothing is left.
    """
    if source.kind == "prepared":
        items = [[(i, 0)] for i in range(len(source.rows))]
        return Encoded(items, PreparedExamples(source.dataset), report=ReadReport(kept=len(items)))
    reading, keys, missing = reading_hash(processor), [], {}
    for row in _row_pieces(source, processor.seed, num_conformers):
        keys.append([])
        for piece in row:
            material = json.dumps([reading, piece.function.__name__, piece.content])
            keys[-1].append(hashlib.sha256(material.encode()).hexdigest()[:32])
            if store.load(keys[-1][-1]) is None:
                missing[keys[-1][-1]] = piece
    if missing:
        _build_missing(missing, processor, store, num_proc, progress)
    found = Encoded([[] for _ in keys], store)
    for row, (name, of_row) in enumerate(zip(source.names, keys)):
        values = [(key, store.load(key)) for key in of_row]
        found.items[row] = [(key, part) for key, value in values for part in range(len(value.get("examples", ())))]
        errors = [_renamed(value, name) for _, value in values if "error" in value]
        if found.items[row]:
            found.report.keep()
            found.lost_conformers += len(errors)
        else:
            found.reject(
                row, name, StructureError(*errors[0]) if errors else StructureError("nothing", f"{name}: nothing in it.")
            )
    if not any(found.items):
        raise StructureError("nothing_usable", f"{source.path}: no structure could be made.\n{found.report.summary()}")
    return found


def check_model(encoded, config, path):
    """Raises `StructureError` if a model of this configuration needs inputs that the examples do not have."""
    item = next(items[0] for items in encoded.items if items)
    example = encoded.store.example(item)
    for name, wanted in config.optional_inputs.items():
        if wanted and example.get(name) is None:
            raise StructureError("other_model", f"The model needs {name}, which {path} does not have.")


class LabelledExamples(torch.utils.data.Dataset):
    """Rows of a source as examples for `AtomicaCollator`: every conformer of every row is one.

    Args:
        encoded (`Encoded`): the examples.
        rows (`list[int]`): which rows.
        config (`AtomicaConfig`): which optional inputs the model reads.
        labels (`list` or `array`): of all rows of the source, as the model is trained on them; None for none.
        of_blocks (`bool`): whether they are to be aligned with the blocks.
    """

    def __init__(self, encoded, rows, config, labels=None, of_blocks=False):
        self.store, self.labels, self.of_blocks = encoded.store, labels, of_blocks
        self.items = [(row, item) for row in rows for item in encoded.items[row]]
        self.unused = {name for name, wanted in config.optional_inputs.items() if not wanted}

    @property
    def rows(self):
        """Row of each example."""
        return [row for row, _ in self.items]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        row, item = self.items[index]
        example = {name: value for name, value in self.store.example(item).items() if name not in self.unused}
        if self.labels is not None:
            label = self.labels[row]
            example["labels"] = align_block_labels(label, example) if self.of_blocks else label
        return example
