import itertools
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, VOCAB_SIZE, run, shipped_smiles, tiny_model
from test_prepare_dataset import writing_on_a_full_disk

import atomic_files
import run_embedding
from atomica_hf import StructureError
from dataset_shards import prepare


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("name,smiles\nethanol,CCO\nbad,c1ccc\naspirin,CC(=O)Oc1ccccc1C(=O)O\npair,CCO.O\n")
    return path


def test_one_vector_per_complex_in_the_order_of_the_input(model_folder, table, tmp_path, processor):
    done = run("run_embedding.py", "--model_name_or_path", model_folder, "--input_file", table, "--output_file",
               tmp_path / "v.parquet", "--max_blocks_per_batch", 5, "--dtype", "float64", "--device", "cpu")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 vectors" in done.stdout and "3 kept, 1 left out" in done.stdout and "bad" in done.stdout
    rows = pq.read_table(tmp_path / "v.parquet").to_pylist()
    assert [row["name"] for row in rows] == ["ethanol", "aspirin", "pair"]
    report = json.loads((tmp_path / "v.parquet.report.json").read_text())
    assert report["kept"] == 3 and report["rejected"][0]["reason"] == "smiles_syntax"
    model, _ = run_embedding.load_model(str(model_folder), "float64")
    inputs = processor(["CCO", "CC(=O)Oc1ccccc1C(=O)O", ("CCO", "O")], return_tensors="pt")
    expected = model(**inputs).pooler_output.detach().numpy()
    assert np.abs(np.array([row["embedding"] for row in rows]) - expected).max() < 1e-6


@pytest.mark.parametrize("level, columns", [("block", {"block", "token", "origin"}), ("atom", {"atom", "atom_name", "block"})])
def test_vectors_of_blocks_and_atoms(level, columns, model_folder, table, tmp_path, processor):
    options = [
        "--model_name_or_path",
        model_folder,
        "--input_file",
        table,
        "--output_file",
        tmp_path / "v.parquet",
        "--level",
        level,
        "--map",
        tmp_path / "map.svg",
    ]
    run_embedding.main([str(x) for x in [*options, "--device", "cpu"]])
    rows = [row for row in pq.read_table(tmp_path / "v.parquet").to_pylist() if row["name"] == "aspirin"]
    inputs = processor("CC(=O)Oc1ccccc1C(=O)O", return_tensors="pt")
    model, _ = run_embedding.load_model(str(model_folder))
    output = model(**inputs)
    expected = (output.last_hidden_state if level == "block" else output.atom_hidden_state)[0].detach().numpy()
    assert columns <= set(rows[0]) and (tmp_path / "map.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert np.abs(np.array([row["embedding"] for row in rows]) - expected).max() < 1e-4
    everything = [(row["index"], row[level]) for row in pq.read_table(tmp_path / "v.parquet").to_pylist()]
    assert everything == sorted(everything) and {index for index, _ in everything} == {0, 1, 2}
    if level == "block":
        assert [row["token"] for row in rows] == processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())


def test_what_cannot_be_embedded_is_named(model_folder, table, tmp_path):
    good = {"--model_name_or_path": model_folder, "--input_file": table, "--output_file": tmp_path / "v.parquet"}
    for change, words in (
        ({"--model_name_or_path": tmp_path / "nowhere"}, "nowhere"),
        ({"--input_file": tmp_path / "gone.sdf"}, "gone.sdf: no such file"),
        ({"--output_file": tmp_path}, "is a folder"),
        ({"--device": "nonsense"}, "--device nonsense"),
        ({"--max_samples": 0}, "at least 1"),
    ):
        with pytest.raises(StructureError, match=words):
            run_embedding.main([str(x) for pair in {**good, **change}.items() for x in pair])
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    (copy / "vocab.json").unlink()
    with pytest.raises(StructureError, match=f"{VOCAB_SIZE} block tokens, the tokenizer 150"):
        run_embedding.main([str(x) for pair in {**good, "--model_name_or_path": copy}.items() for x in pair])
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(StructureError, match="no Atomica model there"):
        run_embedding.main([str(x) for pair in {**good, "--model_name_or_path": copy}.items() for x in pair])
    assert not list(tmp_path.glob("v.parquet*"))


def run_main(*options):
    run_embedding.main([str(x) for x in (*options, "--device", "cpu", "--dtype", "float64")])


def test_representations_have_columns_of_their_names(model_folder, tmp_path, processor, capsys):
    table = tmp_path / "pairs.csv"
    table.write_text("smiles\nCC(=O)Oc1ccccc1C(=O)O.CCO\nCCO\nNC(=O)C.CCO.O\n")
    output = tmp_path / "v.parquet"
    base = ("--model_name_or_path", model_folder, "--input_file", table, "--output_file", output)
    names = ["h_graph", "z_graph", "h_interface", "z_interface", "z_block"]
    pooling = "mean_component_normalized"
    run_main(*base, "--representations", *names, "--pooling", pooling, "--segment", 1)
    text = capsys.readouterr().out
    rows = pq.read_table(output).to_pylist()
    model, _ = run_embedding.load_model(str(model_folder), "float64")
    widths = model.representation_widths(pooling)
    assert [row["index"] for row in rows] == [0, 2] and "CCO: 1 segments, none is number 1" in text
    assert f"z_block {widths['z_block']}" in text
    for row, item in zip(rows, (("CC(=O)Oc1ccccc1C(=O)O", "CCO"), ("NC(=O)C", "CCO", "O"))):
        inputs = processor(item, return_tensors="pt")
        expected = model.get_representations(names, pooling, 1, **inputs)
        for name in names:
            assert np.shape(row[name])[-1] == widths[name]
            assert np.abs(np.array(row[name]) - expected[name][0].detach().numpy()).max() < 1e-6, name
        assert row["tokens"] == processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    run_main(*base, "--representations", "h_block", "z_block")
    rows = pq.read_table(output).to_pylist()
    assert {"block", "token", "h_block", "z_block"} <= set(rows[0]) and len(rows[0]["h_block"]) == 8


def test_an_interface_of_a_file_is_named_or_all_are_embedded(shared, model_folder, tmp_path, processor, capsys):
    folder, out = shared / "data/complexes/atomica_examples", tmp_path / "v.parquet"
    base = ("--model_name_or_path", model_folder, "--output_file", out, "--representations", "h_graph")
    run_main(*base, "--input_file", folder / "6llw.cif")
    assert "list_interfaces.py" in capsys.readouterr().out
    run_main(*base, "--input_file", folder / "6llw.cif", "--side_a", "A", "--side_b", "A:UDP:900")
    assert "list_interfaces.py" not in capsys.readouterr().out
    (row,) = pq.read_table(out).to_pylist()
    model, _ = run_embedding.load_model(str(model_folder), "float64")
    inputs = processor.encode(processor.read(folder / "6llw.cif", "A", "A:UDP:900")[0])
    expected = run_embedding.embed(model, [inputs])[0]["h_graph"]
    assert np.abs(np.array(row["h_graph"]) - expected).max() < 1e-9
    run_main(*base, "--input_file", folder / "6hrg.cif", "--interfaces", "all")
    names = pq.read_table(out)["name"].to_pylist()
    assert names == ["6hrg_A_A_ZN_301", "6hrg_A_A_ZN_302", "6hrg_A_A_K_304"]
    for more, number in ((), 2), (("--max_samples", 1), 1):
        run_main(*base, "--input_file", folder / "6hrg.cif", "--side_a", "A", "--side_b", "A:ZN", *more)
        assert len(pq.read_table(out)) == number
    with pytest.raises(StructureError, match="--interfaces excludes --side_a"):
        run_main(*base, "--input_file", folder / "6hrg.cif", "--interfaces", "all", "--side_a", "A")


def test_names_that_do_not_fit_together_are_named(model_folder, table, tmp_path):
    base = ("--model_name_or_path", model_folder, "--input_file", table, "--output_file", tmp_path / "v.parquet")
    for options, words in (
        (("--representations", "z_graph"), "z_graph needs a `pooling`"),
        (("--representations", "h_interface"), "needs a `segment`"),
        (("--representations", "h_graph", "--pooling", "mean_std_global"), "take none"),
        (("--representations", "h_graph", "--level", "block"), "exclude each other"),
        (("--representations", "h_interface", "--segment", 7), "nothing has a segment 7"),
        (("--map", "map.txt"), "--map map.txt: expected a name that ends in .png"),
        (("--representations", "h_block", "h_graph", "--map", "map.png"), "h_block has lists"),
    ):
        with pytest.raises(StructureError, match=words):
            run_main(*base, *options)
    assert not list(tmp_path.glob("v.parquet*"))


def test_a_model_that_attends_to_padding_embeds_one_by_one(table, tmp_path, processor, capsys):
    folder = tmp_path / "model"
    tiny_model(dtype=torch.float32, attend_to_padding=True).save_pretrained(folder)
    processor.save_pretrained(folder)
    run_main("--model_name_or_path", folder, "--input_file", table, "--output_file", tmp_path / "v.parquet")
    assert "one by one" in capsys.readouterr().out
    model, _ = run_embedding.load_model(str(folder), "float64")
    for row, item in zip(pq.read_table(tmp_path / "v.parquet").to_pylist(), ("CCO", "CC(=O)Oc1ccccc1C(=O)O", ("CCO", "O"))):
        alone = model(**processor(item, return_tensors="pt")).pooler_output[0].detach().numpy()
        assert np.abs(np.array(row["embedding"]) - alone).max() < 1e-6


# parts, processes and kills


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, processor):
    """Molecules and pairs, a single atom, and one that has no second segment."""
    folder = tmp_path_factory.mktemp("data")
    smiles = [f"{text}.O" if i % 3 else text for i, text in enumerate(shipped_smiles()[:24])] + ["[Na+]"]
    (folder / "m.smi").write_text("".join(f"{text} m{i}\n" for i, text in enumerate(smiles)))
    prepare([folder / "m.smi"], folder / "prepared", processor, progress=False)
    return folder / "prepared"


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(run_embedding, "_PART_BLOCKS", (16, 16))


@pytest.fixture
def parts_made(monkeypatch):
    """Numbers of the parts that were computed."""
    made, real = [], run_embedding._embed_part

    def noted(name, device, wanted, task):
        made.append(task[0])
        return real(name, device, wanted, task)

    monkeypatch.setattr(run_embedding, "_embed_part", noted)
    return made


def command(model_folder, prepared, output, *more):
    options = ("--model_name_or_path", model_folder, "--input_file", prepared, "--output_file", output, "--device", "cpu")
    return [str(x) for x in (*options, "--max_blocks_per_batch", 12, *more)]


def test_parts_are_consecutive_and_whole():
    rng = np.random.default_rng(0)
    for sizes in (rng.integers(2, 30, 5000), rng.integers(2, 30, 40), np.array([3]), np.array([50_000, 2, 50_000, 2, 2])):
        parts = run_embedding.split_parts(sizes)
        assert np.array_equal(np.concatenate(parts), np.arange(len(sizes))) and all(len(part) for part in parts)
        most = min(max(sizes.sum() // 64, 256), 20_000)
        assert all(sizes[part[:-1]].sum() <= most for part in parts)


def test_a_part_is_the_vectors_of_its_examples_in_the_order_of_the_input(model_folder, processor):
    """The function that any process of any machine calls, by itself."""
    examples = [processor.encode(processor.read(text)[0]) for text in ("CC(=O)Oc1ccccc1C(=O)O", "CCO", "CCCN")]
    columns = {"h_graph": "h_graph", "h_block": "h_block"}
    wanted = run_embedding.Wanted(columns, None, None, "float64", 8, 1)
    number, found = run_embedding._embed_part(str(model_folder), "cpu", wanted, (7, [4, 6, 9], examples))
    assert number == 7 and found.schema == wanted.schema and found["index"].to_pylist() == [4, 6, 9]
    model, _ = run_embedding.load_model(str(model_folder), "float64")
    for row, example in zip(found.to_pylist(), examples):
        (expected,) = run_embedding.embed(model, [example], list(columns))
        for name in columns:
            assert np.allclose(row[name], expected[name], atol=1e-12), name


class Stopped(BaseException):
    pass


def test_a_run_stopped_anywhere_goes_on_to_the_same_file(
    model_folder, prepared, tmp_path, small_parts, parts_made, monkeypatch, capsys
):
    whole, output = tmp_path / "whole.parquet", tmp_path / "v.parquet"
    run_embedding.main(command(model_folder, prepared, whole))
    count, real = len(parts_made), atomic_files.os.replace
    assert parts_made == list(range(count)) and count > 5
    assert pq.read_table(whole)["index"].to_pylist() == list(range(25))
    # replace comes for the fingerprint, then once a part, for the output and the report
    for call in (0, 3, count, count + 1, count + 2):
        calls = itertools.count()

        def dies(*paths, calls=calls, call=call):
            if next(calls) == call:
                raise Stopped
            return real(*paths)

        parts_made.clear()
        monkeypatch.setattr(atomic_files.os, "replace", dies)
        with pytest.raises(Stopped):
            run_embedding.main(command(model_folder, prepared, output))
        monkeypatch.setattr(atomic_files.os, "replace", real)
        folder = tmp_path / "v.parquet.parts"
        finished = len(list(folder.glob("part-*")))
        assert finished == min(max(call - 1, 0), count) and output.exists() == (call == count + 2)
        (folder / "part-000000.1.tmp.parquet").write_bytes(b"torn")
        parts_made.clear()
        run_embedding.main(command(model_folder, prepared, output))
        assert parts_made == list(range(finished, count)), call
        assert ("goes on with what was begun" in capsys.readouterr().out) == (call > 0)
        assert output.read_bytes() == whole.read_bytes() and not folder.exists(), call
        assert json.loads((tmp_path / "v.parquet.report.json").read_text())["kept"] == 25
        output.unlink()


def test_parts_belong_to_the_command_that_began_them(model_folder, prepared, tmp_path, small_parts, parts_made, monkeypatch):
    output = tmp_path / "v.parquet"
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(run_embedding.Parts, "join", lambda *arguments: (_ for _ in ()).throw(Stopped))
        run_embedding.main(command(model_folder, prepared, output))
    other = tmp_path / "other"
    tiny_model(seed=1, dtype=torch.float32).save_pretrained(other)
    for name in ("tokenizer_config.json", "vocab.json", "processor_config.json"):
        shutil.copy(model_folder / name, other)
    for change, words in (
        (command(model_folder, prepared, output, "--dtype", "float64"), "with dtype float32, now float64"),
        (command(model_folder, prepared, output, "--level", "block"), "with columns .*h_graph.*, now .*h_block"),
        (command(model_folder, prepared, output, "--max_blocks_per_batch", 20), "with max_blocks 12, now 20"),
        (command(model_folder, prepared, output, "--num_threads", 2), "with num_threads 1, now 2"),
        (command(model_folder, prepared, output, "--max_samples", 20), "has changed since|with max_samples None, now 20"),
        (command(other, prepared, output), "with model .*, now .*Repeat that command, or remove the folder"),
    ):
        with pytest.raises(StructureError, match=words):
            run_embedding.main(change)
    with run_embedding.FileLock(tmp_path / "v.parquet.parts" / "lock"):
        with pytest.raises(StructureError, match="another process is writing it"):
            run_embedding.main(command(model_folder, prepared, output))
    torn = tmp_path / "v.parquet.parts" / "part-000002.parquet"
    content = torn.read_bytes()
    torn.write_bytes(content[:-10])
    with pytest.raises(StructureError, match="part-000002.parquet: cannot be read .*remove it"):
        run_embedding.main(command(model_folder, prepared, output))
    torn.unlink()
    parts_made.clear()
    run_embedding.main(command(model_folder, prepared, output))
    assert parts_made == [2] and len(pq.read_table(output)) == 25


def test_a_full_disk_is_said_and_damages_nothing(model_folder, prepared, tmp_path, small_parts, monkeypatch):
    output, whole = tmp_path / "v.parquet", tmp_path / "whole.parquet"
    run_embedding.main(command(model_folder, prepared, whole, "--level", "atom"))
    output.write_bytes(b"an earlier file")
    size = whole.stat().st_size
    for limit in (100, 1500, size // 2, size - 1):
        with monkeypatch.context() as patch:
            patch.setattr(run_embedding, "writing", lambda path, limit=limit: writing_on_a_full_disk(path, limit))
            with pytest.raises(StructureError, match="v.parquet: cannot be written .*the same command goes on"):
                run_embedding.main(command(model_folder, prepared, output, "--level", "atom"))
        assert output.read_bytes() == b"an earlier file"
        finished = list((tmp_path / "v.parquet.parts").glob("part-*"))
        assert bool(finished) == (limit > 1500) and all(pq.read_table(part).num_rows for part in finished)
    run_embedding.main(command(model_folder, prepared, output, "--level", "atom"))
    assert output.read_bytes() == whole.read_bytes()


LAUNCHED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import run_embedding
run_embedding._PART_BLOCKS = (16, 16)
write, written = run_embedding.Parts.write, []

def dies(self, number, table):
    write(self, number, table)
    written.append(number)
    if os.environ.get("DIES") == os.environ["RANK"] and len(written) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

run_embedding.Parts.write = dies
run_embedding.main()
Path(__file__).with_name("written-" + os.environ["RANK"]).write_text(str(written))
"""


def test_two_processes_of_which_one_is_killed_write_the_file_of_one(model_folder, prepared, tmp_path, small_parts, parts_made):
    script, output = tmp_path / "launched.py", tmp_path / "v.parquet"
    script.write_text(LAUNCHED.format(root=str(ROOT)))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, script]
    options = command(model_folder, prepared, output)
    killed = run(*launcher, *options, DIES="1")
    finished = {int(path.stem[5:]) for path in (tmp_path / "v.parquet.parts").glob("part-??????.parquet")}
    assert killed.returncode and {1, 3} <= finished and not output.exists()
    done = run(*launcher, *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("25 vectors, one per complex") == 1
    run_embedding.main(command(model_folder, prepared, tmp_path / "whole.parquet"))
    wrote = [json.loads(file.read_text()) for file in tmp_path.glob("written-?")]
    assert sorted([*finished, *sum(wrote, [])]) == parts_made and all(wrote) and len(wrote) == 2
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
