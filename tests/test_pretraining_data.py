"""Which examples make an epoch, in which batches, whoever makes them."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import shipped_smiles

import pretraining_data
from atomica_hf import AtomicaConfig, AtomicaPreTrainingCollator
from dataset_shards import prepare
from prepared_datasets import load_prepared
from pretraining_arguments import UsageError
from pretraining_data import (
    BatchMaker,
    Epochs,
    IndexedBatches,
    Limits,
    NumberedExamples,
    ShardStream,
    SizedBatchSampler,
    StreamedBatches,
    list_shards,
    local_path,
    modality_groups,
    parse_sources,
    shard_epochs,
    share_groups,
    stream_columns,
    survey,
    survey_stream,
)
from pretraining_losses import LOSSES


LOSS_NAMES = tuple(name for name in LOSSES if name != "atom")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, processor):
    """Thirty molecules and pairs in shards of three."""
    folder = tmp_path_factory.mktemp("data")
    smiles = sorted(shipped_smiles(), key=len)[:24]
    lines = [f"{text} m{i}" for i, text in enumerate(smiles)] + [f"{text}.O p{i}" for i, text in enumerate(smiles[8:14])]
    (folder / "few.smi").write_text("\n".join(lines) + "\n")
    prepare([folder / "few.smi"], folder / "set", processor, shard_size=3, progress=False)
    return folder / "set"


def one_group(size, seed=7, shuffle=True):
    return Epochs([(np.arange(size), 1.0)], seed, shuffle)


def batches_of(sampler, epoch=0, first=0):
    sampler.epoch, sampler.first_batch = epoch, first
    return list(sampler)


def test_batches_hold_every_example_once_whoever_makes_them():
    rng = np.random.default_rng(0)
    blocks = rng.integers(2, 90, size=1301)
    atoms = blocks * rng.integers(3, 12, size=1301)
    limits = Limits(200, 64, 900)
    cut_blocks, cut_atoms = np.minimum(blocks, 64), np.minimum(atoms, 900)
    for epoch in (0, 1):
        whole = batches_of(SizedBatchSampler(blocks, atoms, limits, one_group(1301)), epoch)
        assert sorted(index for batch in whole for _, index in batch) == list(range(1301))
        assert {number for batch in whole for number, _ in batch} == {epoch}
        for batch in whole:
            found = [index for _, index in batch]
            assert len(found) * cut_blocks[found].max() <= 200 and len(found) * cut_atoms[found].max() <= 900
        for processes in (2, 4):
            samplers = [SizedBatchSampler(blocks, atoms, limits, one_group(1301), processes, r) for r in range(processes)]
            parts = [batches_of(sampler, epoch) for sampler in samplers]
            assert [len(part) for part in parts] == [len(sampler) for sampler in samplers]
            assert all(part == whole[rank::processes] for rank, part in enumerate(parts))
            assert [batches_of(sampler, epoch, 3) for sampler in samplers] == [part[3:] for part in parts]
    assert batches_of(SizedBatchSampler(blocks, atoms, limits, one_group(1301)), 0) != whole
    padding = sum(len(b) * max(cut_blocks[i] for _, i in b) for b in whole) / cut_blocks.sum()
    assert padding < 1.05


def test_more_processes_than_batches_leave_some_without():
    lengths = [len(SizedBatchSampler([2, 2, 2], [4, 4, 4], Limits(2, 8), one_group(3), 4, rank)) for rank in range(4)]
    assert lengths == [1, 1, 1, 0]


def test_weights_are_shares_of_an_epoch_and_nothing_comes_twice_before_all_came_once():
    large, small = np.arange(700), np.arange(700, 1000)
    epochs = Epochs(share_groups([large, small], [0.4, 0.6]), 3)
    seen = Counter()
    for epoch in range(7):
        passes, drawn = epochs.order(epoch)
        assert (drawn < 700).sum() == 400 and (drawn >= 700).sum() == 600
        assert len(set(zip(passes.tolist(), drawn.tolist()))) == 1000  # what comes again is another pass, so another puzzle
        seen.update(drawn.tolist())
    times = np.array([seen[i] for i in range(1000)])
    assert (times[:700] == 4).all() and (times[700:] == 14).all()
    assert not np.array_equal(epochs.order(0)[1], epochs.order(1)[1])
    assert np.array_equal(epochs.order(5)[1], Epochs(share_groups([large, small], [0.4, 0.6]), 3).order(5)[1])


def test_modalities_are_drawn_alike():
    modalities = np.array([0] * 90 + [1] * 9 + [-1])
    _, drawn = Epochs(modality_groups(modalities), 0).order(0)
    assert {kind: int((modalities[drawn] == kind).sum()) for kind in (-1, 0, 1)} == {-1: 33, 0: 33, 1: 33}
    with pytest.raises(UsageError, match="modality_ids"):
        modality_groups(np.full(3, -1))


def test_weights_behind_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd:0.5").write_text("")
    assert parse_sources(["a.csv", "C:\\data", "odd:0.5"]) == (["a.csv", "C:\\data", "odd:0.5"], None)
    assert parse_sources(["a:3", "b:1"]) == (["a", "b"], [0.75, 0.25])
    for texts, words in ((["a:0.5", "b"], "b has no weight"), (["a:0", "b:1"], "a:0.*positive"), (["a:nan"], "positive")):
        with pytest.raises(UsageError, match=words):
            parse_sources(texts)


def test_a_survey_counts_what_the_examples_hold(prepared, processor):
    dataset = load_prepared(prepared, processor.tokenizer)
    for part in (dataset, dataset.select([5, 2, 29])):
        found = survey(part, len(processor.tokenizer))
        assert found.blocks.tolist() == [len(row["input_ids"]) for row in part]
        assert found.atoms.tolist() == [len(row["atom_ids"]) for row in part]
        assert found.segments.tolist() == [max(row["token_type_ids"]) + 1 for row in part]
        counts = Counter(token for row in part for token in row["input_ids"])
        assert {i: int(n) for i, n in enumerate(found.token_counts) if n} == counts
        assert abs(float(found.log_frequencies().exp().sum()) - 1) < 1e-5
    files = [file for file, _ in list_shards([prepared], processor.tokenizer)[0]]
    streamed = survey_stream(files, stream_columns(files, AtomicaConfig()), len(processor.tokenizer))
    assert sorted(streamed.blocks) == sorted(survey(dataset, len(processor.tokenizer)).blocks)


def same(one, other):
    return one.names == other.names and all(torch.equal(one.inputs[name], other.inputs[name]) for name in one.inputs)


def test_rows_of_an_arrow_table_make_the_batches_of_python_lists(prepared, processor):
    dataset = load_prepared(prepared, processor.tokenizer)
    make = BatchMaker(AtomicaPreTrainingCollator(seed=3), LOSS_NAMES)
    keys = [(2, 4), (2, 29), (2, 0), (2, 25)]
    found = make(NumberedExamples(dataset).__getitems__(keys))
    plain = make([{**dataset[index], "epoch": epoch, "example_index": index} for epoch, index in keys])
    assert same(found, plain) and found.weights == plain.weights and found.weights["mask"] >= 4
    assert found.num_atoms == int((found.inputs["atom_ids"] > 0).sum())


def by_index(prepared, processor, workers, limits, processes=1, rank=0):
    dataset = load_prepared(prepared, processor.tokenizer)
    found = survey(dataset, len(processor.tokenizer))
    sampler = SizedBatchSampler(found.blocks, found.atoms, limits, one_group(len(dataset)), processes, rank)
    return IndexedBatches(dataset, sampler, BatchMaker(AtomicaPreTrainingCollator(), LOSS_NAMES), workers)


def test_batches_by_index_are_the_same_with_workers_and_from_the_middle(prepared, processor):
    limits = Limits(24, 256)
    alone = by_index(prepared, processor, 0, limits)
    whole = list(alone.batches(1, alone.start))
    position = alone.start
    for batch in whole[:2]:
        position = alone.after(position, batch)
    later = list(by_index(prepared, processor, 2, limits).batches(1, position))
    assert len(later) == len(whole) - 2 and all(map(same, later, whole[2:]))
    assert alone.filler().num_complexes == 1


def stream_of(prepared, processor, workers=0, processes=1, rank=0, shares=None, limits=None, datasets=None):
    datasets = list_shards(datasets or [prepared], processor.tokenizer)
    shards = [shard for part in datasets for shard in part]
    files = [file for file, _ in shards]
    starts = np.cumsum([0, *(count for _, count in shards)]).tolist()
    stream = ShardStream(
        files, starts, shard_epochs(datasets, shares, 1), limits or Limits(24, 256),
        BatchMaker(AtomicaPreTrainingCollator(), LOSS_NAMES), stream_columns(files, AtomicaConfig()), processes, rank,
    )  # fmt: skip
    return StreamedBatches(stream, workers)


def test_a_stream_gives_everything_once_over_processes_and_workers(prepared, processor, monkeypatch):
    monkeypatch.setattr(pretraining_data, "STREAM_WINDOW", 8)  # several windows in so small a set
    expected = sorted(load_prepared(prepared, processor.tokenizer)["name"])
    for processes, workers in ((1, 0), (2, 0), (2, 2)):
        streams = [stream_of(prepared, processor, workers, processes, rank) for rank in range(processes)]
        names = [[b.names for b in stream.batches(0, stream.start)] for stream in streams]
        assert sorted(name for part in names for batch in part for name in batch) == expected
    again = [b.names for b in streams[1].batches(0, streams[1].start)]
    other_epoch = [b.names for b in streams[1].batches(1, streams[1].start)]
    assert again == names[1] and other_epoch != again


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_a_stream_goes_on_where_it_was_left(prepared, processor, workers, monkeypatch):
    monkeypatch.setattr(pretraining_data, "STREAM_WINDOW", 8)
    stream = stream_of(prepared, processor, workers)
    whole = list(stream.batches(2, stream.start))
    position = stream.start
    for done, batch in enumerate(whole[:-1], 1):
        position = json.loads(json.dumps(stream.after(position, batch)))
        if done % 3 == 0 or done == len(whole) - 1:
            rest = list(stream_of(prepared, processor, workers).batches(2, position))
            assert len(rest) == len(whole) - done and all(map(same, rest, whole[done:]))
    assert stream.filler().num_complexes == 1


def test_shares_of_a_stream_are_shares_of_shards(prepared, processor):
    stream = stream_of(prepared, processor, datasets=[prepared, prepared], shares=[0.2, 0.8])
    shards = np.concatenate([stream.stream.epochs.order(epoch)[1] for epoch in range(5)])
    assert (shards < 10).sum() == 20 and (shards >= 10).sum() == 80
    with pytest.raises(UsageError, match="20 shards cannot be split among 42"):
        stream_of(prepared, processor, workers=21, processes=2, datasets=[prepared, prepared])


def test_what_cannot_be_streamed_is_named(prepared, processor, tmp_path, original_tokenizer):
    with pytest.raises(UsageError, match="nowhere.*prepare it first"):
        list_shards([tmp_path / "nowhere"], processor.tokenizer)
    with pytest.raises(ValueError, match="vocabulary"):
        list_shards([prepared], original_tokenizer)


def test_a_dataset_of_the_hub_is_fetched_as_a_folder(prepared, monkeypatch):
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(prepared)

    monkeypatch.setattr(pretraining_data.huggingface_hub, "snapshot_download", download)
    assert local_path("hf://datasets/someone/complexes") == str(prepared)
    assert asked["name"] == "someone/complexes" and asked["repo_type"] == "dataset"
    assert local_path("few.csv") == "few.csv"


def test_a_process_fetches_the_shards_of_the_hub_that_fall_to_it(prepared, processor, tmp_path, monkeypatch):
    snapshot, asked = tmp_path / "1234abcd", []
    snapshot.mkdir()
    shutil.copy(prepared / "read_report.json", snapshot)

    def download(name, repo_type, revision, filename):
        asked.append((name, revision, filename))
        return str(prepared / filename)

    monkeypatch.setattr(pretraining_data.huggingface_hub, "snapshot_download", lambda *a, **b: str(snapshot))
    monkeypatch.setattr(pretraining_data.huggingface_hub, "hf_hub_download", download)
    datasets = list_shards(["hf://datasets/someone/complexes"], processor.tokenizer)
    assert not asked and len(datasets[0]) == 10
    names, fetched = [], []
    for rank in range(2):
        stream = stream_of(prepared, processor, processes=2, rank=rank, datasets=["hf://datasets/someone/complexes@main"])
        asked.clear()  # the columns were looked up in the first shard
        names.append([b.names for b in stream.batches(0, stream.start)])
        own = stream_of(prepared, processor, processes=2, rank=rank)
        assert names[-1] == [b.names for b in own.batches(0, own.start)]
        fetched.append(list(asked))
    assert all(row[:2] == ("someone/complexes", "1234abcd") for part in fetched for row in part)
    assert len(fetched[0]) == len(fetched[1]) == 5 and len({row[2] for part in fetched for row in part}) == 10
