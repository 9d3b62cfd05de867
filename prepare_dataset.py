# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Files of molecules and complexes -> a dataset of examples, which `run_pretraining.py` and the rest read without delay.

python prepare_dataset.py molecules.csv dimers.sdf.gz --output_dir prepared --num_proc 8

The folder holds Parquet shards, `data-00000.parquet` and so on, and `read_report.json`: what was kept, what was left out and
why. The same command continues a run that was stopped. Files of ATOMICA's processed data (`.pkl`, `.jsonl`, `.json`,
`.parquet`; see `convert_original_data.py`) and prepared datasets are inputs too.
"""

import argparse
import base64
import bisect
import contextlib
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
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
from filelock import FileLock, Timeout
from tqdm.auto import tqdm
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

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
OPTIONAL_FEATURES = Features(  # columns that `load_prepared` leaves out if no example has a value; null in the shards
    {"label": Value("float64"), "modality_ids": Value("int64"), "block_features": List(List(Value("float32")))}
)
REPORT_FILE = "read_report.json"
JOURNAL_FILE = "journal.jsonl"
SHARD_SIZE = 5000  # examples
SHARD_BYTES = 64_000_000  # about, before compression
TIME_LIMIT = 60.0  # seconds for one structure
_WRITTEN_AT_ONCE = 200  # examples
_SCHEMA = Features({**FEATURES, **OPTIONAL_FEATURES}).arrow_schema


# one piece of work ----------------------------------------------------------------------------------------------------------


class _TimeIsUp(BaseException):
    """Not an `Exception`, so that no reader takes it for a fault of its file."""


@contextlib.contextmanager
def _limited(seconds):
    """Raises `_TimeIsUp` in its block after so many seconds; in native code, when that returns."""
    if seconds is None or not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        raise _TimeIsUp

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _too_slow(name, time_limit):
    return name, [], [StructureError("time_limit", f"{name}: took longer than {time_limit:g} s.")]


def _finite(example):
    for key, dtype in (("positions", np.float32), ("block_features", np.float32), ("label", np.float64)):
        with np.errstate(over="ignore"):
            if example.get(key) is not None and not np.isfinite(np.asarray(example[key], dtype=dtype)).all():
                raise StructureError("not_finite", f"{example['name']}: {key} has numbers that {dtype.__name__} cannot hold.")
    return example


def _encode(processor, work, time_limit=None):
    """One piece of work -> (name, examples with their notes, errors); never raises for bad input. A piece may hold several
    structures (one for each copy of a ligand), of which the good ones are kept; none if it takes too long."""
    name, function, arguments = work
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

    try:
        with _limited(time_limit):
            found = attempt(function, *arguments)
            for structure in found if isinstance(found, list) else [found]:
                example = None if structure is None else attempt(encode, structure)
                if example is not None:
                    examples.append((example, structure.notes))
    except _TimeIsUp:
        return _too_slow(name, time_limit)
    return name, examples, errors


# processes that do it -------------------------------------------------------------------------------------------------------

_GRACE = 2.0  # seconds that a worker has beyond the time limit, to notice it itself
_AHEAD = 100  # pieces of work for each worker that may be under way or done before their turn
_MOST_AT_ONCE = 16  # pieces of work sent together, when they are short


def _end_with_parent():
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _work(connection, processor, time_limit):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        connection.send(None)  # ready
        while True:
            for work in connection.recv():
                connection.send(_encode(processor, work, time_limit))
    except (EOFError, BrokenPipeError):
        pass


class _Worker:
    def __init__(self, context, processor, time_limit):
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, processor, time_limit), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        self.ready, self.numbers, self.since = False, deque(), 0.0  # numbers of its work, what it is doing first

    def stop(self):
        self.process.kill()
        self.process.join()
        self.connection.close()


class _Workers:
    """Encodes pieces of work, in this process (`num_proc=1`) or in others. One that dies is replaced, and its piece is tried
    once more; one that takes too long is killed, whatever native code it is in, and replaced."""

    def __init__(self, processor, num_proc, time_limit):
        self.processor, self.num_proc, self.time_limit = processor, num_proc, time_limit
        self.workers, self.failures, self.mean_seconds = [], 0, 1.0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for worker in self.workers:
            worker.stop()
        self.workers = []

    def encode(self, work):
        """Iterable of (place, piece of work) -> iterator of (place, result), in the same order.

        Raises:
            `StructureError`: if worker processes cannot start.
        """
        if self.num_proc == 1:
            return ((place, _encode(self.processor, piece, self.time_limit)) for place, piece in work)
        return self._encode_elsewhere(iter(work))

    def _encode_elsewhere(self, work):
        self.pieces, self.waiting, self.done, self.deaths = {}, deque(), {}, Counter()  # pieces: not done yet, by number
        places, come, gone, over = {}, 0, 0, False
        while True:
            while not over and come - gone < _AHEAD * self.num_proc:
                found = next(work, None)
                if found is None:
                    over = True
                else:
                    places[come], self.pieces[come] = found
                    self.waiting.append(come)
                    come += 1
            if gone in self.done:
                yield places.pop(gone), self.done.pop(gone)
                gone += 1
            elif self.pieces:
                self._advance()
            else:
                return

    def _advance(self):
        """Gives work to whoever has none and waits until something happens."""
        while len(self.workers) < min(self.num_proc, len(self.pieces)):
            self.workers.append(_Worker(multiprocessing.get_context("spawn"), self.processor, self.time_limit))
        for worker in self.workers:
            if worker.ready and not worker.numbers and self.waiting:
                share = min(_MOST_AT_ONCE, int(0.2 / max(self.mean_seconds, 1e-3)), len(self.waiting) // (2 * self.num_proc))
                worker.numbers.extend(self.waiting.popleft() for _ in range(max(1, share)))
                worker.since = time.monotonic()
                with contextlib.suppress(BrokenPipeError):  # it has just died; its end of the pipe will say so
                    worker.connection.send([self.pieces[number] for number in worker.numbers])
        timeout = None
        if self.time_limit is not None:
            ends = [worker.since + self.time_limit + _GRACE for worker in self.workers if worker.numbers]
            timeout = max(0.0, min(ends) - time.monotonic()) if ends else None
        by_connection = {worker.connection: worker for worker in self.workers}
        ready = wait(list(by_connection), timeout)
        for connection in ready:
            self._receive(by_connection[connection])
        if self.time_limit is not None and not ready:
            now = time.monotonic()
            for worker in [w for w in self.workers if w.numbers and now >= w.since + self.time_limit + _GRACE]:
                number = worker.numbers.popleft()
                self.done[number] = _too_slow(self.pieces.pop(number)[0], self.time_limit)
                self._dismiss(worker)

    def _receive(self, worker):
        try:
            result = worker.connection.recv()
        except (EOFError, OSError):
            self._has_died(worker)
            return
        if result is None:
            worker.ready, self.failures = True, 0
            return
        number, now = worker.numbers.popleft(), time.monotonic()
        self.mean_seconds += 0.1 * (now - worker.since - self.mean_seconds)
        worker.since = now
        self.done[number] = result
        del self.pieces[number]

    def _has_died(self, worker):
        worker.process.join()
        code = worker.process.exitcode
        if not worker.ready:
            self.failures += 1
            if self.failures >= 3:
                raise StructureError(
                    "no_workers", f"Worker processes end, with exit code {code}, before they can start; try --num_proc 1."
                )
        elif worker.numbers:
            number = worker.numbers[0]
            self.deaths[number] += 1
            if self.deaths[number] > 1:
                worker.numbers.popleft()
                name = self.pieces.pop(number)[0]
                why = f"{name}: the process that read it ended twice, with exit code {code}; it may need too much memory."
                self.done[number] = name, [], [StructureError("worker_died", why)]
        self._dismiss(worker)

    def _dismiss(self, worker):
        self.waiting.extendleft(reversed(worker.numbers))
        self.workers.remove(worker)
        worker.stop()


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


def _pieces(inputs, processor, options, workers, max_samples=None, begin=(0, 0)):
    """Yields ((number of the input, number of the piece in it), (name, examples with their notes, errors)) in the order of the
    inputs, from `begin` on; whatever the workers, the same."""
    for listed, group in itertools.groupby(range(begin[0], len(inputs)), lambda i: _is_listed(inputs[i])):
        group = list(group)
        if listed:
            yield from workers.encode(
                ((i, n), piece)
                for i in group
                for n, piece in enumerate(list_inputs(inputs[i], options)[:max_samples])
                if (i, n) >= begin
            )
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
    with _Workers(processor, num_proc, time_limit) as workers:
        pieces = _pieces([Path(path)], processor, options or processor.read_options, workers, max_samples)
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


def _sync(path):
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _new_counts():
    return {"read": 0, "kept": 0, "rejected": 0, "duplicates": 0, "seconds": 0.0, "notes": {}}


class _Output:
    """Writes examples as shards, and after each a line into the journal: what is in it, and which piece comes next. What a
    line does not vouch for is written again by whoever continues.

    Raises:
        `StructureError`: if the folder is finished, in use, or was begun otherwise.
    """

    def __init__(self, folder, begun, shard_size=SHARD_SIZE, deduplicate=False):
        self.folder, self.begun, self.shard_size = folder, begun, shard_size
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
        differences = _differences(begun, json.loads(json.dumps(self.begun)))
        if differences:
            raise StructureError(
                "other_command",
                f"{self.folder}: is half-written, and was begun otherwise: {'; '.join(differences)}. "
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
            if len(self.rows) >= _WRITTEN_AT_ONCE or self.unwritten >= SHARD_BYTES / 8:
                self._write()
        self.pieces += 1
        self.after = (number, piece + 1)
        if len(self.names) >= self.shard_size or self.bytes >= SHARD_BYTES or self.pieces >= 20 * self.shard_size:
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
            _sync(temporary)
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
        _sync(temporary)
        os.replace(temporary, self.folder / REPORT_FILE)
        (self.folder / JOURNAL_FILE).unlink()
        return report


def _differences(begun, now):
    """What distinguishes two beginnings, in words."""
    before, after = [path for path, _ in begun["inputs"]], [path for path, _ in now["inputs"]]
    if before != after:
        found = [f"with the inputs {', '.join(before)}, now {', '.join(after)}"]
    else:
        found = [f"{a[0]} has changed since" for a, b in zip(begun["inputs"], now["inputs"]) if a != b]
    old, new = begun["settings"], now["settings"]
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return found + [f"with {key} {old.get(key)}, now {new.get(key)}" for key in changed]


def prepare(
    inputs, output, processor, num_proc=1, max_samples=None, options=None, strict=False, deduplicate=False, time_limit=None,
    shard_size=SHARD_SIZE, progress=True,
):  # fmt: skip
    """Reads all inputs into one dataset, a folder that did not exist before; or goes on with one that was begun with the same
    inputs and settings (`num_proc` and `strict` may differ). However often it was stopped, the shards are the same.

    Args:
        inputs (list of `str` or `Path`): as for `read_examples`.
        output (`str` or `Path`): the folder.
        processor (`AtomicaProcessor`): encodes each structure.
        num_proc, max_samples, options, time_limit: as for `read_examples`.
        strict (`bool`): the first structure that cannot be read is an error.
        deduplicate (`bool`): leave out examples that equal one before; see `example_hash`.
        shard_size (`int`): examples in one shard, at most; fewer if they are large.
        progress (`bool`): show a bar.

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
        "shard_size": shard_size,
    }  # fmt: skip
    begun = {"inputs": [(str(path), _hash(_files(path))) for path in inputs], "settings": settings}
    with (
        _Output(Path(output), begun, shard_size, deduplicate) as written,
        _Workers(processor, num_proc, time_limit) as workers,
        tqdm(
            total=None if None in counts else sum(counts), disable=not progress, unit="structure", smoothing=0.05,
            initial=sum(more["read"] for line in written.lines for _, more in line["inputs"]),
        ) as bar,
    ):  # fmt: skip
        current, last = None, time.monotonic()
        for place, result in _pieces(inputs, processor, options, workers, max_samples, written.next):
            if strict and result[2]:
                raise result[2][0]
            if place[0] != current:
                current = place[0]
                bar.set_description(f"Reading {inputs[current].name}", refresh=False)
            now = time.monotonic()
            written.add(place, result, now - last)
            last = now
            bar.update()
            bar.set_postfix(kept=written.starts[-1] + len(written.names), refresh=False)
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
        raise StructureError("not_prepared", f"{path}: cannot be opened as a dataset: {error}.") from error
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


def load_examples(path, processor, cache_dir, num_proc=1, max_samples=None, progress=True):
    """Any input, prepared or not -> (`datasets.Dataset` of examples, `ReadReport`).

    What is read is kept in `cache_dir` and found there again as long as input, processor and `max_samples` are the same.
    Duplicates stay: there is one example for everything that can be read.

    Raises:
        `StructureError`: if nothing could be read.
    """
    if max_samples is not None and max_samples < 1:
        raise StructureError("usage", f"The number of samples to read is {max_samples}, expected at least 1.")
    if is_prepared(path):
        dataset = load_prepared(path, processor.tokenizer)
        dataset = dataset.select(range(min(len(dataset), max_samples))) if max_samples else dataset
        return dataset, ReadReport(kept=len(dataset))
    path, options = Path(path), processor.read_options
    key = _hash([_files(path), _settings(processor, options, max_samples)])
    folder = Path(cache_dir) / f"{path.name.split('.')[0]}-{key}"
    if not is_prepared(folder):
        temporary = Path(f"{folder}.{os.getpid()}.tmp")
        try:
            prepare([path], temporary / "dataset", processor, num_proc, max_samples, progress=progress)
            try:
                os.replace(temporary / "dataset", folder)
            except OSError:
                if not is_prepared(folder):  # another process has written the same in the meantime
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    return load_prepared(folder, processor.tokenizer, Path(cache_dir) / "arrow"), as_read_report(report)


# the script -----------------------------------------------------------------------------------------------------------------


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


@dataclass
class PrepareArguments:
    output_dir: str = HfArg(help="Folder for the dataset; must not exist, or be one that this command began.")
    processor: str = HfArg(default=str(ROOT), help="Folder or hub id with processor and tokenizer.")
    num_proc: int = HfArg(default=1, help="Processes that read; the dataset is the same with any number.")
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
    parser = HfArgumentParser(PrepareArguments, description=__doc__, formatter_class=_Help)
    parser.add_argument(
        "inputs",
        nargs="+",
        help=".smi .csv .tsv .sdf .mol2 .xyz .pdb .cif .bcif .parquet (also .gz), an index CSV, folders of structure files, "
        "ATOMICA's data, or prepared datasets",
    )
    arguments, rest, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if unknown:
        raise StructureError("usage", f"{' '.join(unknown)}: not understood; inputs come first, then options (see --help).")
    for name, least in (("num_proc", 1), ("max_samples", 1), ("shard_size", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise StructureError("usage", f"--{name} is {value}, expected at least {least}.")
    if not 0 < arguments.time_limit < float("inf"):
        raise StructureError("usage", f"--time_limit is {arguments.time_limit}, expected a positive number of seconds.")
    output, processor = Path(arguments.output_dir), load_processor(arguments.processor)
    report = prepare(
        rest.inputs, output, processor, arguments.num_proc, arguments.max_samples, _read_options(arguments, processor),
        arguments.strict, arguments.deduplicate, arguments.time_limit, arguments.shard_size,
    )  # fmt: skip
    print(report_text(report))
    print(closing_line(output, report))


if __name__ == "__main__":
    try:
        main()
    except (StructureError, OSError) as error:
        sys.exit(f"prepare_dataset.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit("prepare_dataset.py: stopped; the same command goes on from the last finished shard.")
