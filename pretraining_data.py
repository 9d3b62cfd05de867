# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""The data of `run_pretraining.py`: which examples make an epoch, in which batches, and how they reach the model.

Nothing here depends on the number of workers, nor, for examples by index, on the number of processes: the batches of an epoch
are one list, made from (seed, epoch), and every process takes its share of it.
"""

import hashlib
import itertools
from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from accelerate.utils import broadcast_object_list, recursively_apply
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from atomica_hf import StructureError
from atomica_hf.configuration_atomica import NUM_SPECIAL_BLOCKS
from dataset_shards import load_examples
from prepared_datasets import REPORT_FILE, check_made_for, for_model, is_prepared, join_datasets
from pretraining_arguments import UsageError
from pretraining_checks import ExampleCheck, check_shards, read_report, read_shards, unreadable
from pretraining_losses import losses_of, puzzle_weights


HUB_PREFIX = "hf://datasets/"
WINDOW = 512  # examples among which those of similar size come into one batch
READ_AT_ONCE = 100_000  # examples whose sizes are read together
STREAM_WINDOW = 1024  # examples that a stream holds at once
SURVEYED = 20_000  # examples of a stream that are looked at beforehand
COLUMNS = (
    "name", "input_ids", "token_type_ids", "atom_ids", "atom_to_block", "positions", "torsion_bonds", "torsion_atoms",
    "segment_is_polymer", "modality_ids", "block_features", "atom_charges",
)  # fmt: skip


# what to read -----------------------------------------------------------------------------------------------------------


def parse_sources(texts):
    """`["a", "b"]` or `["a:0.7", "b:0.3"]` -> (paths, shares that add up to 1, or None without weights).

    Raises:
        `UsageError`: if a weight is not positive, or only some have one.
    """
    paths, weights = [], []
    for text in texts:
        path, colon, number = text.rpartition(":")
        try:
            weight = float(number) if colon and not Path(text).exists() else None
        except ValueError:
            weight = None
        if weight is not None and not 0 < weight < float("inf"):
            raise UsageError(f"--train_file {text}: the weight is {number}, expected a positive number.")
        paths.append(text if weight is None else path)
        weights.append(weight)
    if None in weights:
        if any(weight is not None for weight in weights):
            raise UsageError(f"--train_file: {paths[weights.index(None)]} has no weight, others have.")
        return paths, None
    return paths, [weight / sum(weights) for weight in weights]


def is_on_hub(path):
    return str(path).startswith(HUB_PREFIX)


def _fetch(path, what, **options):
    """Calls `what` of huggingface_hub for a dataset `hf://datasets/USER/NAME`, of which `@REVISION` may be asked for."""
    name, _, revision = str(path).removeprefix(HUB_PREFIX).rstrip("/").partition("@")
    try:
        return getattr(huggingface_hub, what)(name, repo_type="dataset", revision=revision or None, **options)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: no such dataset on the hub, or no way to it ({error}).") from error


def local_path(path, patterns=("*.parquet", REPORT_FILE)):
    """A prepared dataset of the hub as a folder on this machine, with the files asked for; other paths as they are."""
    return _fetch(path, "snapshot_download", allow_patterns=list(patterns)) if is_on_hub(path) else path


def shard_file(shard):
    """A shard as a file on this machine: one of the hub is fetched now, and kept in the hub's cache."""
    if not is_on_hub(shard):
        return shard
    dataset, name = shard.rsplit("/", 1)
    return _fetch(dataset, "hf_hub_download", filename=name)


def load_source(path, processor, config, cache_dir, num_proc, max_samples, progress):
    """A file, folder or prepared dataset -> (`datasets.Dataset` with the columns that training reads, `ReadReport`)."""
    folder = local_path(path)
    try:
        dataset, report = load_examples(folder, processor, cache_dir, num_proc, max_samples, progress=progress)
    except StructureError as error:
        if error.code == "not_prepared" and (Path(folder) / REPORT_FILE).exists():
            read_shards(folder)  # names the shard, if it is one
        raise
    modalities = "modality_ids" in dataset.column_names
    wanted = for_model(dataset, config, path).column_names + ["modality_ids"] * modalities  # losses are told apart by it
    return dataset.select_columns([name for name in COLUMNS if name in wanted]), report


def share_groups(members, shares):
    """Groups of examples and the share of each -> what `Epochs` takes."""
    return [(np.asarray(group, dtype=np.int64), share) for group, share in zip(members, shares)]


def modality_groups(modalities):
    """Every modality as often as every other; those without one (-1) are a kind of their own."""
    found = np.unique(modalities)
    if not (found >= 0).any():
        raise UsageError("--balance_modalities: no example has a modality (the column modality_ids).")
    return share_groups([np.flatnonzero(modalities == kind) for kind in found], [1 / len(found)] * len(found))


# sizes ------------------------------------------------------------------------------------------------------------------


@dataclass
class Survey:
    """Of every example: number of blocks, atoms and segments, and its modality (-1 for none); and how often each block token
    occurs in all."""

    blocks: np.ndarray
    atoms: np.ndarray
    segments: np.ndarray
    modalities: np.ndarray
    token_counts: np.ndarray

    def log_frequencies(self):
        """Log share of each maskable token, one added to each count: what a guesser without eyes knows."""
        counts = self.token_counts[NUM_SPECIAL_BLOCKS:] + 1
        return torch.tensor(np.log(counts / counts.sum()), dtype=torch.float32)


def flat(column):
    """A column of lists -> (values, lengths); a missing list has the length 0."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return column.flatten().to_numpy(zero_copy_only=False), lengths(column)


def lengths(column):
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)


def survey_table(table, vocab_size):
    tokens, blocks = flat(table["input_ids"])
    types, counts = flat(table["token_type_ids"])
    segments, filled = np.ones(len(blocks), dtype=np.int32), counts > 0
    segments[filled] = np.maximum.reduceat(types, (np.cumsum(counts) - counts)[filled]) + 1 if filled.any() else 1
    tokens = tokens[(tokens >= 0) & (tokens < vocab_size)]  # damaged examples are left out later, where they are named
    modalities = np.full(len(blocks), -1)
    if "modality_ids" in table.column_names:
        modalities = pc.fill_null(table["modality_ids"], -1).to_numpy()
    return Survey(
        blocks.astype(np.int32),
        lengths(table["atom_ids"]).astype(np.int32),
        segments,
        modalities.astype(np.int32),
        np.bincount(tokens.astype(np.int64), minlength=vocab_size),
    )


def join_surveys(parts):
    columns = [
        np.concatenate([getattr(part, name) for part in parts]) for name in ("blocks", "atoms", "segments", "modalities")
    ]
    return Survey(*columns, sum(part.token_counts for part in parts))


def survey(dataset, vocab_size):
    """`Survey` of a dataset, read from the offsets of its lists without making a Python object of any example."""
    columns = ["name", "input_ids", "token_type_ids", "atom_ids"] + ["modality_ids"] * ("modality_ids" in dataset.column_names)
    tables = dataset.select_columns(columns).with_format("arrow").iter(batch_size=READ_AT_ONCE)
    return join_surveys([survey_table(table, vocab_size) for table in tables])


def check_segments(dataset, segments, max_blocks):
    """Raises `UsageError` if an example has too many segments to be cropped to so many blocks."""
    most = int(segments.argmax())
    if 2 * segments[most] > max_blocks:
        raise UsageError(
            f"{dataset[most]['name']}: has {segments[most]} segments, which need at least two blocks each, "
            f"but --max_blocks_per_example or --max_blocks_per_batch is {max_blocks}."
        )


# the order of an epoch --------------------------------------------------------------------------------------------------


class Epochs:
    """What is drawn in which epoch: with one group, every member once. With several, each gives its share of as many draws as
    there are members in all; a group is drawn once through, in a new order each time, before any of it comes again."""

    def __init__(self, groups, seed, shuffle=True, draws=None):
        self.groups, self.seed, self.shuffle = groups, seed, shuffle
        total = sum(len(members) for members, _ in groups)
        self.draws = draws or [max(1, round(share * total)) for _, share in groups]

    def _of_group(self, group, epoch):
        members, count = self.groups[group][0], self.draws[group]
        start, stop, size = epoch * count, (epoch + 1) * count, len(members)
        passes, drawn = [], []
        for number in range(start // size, -(-stop // size)):
            order = np.random.default_rng([self.seed, group, number]).permutation(members) if self.shuffle else members
            part = order[max(0, start - number * size) : stop - number * size]
            passes.append(np.full(len(part), number))
            drawn.append(part)
        return np.concatenate(passes), np.concatenate(drawn)

    def order(self, epoch):
        """-> (number of the pass through its group, member), each an array. The pass numbers the puzzle, which is another each
        time an example comes."""
        passes, drawn = map(np.concatenate, zip(*(self._of_group(group, epoch) for group in range(len(self.groups)))))
        if len(self.groups) > 1:
            mixed = np.random.default_rng([self.seed, len(self.groups), epoch]).permutation(len(drawn))
            passes, drawn = passes[mixed], drawn[mixed]
        return passes, drawn


@dataclass
class Limits:
    """Largest batch, padding included. A larger example is cropped to `example_blocks` and `atoms`."""

    blocks: int
    example_blocks: int
    atoms: int | None = None

    def __post_init__(self):
        self.example_blocks = min(self.example_blocks, self.blocks)

    def cropped(self, blocks, atoms):
        """Sizes after cropping; of the atoms, no fewer than are left."""
        limit = np.iinfo(np.int32).max if self.atoms is None else self.atoms
        return np.minimum(blocks, self.example_blocks), np.minimum(atoms, limit)

    def pack(self, blocks, atoms, window=WINDOW):
        """Sizes in the order of drawing -> (order, ends of the batches in it): similar sizes together within a window, so that
        there is little padding and still a new mixture every epoch."""
        blocks, atoms = self.cropped(blocks, atoms)
        order = np.concatenate(
            [start + np.lexsort((atoms[start : start + window], blocks[start : start + window]))
             for start in range(0, len(blocks), window)]
        )  # fmt: skip
        most_atoms = float("inf") if self.atoms is None else self.atoms
        ends, count, widest, most = [], 0, 0, 0
        for place, (b, a) in enumerate(zip(blocks[order].tolist(), atoms[order].tolist())):
            new_widest, new_most = max(widest, b), max(most, a)
            if count and (new_widest * (count + 1) > self.blocks or new_most * (count + 1) > most_atoms):
                ends.append(place)
                count, new_widest, new_most = 0, b, a
            count, widest, most = count + 1, new_widest, new_most
        return order, np.array([*ends, len(order)])


class SizedBatchSampler(Sampler):
    """Batches of (pass, index) within the limits; each example once an epoch over all processes, but for weights. The list of
    batches is the same on every process, which takes every `num_processes`-th of them."""

    def __init__(self, blocks, atoms, limits, epochs, num_processes=1, rank=0):
        self.blocks, self.atoms, self.limits, self.epochs = np.asarray(blocks), np.asarray(atoms), limits, epochs
        self.num_processes, self.rank = num_processes, rank
        self.epoch = self.first_batch = 0
        self._plan = (None, None)

    def plan(self):
        """(passes, members, starts, ends) of the batches of this epoch, in the order in which they come."""
        if self._plan[0] != self.epoch:
            passes, drawn = self.epochs.order(self.epoch)
            order, ends = self.limits.pack(self.blocks[drawn], self.atoms[drawn])
            starts = np.r_[0, ends[:-1]]
            if self.epochs.shuffle:
                mixed = np.random.default_rng([self.epochs.seed, len(self.epochs.groups) + 1, self.epoch]).permutation(
                    len(ends)
                )
                starts, ends = starts[mixed], ends[mixed]
            self._plan = self.epoch, (passes[order], drawn[order], starts, ends)
        return self._plan[1]

    def num_batches(self):
        """Over all processes."""
        return len(self.plan()[3])

    def __len__(self):
        return len(range(self.rank, self.num_batches(), self.num_processes))

    def __iter__(self):
        passes, drawn, starts, ends = self.plan()
        for i in range(self.rank + self.first_batch * self.num_processes, len(ends), self.num_processes):
            batch = slice(starts[i], ends[i])
            yield list(zip(passes[batch].tolist(), drawn[batch].tolist()))


# examples and batches ---------------------------------------------------------------------------------------------------


def rows_of(table, keys):
    """Arrow table -> examples with arrays, each with its (pass, index) as `epoch` and `example_index`."""
    examples = [{"epoch": epoch, "example_index": index} for epoch, index in keys]
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_list(column.type) and name != "torsion_atoms" and column.null_count == 0:
            values, counts = column.flatten(), lengths(column)
            if pa.types.is_list(values.type):
                width = {"positions": 3, "torsion_bonds": 2}.get(name) or len(values[0] if len(values) else ())
                is_even = (lengths(values) == width).all()
                array = values.flatten().to_numpy(zero_copy_only=False).reshape(-1, width or 1) if is_even else None
            else:
                array = values.to_numpy(zero_copy_only=False)
            values = column.to_pylist() if array is None else np.split(array, np.cumsum(counts)[:-1])
        else:
            values = column.to_pylist()
        for example, value in zip(examples, values):
            example[name] = value
    return examples


class NumberedExamples(Dataset):
    """Examples by (pass, index), so that a worker knows the seed of the puzzle it makes."""

    def __init__(self, dataset):
        self.dataset = dataset.with_format("arrow")

    def __len__(self):
        return len(self.dataset)

    def __getitems__(self, keys):
        return rows_of(self.dataset[[index for _, index in keys]], keys)


@dataclass
class PuzzleBatch:
    """What one forward pass takes, and what is known of it beforehand."""

    inputs: dict
    names: list
    modalities: torch.Tensor  # (batch,), -1 for none
    weights: dict  # loss -> number of complexes or masked blocks that it is taken over
    num_atoms: int
    view: dict | None = None  # the same complexes, perturbed in another way
    left_out: list = field(default_factory=list)  # (name, index, reason) of examples that are damaged
    worker: int = 0

    def _change(self, function):
        for name in ("inputs", "view", "modalities"):
            setattr(self, name, recursively_apply(function, getattr(self, name)))
        return self

    def pin_memory(self):
        return self._change(torch.Tensor.pin_memory)

    def to(self, device, dtype):
        """On the device; numbers with a point in `dtype`."""
        return self._change(
            lambda value: value.to(device, dtype if value.is_floating_point() else value.dtype, non_blocking=True)
        )

    @property
    def num_complexes(self):
        return len(self.names)


@dataclass
class BatchMaker:
    """Examples -> `PuzzleBatch`. `names` are those of the losses; `second` makes the other view, if one is needed; `fault` says
    what is wrong with an example, which is then left out: a batch may be without any."""

    collator: object
    names: tuple
    reads_modality: bool = False
    second: object = None
    fault: object = None

    def __call__(self, examples):
        faults = [self.fault and self.fault(example) for example in examples]
        left_out = [(e.get("name") or "?", e["example_index"], fault) for e, fault in zip(examples, faults) if fault]
        examples = [example for example, fault in zip(examples, faults) if not fault]
        if not examples:
            return PuzzleBatch({}, [], torch.zeros(0, dtype=torch.long), dict.fromkeys(self.names, 0.0), 0, left_out=left_out)
        modalities = [example.get("modality_ids") for example in examples]
        if not self.reads_modality:
            examples = [{name: value for name, value in example.items() if name != "modality_ids"} for example in examples]
        inputs = self.collator(examples)
        weights = {name: float(weight.sum()) for name, weight in puzzle_weights(inputs, self.names).items()}
        return PuzzleBatch(
            inputs, [example.get("name", "?") for example in examples],
            torch.tensor([-1 if kind is None else kind for kind in modalities]),
            weights, int((inputs["atom_to_block"] >= 0).sum()), self.second and self.second(examples), left_out,
        )  # fmt: skip


def _worker_start(worker):
    import signal

    for number in (signal.SIGTERM, signal.SIGINT):  # the main process stops when its step is done, and then its workers
        signal.signal(number, signal.SIG_IGN)


class IndexedBatches:
    """Batches of examples by index. A position is the number of batches that this process has had of an epoch."""

    def __init__(self, dataset, sampler, make_batch, num_workers=0, pin_memory=False):
        self.sampler = sampler
        self.make_batch = make_batch
        self.loader = DataLoader(
            NumberedExamples(dataset), batch_sampler=sampler, collate_fn=make_batch, num_workers=num_workers,
            pin_memory=pin_memory, worker_init_fn=_worker_start,
        )  # fmt: skip

    start = 0

    @property
    def rounds(self):
        """Batches of an epoch, of the process that has most."""
        return -(-self.sampler.num_batches() // self.sampler.num_processes)

    def batches(self, epoch, position):
        self.sampler.epoch, self.sampler.first_batch = epoch, position
        return iter(self.loader)

    def after(self, position, batch):
        return position + 1

    def filler(self):
        """A batch for a process that has none left while others have."""
        small_first = np.argsort(self.sampler.blocks, kind="stable")
        return first_whole(self.make_batch(self.loader.dataset.__getitems__([(0, int(i))])) for i in small_first)


def first_whole(batches):
    for batch in batches:
        if batch.names:
            return batch
    name, _, reason = batch.left_out[0]
    raise UsageError(f"No example can be used; {name}: {reason}.")


# streams ----------------------------------------------------------------------------------------------------------------


def list_shards(paths, tokenizer, keep_hydrogens=None):
    """Shards of prepared datasets: for each dataset a list of (file, number of examples); those of the hub are not fetched yet.

    Raises:
        `UsageError`, `StructureError`: if one is not prepared, or was made for another reader; see `check_made_for`.
    """
    found = []
    for path in paths:
        folder = Path(local_path(path, [REPORT_FILE]))
        if not (folder / REPORT_FILE).exists() or not (is_on_hub(path) or is_prepared(folder)):
            raise UsageError(f"{path}: --streaming reads what prepare_dataset.py wrote; prepare it first.")
        report = read_report(folder)
        check_made_for(path, report, tokenizer, keep_hydrogens)
        where = f"{path.split('@')[0]}@{folder.name}" if is_on_hub(path) else folder  # the revision that was found
        found.append([(f"{where}/{shard['file']}", shard["examples"]) for shard in report["shards"]])
    return found


def shard_epochs(datasets, shares, seed):
    """`Epochs` over shards, numbered through all datasets; with shares, a dataset gives as many shards as hold its share."""
    counts = [[examples for _, examples in shards] for shards in datasets]
    ends = np.cumsum([0, *map(len, counts)])
    members = [np.arange(start, stop) for start, stop in itertools.pairwise(ends)]
    if shares is None:
        return Epochs([(np.arange(ends[-1]), 1.0)], seed)
    total = sum(map(sum, counts))
    draws = [max(1, round(share * total / np.mean(count))) for share, count in zip(shares, counts)]
    return Epochs(share_groups(members, shares), seed, draws=draws)


@dataclass
class ShardStream(IterableDataset):
    """Batches of the shards that fall to this process and worker, a window of examples in memory at a time.

    A position is how many batches were had of each worker, and which worker comes next.
    """

    files: list
    starts: list  # number of the first example of each shard, through all of them
    epochs: Epochs
    limits: Limits
    make_batch: BatchMaker
    columns: list
    num_processes: int = 1
    rank: int = 0
    epoch: int = 0
    consumed: list = field(default_factory=lambda: [0])
    next_worker: int = 0

    def _parts(self, shard):
        try:
            with pq.ParquetFile(shard_file(self.files[shard])) as file:
                yield from file.iter_batches(batch_size=STREAM_WINDOW // 4, columns=self.columns)
        except (OSError, pa.ArrowException) as error:
            raise unreadable(self.files[shard], self.starts[shard + 1] - self.starts[shard], error) from error

    def _windows(self, worker):
        """Tables of at most `STREAM_WINDOW` examples, with their keys."""
        passes, shards = self.epochs.order(self.epoch)
        mine = range(self.rank * len(self.consumed) + worker, len(shards), self.num_processes * len(self.consumed))
        tables, keys = [], []
        for place in mine:
            shard, row = int(shards[place]), 0
            for part in self._parts(shard):
                tables.append(pa.Table.from_batches([part]))
                keys += [(int(passes[place]), self.starts[shard] + row + i) for i in range(len(part))]
                row += len(part)
                if len(keys) >= STREAM_WINDOW:
                    yield pa.concat_tables(tables), keys
                    tables, keys = [], []
        if keys:
            yield pa.concat_tables(tables), keys

    def __iter__(self):
        info = get_worker_info()
        # the worker that comes next is played by the first one, which the loader asks first
        worker = ((info.id if info else 0) + self.next_worker) % len(self.consumed)
        skip = self.consumed[worker]
        for number, (table, keys) in enumerate(self._windows(worker)):
            seed = [self.epochs.seed, self.epoch, self.rank, worker, number]
            drawn = np.random.default_rng(seed).permutation(len(keys))
            blocks, atoms = (lengths(table[name])[drawn] for name in ("input_ids", "atom_ids"))
            order, ends = self.limits.pack(blocks, atoms)
            batches = np.split(drawn[order], ends[:-1])
            mixed = np.random.default_rng([*seed, 1]).permutation(len(batches))
            for i in mixed[skip:]:
                batch = self.make_batch(rows_of(table.take(batches[i]), [keys[row] for row in batches[i]]))
                batch.worker = worker
                yield batch
            skip = max(0, skip - len(batches))


class StreamedBatches:
    """Batches of a `ShardStream`; a position is `[batches had of each worker, worker that comes next]`."""

    def __init__(self, stream, num_workers=0, pin_memory=False):
        self.stream, self.num_workers, self.pin_memory = stream, num_workers, pin_memory
        self.workers = max(1, num_workers)
        consumers, shards = stream.num_processes * self.workers, sum(stream.epochs.draws)
        if shards < consumers:
            raise UsageError(
                f"--streaming: {shards} shards cannot be split among {consumers} processes and workers; use fewer workers, or "
                "prepare with a smaller --shard_size."
            )

    @property
    def start(self):
        return [[0] * self.workers, 0]

    def batches(self, epoch, position):
        self.stream.epoch, (self.stream.consumed, self.stream.next_worker) = epoch, position
        return iter(
            DataLoader(
                self.stream, batch_size=None, num_workers=self.num_workers, pin_memory=self.pin_memory,
                worker_init_fn=_worker_start,
            )
        )  # fmt: skip

    def after(self, position, batch):
        consumed = [count + (worker == batch.worker) for worker, count in enumerate(position[0])]
        return [consumed, (batch.worker + 1) % self.workers]

    def filler(self):
        with pq.ParquetFile(shard_file(self.stream.files[0])) as file:
            parts = file.iter_batches(batch_size=1, columns=self.stream.columns)
            return first_whole(self.stream.make_batch(rows_of(pa.Table.from_batches([part]), [(0, 0)])) for part in parts)


def survey_stream(files, columns, vocab_size, most=SURVEYED):
    """`Survey` of the first examples of a stream, `most` of them."""
    parts, seen = [], 0
    for path in files:
        try:
            with pq.ParquetFile(shard_file(path)) as file:
                for part in file.iter_batches(batch_size=STREAM_WINDOW, columns=columns):
                    parts.append(survey_table(pa.Table.from_batches([part]), vocab_size))
                    seen += len(part)
                    if seen >= most:
                        return join_surveys(parts)
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"{path} cannot be read ({str(error).splitlines()[0]}).") from error
    if not parts:
        raise UsageError(f"{len(files)} shards without an example; the first is {files[0]}.")
    return join_surveys(parts)


# together ---------------------------------------------------------------------------------------------------------------


def join_sources(datasets):
    """Datasets one after another, and the members of each."""
    ends = np.cumsum([0, *map(len, datasets)])
    return join_datasets(datasets), [np.arange(start, stop) for start, stop in itertools.pairwise(ends)]


@dataclass
class TrainingData:
    """What a run trains and validates on."""

    train: IndexedBatches | StreamedBatches
    validation: IndexedBatches | None
    num_train: int
    num_validation: int
    modalities: list  # kinds of complexes whose losses are told apart
    log_frequencies: torch.Tensor
    identity: dict  # what must be the same when a run is resumed
    origin: object  # function: index of an example -> file it came from


def split_off(dataset, percentage, most, seed):
    """-> (training, validation) of one dataset, drawn by the seed."""
    order = np.random.default_rng(seed).permutation(len(dataset))
    count = max(1, round(len(dataset) * percentage / 100))
    if count >= len(dataset):
        raise UsageError(f"{len(dataset)} examples cannot be split into training and validation.")
    return np.sort(order[count:]), np.sort(order[:count])[:most]


class Loading:
    """Reads what the options name, and makes the batches of this process.

    Args:
        data (`DataArguments`), seed (`int`), processor, config, accelerator: of the run.
        cache_dir (`Path`): where what is read is kept.
        collators: training puzzles, those of validation, and those of the second view or None.
    """

    def __init__(self, data, seed, processor, config, accelerator, cache_dir, collators):
        self.data, self.seed, self.processor, self.config = data, seed, processor, config
        self.accelerator, self.cache_dir = accelerator, cache_dir
        self.limits = Limits(data.max_blocks_per_batch, data.max_blocks_per_example, data.max_atoms_per_batch)
        training, held_out, second = collators
        common = {"names": losses_of(config), "reads_modality": config.num_modalities > 0, "fault": ExampleCheck(config)}
        self.make_batch = BatchMaker(training, second=second, **common)
        self.make_validation_batch = BatchMaker(held_out, **common)
        self.share = {"num_processes": accelerator.num_processes, "rank": accelerator.process_index}
        self.loader = {"num_workers": data.dataloader_num_workers, "pin_memory": accelerator.device.type == "cuda"}
        self.vocab_size = len(processor.tokenizer)
        self.paths, self.shares = parse_sources(data.train_file)
        if data.balance_modalities and self.shares:
            raise UsageError("--balance_modalities and weights of --train_file exclude each other.")

    def check(self, path):
        """Looks at the shards of a prepared dataset, on one process for all."""
        with self.accelerator.main_process_first():
            folder = local_path(path)
        faults = [None]
        if self.accelerator.is_main_process and (Path(folder) / REPORT_FILE).exists():
            try:
                check_shards(folder)
            except UsageError as error:
                faults = [f"{path}: {error}"]
        if fault := broadcast_object_list(faults)[0]:
            raise UsageError(fault)

    def read(self, path, most):
        self.check(path)
        with self.accelerator.main_process_first():
            dataset, report = load_source(
                path, self.processor, self.config, self.cache_dir, self.data.preprocessing_num_workers, most,
                self.accelerator.is_main_process,
            )  # fmt: skip
        self.accelerator.print(f"{path}: {report.summary()}")
        return dataset

    def by_index(self, dataset, groups_of, make_batch, shuffle=True):
        """-> (batches, survey) of a dataset; `groups_of` gives the groups of its examples and their shares."""
        found = survey(dataset, self.vocab_size)
        check_segments(dataset, found.segments, self.limits.example_blocks)
        epochs = Epochs(groups_of(found), self.seed, shuffle)
        sampler = SizedBatchSampler(found.blocks, found.atoms, self.limits, epochs, **self.share)
        return IndexedBatches(dataset, sampler, make_batch, **self.loader), found

    def indexed(self):
        """-> (training batches, survey, number of examples, what names them, validation set or None, where one came from)."""
        dataset, members = join_sources([self.read(path, self.data.max_train_samples) for path in self.paths])
        validation = None
        if self.data.validation_split_percentage:
            percentage, most = self.data.validation_split_percentage, self.data.max_eval_samples
            chosen, left = split_off(dataset, percentage, most, self.seed)
            validation, dataset = dataset.select(left), dataset.select(chosen)
            members = [np.flatnonzero(np.isin(chosen, group)) for group in members]

        def groups_of(found):
            if self.data.balance_modalities:
                return modality_groups(found.modalities)
            if self.shares:
                return [group for group in share_groups(members, self.shares) if len(group[0])]
            return [(np.arange(len(dataset)), 1.0)]

        batches, found = self.by_index(dataset, groups_of, self.make_batch)
        origin = lambda index: next(path for path, group in zip(self.paths, members) if index in group)
        return batches, found, len(dataset), {"train_sizes": digest(found.blocks, found.atoms)}, validation, origin

    def streamed(self):
        """The same of shards that are read one after another; of the examples, the first are surveyed."""
        for path in self.paths:
            if not is_on_hub(path):
                self.check(path)
        with self.accelerator.main_process_first():
            datasets = list_shards(self.paths, self.processor.tokenizer, self.processor.keep_hydrogens)
            files, counts = zip(*itertools.chain.from_iterable(datasets))
            columns = stream_columns(files, self.config)
        stream = ShardStream(
            list(files), np.cumsum([0, *counts]).tolist(), shard_epochs(datasets, self.shares, self.seed), self.limits,
            self.make_batch, columns, **self.share,
        )  # fmt: skip
        self.accelerator.print(f"{sum(counts)} examples in {len(files)} shards, read one after another.")
        named = {"train_sizes": digest(counts), "dataloader_num_workers": self.data.dataloader_num_workers}
        batches = StreamedBatches(stream, **self.loader)
        origin = lambda index: files[int(np.searchsorted(stream.starts, index, side="right")) - 1]
        return batches, survey_stream(files, columns, self.vocab_size), sum(counts), named, None, origin

    def all(self):
        """-> `TrainingData`."""
        train, found, num_train, named, validation, origin = self.streamed() if self.data.streaming else self.indexed()
        if self.data.validation_file is not None:
            validation = self.read(self.data.validation_file, self.data.max_eval_samples)
        held_out, num_validation = None, 0
        if validation is not None:
            num_validation = len(validation)
            everything = lambda found: [(np.arange(num_validation), 1.0)]
            held_out, _ = self.by_index(validation, everything, self.make_validation_batch, shuffle=False)
        options = ("streaming", "balance_modalities", "max_blocks_per_batch", "max_atoms_per_batch", "max_blocks_per_example")
        named |= {"train_shares": self.shares, **{name: getattr(self.data, name) for name in options}}
        kinds = np.unique(found.modalities)
        kinds = kinds.tolist() if (kinds >= 0).any() else []
        return TrainingData(train, held_out, num_train, num_validation, kinds, found.log_frequencies(), named, origin)


def load_training_data(data, seed, processor, config, accelerator, cache_dir, collators):
    """`TrainingData` of a run; arguments as of `Loading`.

    Raises:
        `UsageError`, `StructureError`: if something cannot be read, or does not fit the model or the limits.
    """
    return Loading(data, seed, processor, config, accelerator, cache_dir, collators).all()


def digest(*arrays):
    """A short name of some numbers."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(array, dtype=np.int64).tobytes() for array in arrays)).hexdigest()[:16]


def stream_columns(files, config):
    """Columns that training reads of these shards.

    Raises:
        `UsageError`: if the model needs one that a shard does not have.
    """
    present = pq.read_schema(shard_file(files[0])).names
    needed = config.optional_inputs
    wanted = [name for name in COLUMNS if name in present and (name == "modality_ids" or needed.get(name, True))]
    for name, is_needed in needed.items():
        if is_needed and name not in present:
            raise UsageError(f"The model needs {name}, which {files[0]} does not have.")
    return wanted
