"""Damaged data: shards are named before training starts, examples are left out, counted and named."""

import json
import re
import shutil

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pretraining_runs import TINY, rows, same_tensors

import run_pretraining
from atomica_hf import AtomicaConfig
from dataset_shards import prepare
from prepared_datasets import load_prepared
from pretraining_arguments import UsageError
from pretraining_checks import ExampleCheck, check_shards


SHARD = "data-00001.parquet"


@pytest.fixture(scope="module")
def prepared(shared, tmp_path_factory, processor):
    """Nine real complexes in shards of three."""
    files = sorted((shared / "data/complexes/mixed").glob("*.pdb.gz"))[:9]
    folder = tmp_path_factory.mktemp("data") / "set"
    report = prepare(files, folder, processor, shard_size=3, progress=False)
    assert [shard["examples"] for shard in report["shards"]] == [3, 3, 3]
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


@pytest.fixture
def damaged(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "damaged")
    return tmp_path / "damaged"


def train(folder, output, *more, steps=4):
    more = (
        "--max_train_steps",
        steps,
        "--logging_steps",
        1,
        "--max_blocks_per_example",
        24,
        "--max_blocks_per_batch",
        48,
        *more,
    )
    run_pretraining.main([str(x) for x in ("--train_file", folder, "--output_dir", output, *TINY, *more)])


def cut(path):
    path.write_bytes(path.read_bytes()[:-2000])


def rewrite(change):
    def damage(path):
        pq.write_table(change(pq.read_table(path)), path)

    return damage


def with_column(name, values):
    return rewrite(lambda table: table.set_column(table.column_names.index(name), name, pa.array([values] * len(table))))


SHARDS = {
    "is no whole Parquet file \\(0 bytes": lambda path: path.write_bytes(b""),
    "is no whole Parquet file \\([\\d,]{5,} bytes": cut,
    "is missing": lambda path: path.unlink(),
    "has no column atom_ids, expected name, input_ids": rewrite(lambda table: table.drop_columns(["atom_ids"])),
    "has lists of numbers in the column input_ids, expected lists of integers": with_column("input_ids", [1.5]),
    "has lists of integers in the column positions, expected lists of lists of numbers": with_column("positions", [1]),
    "has 0 examples, expected 3": rewrite(lambda table: table.slice(0, 0)),
    "has 2 examples, expected 3": rewrite(lambda table: table.slice(1)),
}


@pytest.mark.parametrize("words", SHARDS)
def test_a_damaged_shard_is_named_before_training(words, damaged, tmp_path):
    check_shards(damaged)
    SHARDS[words](damaged / SHARD)
    for more in ((), ("--streaming",)):
        with pytest.raises(UsageError, match=f"1 of 3 shards are damaged: .*{SHARD} {words}"):
            train(damaged, tmp_path / "out", *more)
        assert not (tmp_path / "out").exists()


def test_a_shard_whose_middle_is_damaged_is_named(damaged, tmp_path):
    """Its footer is whole, so that this is seen when it is read."""
    path = damaged / SHARD
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    check_shards(damaged)
    for more in ((), ("--streaming",)):
        with pytest.raises(UsageError, match=f"{SHARD} cannot be read"):
            train(damaged, tmp_path / "out", *more)


def test_a_damaged_report_is_named(damaged, tmp_path):
    (damaged / "read_report.json").write_text('{"shards": [{"examples": 3}]}')
    for more in ((), ("--streaming",)):
        with pytest.raises(UsageError, match="read_report.json: not a report of prepare_dataset.py .*'file'"):
            train(damaged, tmp_path / "out", *more)


def changed(column, value):
    return lambda example: {**example, column: value(example[column])}


EXAMPLES = {  # reason -> what is done to an example
    "1 of .* positions are not finite": changed("positions", lambda v: [[v[0][0], float("nan"), v[0][2]], *v[1:]]),
    "token_type_ids for .* blocks": changed("token_type_ids", lambda v: v[:-1]),
    "no input_ids": changed("input_ids", lambda v: None),
    "0 blocks and .* atoms": changed("input_ids", lambda v: []),
    "positions that are not three numbers each": changed("positions", lambda v: [v[0][:2], *v[1:]]),
    "atom_to_block from 0 to 999999, expected integers from 0 to": changed("atom_to_block", lambda v: [*v[:-1], 999999]),
}


def damage_examples(folder, faults):
    """Of each shard the first two examples, each in a way of its own; returns their names and what is wrong."""
    expected, faults = {}, iter(faults.items())
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path)
        examples = table.to_pylist()
        for number, (words, damage) in zip((0, 1), faults):
            examples[number] = damage(examples[number])
            expected[examples[number]["name"]] = (path.name, words)
        pq.write_table(pa.Table.from_pylist(examples, table.schema), path)
    return expected


@pytest.mark.parametrize("more", [(), ("--streaming",)])
def test_damaged_examples_are_left_out_and_named_once(more, damaged, tmp_path, capsys):
    expected = damage_examples(damaged, EXAMPLES)
    assert len(expected) == 6
    more = (*more, "--checkpointing_steps", 3)
    train(damaged, tmp_path / "out", *more, steps=6)
    found = rows(tmp_path / "out", "left out")
    assert sorted(row["name"] for row in found) == sorted(expected)
    for row in found:
        file, words = expected[row["name"]]
        assert re.search(words, row["reason"]) and (row["file"].endswith(file) if more[0] == "--streaming" else True)
        assert str(damaged) in row["file"]
    text = capsys.readouterr().out
    assert "6 damaged examples were left out, first " in text and f"{found[0]['name']} is left out: " in text
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["left_out_examples"] == 6
    assert all(np.isfinite(row["loss"]) and row["skipped"] < 6 for row in rows(tmp_path / "out"))
    shutil.copytree(tmp_path / "out", tmp_path / "again")
    for name in ("model.safetensors", "all_results.json"):
        (tmp_path / "again" / name).unlink()
    shutil.rmtree(tmp_path / "again" / "checkpoint-6")
    train(damaged, tmp_path / "again", *more, "--resume_from_checkpoint", "latest", steps=6)
    assert same_tensors(tmp_path / "out" / "model.safetensors", tmp_path / "again" / "model.safetensors")
    assert rows(tmp_path / "again", "left out") == found


def test_nothing_but_damaged_examples_ends_the_run(damaged, tmp_path):
    nan = EXAMPLES["1 of .* positions are not finite"]
    for path in damaged.glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(pa.Table.from_pylist([nan(example) for example in table.to_pylist()], table.schema), path)
    with pytest.raises(UsageError, match="No example can be used; .*positions are not finite"):
        train(damaged, tmp_path / "out")


def test_steps_without_an_example_are_skipped_ones(damaged, tmp_path):
    nan = EXAMPLES["1 of .* positions are not finite"]
    for path in sorted(damaged.glob("*.parquet"))[:2]:
        table = pq.read_table(path)
        pq.write_table(pa.Table.from_pylist([nan(example) for example in table.to_pylist()], table.schema), path)
    alone = ("--max_blocks_per_batch", 24, "--checkpointing_steps", 9)
    with pytest.raises(
        UsageError, match="steps in a row.*without examples.*damaged examples were left out, first .*not finite"
    ):
        train(damaged, tmp_path / "out", *alone, "--max_skipped_steps", 1, steps=9)
    train(damaged, tmp_path / "more", *alone, steps=9)
    assert rows(tmp_path / "more")[-1]["skipped"] == len(rows(tmp_path / "more", "left out")) == 6


def test_real_examples_are_whole_and_each_fault_is_told(prepared, processor):
    check = ExampleCheck(AtomicaConfig(vocab_size=len(processor.tokenizer)))
    dataset = load_prepared(prepared, processor.tokenizer)
    examples = list(dataset)
    assert all(check(example) is None for example in examples)
    arrays = dataset.with_format("numpy")
    assert all(check({**arrays[i], "torsion_atoms": examples[i]["torsion_atoms"]}) is None for i in range(3))
    example = next(example for example in examples if example["torsion_bonds"])
    num_atoms = len(example["atom_ids"])
    for words, damage in {
        "input_ids from .* to 99999": changed("input_ids", lambda v: [*v[:-1], 99999]),
        "atom_ids from -1": changed("atom_ids", lambda v: [-1, *v[1:]]),
        f"torsion_bonds from .* to {num_atoms}": changed("torsion_bonds", lambda v: [[0, num_atoms], *v[1:]]),
        "torsion_atoms for .* torsion_bonds": changed("torsion_atoms", lambda v: v[:-1]),
        f"torsion_atoms from .* to {num_atoms}": changed("torsion_atoms", lambda v: [[num_atoms], *v[1:]]),
        "token_type_ids from 0 to": changed("segment_is_polymer", lambda v: []),
        "1 block_features": lambda example: {**example, "block_features": [[0.0]]},
    }.items():
        fault = check(damage(example))
        assert fault and re.search(words, fault), (words, fault)
