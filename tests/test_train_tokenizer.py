import csv
import gzip
import json
import shutil

import pytest
from conftest import ROOT, run
from transformers import AutoTokenizer

import train_tokenizer
from atomica_hf import AtomicaTokenizer, StructureError
from atomica_hf.structure_atomica import read_smiles


MOLECULES = str(ROOT / "examples" / "molecules.csv")
OPTIONS = ["--vocab_size", "240", "--min_count", "4"]


def mined(vocab_size=240):
    with open(MOLECULES, newline="", encoding="utf-8") as stream:
        smiles = [row["smiles"] for row in csv.DictReader(stream)]
    return AtomicaTokenizer().train_new_from_iterator(smiles, vocab_size, min_count=4)


def test_a_vocabulary_from_the_command_line(tmp_path):
    done = run(ROOT / "train_tokenizer.py", MOLECULES, "--output_dir", tmp_path / "new", *OPTIONS, "--num_proc", "2")
    assert done.returncode == 0, done.stderr
    assert "240 tokens, 90 of them fragments" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new"]
    opened = AutoTokenizer.from_pretrained(tmp_path / "new", trust_remote_code=True)
    assert opened.get_vocab() == mined().get_vocab() and opened.fragments == mined().fragments
    assert str(tmp_path) not in (tmp_path / "new" / "mining.json").read_text()


def test_every_kind_of_file(tmp_path):
    smiles = ["CCO", "c1ccccc1O", "CCN"]
    (tmp_path / "a.smi").write_text("".join(f"{s}\tname\n" for s in smiles) + "\n")
    (tmp_path / "b.tsv").write_text("id\tSMILES\n" + "".join(f"1\t{s}\n" for s in smiles))
    with gzip.open(tmp_path / "c.csv.gz", "wt") as stream:
        stream.write("other,mine\n" + "".join(f"1,{s}\n" for s in smiles))
    (tmp_path / "a.sdf").write_text("no table")
    assert read_smiles(tmp_path / "a.smi") == read_smiles(tmp_path / "b.tsv") == smiles
    assert read_smiles(tmp_path / "c.csv.gz", "mine") == smiles
    with pytest.raises(StructureError, match="no column for SMILES; there are other, mine"):
        read_smiles(tmp_path / "c.csv.gz")
    for name, words in (("a.sdf", r"no table with SMILES \(sdf\)"), ("missing.smi", "missing.smi")):
        with pytest.raises(StructureError, match=words):
            read_smiles(tmp_path / name)


def test_a_stopped_run_goes_on(tmp_path, monkeypatch, capsys):
    """The run is stopped while it writes: no folder is left, and the merges are not made again."""
    with monkeypatch.context() as patch:
        patch.setattr(AtomicaTokenizer, "save_pretrained", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            train_tokenizer.main([MOLECULES, "--output_dir", str(tmp_path / "new"), "--vocab_size", "230", "--min_count", "4"])
    assert [p.name for p in tmp_path.iterdir()] == ["new.checkpoint.json"]
    merges = json.loads((tmp_path / "new.checkpoint.json").read_text())["merges"]
    assert len(merges) >= 80
    train_tokenizer.main([MOLECULES, "--output_dir", str(tmp_path / "new"), *OPTIONS])
    assert "Going on from" in capsys.readouterr().err
    assert AtomicaTokenizer.from_pretrained(tmp_path / "new").fragments == mined().fragments
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_bad_molecules_are_reported_and_usage_errors_say_what_to_do(tmp_path, capsys):
    (tmp_path / "some.smi").write_text("CCO\nCC*\nCCN\nCCO\n")
    words = [str(tmp_path / "some.smi"), "--output_dir", str(tmp_path / "new")]
    train_tokenizer.main([*words, "--vocab_size", "160"])
    report = json.loads((tmp_path / "new" / "mining.json").read_text())
    assert report["molecules"] == 3 and report["rejected"][0][0] == "CC*" and "Atom 2" in report["rejected"][0][1]
    printed = capsys.readouterr()
    assert "Left out CC*" in printed.err and "No pair of fragments was left" in printed.err
    with pytest.raises(StructureError, match="exists already"):
        train_tokenizer.main(words)
    shutil.rmtree(tmp_path / "new")
    with pytest.raises(StructureError, match="no SMILES"):
        train_tokenizer.main([*words, "--max_samples", "0"])
    (tmp_path / "some.smi").write_text("CC*\n")
    with pytest.raises(StructureError, match="None of 1 SMILES can be read"):
        train_tokenizer.main(words)
