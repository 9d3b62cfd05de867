# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""ATOMICA's processed data: its files -> records -> examples, and examples -> records.

    for name, record in read_original_records("PDBBind_train.pkl"):
        example = record_to_example(record, name, len(processor.tokenizer))

A record is a dictionary `{"id", "data": {"X", "B", "A", "block_lengths", "segment_ids", "torsion_mask", ...}, ...}` of
github.com/mims-harvard/ATOMICA, commit 2904342; in Parquet the inner fields may stand in the row itself. Files are read one
record at a time. A pickle is never given to `pickle.load`: nothing that it names is imported or called.
"""

import gzip
import io
import itertools
import json
import logging
import re
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from atomica_hf import StructureError
from atomica_hf.component_atomica import LARGEST_COORDINATE
from atomica_hf.processing_atomica import ATOM_GLOBAL, ATOM_PAD, ATOM_TOKENS
from atomica_hf.structure_atomica import INDEX_COLUMNS, Origin, smiles_column, suffix_of
from atomica_hf.tokenization_atomica import AMINO_ACIDS, BASE_TOKENS, ELEMENTS, NUCLEOTIDES, SPECIAL_TOKENS
from plain_pickle import PlainUnpickler, SharedObject, UnsafePickle


logger = logging.getLogger(__name__)

PICKLE_SUFFIXES = (".pkl", ".pickle")
ORIGINAL_SUFFIXES = PICKLE_SUFFIXES + (".jsonl", ".json", ".parquet")
REQUIRED_FIELDS = ("X", "B", "A", "block_lengths", "segment_ids")
MODALITIES = ("PP", "PL", "Pion", "Ppeptide", "PRNA", "PDNA", "RNAL", "CSD")
NO_TORSION_MASK = "no torsion mask: bonds cannot be turned"
UNKNOWN_ELEMENT = "atoms of unknown element"

_CHUNK = 1 << 18  # characters of JSON read at once
_ROWS = 64  # Parquet rows read at once


def is_original(path) -> bool:
    """Whether this is a file of ATOMICA's records, by its ending; a Parquet file may also be a table of SMILES."""
    path = Path(path)
    if suffix_of(path) == ".parquet" and path.is_file():
        try:
            columns = pq.read_schema(path).names
        except (ValueError, OSError):
            return True
        return smiles_column(columns) is None and not all(column in columns for column in INDEX_COLUMNS)
    return suffix_of(path) in ORIGINAL_SUFFIXES and not path.is_dir()


# files ------------------------------------------------------------------------------------------------------------------


def _open(path):
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        return gzip.open(path, "rb") if packed else open(path, "rb")
    except FileNotFoundError as error:
        raise StructureError("missing_file", f"{path}: no such file.") from error
    except OSError as error:
        raise StructureError("unreadable_file", f"{path}: cannot be read: {error}.") from error


def _unpickle(path, keep=False):
    with _open(path) as stream:
        reader = PlainUnpickler(stream, keep)
        if reader.is_at_end():
            raise StructureError("empty_file", f"{path}: an empty file, expected a pickle of records.")
        while not reader.is_at_end():
            yield from reader.items()


def _pickle_items(path):
    count = 0
    try:
        try:
            for item in _unpickle(path):
                count += 1
                yield item
                del item
        except SharedObject:
            logger.warning(f"{path}: its records share objects, so it is read as a whole; this may take much memory.")
            yield from itertools.islice(_unpickle(path, keep=True), count, None)
    except StructureError:
        raise
    except UnsafePickle as error:
        raise StructureError(
            "unsafe_pickle", f"{path}: contains {error}, expected numbers, text, lists, dictionaries and numpy arrays only; "
            "nothing of it was run."
        ) from error  # fmt: skip
    except EOFError as error:
        raise StructureError(
            "truncated_file", f"{path}: ends in the middle of a record, after {count} complete ones."
        ) from error
    except Exception as error:  # whatever the instructions of a damaged pickle lead to
        raise StructureError(
            "damaged_file", f"{path}: not a pickle that can be read, after {count} records: {type(error).__name__}: {error}."
        ) from error


def _json_lines(path):
    """Yields (line number, value), or a `StructureError` for the value of a line that is not JSON."""
    with _open(path) as stream:
        for number in itertools.count(1):
            line = _read(path, stream.readline, number - 1)
            if not line and number == 1:
                raise StructureError("empty_file", f"{path}: an empty file, expected JSON.")
            if not line:
                return
            if line.strip():
                try:
                    value = json.loads(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
                except (ValueError, RecursionError) as error:
                    value = StructureError("bad_json", f"{path} line {number}: not JSON: {error}.")
                yield number, value


def _read(path, read, count):
    try:
        return read()
    except EOFError as error:
        raise StructureError("truncated_file", f"{path}: its compressed data end too early, after {count} records.") from error
    except (OSError, ValueError, zlib.error) as error:
        raise StructureError("damaged_file", f"{path}: cannot be read, after {count} records: {error}.") from error


_WHITE_SPACE = re.compile(r"[ \t\r\n]*")


class _JsonText:
    """The text of a JSON file, of which only the part around the next value is held."""

    def __init__(self, path, stream):
        self.path, self.count = path, 0
        self.stream = io.TextIOWrapper(stream, encoding="utf-8-sig")
        self.text, self.at, self.ended = "", 0, False

    def more(self):
        """Reads on; in larger and larger steps, so that a long value is not tried too often."""
        rest = self.text[self.at :]
        part = _read(self.path, lambda: self.stream.read(max(_CHUNK, len(rest))), self.count)
        self.text, self.at, self.ended = rest + part, 0, not part
        return not self.ended

    def peek(self):
        """The next character that is no white space, "" at the end."""
        while True:
            self.at = _WHITE_SPACE.match(self.text, self.at).end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def value(self):
        while True:
            try:
                value, self.at = json.JSONDecoder().raw_decode(self.text, self.at)
                self.count += 1
                return value
            except json.JSONDecodeError as error:
                may_go_on = error.pos > len(self.text) - 32 or error.msg.startswith("Unterminated string")
                if may_go_on and not self.ended:
                    self.more()
                    continue
                if may_go_on:
                    raise self.truncated() from error
                near = self.text[error.pos : error.pos + 20]
                raise StructureError(
                    "damaged_file", f"{self.path}: not JSON, after {self.count} records: {error.msg} at {near!r}."
                ) from error
            except RecursionError as error:
                raise StructureError("damaged_file", f"{self.path}: lists within lists without end.") from error

    def truncated(self):
        return StructureError(
            "truncated_file", f"{self.path}: ends in the middle of a record, or is no JSON; {self.count} records are complete."
        )


def _json_items(path):
    """Yields the items of a list, or the values that stand one after another."""
    with _open(path) as stream:
        text = _JsonText(path, stream)
        is_list = text.peek() == "["
        if text.peek() == "":
            raise StructureError("empty_file", f"{path}: an empty file, expected JSON.")
        text.at += is_list
        while (found := text.peek()) != "":
            if is_list and found == "]":
                text.at += 1
                if text.peek():
                    raise StructureError("damaged_file", f"{path}: {text.text[text.at :][:20]!r} after the end of the list.")
                return
            if is_list and text.count:
                if found != ",":
                    raise StructureError("damaged_file", f"{path}: {found!r} after record {text.count}, expected a comma.")
                text.at += 1
                text.peek()
            yield text.value()
        if is_list:
            raise text.truncated()


_TOP_FIELDS = ("id", "data", "affinity", "label", "modality", "block_to_pdb_indexes", "torsion_mask", "block_embeddings")
_SEGMENT_EMBEDDINGS = re.compile(r"block_embeddings\d+")


def _from_arrow(scalar):
    """Arrow scalar -> Python object; lists of numbers as arrays, `(n,)` or, where all rows are equally long, `(n, width)`."""
    if not scalar.is_valid or not isinstance(scalar, (pa.ListScalar, pa.LargeListScalar, pa.FixedSizeListScalar)):
        return scalar.as_py()
    values, shape = scalar.values, (-1,)
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or pa.types.is_fixed_size_list(values.type):
        widths = np.unique(values.value_lengths().to_numpy(zero_copy_only=False))
        if len(widths) != 1 or values.null_count or not widths[0] > 0:
            return scalar.as_py()
        values, shape = values.flatten(), (len(values), int(widths[0]))
    if values.null_count or not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        return scalar.as_py()
    return values.to_numpy(zero_copy_only=False).reshape(shape)


def _parquet_items(path):
    if not Path(path).exists():
        raise StructureError("missing_file", f"{path}: no such file.")
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            missing = [name for name in REQUIRED_FIELDS if name not in names]
            if missing and "data" not in names:
                raise StructureError(
                    "missing_column",
                    f"{path}: the columns are {', '.join(names)}; expected {', '.join(REQUIRED_FIELDS)}, or data with these.",
                )
            known = {*REQUIRED_FIELDS, *_TOP_FIELDS}
            columns = [name for name in names if name in known or _SEGMENT_EMBEDDINGS.fullmatch(name)]
            for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
                for row in range(batch.num_rows):
                    yield {name: _from_arrow(column[row]) for name, column in zip(batch.schema.names, batch.columns)}
    except (pa.ArrowException, OSError) as error:
        raise StructureError("damaged_file", f"{path}: not Parquet that can be read: {error}.") from error


def read_original_records(path):
    """Yields (name, record) of every record of a file; only a few are in memory at a time.

    Args:
        path (`str` or `Path`): `.pkl` or `.pickle` (a list of records, one record, or the (threshold, indexes, records) of
            older files), `.jsonl`, `.json` (a list of records, or one), `.parquet`; all but the last also with `.gz`.

    Returns:
        Iterator of (`str`, `dict`): the name is the record's `id`, else its number. In place of a record that is no dictionary
        or of a line that is no JSON stands the `StructureError` that says so.

    Raises:
        `StructureError`: if the file is missing, damaged, ends too early, is of another kind, or is a pickle that asks for
            anything but plain data and numpy arrays.
    """
    path, kind = Path(path), suffix_of(path)
    if kind in PICKLE_SUFFIXES:
        items = ((f"record {i}", item) for i, item in enumerate(_pickle_items(path), 1))
    elif kind == ".jsonl":
        items = ((f"line {i}", item) for i, item in _json_lines(path))
    elif kind == ".json":
        items = ((f"record {i}", item) for i, item in enumerate(_json_items(path), 1))
    elif kind == ".parquet":
        items = ((f"record {i}", item) for i, item in enumerate(_parquet_items(path), 1))
    else:
        raise StructureError(
            "unknown_format",
            f"{path}: files ending in {kind or 'nothing'!r} are no data of ATOMICA; expected {' '.join(ORIGINAL_SUFFIXES)}.",
        )
    for place, item in items:
        name = f"{path.name} {place}"
        if isinstance(item, dict):
            given = item.get("id")
            given = str(given) if isinstance(given, (str, int)) and given != "" else name
            yield given.encode("utf-8", "backslashreplace").decode(), item  # JSON may hold halves of letters
        elif isinstance(item, StructureError):
            yield name, item
        else:
            message = f"{name}: a {type(item).__name__}, expected a dictionary with {', '.join(REQUIRED_FIELDS)}."
            yield name, StructureError("not_a_record", message)
        del item


# record -> example ------------------------------------------------------------------------------------------------------

_GLOBAL_BLOCK, _UNKNOWN_BLOCK = SPECIAL_TOKENS.index("<global>"), SPECIAL_TOKENS.index("<unk>")
_POLYMER_BLOCKS = range(len(SPECIAL_TOKENS), len(SPECIAL_TOKENS + AMINO_ACIDS + NUCLEOTIDES))
_SYMBOLS = ("",) * len(ATOM_TOKENS) + ELEMENTS


def _decoded(name, key, value):
    """Parquet sometimes has a nested field as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise StructureError("bad_field", f"{name}: {key} is the text {value[:40]!r}, which is not JSON: {error}.") from error


def _with_data(name, record):
    """The record, with its `data` read if that is JSON text."""
    if isinstance(record, dict) and isinstance(record.get("data"), str):
        return {**record, "data": _decoded(name, "data", record["data"])}
    return record


def _raw(record, key):
    """A field of the record's `data`, else of the record; None if it has neither."""
    value = record["data"].get(key) if isinstance(record.get("data"), dict) else None
    return record.get(key) if value is None else value


def _found(name, record, key):
    return _decoded(name, key, _raw(record, key))


def _numbers(name, key, value, expected):
    """Nested lists or arrays of numbers -> `np.ndarray`.

    Raises:
        `StructureError`: if they are no numbers or not all equally long.
    """
    try:
        array = np.asarray(value)
        if array.dtype.kind == "O":
            array = np.array(array.tolist(), dtype=np.float64)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise StructureError(
            "bad_field", f"{name}: {key} is no regular array of numbers ({error}), expected {expected}."
        ) from error
    if array.dtype.kind not in "iufb":
        raise StructureError("bad_field", f"{name}: {key} holds {str(value)[:40]!r}, expected {expected}.")
    return array


def _integers(name, key, value, expected="a list of integers"):
    array = _numbers(name, key, value, expected)
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.rint(array)).all()):
        raise StructureError("bad_field", f"{name}: {key} has numbers that are no integers, expected {expected}.")
    if array.dtype.kind == "b" or array.ndim != 1:
        found = f"shape {array.shape} and type {array.dtype}"
        raise StructureError("bad_field", f"{name}: {key} has {found}, expected {expected}.")
    return array.astype(np.int64)


def _origins(name, value, tokens):
    """`block_to_pdb_indexes` -> text per block, in the style of `Origin`."""
    key = "block_to_pdb_indexes"
    value = _decoded(name, key, value)
    origins = [""] * len(tokens)
    if value is None:
        return origins
    try:
        if isinstance(value, dict):
            pairs = value.items()
        else:
            pairs = [(item["key"], item["value"]) if isinstance(item, dict) else tuple(item) for item in value]
        named = {int(index): str(text) for index, text in pairs if text is not None}
    except (TypeError, ValueError, KeyError) as error:
        raise StructureError("bad_origins", f"{name}: {key} is {str(value)[:40]!r}, expected {{block: text}}.") from error
    for index, text in named.items():
        if not 0 <= index < len(tokens):
            raise StructureError("bad_origins", f"{name}: {key} names block {index}, but there are {len(tokens)}.")
        match = re.fullmatch(r"(.*)_(-?\d+)([A-Za-z]?)", text)
        residue = BASE_TOKENS[tokens[index]] if tokens[index] in _POLYMER_BLOCKS else ""
        origins[index] = str(Origin(residue, match[1], int(match[2]), match[3])) if match else text
    return origins


def _check_segments(name, blocks, atoms, lengths, segments, starts):
    code = "bad_segments"
    steps = np.diff(segments)
    if segments[0] != 0 or not np.isin(steps, (0, 1)).all():
        raise StructureError(
            code, f"{name}: segment_ids are {segments[:20].tolist()}, expected 0, ... and then 1, ... without gaps."
        )
    first = np.r_[True, steps == 1]
    wrong = np.flatnonzero(first & ((blocks != _GLOBAL_BLOCK) | (lengths != 1) | (atoms[starts] != ATOM_GLOBAL)))
    if len(wrong):
        block = wrong[0]
        found = f"B {blocks[block]}, A {atoms[starts[block]]}, {lengths[block]} atoms"
        raise StructureError(
            code,
            f"{name}: segment {segments[block]} starts with a block that is not global ({found}), expected B {_GLOBAL_BLOCK}, "
            f"A {ATOM_GLOBAL}, 1 atom.",
        )
    if (blocks == _GLOBAL_BLOCK).sum() != first.sum() or (atoms == ATOM_GLOBAL).sum() != first.sum():
        raise StructureError(
            code,
            f"{name}: {(blocks == _GLOBAL_BLOCK).sum()} global blocks and {(atoms == ATOM_GLOBAL).sum()} global atoms in "
            f"{first.sum()} segments, expected one each.",
        )
    alone = np.flatnonzero(first & np.r_[first[1:], True])
    if len(alone):
        raise StructureError(code, f"{name}: segment {segments[alone[0]]} has no blocks but its global one.")


def _turns(name, where, edges, masks, start, size):
    """Edges `(n, 2)` and masks `(n, size)` over some atoms, of which the first is number `start` of the example -> bonds (atom
    that stays, atom that turns) and the atoms that turn."""
    code = "bad_torsion_mask"
    expected = f"a mask over {size} atoms for each edge"
    if edges is None or not len(edges):
        if edges is not None and masks is not None and len(masks):
            raise StructureError(code, f"{name}: {where} has {len(masks)} torsion masks without edges, expected {expected}.")
        return [], []
    try:
        edges = _numbers(name, "edges", edges, "pairs of atoms")
        masks = _numbers(name, "mask_rotate", masks, expected)
    except StructureError as error:
        raise StructureError(code, f"{error} This is in the torsion mask of {where}.") from error
    if edges.ndim != 2 or edges.shape[1] != 2 or masks.shape != (len(edges), size):
        raise StructureError(
            code,
            f"{name}: {where} has torsion edges of shape {edges.shape} and masks of shape {masks.shape}, expected {expected}.",
        )
    if edges.dtype.kind not in "iu" and (edges != np.rint(edges)).any():
        raise StructureError(code, f"{name}: {where} has torsion edges that are no integers.")
    edges, masks = edges.astype(np.int64), masks.astype(bool)
    outside = ((edges < 0) | (edges >= size)).any(1)
    if outside.any():
        edge = edges[outside.argmax()].tolist()
        raise StructureError(code, f"{name}: {where} has the torsion edge {edge}, expected atoms 0 to {size - 1}.")
    turning = np.take_along_axis(masks, edges, 1)
    wrong = turning[:, 0] == turning[:, 1]
    if wrong.any():
        i = wrong.argmax()
        raise StructureError(
            code,
            f"{name}: {where}: of the torsion edge {edges[i].tolist()} {'both' if turning[i, 0] else 'no'} atoms are in the "
            "mask, expected one.",
        )
    edges = np.where(turning[:, :1], edges[:, ::-1], edges) + start
    return edges.tolist(), [(np.flatnonzero(mask) + start).tolist() for mask in masks]


def _torsions(name, value, lengths, segments, starts):
    """`torsion_mask` -> torsion_bonds, torsion_atoms, segment_is_polymer."""
    code = "bad_torsion_mask"
    count = int(segments[-1]) + 1
    if not isinstance(value, (list, tuple, np.ndarray)) or len(value) != count:
        found = f"{len(value)} entries" if isinstance(value, (list, tuple, np.ndarray)) else f"a {type(value).__name__}"
        raise StructureError(code, f"{name}: the torsion mask has {found}, expected one for each of {count} segments.")
    bonds, atoms, is_polymer = [], [], []

    def add(*arguments):
        found = _turns(name, *arguments)
        bonds.extend(found[0])
        atoms.extend(found[1])

    for segment, entry in enumerate(value):
        kind = entry.get("type") if isinstance(entry, dict) else None
        if kind not in (0, 1):
            found = f"type {kind!r}" if isinstance(entry, dict) else f"a {type(entry).__name__}"
            raise StructureError(code, f"{name}: the torsion mask of segment {segment} is {found}, expected type 0 or 1.")
        blocks = np.flatnonzero(segments == segment)[1:]
        edges, masks = entry.get("edges"), entry.get("mask_rotate")
        is_polymer.append(1 if kind == 0 else 0)
        if edges is None:
            continue
        for key, part in (("edges", edges), ("masks", masks)):
            if not isinstance(part, (list, tuple, np.ndarray)):
                raise StructureError(
                    code, f"{name}: the torsion {key} of segment {segment} are {type(part).__name__}, no list."
                )
        if kind == 1:
            add(f"segment {segment}", edges, masks, int(starts[blocks[0]]), int(lengths[blocks].sum()))
            continue
        if len(edges) != len(blocks) or len(masks) != len(blocks):
            raise StructureError(
                code,
                f"{name}: the torsion mask of segment {segment} has edges for {len(edges)} blocks and masks for {len(masks)}, "
                f"expected {len(blocks)}.",
            )
        for block, block_edges, block_masks in zip(blocks, edges, masks):
            if block_edges is not None:
                add(f"block {block}", block_edges, block_masks, int(starts[block]), int(lengths[block]))
    return bonds, atoms, is_polymer


def _label(name, record):
    affinity = _decoded(name, "affinity", record.get("affinity"))
    value = affinity.get("neglog_aff") if isinstance(affinity, dict) else None
    if value is None:
        value = record.get("label")
    if value is None and isinstance(record.get("data"), dict):
        value = record["data"].get("label")
    if value is None:
        return None
    try:
        array = np.asarray(value, dtype=np.float64)
    except (ValueError, TypeError):
        array = np.zeros(0)
    if array.size != 1 or np.isinf(array).any():
        raise StructureError("bad_label", f"{name}: the label is {str(value)[:40]!r}, expected one number.")
    return None if np.isnan(array).any() else float(array.reshape(()))  # Parquet often has NaN for "none"


def _block_features(name, record, segments):
    """`block_embeddings`, or those of each segment side by side -> `(num_blocks, width)` float32, or None."""
    counts = np.bincount(segments)
    whole = _found(name, record, "block_embeddings")
    parts = [_found(name, record, f"block_embeddings{segment}") for segment in range(len(counts))]
    if whole is not None:
        parts, counts, keys = [whole], [len(segments)], ["block_embeddings"]
    elif all(part is None for part in parts):
        return None
    else:
        keys = [f"block_embeddings{segment}" for segment in range(len(counts))]
    arrays = []
    for key, part, count in zip(keys, parts, counts):
        array = np.zeros((count, 0)) if part is None else _numbers(name, key, part, f"{count} rows of equal length")
        if array.ndim != 2 or len(array) != count:
            found = f"{len(array)} rows" if array.ndim == 2 else f"shape {array.shape}"
            raise StructureError(
                "bad_block_features", f"{name}: {key} has {found}, expected one row for each of {count} blocks."
            )
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise StructureError("bad_block_features", f"{name}: {key} has numbers that are not finite.")
        arrays.append(array)
    width = max(array.shape[1] for array in arrays)
    return np.concatenate([np.pad(array, ((0, 0), (0, width - array.shape[1]))) for array in arrays])


def record_to_example(record, name, vocab_size, atom_vocab_size=121):
    """ATOMICA's record -> an example as `AtomicaProcessor.encode` makes them.

    Args:
        record (`dict`): see the top of this file.
        name (`str`): for the example and for messages.
        vocab_size, atom_vocab_size (`int`): numbers of block and atom tokens.

    Returns:
        `dict` with the keys of `AtomicaProcessor.encode`, of the same kinds. Where the record has them, also `label` (`float`),
        `modality_ids` (`int`, place in `MODALITIES`) and `block_features` (`(num_blocks, width)`, float32; those of segments
        with vectors of another width are padded with zeros on the right). Without a torsion mask there are no torsion bonds,
        and a segment is a polymer if it has a residue or nucleotide.

    Raises:
        `StructureError`: if a field is missing or does not fit the others.
    """
    record = _with_data(name, record)
    if not isinstance(record, dict):
        raise StructureError("not_a_record", f"{name}: a {type(record).__name__}, expected a dictionary.")
    fields = {key: _found(name, record, key) for key in REQUIRED_FIELDS}
    missing = [key for key, value in fields.items() if value is None]
    if missing:
        inside = record["data"] if isinstance(record.get("data"), dict) else record
        raise StructureError(
            "missing_field", f"{name}: has {', '.join(map(str, list(inside)[:12])) or 'nothing'}, but no {', '.join(missing)}."
        )
    blocks, atoms, lengths, segments = (_integers(name, key, fields[key]) for key in ("B", "A", "block_lengths", "segment_ids"))
    positions = _numbers(name, "X", fields["X"], "positions (num_atoms, 3)")
    if positions.size % 3 or (positions.ndim > 1 and positions.shape[-1] != 3):
        raise StructureError("bad_lengths", f"{name}: X has shape {positions.shape}, expected (num_atoms, 3).")
    with np.errstate(over="ignore"):
        positions = positions.reshape(-1, 3).astype(np.float32)

    if not len(blocks) or not len(blocks) == len(lengths) == len(segments):
        raise StructureError(
            "bad_lengths",
            f"{name}: {len(blocks)} B, {len(lengths)} block_lengths, {len(segments)} segment_ids, expected one for each block.",
        )
    if (lengths < 1).any():
        block = (lengths < 1).argmax()
        raise StructureError("bad_lengths", f"{name}: block {block} has {lengths[block]} atoms, expected at least one.")
    if not lengths.sum() == len(atoms) == len(positions):
        raise StructureError(
            "bad_lengths",
            f"{name}: block_lengths add up to {lengths.sum()} atoms, but there are {len(atoms)} A and {len(positions)} X.",
        )
    for key, tokens, least, size in (("B", blocks, _UNKNOWN_BLOCK, vocab_size), ("A", atoms, ATOM_PAD + 1, atom_vocab_size)):
        wrong = (tokens < least) | (tokens >= size)
        if wrong.any():
            i = wrong.argmax()
            hint = " as in this processor's vocabulary; is it the one of these records?" if key == "B" else "."
            raise StructureError("bad_token", f"{name}: {key}[{i}] is {tokens[i]}, expected {least} to {size - 1}{hint}")
    inside = np.abs(positions) < LARGEST_COORDINATE
    if not inside.all():
        atom = int((~inside).any(-1).argmax())
        raise StructureError(
            "bad_coordinates", f"{name}: atom {atom} is at {positions[atom].tolist()}, expected coordinates in angstrom."
        )
    starts = np.r_[0, lengths.cumsum()[:-1]]
    _check_segments(name, blocks, atoms, lengths, segments, starts)

    torsion_mask = _found(name, record, "torsion_mask")
    if torsion_mask is None:
        bonds, turning = [], []
        is_polymer = [int(np.isin(blocks[segments == i], _POLYMER_BLOCKS).any()) for i in range(segments[-1] + 1)]
    else:
        bonds, turning, is_polymer = _torsions(name, torsion_mask, lengths, segments, starts)
    example = {
        "name": name,
        "input_ids": blocks,
        "token_type_ids": segments,
        "attention_mask": np.ones_like(blocks),
        "atom_ids": atoms,
        "atom_to_block": np.repeat(np.arange(len(blocks)), lengths),
        "positions": positions,
        "block_origins": _origins(name, record.get("block_to_pdb_indexes"), blocks.tolist()),
        "atom_origins": [_SYMBOLS[token] if token < len(_SYMBOLS) else "" for token in atoms.tolist()],
        "torsion_bonds": bonds,
        "torsion_atoms": turning,
        "segment_is_polymer": is_polymer,
    }
    label, modality = _label(name, record), _raw(record, "modality")
    if label is not None:
        example["label"] = label
    if modality is not None and modality == modality:  # Parquet has NaN for "none"
        if isinstance(modality, bool) or modality not in range(len(MODALITIES)):
            expected = f"0 to {len(MODALITIES) - 1} ({' '.join(MODALITIES)})"
            raise StructureError("bad_modality", f"{name}: the modality is {modality!r}, expected {expected}.")
        example["modality_ids"] = int(modality)
    features = _block_features(name, record, segments)
    if features is not None:
        example["block_features"] = features
    return example


def _notes(record, example):
    notes = Counter()
    if _found(example["name"], _with_data(example["name"], record), "torsion_mask") is None:
        notes[NO_TORSION_MASK] = 1
    notes[UNKNOWN_ELEMENT] = int((example["atom_ids"] < ATOM_GLOBAL).sum())
    return +notes


def read_original_examples(path, vocab_size, report, max_samples=None, progress=True):
    """Yields the examples of a file of ATOMICA's records; what does not fit goes into `report`.

    Args:
        path (`str` or `Path`): see `read_original_records`.
        vocab_size (`int`): number of block tokens.
        report (`ReadReport`): counts.
        max_samples (`int`): read only this many records.

    Raises:
        `StructureError`: if the file itself cannot be read, or not to its end.
    """
    records = itertools.islice(read_original_records(path), max_samples)
    width = None  # of block features in this file, 0 for none
    for name, record in tqdm(records, desc=f"Reading {Path(path).name}", disable=not progress, unit="record"):
        try:
            if isinstance(record, StructureError):
                raise record
            example = record_to_example(record, name, vocab_size)
            found = example["block_features"].shape[1] if "block_features" in example else 0
            if width is not None and found != width:
                raise StructureError(
                    "other_block_features",
                    f"{name}: block embeddings of width {found}, expected {width} as in the first record.",
                )
        except StructureError as error:
            report.reject(name, error)
        except Exception as error:  # one bad record must not stop a million; it is named and counted like the others
            report.reject(name, StructureError("unexpected_error", f"{name}: {type(error).__name__}: {error}"))
        else:
            width = found
            report.keep(_notes(record, example))
            yield example


# example -> record ------------------------------------------------------------------------------------------------------


def _pdb_index(origin):
    match = re.fullmatch(r"(.*):[^:]*:(-?\d+)([A-Za-z]?)", origin)
    return f"{match[1]}_{match[2]}{match[3]}" if match else origin


def example_to_record(example):
    """An example -> ATOMICA's record, of lists and numbers only. Block tokens stay what they are, so the vocabulary has to be
    one that ATOMICA knows (PS_300, PS_500).

    Args:
        example (`dict`): as `AtomicaProcessor.encode` or `record_to_example` makes them, or a row of a prepared dataset.

    Raises:
        `StructureError`: if segments or torsion bonds are such that a record cannot say them, as a side chain bond between
            two blocks.
    """
    name = example.get("name", "example")
    tokens, segments, owner = (np.asarray(example[key]) for key in ("input_ids", "token_type_ids", "atom_to_block"))
    order = np.argsort(owner, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    owner = owner[order]
    lengths = np.bincount(owner, minlength=len(tokens))
    starts = np.r_[0, lengths.cumsum()[:-1]]
    atoms = np.asarray(example["atom_ids"])[order]
    positions = np.asarray(example["positions"], dtype=np.float32).reshape(-1, 3)[order]
    if (lengths < 1).any():
        raise StructureError("bad_lengths", f"{name}: block {(lengths < 1).argmax()} has no atoms, expected at least one.")
    _check_segments(name, tokens, atoms, lengths, segments, starts)

    is_polymer = list(example["segment_is_polymer"])
    turns = {}  # block of a polymer, or -1 - segment -> edges and masks
    for bond, turning in zip(example["torsion_bonds"], example["torsion_atoms"]):
        bond, turning = place[np.asarray(bond)], place[np.asarray(turning, dtype=np.int64)]
        segment = int(segments[owner[bond[0]]])
        first = int(np.argmax(segments == segment))
        key = int(owner[bond[0]]) if is_polymer[segment] else -1 - segment
        inside = owner == key if is_polymer[segment] else (segments[owner] == segment) & (owner != first)
        start, size = int(inside.argmax()), int(inside.sum())
        if not inside[bond].all() or not inside[turning].all():
            where = "two blocks" if is_polymer[segment] else "two segments"
            raise StructureError(
                "torsion_not_writable", f"{name}: the atoms of the torsion bond {bond.tolist()} are of {where}, expected one."
            )
        mask = np.zeros(size, dtype=bool)
        mask[turning - start] = True
        stays, turned = (bond - start).tolist()
        if mask[stays] or not mask[turned]:
            raise StructureError(
                "torsion_not_writable", f"{name}: of the torsion bond {bond.tolist()} not just the second atom turns."
            )
        edges, masks = turns.setdefault(key, ([], []))
        edges.append([stays, turned] if is_polymer[segment] else sorted((stays, turned)))
        masks.append(mask.tolist())

    torsion_mask = []
    for segment, polymer in enumerate(is_polymer):
        if polymer:
            found = [turns.get(int(block), (None, None)) for block in np.flatnonzero(segments == segment)[1:]]
            edges, masks = (list(part) for part in zip(*found))
        else:
            edges, masks = turns.get(-1 - segment, (None, None))
        torsion_mask.append({"type": 0 if polymer else 1, "edges": edges, "mask_rotate": masks})
    data = {
        "X": positions.tolist(),
        "B": tokens.tolist(),
        "A": atoms.tolist(),
        "atom_positions": np.where(atoms == ATOM_GLOBAL, 2, 1).tolist(),  # no longer read
        "block_lengths": lengths.tolist(),
        "segment_ids": segments.tolist(),
        "torsion_mask": torsion_mask,
    }
    if example.get("block_features") is not None:
        data["block_embeddings"] = np.asarray(example["block_features"], dtype=np.float32).tolist()
    origins = {str(i): _pdb_index(text) for i, text in enumerate(example.get("block_origins", [])) if text}
    record = {"id": name, "data": data, "block_to_pdb_indexes": origins}
    if example.get("label") is not None:
        record.update(affinity={"neglog_aff": float(example["label"])}, label=float(example["label"]))
    if example.get("modality_ids") is not None:
        record["modality"] = int(example["modality_ids"])
    return record
