import contextlib
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys

import datasets
import gemmi
import numpy as np
import pytest
from conftest import ROOT, run
from datasets import Dataset, Features, load_dataset

import dataset_reading
import dataset_shards
import prepare_dataset
import prepared_datasets
from atomica_hf import ReadReport, StructureError
from atomica_hf.processing_atomica import AtomicaProcessor
from dataset_shards import load_examples
from original_data import example_to_record
from prepared_datasets import FEATURES, JOURNAL_FILE, OPTIONAL_FEATURES, REPORT_FILE, load_prepared


SMILES = "smiles,name\nCCO,a\nc1ccc,b\nCCN,c\nOc1ccccc1.O,d\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


def write_smiles(file, *smiles):
    file.write_text("smiles,name\n" + "".join(f"{text},{chr(97 + i)}\n" for i, text in enumerate(smiles)))
    return file


def script(*arguments):
    prepare_dataset.main(list(map(str, arguments)))


def launch(*arguments):
    done = run("prepare_dataset.py", *arguments)
    assert done.returncode == 0, done.stderr


def fails(*arguments):
    with pytest.raises(StructureError) as error:
        script(*arguments)
    return str(error.value)


def report_of(folder):
    return json.loads((folder / REPORT_FILE).read_text())


def content(folder):
    """What must not depend on how a folder came about."""
    report = report_of(folder)
    for row in report["inputs"]:
        row.pop("seconds")
    assert sorted(p.name for p in folder.iterdir()) == sorted([REPORT_FILE, *(shard["file"] for shard in report["shards"])])
    return report, [(folder / shard["file"]).read_bytes() for shard in report["shards"]]


def test_a_dataset_is_what_the_processor_makes(tmp_path, processor, capsys):
    (tmp_path / "m.csv").write_text(SMILES)
    report = ReadReport()
    found = list(dataset_reading.read_examples(tmp_path / "m.csv", processor, report))
    assert report.kept == 3 and [name for name, _, _ in report.rejected] == ["m.csv row 2: b"]
    script(tmp_path / "m.csv", "--output_dir", tmp_path / "d")
    dataset = load_prepared(tmp_path / "d", processor.tokenizer)
    assert dataset["name"][:] == ["a", "c", "d"] and dataset.features == FEATURES and dataset.cache_files
    for row, example in zip(dataset, found):
        assert all(np.array_equal(row[name], example[name]) for name in FEATURES if name != "torsion_atoms"), row["name"]
    assert not list(tmp_path.glob("d.*"))
    printed = capsys.readouterr().out
    assert printed.split("\n")[1].split()[1:5] == ["4", "3", "1", "0"]
    assert "1 x smiles_syntax, first: b: 'c1ccc'" in printed and "3 examples in 1 shards" in printed
    assert "exists already" in fails(tmp_path / "m.csv", "--output_dir", tmp_path / "d")


def test_shards_stream_with_their_features(tmp_path, processor):
    record = example_to_record(processor.encode(processor.read("CCO")[0]))
    (tmp_path / "x.jsonl").write_text(json.dumps({**record, "id": "labelled", "affinity": {"neglog_aff": 2.5}}) + "\n")
    write_smiles(tmp_path / "m.csv", "CCO", "CCN", "CCC")
    script(tmp_path / "m.csv", tmp_path / "x.jsonl", "--output_dir", tmp_path / "d", "--shard_size", 2, "--no_deduplicate")
    files = sorted(map(str, tmp_path.glob("d/*.parquet")))
    assert [os.path.basename(file) for file in files] == ["data-00000.parquet", "data-00001.parquet"]
    stream = load_dataset("parquet", data_files=files, split="train", streaming=True)
    assert stream.features == Features({**FEATURES, **OPTIONAL_FEATURES})
    dataset = load_prepared(tmp_path / "d", processor.tokenizer)
    assert dataset.features == Features({**FEATURES, "label": OPTIONAL_FEATURES["label"]})
    for streamed, row in itertools.zip_longest(stream, dataset):
        assert {name: streamed[name] for name in row} == row and streamed["modality_ids"] is None
    assert dataset["label"][:] == [None, None, None, 2.5]


def killed(arguments, function, call):
    """The script in a process that ends by SIGKILL where it calls a function of `os` for the nth time."""
    child = os.fork()
    if not child:
        original, calls = getattr(os, function), itertools.count()

        def dies(*values):
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*values)

        setattr(os, function, dies)
        try:
            script(*arguments)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def test_a_run_killed_anywhere_goes_on_to_the_same_dataset(tmp_path):
    write_smiles(tmp_path / "one.csv", "CCO", "CCN", "c1cc", "CCO", "CCC")
    write_smiles(tmp_path / "two.csv", "CCN", "O", "CCCC", "C(F)(F)F")
    command = [tmp_path / "one.csv", tmp_path / "two.csv", "--shard_size", 2, "--output_dir"]
    script(*command, tmp_path / "whole")
    expected = content(tmp_path / "whole")
    assert expected[0]["kept"] == 6 and len(expected[1]) == 3
    assert [(row["read"], row["kept"], row["rejected"], row["duplicates"]) for row in expected[0]["inputs"]] == [
        (5, 3, 1, 1), (4, 3, 0, 1),
    ]  # fmt: skip
    out = tmp_path / "d"
    # fsync comes twice a shard (the shard, the journal), replace once; then both for the report; unlink is of the journal
    points = [("rename", 0), *(("fsync", n) for n in range(7)), *(("replace", n) for n in range(4)), ("unlink", 0)]
    for function, call in points:
        assert killed([*command, out], function, call), (function, call)
        if (out / JOURNAL_FILE).exists() and not (out / REPORT_FILE).exists():
            with open(out / JOURNAL_FILE, "a") as journal:
                journal.write('{"shard": {"file": "data-0')
            done = sum(line.endswith("\n") for line in open(out / JOURNAL_FILE)) - 1
            if done:
                before = (out / "data-00000.parquet").stat()
            (out / "data-00009.parquet.tmp").touch()
            if done == 1:  # and once more, after a torn line
                assert killed([*command, out], "fsync", 2)
            script(*command, out)
            if done:
                assert (out / "data-00000.parquet").stat().st_ino == before.st_ino
        elif (out / REPORT_FILE).exists():
            assert "exists already" in fails(*command, out)
            (out / JOURNAL_FILE).unlink(missing_ok=True)
            (out / f"{JOURNAL_FILE}.lock").unlink(missing_ok=True)
        else:
            script(*command, out)
        assert content(out) == expected, (function, call)
        shutil.rmtree(out)


def test_the_script_killed_from_outside_goes_on(tmp_path):
    write_smiles(tmp_path / "m.csv", *(f"CC(=O)Oc1ccccc1C(=O)N{'C' * i}" for i in range(1, 25)))
    command = [tmp_path / "m.csv", "--shard_size", 2, "--output_dir"]
    process = subprocess.Popen(
        [sys.executable, "prepare_dataset.py", *map(str, [*command, tmp_path / "d"])], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    while not (tmp_path / "d" / "data-00000.parquet").exists():
        assert process.poll() is None
        os.sched_yield()
    process.kill()
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "d" / REPORT_FILE).exists()
    script(*command, tmp_path / "d")
    script(*command, tmp_path / "whole")
    assert content(tmp_path / "d") == content(tmp_path / "whole") and report_of(tmp_path / "d")["kept"] == 24


def test_workers_that_hang_or_die_are_replaced_and_change_nothing_else(tmp_path, processor, monkeypatch):
    write_smiles(tmp_path / "m.csv", "CCO", "CCN", "c1cc", "CCO", "CCC", "CCCC", "CCS")
    one = dataset_shards.prepare([tmp_path / "m.csv"], tmp_path / "one", processor, shard_size=2, progress=False)
    real = dataset_reading.list_inputs

    def with_bad_ones(path, options):
        work = real(path, options)
        work.insert(1, ("dies", subprocess.check_call, (["sh", "-c", f"echo >> {tmp_path}/deaths; kill -9 $PPID"],)))
        work.insert(4, ("hangs", hashlib.pbkdf2_hmac, ("sha256", b"", b"", 2**31 - 1)))  # native, not to be interrupted
        return work

    monkeypatch.setattr(dataset_reading, "list_inputs", with_bad_ones)
    two = dataset_shards.prepare(
        [tmp_path / "m.csv"], tmp_path / "two", processor, num_proc=2, shard_size=2, time_limit=2.0, progress=False
    )
    died, *rest, slow = two["rejected"]
    assert (tmp_path / "deaths").read_text() == "\n\n"
    assert (died["name"], died["reason"], slow["name"], slow["reason"]) == ("dies", "worker_died", "hangs", "time_limit")
    assert rest == one["rejected"] and len(rest) == 1
    assert "exit code -9" in died["message"] and "hangs: took longer than 2 s" in slow["message"]
    assert content(tmp_path / "one")[1] == content(tmp_path / "two")[1] and one["kept"] == two["kept"] == 6


def test_one_piece_of_work_gives_its_examples_or_says_why_not(processor, tmp_path):
    file = write_smiles(tmp_path / "m.csv", "CCO", "c1cc")
    good, bad = dataset_reading.list_inputs(file, processor.read_options)
    place, (name, ((example, notes),), errors) = dataset_reading._encode(processor, ((3, 1), good))
    assert (place, name, example["name"], errors) == ((3, 1), "m.csv row 1: a", "a", [])
    _, (name, examples, (error,)) = dataset_reading._encode(processor, ((3, 2), bad))
    assert (name, examples, error.code) == ("m.csv row 2: b", [], "smiles_syntax")
    place, (name, examples, (error,)) = dataset_reading._failed(((3, 1), good), "time_limit", "took longer than 1 s")
    assert (place, examples, error.code, str(error)) == ((3, 1), [], "time_limit", "m.csv row 1: a: took longer than 1 s.")


@contextlib.contextmanager
def writing_on_a_full_disk(path, size, writing=dataset_shards.writing):
    """Stands for `writing`: in its block no file grows beyond a size; the write fails in the middle."""
    resource = pytest.importorskip("resource", reason="limits of the file size are of POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with writing(path):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_said_and_damages_nothing(tmp_path, monkeypatch):
    write_smiles(tmp_path / "m.csv", "CCO", "CCN", "c1cc", "CC(=O)Oc1ccccc1C(=O)O", "CCC", "CCCC", "O")
    command = [tmp_path / "m.csv", "--shard_size", 2, "--output_dir"]
    script(*command, tmp_path / "whole")
    expected = content(tmp_path / "whole")
    smallest, *_, largest = sorted(shard["bytes"] for shard in expected[0]["shards"])
    assert smallest < largest
    for size in (100, 1000, smallest - 1, smallest, largest - 1):
        with monkeypatch.context() as patch:
            patch.setattr(dataset_shards, "writing", lambda path, size=size: writing_on_a_full_disk(path, size))
            message = fails(*command, tmp_path / "d")
        assert f"{tmp_path / 'd'}: cannot be written" in message and "the same command goes on" in message
    assert (tmp_path / "d" / "data-00000.parquet").exists() and not (tmp_path / "d" / REPORT_FILE).exists()
    script(*command, tmp_path / "d")
    assert content(tmp_path / "d") == expected


def test_a_shard_ends_at_its_size(tmp_path, processor):
    write_smiles(tmp_path / "m.csv", *("CCO", "CCN", "CCC", "CCCC") * 3)
    for size, shards in (("64MB", 1), ("2KB", None), ("1KB", None)):
        folder = tmp_path / size
        script(tmp_path / "m.csv", "--output_dir", folder, "--no_deduplicate", "--max_shard_size", size)
        found = [shard["examples"] for shard in report_of(folder)["shards"]]
        rows = list(load_prepared(folder, processor.tokenizer))
        assert sum(found) == len(rows) == 12 and shards in (None, len(found))
        limit, at = report_of(folder)["settings"]["max_shard_size"], 0
        for number in found[:-1]:  # the first example that reaches the size is the last of its shard
            sizes = np.cumsum([dataset_shards._size(row) for row in rows[at : at + number]])
            assert sizes[-1] >= limit and (number == 1 or sizes[-2] < limit)
            at += number
        assert len(found) > 1 or size == "64MB"


def test_duplicates_are_left_out_and_name_the_first(tmp_path, processor):
    write_smiles(tmp_path / "m.csv", "CCO", "CCN", "CCO", "NCC", "CCO")
    write_smiles(tmp_path / "n.csv", "CCN", "CCC")
    script(tmp_path / "m.csv", tmp_path / "n.csv", "--output_dir", tmp_path / "d", "--shard_size", 1)
    report = report_of(tmp_path / "d")
    assert [(row["reason"], row["message"]) for row in report["rejected"]] == [
        ("duplicate", "c: the same as a."), ("duplicate", "e: the same as a."), ("duplicate", "a: the same as b."),
    ]  # fmt: skip
    assert load_prepared(tmp_path / "d", processor.tokenizer)["name"][:] == ["a", "b", "d", "b"]
    script(tmp_path / "m.csv", tmp_path / "n.csv", "--output_dir", tmp_path / "all", "--no_deduplicate")
    assert report_of(tmp_path / "all")["kept"] == 7 and report_of(tmp_path / "all")["reasons"] == {}
    assert len(load_examples(tmp_path / "m.csv", processor, tmp_path / "cache", progress=False)[0]) == 5

    example = processor.encode(processor.read("CCO")[0])
    value = dataset_shards.example_hash(example)
    stored = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in example.items()}
    assert dataset_shards.example_hash(stored) == value
    for change in (
        {"positions": example["positions"] + np.float32([[0.002, 0, 0]])},
        {"atom_ids": example["atom_ids"] + 1},
        {"label": 1.0},
    ):
        assert dataset_shards.example_hash({**example, **change}) != value


def test_hashes_are_found_again_however_many_there_are():
    values = [int(v) for v in np.random.default_rng(0).integers(0, 2**64, 1000, dtype=np.uint64)]
    seen = dataset_shards._Seen(latest=64)
    assert [seen.first(value, i) for i, value in enumerate(values)] == [None] * len(values)
    assert [seen.first(value, -1) for value in values] == list(range(len(values))) and len(seen.recent) < 64


def test_strict_makes_the_first_reason_an_error(tmp_path):
    write_smiles(tmp_path / "m.csv", "CCO", "CCO", "CCN", "c1cc", "xx")
    command = [tmp_path / "m.csv", "--output_dir", tmp_path / "d", "--shard_size", 2]
    assert "'c1cc'" in fails(*command, "--strict")
    assert sorted(p.name for p in (tmp_path / "d").glob("*.parquet*")) == ["data-00000.parquet"]
    script(*command)  # goes on from there, no longer strict
    assert report_of(tmp_path / "d")["kept"] == 2 and len(report_of(tmp_path / "d")["rejected"]) == 3
    assert "'c1cc'" in fails(tmp_path / "m.csv", "--output_dir", tmp_path / "e", "--strict")
    assert not list(tmp_path.glob("e*"))


def write_pdb(file, shift=0.0):
    """Two models of chains A and B 4 angstrom apart, with a zinc ion and a water between them, and chain C far away."""
    lines = []
    for model, far in ((1, 0.0), (2, 30.0)):
        lines.append(f"MODEL     {model:4d}")
        serial = 0
        for chain, z in (("A", 0.0), ("B", 4.0 + far), ("C", 14.0)):
            for number in (1, 2):
                for name, x, y in (("N", 0.0, 0.0), ("CA", 1.46, 0.0), ("C", 2.0, 1.4), ("O", 1.3, 2.4)):
                    serial += 1
                    lines.append(
                        f"ATOM  {serial:5d}  {name:<3} GLY {chain}{number:4d}    "
                        f"{x + 3.3 * number + shift:8.3f}{y:8.3f}{z:8.3f}  1.00 10.00          {name[0]:>2}"
                    )
        for name, code, x in (("ZN", "ZN", 4.0), ("O", "HOH", 8.0)):
            serial += 1
            lines.append(
                f"HETATM{serial:5d} {name:<4} {code:>3} A{serial:4d}    {x + shift:8.3f}{-1.5:8.3f}{2.0:8.3f}  1.00 10.00"
                f"          {name if name == 'ZN' else ' O'}"
            )
        lines.append("ENDMDL")
    file.write_text("\n".join([*lines, "END"]) + "\n")
    return file


def test_every_flag_of_reading_works(tmp_path, processor):
    write_pdb(tmp_path / "x.pdb")
    number = itertools.count()

    def made(*arguments, file="x.pdb"):
        folder = tmp_path / f"out{next(number)}"
        script(tmp_path / file, "--output_dir", folder, *arguments)
        return list(load_prepared(folder, processor.tokenizer))

    (plain,) = made()
    assert plain["name"] == "x_A_B" and set(plain["token_type_ids"]) == {0, 1}
    everything = made("--interfaces", "all")
    assert len(everything) > 1 and {row["modality_ids"] for row in everything} == {2, 3}
    assert len(made("--interfaces", "all", "--interface_distance", 30)) > len(everything)
    assert made("--interface_distance", 11)[0]["name"] != "x_A_C"
    (second,) = made("--model", 2, "--interface_distance", 17)
    assert second["name"] == "x_A_C"
    water = next(line for line in (tmp_path / "x.pdb").read_text().splitlines() if "HOH" in line)
    carbon = water.replace(" O    HOH", " C1   GOL").replace("          O", "          C")
    oxygen = carbon.replace(" C1  ", " O1  ").replace("          C", "          O").replace("8.000", "9.400")
    text = (tmp_path / "x.pdb").read_text().replace(water, f"{carbon}\n{oxygen}")
    (tmp_path / "buffer.pdb").write_text(text)
    for flag, code, file in (("--keep_waters", "HOH", "x.pdb"), ("--keep_buffers", "GOL", "buffer.pdb")):
        plain, kept = (str([row["block_origins"] for row in made("--interfaces", "all", *f, file=file)]) for f in ((), (flag,)))
        assert plain.count(code) < kept.count(code), flag
    assert "no assembly '9'" in fails(tmp_path / "x.pdb", "--output_dir", tmp_path / "none", "--assembly", 9)
    assert "no such file" in fails(tmp_path / "x.pdb", "--output_dir", tmp_path / "none", "--ccd", tmp_path / "no.cif")

    published = AtomicaProcessor(processor.tokenizer, as_published=True)
    published.save_pretrained(tmp_path / "published")
    command = [tmp_path / "x.pdb", "--output_dir", tmp_path / "none", "--processor", tmp_path / "published"]
    assert "without --interfaces" in fails(*command, "--keep_waters")

    assert "without hydrogens and without charges" in fails(*command, "--keep_hydrogens")
    assert "no_hydrogens" in fails(tmp_path / "x.pdb", "--output_dir", tmp_path / "none", "--keep_hydrogens")

    write_smiles(tmp_path / "m.csv", "CCC[O-]")
    (ion,) = made("--keep_hydrogens", "--return_charges", file="m.csv")
    all_atoms, heavy, again = tmp_path / "all", tmp_path / "heavy", tmp_path / "again"
    script(tmp_path / "m.csv", "--output_dir", all_atoms, "--keep_hydrogens", "--return_charges")
    script(tmp_path / "m.csv", "--output_dir", heavy)
    assert "prepared with hydrogens, which are not kept here" in fails(all_atoms, heavy, "--output_dir", again)
    assert "prepared without hydrogens, which are kept" in fails(heavy, "--output_dir", again, "--keep_hydrogens")
    assert "prepared without charges" in fails(heavy, "--output_dir", again, "--return_charges")
    assert ion["atom_ids"].count(3) == 7 and sorted(ion["atom_charges"])[:2] == [-1, 0]
    assert "atom_charges" not in made(file="m.csv")[0]
    write_smiles(tmp_path / "m.csv", "CCCO")
    first, again = made("--num_conformers", 2, "--seed", 1, file="m.csv")
    (other,) = made("--seed", 2, file="m.csv")
    assert (first["name"], again["name"]) == ("a", "a #2") and first["positions"] != again["positions"] == other["positions"]


def test_labels_of_an_index_reach_the_examples(tmp_path, processor):
    write_pdb(tmp_path / "x.pdb")
    labels = ("1.5", "", "-2e3", "nan", "high", "inf")
    rows = [f"row{i},x.pdb,A,B,,,,{label}" for i, label in enumerate(labels)]
    header = "pdb_id,pdb_path,chain1,chain2,lig_code,lig_smiles,lig_resi,label"
    (tmp_path / "index.csv").write_text("\n".join([header, *rows]) + "\n")
    script(tmp_path / "index.csv", "--output_dir", tmp_path / "d", "--no_deduplicate")
    dataset = load_prepared(tmp_path / "d", processor.tokenizer)
    assert dataset.features["label"] == OPTIONAL_FEATURES["label"]
    assert dict(zip(dataset["name"], dataset["label"])) == {
        "row0_A_B": 1.5, "row1_A_B": None, "row2_A_B": -2000.0, "row3_A_B": None,
    }  # fmt: skip
    assert [(row["name"], row["reason"], row["message"]) for row in report_of(tmp_path / "d")["rejected"]] == [
        (f"index.csv row {i}", "bad_label", f"row{i - 1}_A_B: the label is {label!r}, expected one number.")
        for i, label in ((5, "high"), (6, "inf"))
    ]


def test_properties_of_molecules_are_no_model_inputs(tmp_path, processor):
    (tmp_path / "m.csv").write_text("smiles,label,modality\nCCO,1,some\n")
    script(tmp_path / "m.csv", "--output_dir", tmp_path / "d")
    assert load_prepared(tmp_path / "d", processor.tokenizer).features == FEATURES


def test_ligands_get_their_bonds_from_a_file_of_components(tmp_path, processor):
    ligand = [
        f"HETATM{90 + i:5d}  {name:<3} QQQ A  50    {3.0 * i:8.3f}{-3.0:8.3f}{0.0:8.3f}  1.00 10.00          {name[0]:>2}"
        for i, name in enumerate(("C1", "O1", "C2"))  # too far apart to be bonded by the geometry
    ]
    text = write_pdb(tmp_path / "x.pdb").read_text()
    (tmp_path / "x.pdb").write_text(text.replace("ENDMDL", "\n".join([*ligand, "ENDMDL"])))
    (tmp_path / "index.csv").write_text("pdb_id,pdb_path,chain1,chain2,lig_code\nx,x.pdb,A,A,QQQ\n")
    (tmp_path / "components.cif").write_text(
        "data_QQQ\n_chem_comp.id QQQ\nloop_\n_chem_comp_bond.comp_id\n_chem_comp_bond.atom_id_1\n_chem_comp_bond.atom_id_2\n"
        "_chem_comp_bond.value_order\nQQQ C1 C2 SING\nQQQ C2 O1 SING\n"
    )
    found = {}
    script(tmp_path / "index.csv", "--output_dir", tmp_path / "without")
    launch(tmp_path / "index.csv", "--output_dir", tmp_path / "with", "--ccd", tmp_path / "components.cif")
    for name in ("without", "with"):
        (row,) = load_prepared(tmp_path / name, processor.tokenizer)
        tokens = processor.tokenizer.convert_ids_to_tokens(row["input_ids"])
        found[name] = sorted(tokens[tokens.index("<global>", 1) + 1 :])
    assert found == {"without": ["C", "C", "O"], "with": ["CCO"]}
    assert report_of(tmp_path / "with")["notes"]["bonds_from_dictionary:QQQ"] == 1


def test_an_assembly_is_built_first(tmp_path, processor):
    structure = gemmi.read_pdb(str(write_pdb(tmp_path / "x.pdb")))
    del structure[1]
    for name in "BC":
        structure[0].remove_chain(name)
    structure.setup_entities()
    assembly, part = gemmi.Assembly("dimer"), gemmi.Assembly.Gen()
    part.chains = ["A"]
    turn, shift = np.diag([1.0, -1.0, -1.0]), np.array([0.0, 2.0, 4.0])  # a twofold axis along x
    for matrix, vector in ((np.eye(3), np.zeros(3)), (turn, shift)):
        operator = gemmi.Assembly.Operator()
        operator.transform = gemmi.Transform(gemmi.Mat33(matrix.tolist()), gemmi.Vec3(*vector))
        part.operators.append(operator)
    assembly.generators.append(part)
    structure.assemblies.append(assembly)
    structure.make_mmcif_document().write_file(str(tmp_path / "x.cif"))
    rows = {}
    script(tmp_path / "x.cif", "--output_dir", tmp_path / "without")
    launch(tmp_path / "x.cif", "--output_dir", tmp_path / "with", "--assembly", "dimer")
    for name in ("without", "with"):
        (rows[name],) = load_prepared(tmp_path / name, processor.tokenizer)
    assert set(rows["without"]["token_type_ids"]) == {0} and set(rows["with"]["token_type_ids"]) == {0, 1}
    positions = np.array(rows["with"]["positions"]).reshape(2, -1, 3)  # of the chain and of its copy
    assert np.allclose(positions[0] @ turn + shift, positions[1], atol=1e-4)


def test_numbers_that_are_not_finite_never_get_in(tmp_path, processor, monkeypatch):
    write_smiles(tmp_path / "m.csv", "CCO", "CCN", "CCC")
    encode = AtomicaProcessor.encode
    bad = {"a": np.nan, "b": np.inf}

    def broken(self, structure):
        example = encode(self, structure)
        example["positions"][1, 2] = bad.get(structure.name, 0.0)
        return example

    monkeypatch.setattr(AtomicaProcessor, "encode", broken)
    dataset, report = load_examples(tmp_path / "m.csv", processor, tmp_path / "cache", progress=False)
    assert [code for _, code, _ in report.rejected] == ["not_finite"] * 2 and "a: positions" in report.rejected[0][2]
    assert dataset["name"][:] == ["c"] and np.isfinite(dataset[0]["positions"]).all()
    monkeypatch.undo()
    text = gemmi.read_pdb(str(write_pdb(tmp_path / "x.pdb"))).make_mmcif_document().as_string()
    for value in ("1e39", "inf", "nan"):
        (tmp_path / "x.cif").write_text(text.replace(" 4.76 ", f" {value} ", 1))
        with pytest.raises(StructureError, match="no usable example(.|\n)*(not_finite|bad_coordinates|unreadable)"):
            load_examples(tmp_path / "x.cif", processor, tmp_path / value, progress=False)


def test_what_was_read_is_found_again_until_it_changes(tmp_path, processor, monkeypatch):
    (tmp_path / "m.csv").write_text(SMILES)
    first, report = load_examples(tmp_path / "m.csv", processor, tmp_path / "cache", progress=False)
    monkeypatch.setattr(dataset_reading, "_encode", None)
    again, same = load_examples(tmp_path / "m.csv", processor, tmp_path / "cache", progress=False)
    assert again["name"] == first["name"] and same == report
    monkeypatch.undo()
    (tmp_path / "m.csv").write_text(SMILES + "CCCC,e\n")
    assert len(load_examples(tmp_path / "m.csv", processor, tmp_path / "cache", progress=False)[0]) == 4


def test_a_reading_that_was_stopped_goes_on(tmp_path, processor, monkeypatch):
    write_smiles(tmp_path / "m.csv", "CCO", "CCN", "CCC")
    encode, read = AtomicaProcessor.encode, []
    monkeypatch.setattr(
        dataset_shards.prepare,
        "__defaults__",
        (*dataset_shards.prepare.__defaults__[:6], 1, *dataset_shards.prepare.__defaults__[7:]),
    )

    def stopped_once(self, structure):
        read.append(structure.name)
        if read == ["a", "b", "c"]:
            raise KeyboardInterrupt
        return encode(self, structure)

    monkeypatch.setattr(AtomicaProcessor, "encode", stopped_once)
    with pytest.raises(KeyboardInterrupt):
        load_examples(tmp_path / "m.csv", processor, tmp_path / "cache", progress=False)
    dataset, report = load_examples(tmp_path / "m.csv", processor, tmp_path / "cache", progress=False)
    assert dataset["name"][:] == ["a", "b", "c"] and report.kept == 3 and read == ["a", "b", "c", "c"]


def test_one_bad_structure_does_not_stop_the_others(tmp_path, processor, monkeypatch):
    (tmp_path / "m.csv").write_text(SMILES)
    encode = type(processor).encode

    def fails_for_a(self, structure):
        if structure.name == "a":
            raise RuntimeError("surprise")
        return encode(self, structure)

    monkeypatch.setattr(type(processor), "encode", fails_for_a)
    report = ReadReport()
    assert len(list(dataset_reading.read_examples(tmp_path / "m.csv", processor, report))) == 2
    assert [code for _, code, _ in report.rejected] == ["unexpected_error", "smiles_syntax"] and "surprise" in report.summary()


def test_folders_of_the_earlier_version_open_and_join(tmp_path, processor):
    rows = [processor.encode(processor.read(smiles)[0]) for smiles in ("CCO", "CCN")]
    Dataset.from_list(rows, features=FEATURES).save_to_disk(tmp_path / "old")
    vocabulary = prepared_datasets.vocabulary_hash(processor.tokenizer)
    (tmp_path / "old" / REPORT_FILE).write_text(json.dumps({"kept": 2, "rejected": [], "notes": {}, "vocabulary": vocabulary}))
    old, report = load_examples(tmp_path / "old", processor, tmp_path / "cache")
    assert old["name"][:] == ["CCO", "CCN"] and report.kept == 2 and old.features == FEATURES
    write_smiles(tmp_path / "m.csv", "CCN", "CCC")
    script(tmp_path / "old", tmp_path / "m.csv", "--output_dir", tmp_path / "d", "--max_samples", 2)
    script(tmp_path / "d", "--output_dir", tmp_path / "e")
    assert report_of(tmp_path / "d")["rejected"][0]["message"] == "a: the same as CCN."
    for folder in ("d", "e"):
        dataset = load_prepared(tmp_path / folder, processor.tokenizer)
        assert dataset["name"][:] == ["CCO", "CCN", "b"] and dataset[:2] == old[:2]


def test_datasets_that_do_not_fit_are_named(tmp_path, processor):
    Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "other")
    with pytest.raises(StructureError, match="without the columns.*input_ids"):
        load_prepared(tmp_path / "other", processor.tokenizer)
    write_smiles(tmp_path / "m.csv", "CCO", "CCN")
    script(tmp_path / "m.csv", "--output_dir", tmp_path / "d", "--shard_size", 1)
    other = processor.tokenizer.train_new_from_iterator(["CCO"] * 3, 160)
    with pytest.raises(StructureError, match="was made with the vocabulary"):
        load_prepared(tmp_path / "d", other)
    (tmp_path / "d" / "data-00001.parquet").unlink()
    with pytest.raises(StructureError, match="cannot be opened"):
        load_prepared(tmp_path / "d", processor.tokenizer)
    (tmp_path / "none.csv").write_text("smiles\nc1cc\n")
    with pytest.raises(StructureError, match="no usable example") as error:
        load_examples(tmp_path / "none.csv", processor, tmp_path / "cache", progress=False)
    assert "c1cc" in str(error.value) and not list((tmp_path / "cache").iterdir())


def test_a_half_written_folder_belongs_to_the_command_that_began_it(tmp_path, processor):
    file, out = write_smiles(tmp_path / "m.csv", "CCO", "CCN", "CCC", "CCCC"), tmp_path / "d"
    assert killed([file, "--output_dir", out, "--shard_size", 2], "fsync", 2)
    with pytest.raises(StructureError, match="is half-written"):
        load_examples(out, processor, tmp_path / "cache")
    command = [file, "--output_dir", out, "--shard_size"]
    assert "begun otherwise: with shard_size 2, now 3. Repeat" in fails(*command, 3)
    assert "with seed 0, now 4" in fails(*command, 2, "--seed", 4)
    assert f"with the inputs {file}, now {file}, {file}" in fails(file, *command, 2)
    with dataset_shards.FileLock(out / f"{JOURNAL_FILE}.lock"):
        assert "another process is writing it" in fails(*command, 2)
    changed = file.stat().st_mtime_ns
    os.utime(file, ns=(changed, changed + 1))
    assert f"{file} has changed since" in fails(*command, 2)
    os.utime(file, ns=(changed, changed))
    shard = (out / "data-00000.parquet").read_bytes()
    (out / "data-00000.parquet").write_bytes(shard[:-1])
    assert "is not as it was written" in fails(*command, 2)
    (out / "data-00000.parquet").write_bytes(shard)
    script(*command, 2)
    assert report_of(out)["kept"] == 4


def test_bad_flags_are_named_before_anything_is_written(tmp_path):
    file, out = write_smiles(tmp_path / "m.csv", "CCO"), tmp_path / "d"
    for arguments, expected in (
        (("--num_proc", 0), "--num_proc is 0"),
        (("--max_samples", 0), "--max_samples is 0"),
        (("--shard_size", 0), "--shard_size is 0"),
        (("--max_shard_size", "much"), "--max_shard_size is much"),
        (("--max_shard_size", "0MB"), "--max_shard_size is 0MB"),
        (("--engine", "ray", "--num_proc", 2), "--num_proc is for --engine local"),
        (("--ray_address", "auto"), "--ray_address auto needs --engine ray"),
        (("--time_limit", 0), "--time_limit is 0.0"),
        (("--time_limit", "nan"), "--time_limit is nan"),
        (("--interfaces", "some"), "`interfaces` is 'some'"),
        (("--model", 0), "`model` 0"),
        (("--num_conformers", 0), "`num_conformers` 0"),
        (("--seed", -1), "`seed` -1"),
        (("--interface_distance", 0), "`distance` is 0.0"),
        (("--processor", tmp_path), "no Atomica processor"),
    ):
        assert expected in fails(file, "--output_dir", out, *arguments), arguments
        assert [p.name for p in tmp_path.iterdir()] == ["m.csv"]
    assert "missing.csv: no such file" in fails(file, tmp_path / "missing.csv", "--output_dir", out) and not out.exists()
