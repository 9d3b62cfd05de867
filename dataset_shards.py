# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Inputs -> a folder of Parquet shards, with which a run that was stopped goes on; and such folders as a cache."""

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
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from atomic_files import sync
from atomica_hf import ReadReport, StructureError
from dataset_reading import files_of, hash_of, number_of_pieces, read_pieces, settings_of
from prepared_datasets import FEATURES, JOURNAL_FILE, OPTIONAL_FEATURES, REPORT_FILE, is_prepared, load_prepared


SHARD_SIZE = 5000  # examples
MAX_SHARD_SIZE = 64_000_000  # bytes, about, before compression
_WRITTEN_AT_ONCE, _BYTES_AT_ONCE = 200, 8_000_000  # examples; bytes, about
_SCHEMA = Features({**FEATURES, **OPTIONAL_FEATURES}).arrow_schema


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
    counts = [number_of_pieces(path, processor, options, max_samples) for path in inputs]
    settings = {
        **settings_of(processor, options, max_samples), "deduplicate": deduplicate, "time_limit": time_limit,
        "shard_size": shard_size, "max_shard_size": max_shard_size,
    }  # fmt: skip
    begun = {"inputs": [(str(path), hash_of(files_of(path))) for path in inputs], "settings": settings}
    with writing(output):
        folder = _Output(Path(output), begun, shard_size, deduplicate, max_shard_size)
    with (
        folder as written,
        contextlib.closing(
            read_pieces(
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


def input_fingerprint(path, processor, max_samples=None, options=None) -> str:
    """The same as long as an input, the processor, the code that reads, `max_samples` and `options` (by default those of the
    processor) are.

    Raises:
        `StructureError`: if the input is missing.
    """
    return hash_of([files_of(Path(path)), settings_of(processor, options or processor.read_options, max_samples)])


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
        dataset = load_prepared(path, processor.tokenizer, keep_hydrogens=processor.keep_hydrogens)
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
