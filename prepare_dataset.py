# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Files of molecules and complexes -> a dataset of examples, which `run_pretraining.py` and the rest read without delay.

python prepare_dataset.py molecules.csv dimers.sdf.gz --output_dir prepared --num_proc 8

The folder holds Parquet shards, `data-00000.parquet` and so on, and `read_report.json`: what was kept, what was left out and
why. The same command continues a run that was stopped. Files of ATOMICA's processed data (`.pkl`, `.jsonl`, `.json`,
`.parquet`; see `convert_original_data.py`) and prepared datasets are inputs too.
"""

import base64
import bisect
import contextlib
import functools
import hashlib
import itertools
import json
import os
import shutil
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
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
from datasets.utils.py_utils import convert_file_size_to_int
from filelock import FileLock, Timeout
from tqdm.auto import tqdm
from transformers.hf_argparser import HfArg

from atomic_files import sync
from atomica_hf import ROOT, AtomicaProcessor, ReadReport, StructureError
from atomica_hf.structure_atomica import (
    INDEX_COLUMNS,
    TABLE_SUFFIXES,
    index_file,
    list_inputs,
    read_table,
    suffix_of,
)
from engines import ENGINES, check_engine, run_tasks
from original_data import is_original, read_original_examples
from script_arguments import ScriptParser, run_script


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
    {"label": Value("float64"), "modality_ids": Value("int64"), "block_features": List(List(Value("float32")))}
)
REPORT_FILE = "read_report.json"
JOURNAL_FILE = "journal.jsonl"
SHARD_SIZE = 5000  # examples
MAX_SHARD_SIZE = 64_000_000  # bytes, about, before compression
TIME_LIMIT = 60.0  # seconds for one structure
_WRITTEN_AT_ONCE, _BYTES_AT_ONCE = 200, 8_000_000  # examples; bytes, about
_SCHEMA = Features({**FEATURES, **OPTIONAL_FEATURES}).arrow_schema


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


def _pieces(inputs, processor, options, max_samples=None, begin=(0, 0), **engine):
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


def _count(path, processor, options, max_samples):
    """Number of pieces of an input, None if only reading it tells.

    Raises:
        `StructureError`: if it is missing, or of a kind that is not known.
    """
    path = Path(path)
    if (path / JOURNAL_FILE).exists() and not is_prepared(path):
        raise StructureError("not_prepared", f"{path}: is half-written; finish it with the command that began it.")
    if is_prepared(path):
        return len(load_prepared(path, processor.tokenizer).select_columns("name")[:max_samples]["name"])
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
    pieces = _pieces([Path(path)], processor, options, max_samples, num_proc=num_proc, time_limit=time_limit)
    with contextlib.closing(pieces):
        for _, (name, examples, errors) in pieces:
            for error in errors:
                report.reject(name, error)
            for example, notes in examples:
                report.keep(notes)
                yield example


def _files(path):
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


def _hash(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _settings(processor, options, max_samples):
    """What an example depends on, besides its input."""
    reading = ("tokenization", "component", "molecule", "macromolecule", "structure", "processing")
    files = [*(f"{name}_atomica.py" for name in reading), "original_data.py", "plain_pickle.py"]
    return {
        **asdict(options),
        "max_samples": max_samples,
        "vocabulary": vocabulary_hash(processor.tokenizer),
        "fragments": _hash([processor.tokenizer.fragments, processor.tokenizer.atom_order]),
        "code": _hash([hashlib.sha256((ROOT / name).read_bytes()).hexdigest() for name in files]),
    }


# a folder of shards ---------------------------------------------------------------------------------------------------------


def example_hash(example) -> int:
    """64 bits that are the same for examples of the same blocks, segments, atoms, positions (to 0.001 angstrom) and label."""
    digest = hashlib.blake2b(repr(example.get("label")).encode(), digest_size=8)
    for name in ("input_ids", "token_type_ids", "atom_ids"):
        values = np.asarray(example[name], dtype=np.int64)
        digest.update(len(values).to_bytes(8, "little") + values.tobytes())
    positions = np.asarray(example["positions"], dtype=np.float32).astype(np.float64)
    digest.update((np.rint(positions * 1000) + 0.0).tobytes())  # + 0.0 makes -0.0 the same as 0.0
    return int.from_bytes(digest.digest(), "little")


class _Seen:
    """Hashes and the numbers of the examples that had them first; 16 bytes each, but for the latest."""

    def __init__(self, latest=100_000):
        self.hashes, self.numbers = np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64)
        self.recent, self.latest = {}, latest

    def first(self, value, number):
        """The number that came with this hash before; None if it is new, and then it is remembered."""
        if value in self.recent:
            return self.recent[value]
        at = int(np.searchsorted(self.hashes, np.uint64(value)))
        if at < len(self.hashes) and self.hashes[at] == np.uint64(value):
            return int(self.numbers[at])
        self.recent[value] = number
        if len(self.recent) >= self.latest:
            hashes = np.concatenate([self.hashes, np.fromiter(self.recent, dtype=np.uint64)])
            numbers = np.concatenate([self.numbers, np.fromiter(self.recent.values(), dtype=np.int64)])
            order = np.argsort(hashes)
            self.hashes, self.numbers, self.recent = hashes[order], numbers[order], {}
        return None


def _plain(value):
    return value.tolist() if isinstance(value, np.ndarray) else value


def _size(example):
    """Bytes in memory, about."""
    torsions = sum(map(len, example["torsion_atoms"]))
    features = example.get("block_features")
    return 50 * (len(example["atom_ids"]) + len(example["input_ids"])) + 8 * torsions + (
        0 if features is None or not len(features) else 4 * len(features) * len(features[0])
    )  # fmt: skip


def _new_counts():
    return {"read": 0, "kept": 0, "rejected": 0, "duplicates": 0, "seconds": 0.0, "notes": {}}


class _Output:
    """Writes examples as shards, and after each a line into the journal: what is in it, and which piece comes next. What a
    line does not vouch for is written again by whoever continues.

    Raises:
        `StructureError`: if the folder is finished, in use, or was begun otherwise.
    """

    def __init__(self, folder, begun, shard_size=SHARD_SIZE, deduplicate=False, max_shard_size=MAX_SHARD_SIZE):
        self.folder, self.begun, self.shard_size, self.max_shard_size = folder, begun, shard_size, max_shard_size
        self.seen = _Seen() if deduplicate else None
        self.lines, self.starts, self.shards, self.next, self.width = [], [0], [], (0, 0), None
        self.names_of = functools.lru_cache(16)(lambda file: pq.read_table(folder / file, columns=["name"])["name"].to_pylist())
        self._clear()
        if not (folder / JOURNAL_FILE).exists() or (folder / REPORT_FILE).exists():
            if folder.exists():
                raise StructureError("output_exists", f"{folder} exists already; name a new folder.")
            temporary = Path(f"{folder}.tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            (temporary / JOURNAL_FILE).write_text(json.dumps(begun) + "\n", encoding="utf-8")
            os.rename(temporary, folder)
        self.lock = FileLock(folder / f"{JOURNAL_FILE}.lock", timeout=0)

    def __enter__(self):
        try:
            self.lock.acquire()
        except Timeout:
            raise StructureError("in_use", f"{self.folder}: another process is writing it.") from None
        try:
            self._continue()
        except BaseException:
            self.lock.release()
            raise
        return self

    def __exit__(self, kind, error, trace):
        if self.writer is not None:
            with contextlib.suppress(OSError):  # a full disk has been told already
                self.writer.close()
            self._temporary().unlink(missing_ok=True)
        hopeless = kind is not None and issubclass(kind, StructureError) and not self.shards
        if hopeless:
            (self.folder / JOURNAL_FILE).unlink(missing_ok=True)
        self.lock.release()
        if kind is None or hopeless:
            Path(self.lock.lock_file).unlink(missing_ok=True)
        if hopeless:
            self.folder.rmdir()

    def _continue(self):
        """Reads the journal, and removes what it does not name."""
        path = self.folder / JOURNAL_FILE
        whole = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        try:
            begun, *lines = map(json.loads, whole)
        except ValueError as error:
            raise StructureError("damaged_journal", f"{path}: cannot be read ({error}); remove the folder.") from error
        found = differences(begun, json.loads(json.dumps(self.begun)))
        if found:
            raise StructureError(
                "other_command",
                f"{self.folder}: is half-written, and was begun otherwise: {'; '.join(found)}. "
                "Repeat that command, or remove the folder.",
            )
        for line in lines:
            shard = line["shard"]
            file = self.folder / shard["file"] if shard else None
            if shard and (not file.exists() or file.stat().st_size != shard["bytes"]):
                raise StructureError("damaged_shard", f"{file}: is not as it was written; remove the folder.")
            hashes = np.frombuffer(base64.b64decode(line.pop("hashes")), dtype="<u8").tolist()
            for number, value in enumerate(hashes if self.seen else (), self.starts[-1]):
                self.seen.first(value, number)
            self._accept(line)
        named = {shard["file"] for shard in self.shards}
        for file in self.folder.glob("data-*"):
            if file.name not in named:
                file.unlink()
        os.truncate(path, sum(map(len, whole)))

    def _accept(self, line):
        self.lines.append(line)
        self.next, self.width = tuple(line["next"]), line["width"]
        if line["shard"]:
            self.shards.append(line["shard"])
            self.starts.append(self.starts[-1] + line["shard"]["examples"])

    def _clear(self):
        self.rows, self.names, self.hashes, self.rejected, self.columns = [], [], [], [], set()
        self.counts, self.pieces, self.bytes, self.unwritten, self.blocks, self.writer = {}, 0, 0, 0, 0, None

    def _temporary(self):
        return self.folder / f"{self._file()}.tmp"

    def _file(self):
        return f"data-{len(self.shards):05d}.parquet"

    def name(self, number):
        """Of an example written before."""
        shard = bisect.bisect_right(self.starts, number) - 1
        names = self.names if shard == len(self.shards) else self.names_of(self.shards[shard]["file"])
        return names[number - self.starts[shard]]

    def add(self, place, result, seconds):
        """One piece: its examples, and what is to be said of it.

        Raises:
            `StructureError`: if its examples have block features of another width than those before.
        """
        number, piece = place
        counts = self.counts.setdefault(number, _new_counts())
        counts["read"] += 1
        counts["seconds"] += seconds
        name, examples, errors = result
        counts["rejected"] += len(errors)
        self.rejected += [(name, error.code, str(error)) for error in errors]
        for example, notes in examples:
            value = example_hash(example) if self.seen else 0
            first = self.seen.first(value, self.starts[-1] + len(self.names)) if self.seen else None
            if first is not None:
                counts["duplicates"] += 1
                self.rejected.append((name, "duplicate", f"{example['name']}: the same as {self.name(first)}."))
                continue
            self._check_width(example)
            counts["kept"] += 1
            counts["notes"] = dict(Counter(counts["notes"]) + Counter(notes))
            self.columns.update(column for column in OPTIONAL_FEATURES if example.get(column) is not None)
            self.names.append(example["name"])
            self.hashes.append(value)
            self.rows.append({column: _plain(example.get(column)) for column in _SCHEMA.names})
            size = _size(example)
            self.bytes, self.unwritten = self.bytes + size, self.unwritten + size
            if len(self.rows) >= _WRITTEN_AT_ONCE or self.unwritten >= _BYTES_AT_ONCE:
                self._write()
        self.pieces += 1
        self.after = (number, piece + 1)
        full = len(self.names) >= self.shard_size or self.bytes >= self.max_shard_size
        if full or self.pieces >= 20 * self.shard_size:
            self.close_shard()

    def _check_width(self, example):
        features = example.get("block_features")
        width = 0 if features is None or not len(features) else len(features[0])
        if self.width not in (None, width):
            raise StructureError(
                "other_block_features",
                f"The inputs have block features of the widths {self.width}, {width} (0 is none; {example['name']}), expected "
                "one for all.",
            )
        self.width = width

    def _write(self):
        if self.writer is None:
            self.writer = pq.ParquetWriter(self._temporary(), _SCHEMA, compression="zstd")
        self.writer.write_table(pa.Table.from_pylist(self.rows, schema=_SCHEMA))
        self.rows, self.unwritten = [], 0

    def close_shard(self):
        """Puts what came since the last time into its place, and then into the journal."""
        if not self.pieces:
            return
        shard = None
        if self.names:
            if self.rows:
                self._write()
            self.writer.close()
            temporary = self._temporary()
            sync(temporary)
            shard = {"file": self._file(), "examples": len(self.names), "bytes": temporary.stat().st_size}
            os.replace(temporary, self.folder / shard["file"])
        line = {
            "shard": shard, "next": self.after, "inputs": list(self.counts.items()), "rejected": self.rejected,
            "columns": sorted(self.columns), "width": self.width,
        }  # fmt: skip
        hashes = np.array(self.hashes if self.seen else [], dtype="<u8").tobytes()
        with open(self.folder / JOURNAL_FILE, "a", encoding="utf-8") as journal:
            journal.write(json.dumps({**line, "hashes": base64.b64encode(hashes).decode()}) + "\n")
            journal.flush()
            os.fsync(journal.fileno())
        self._accept(line)
        self._clear()

    def finish(self, inputs):
        """Closes the last shard and writes the report; from then on the folder is a dataset.

        Returns:
            The report, a dictionary.

        Raises:
            `StructureError`: if there is no example.
        """
        self.close_shard()
        counts = [_new_counts() for _ in inputs]
        for number, more in itertools.chain.from_iterable(line["inputs"] for line in self.lines):
            notes = dict(Counter(counts[number]["notes"]) + Counter(more["notes"]))
            counts[number] = {**{key: counts[number][key] + more[key] for key in more if key != "notes"}, "notes": notes}
        rejected = [tuple(row) for line in self.lines for row in line["rejected"]]
        total = ReadReport(self.starts[-1], rejected, sum((Counter(count["notes"]) for count in counts), Counter()))
        if not self.shards:
            raise StructureError("nothing_usable", f"{', '.join(map(str, inputs))}: no usable example.\n{total.summary()}")
        report = {
            **total.to_dict(),
            "reasons": dict(Counter(code for _, code, _ in rejected).most_common()),
            "inputs": [{"input": str(path), **count} for path, count in zip(inputs, counts)],
            "columns": [name for name in OPTIONAL_FEATURES if any(name in line["columns"] for line in self.lines)],
            "shards": self.shards,
            "vocabulary": self.begun["settings"]["vocabulary"],
            "settings": self.begun["settings"],
        }
        temporary = self.folder / f"{REPORT_FILE}.tmp"
        temporary.write_text(json.dumps(report, indent=1), encoding="utf-8")
        sync(temporary)
        os.replace(temporary, self.folder / REPORT_FILE)
        (self.folder / JOURNAL_FILE).unlink()
        return report


def differences(begun, now):
    """What distinguishes two beginnings, in words."""
    before, after = [path for path, _ in begun["inputs"]], [path for path, _ in now["inputs"]]
    if before != after:
        found = [f"with the inputs {', '.join(before)}, now {', '.join(after)}"]
    else:
        found = [f"{a[0]} has changed since" for a, b in zip(begun["inputs"], now["inputs"]) if a != b]
    old, new = begun["settings"], now["settings"]
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return found + [f"with {key} {old.get(key)}, now {new.get(key)}" for key in changed]


@contextlib.contextmanager
def writing(folder):
    """Says of what the system does not write, for example to a full disk, where and how to go on."""
    try:
        yield
    except OSError as error:
        raise StructureError(
            "cannot_write",
            f"{folder}: cannot be written ({error}). What was finished is kept; the same command goes on from there.",
        ) from error


def prepare(
    inputs, output, processor, num_proc=1, max_samples=None, options=None, strict=False, deduplicate=False, time_limit=None,
    shard_size=SHARD_SIZE, progress=True, max_shard_size=MAX_SHARD_SIZE, engine="local", ray_address=None,
):  # fmt: skip
    """Reads all inputs into one dataset, a folder that did not exist before; or goes on with one that was begun with the same
    inputs and settings (`num_proc`, `strict` and `engine` may differ). However often it was stopped, the shards are the same.

    Args:
        inputs (list of `str` or `Path`): as for `read_examples`.
        output (`str` or `Path`): the folder.
        processor (`AtomicaProcessor`): encodes each structure.
        num_proc, max_samples, options, time_limit: as for `read_examples`.
        strict (`bool`): the first structure that cannot be read is an error.
        deduplicate (`bool`): leave out examples that equal one before; see `example_hash`.
        shard_size (`int`): examples in one shard, at most.
        max_shard_size (`int`): bytes of one shard, about and before compression; a shard ends with whatever comes first.
        progress (`bool`): show a bar.
        engine, ray_address: what reads the structures; see `run_tasks`.

    Returns:
        The report, a dictionary; it is also in the folder.

    Raises:
        `StructureError`: if the folder is finished, in use or was begun otherwise; if an input cannot be read; if there is no
            example. If no shard was finished by then, the folder is removed.
    """
    inputs, options = [Path(path) for path in inputs], options or processor.read_options
    counts = [_count(path, processor, options, max_samples) for path in inputs]
    settings = {
        **_settings(processor, options, max_samples), "deduplicate": deduplicate, "time_limit": time_limit,
        "shard_size": shard_size, "max_shard_size": max_shard_size,
    }  # fmt: skip
    begun = {"inputs": [(str(path), _hash(_files(path))) for path in inputs], "settings": settings}
    with writing(output):
        folder = _Output(Path(output), begun, shard_size, deduplicate, max_shard_size)
    with (
        folder as written,
        contextlib.closing(
            _pieces(
                inputs, processor, options, max_samples, written.next,
                engine=engine, num_proc=num_proc, time_limit=time_limit, address=ray_address,
            )
        ) as pieces,
        tqdm(
            total=None if None in counts else sum(counts), disable=not progress, unit="structure", smoothing=0.05,
            initial=sum(more["read"] for line in written.lines for _, more in line["inputs"]),
        ) as bar,
    ):  # fmt: skip
        current, last = None, time.monotonic()
        for place, result in pieces:
            if strict and result[2]:
                raise result[2][0]
            if place[0] != current:
                current = place[0]
                bar.set_description(f"Reading {inputs[current].name}", refresh=False)
            now = time.monotonic()
            with writing(output):
                written.add(place, result, now - last)
            last = now
            bar.update()
            bar.set_postfix(kept=written.starts[-1] + len(written.names), refresh=False)
        with writing(output):
            return written.finish(inputs)


def as_read_report(report) -> ReadReport:
    """What `prepare` returns, without what is said of single inputs."""
    rejected = [(row["name"], row["reason"], row["message"]) for row in report["rejected"]]
    return ReadReport(report["kept"], rejected, Counter(report["notes"]))


def report_text(report) -> str:
    """The report of `prepare` as a table of the inputs and the reasons to leave something out."""
    head = ("input", "read", "kept", "rejected", "duplicates", "seconds", "read/s")
    rows, numbers = [], ("read", "kept", "rejected", "duplicates", "seconds")
    found = [*report["inputs"]]
    if len(found) > 1:
        found.append({"input": "all", **{key: sum(row[key] for row in found) for key in numbers}})
    for row in found:
        rate = row["read"] / max(row["seconds"], 1e-3)
        rows.append((row["input"], *(str(row[key]) for key in numbers[:4]), f"{row['seconds']:.1f}", f"{rate:.1f}"))
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths)))
        for row in [head, *rows]
    ]
    first = {row["reason"]: row["message"] for row in reversed(report["rejected"])}
    lines += [f"{count} x {reason}, first: {first[reason]}" for reason, count in report["reasons"].items()]
    lines += [f"note: {count} x {note}" for note, count in Counter(report["notes"]).most_common()]
    return "\n".join(lines)


# datasets -------------------------------------------------------------------------------------------------------------------


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


def load_prepared(path, tokenizer, cache_dir=None) -> Dataset:
    """A dataset that `prepare_dataset.py` wrote, of now or of earlier versions. It stays on disk: `datasets` keeps a copy that
    it can address by index in `cache_dir`, by default in its own cache (`HF_DATASETS_CACHE`).

    Raises:
        `StructureError`: if a shard or columns are missing, or it was made with another vocabulary.
    """
    path = Path(path)
    file = path / REPORT_FILE
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
    made_with = report.get("vocabulary")
    if made_with != vocabulary_hash(tokenizer):
        raise StructureError(
            "other_vocabulary",
            f"{path}: was made with the vocabulary {made_with}, but the tokenizer has {vocabulary_hash(tokenizer)}.",
        )
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
    needed = {"modality_ids": config.num_modalities > 0, "block_features": bool(config.block_feature_sizes)}
    for column, wanted in needed.items():
        if wanted and (column not in dataset.column_names or _has_gaps(dataset, column)):
            raise StructureError("other_model", f"The model needs {column}, which {name} does not have for every example.")
    return dataset.remove_columns([c for c, wanted in needed.items() if not wanted and c in dataset.column_names])


def input_fingerprint(path, processor, max_samples=None, options=None) -> str:
    """The same as long as an input, the processor, the code that reads, `max_samples` and `options` (by default those of the
    processor) are.

    Raises:
        `StructureError`: if the input is missing.
    """
    return _hash([_files(Path(path)), _settings(processor, options or processor.read_options, max_samples)])


def load_examples(path, processor, cache_dir, num_proc=1, max_samples=None, progress=True, options=None, **engine):
    """Any input, prepared or not -> (`datasets.Dataset` of examples, `ReadReport`).

    What is read is kept in `cache_dir` and found there again as long as input, processor and `max_samples` are the same; a
    reading that was stopped goes on. Duplicates stay: there is one example for everything that can be read. `options` are those
    of the processor by default, and change nothing in a prepared dataset; `engine` and `ray_address` are as for `prepare`.

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
    folder = Path(cache_dir) / f"{path.name.split('.')[0]}-{input_fingerprint(path, processor, max_samples, options)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{folder}.lock")  # another process may be reading the same
    try:
        with lock:
            if not is_prepared(folder):
                partial = folder.with_name(f"{folder.name}.partial")
                if not is_prepared(partial):
                    prepare([path], partial, processor, num_proc, max_samples, options, progress=progress, **engine)
                os.replace(partial, folder)
    except StructureError:
        Path(lock.lock_file).unlink(missing_ok=True)
        raise
    report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    return load_prepared(folder, processor.tokenizer, Path(cache_dir) / "arrow"), as_read_report(report)


# the script -----------------------------------------------------------------------------------------------------------------


@dataclass
class PrepareArguments:
    output_dir: str = HfArg(help="Folder for the dataset; must not exist, or be one that this command began.")
    processor: str = HfArg(default=str(ROOT), help="Folder or hub id with processor and tokenizer.")
    num_proc: int = HfArg(default=1, help="Processes that read; the dataset is the same with any number.")
    engine: str = HfArg(
        default="local",
        metadata={"choices": list(ENGINES)},
        help="local: --num_proc processes of this machine. ray: all cores of a Ray cluster (needs the package ray), whose "
        "machines see this repository and the inputs at the same paths; the dataset is the same.",
    )
    ray_address: str | None = HfArg(
        default=None, help="Address of the Ray cluster; without it, that of this machine, begun if there is none."
    )
    max_samples: int | None = HfArg(default=None, help="Read only this many files, records or rows of each input.")
    strict: bool = HfArg(default=False, help="The first structure that cannot be read is an error; duplicates are not.")
    deduplicate: bool = HfArg(
        default=True,
        help="Whether examples with the same blocks, atoms, positions (to 0.001 angstrom) and label as another are left out.",
    )
    time_limit: float = HfArg(
        default=TIME_LIMIT,
        help="Seconds for one structure, which is left out if it takes longer. With one process, a step of RDKit or gemmi "
        "comes to its end first (RDKit's search for a conformer after 20 s).",
    )
    shard_size: int = HfArg(default=SHARD_SIZE, help="Examples in a shard, at most; a run that is stopped loses no more.")
    max_shard_size: str = HfArg(
        default="64MB", help="Size of a shard, about and before compression; a shard ends at this or at --shard_size."
    )
    seed: int | None = HfArg(default=None, help="Seed of the conformers built from SMILES (of the processor by default).")
    num_conformers: int = HfArg(default=1, help="Conformers of each SMILES, an example each.")
    interfaces: str | None = HfArg(
        default=None, help="'all' for every interface of a PDB or mmCIF file; without it, that of two chains."
    )
    interface_distance: float | None = HfArg(
        default=None, help="What is closer than this to the other side is kept, in angstrom (of the processor by default)."
    )
    model: int = HfArg(default=1, help="Number of the model to read from each file.")
    assembly: str | None = HfArg(default=None, help="Biological assembly to build first, by its name in the file.")
    keep_waters: bool = HfArg(default=False, help="Keep the waters of an interface too.")
    keep_buffers: bool = HfArg(default=False, help="Keep the buffer components of an interface too.")
    ccd: str | None = HfArg(default=None, help="File of chemical components (mmCIF), for bonds and parents of residues.")


def load_processor(name) -> AtomicaProcessor:
    """The processor of a folder or hub id.

    Raises:
        `StructureError`: if there is none.
    """
    try:
        return AtomicaProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise StructureError("no_processor", f"{name}: no Atomica processor there ({error}).") from error


def _read_options(arguments, processor):
    """The processor's way of reading, with what the command line changes.

    Raises:
        `StructureError`: if it cannot be so.
    """
    given = processor.read_options
    options = replace(
        given,
        seed=given.seed if arguments.seed is None else arguments.seed,
        distance=given.distance if arguments.interface_distance is None else arguments.interface_distance,
        keep_waters=given.keep_waters or arguments.keep_waters,
        keep_buffers=given.keep_buffers or arguments.keep_buffers,
        ccd=arguments.ccd or given.ccd,
        **{name: getattr(arguments, name) for name in ("interfaces", "model", "assembly", "num_conformers")},
    )
    if options.as_published and (options.interfaces or options.keep_waters or options.keep_buffers):
        raise StructureError(
            "usage",
            f"{arguments.processor}: this processor reads complexes as ATOMICA does, without --interfaces, --keep_waters and "
            "--keep_buffers.",
        )
    if options.ccd is not None and not Path(options.ccd).is_file():
        raise StructureError("missing_file", f"--ccd {options.ccd}: no such file.")
    return options


def closing_line(folder, report) -> str:
    sizes = [
        pc.list_value_length(batch["input_ids"]).to_numpy()
        for shard in report["shards"]
        for batch in pq.ParquetFile(folder / shard["file"]).iter_batches(columns=["input_ids"])
    ]
    sizes = np.concatenate(sizes)
    return (
        f"{folder}: {len(sizes)} examples in {len(report['shards'])} shards, {sizes.sum()} blocks (median "
        f"{np.median(sizes):.0f}, largest {sizes.max()})."
    )


def main(argv=None):
    parser = ScriptParser(PrepareArguments, description=__doc__)
    parser.add_argument(
        "inputs",
        nargs="+",
        help=".smi .csv .tsv .sdf .mol2 .xyz .pdb .cif .bcif .parquet (also .gz), an index CSV, folders of structure files, "
        "ATOMICA's data, or prepared datasets",
    )
    arguments, rest = parser.parse_args_into_dataclasses(argv)
    for name, least in (("num_proc", 1), ("max_samples", 1), ("shard_size", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise StructureError("usage", f"--{name} is {value}, expected at least {least}.")
    check_engine(arguments)
    try:
        max_shard_size = convert_file_size_to_int(arguments.max_shard_size)
    except ValueError:
        max_shard_size = 0
    if max_shard_size < 1:
        raise StructureError("usage", f"--max_shard_size is {arguments.max_shard_size}, expected a size such as 64MB.")
    if not 0 < arguments.time_limit < float("inf"):
        raise StructureError("usage", f"--time_limit is {arguments.time_limit}, expected a positive number of seconds.")
    output, processor = Path(arguments.output_dir), load_processor(arguments.processor)
    report = prepare(
        rest.inputs, output, processor, arguments.num_proc, arguments.max_samples, _read_options(arguments, processor),
        arguments.strict, arguments.deduplicate, arguments.time_limit, arguments.shard_size,
        max_shard_size=max_shard_size, engine=arguments.engine, ray_address=arguments.ray_address,
    )  # fmt: skip
    print(report_text(report))
    print(closing_line(output, report))


if __name__ == "__main__":
    import prepare_dataset  # so that other processes find its functions

    run_script(prepare_dataset.main, stopped="stopped; the same command goes on from the last finished shard.")
