import csv
import json

import pytest
from conftest import ROOT, load_script, run
from rdkit import Chem
from rdkit.Chem import Crippen


@pytest.fixture(scope="module")
def solubility():
    """examples/solubility.py."""
    return load_script("examples/solubility.py")


def options(**changes):
    values = {"data_file": None, "label_column": None, "max_samples": None, **changes}
    return type("Options", (), values)()


def test_the_shipped_labels_are_rdkits(solubility, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows, label, what = solubility.choose_rows(options())
    assert label == "crippen_logp" and what == "214 shipped molecules, Crippen's logP computed by RDKit"
    for row in rows[::20]:
        assert float(row[label]) == pytest.approx(Crippen.MolLogP(Chem.MolFromSmiles(row["smiles"])), abs=1e-4)


def test_rows_of_a_users_file(solubility, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "solubility").mkdir()
    lines = [f'"a, {i}",{"C" * (i + 1)},{-i}.5,1.0' for i in range(10)]
    (tmp_path / solubility.USUAL).write_text("\n".join(["Name,SMILES,Solubility,other", *lines]))
    rows, label, what = solubility.choose_rows(options(max_samples=4))
    assert label == "Solubility" and what == "4 rows of curated-solubility-dataset.csv"
    assert [len(row["smiles"]) - 1 for row in rows] == [0, 2, 5, 7] and rows[1]["Solubility"] == "-2.5"
    assert solubility.choose_rows(options(label_column="other"))[1] == "other"
    (tmp_path / "bad.csv").write_text("SMILES,y\nC,1\n")
    with pytest.raises(SystemExit, match="the columns are SMILES, y, expected one of Solubility, logS"):
        solubility.choose_rows(options(data_file=tmp_path / "bad.csv"))


@pytest.mark.slow
def test_the_whole_story_and_how_it_goes_on(tmp_path):
    words = ("--output_dir", tmp_path / "out", "--max_samples", 40, "--max_train_steps", 4, "--num_train_epochs", 1)
    command = (ROOT / "examples" / "solubility.py", *words, "--hidden_size", 8)
    done = run(*command, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(lines) == 8 and "28 to train on, 4 to choose the epoch by, 8 to test" in table
    assert (tmp_path / "out" / "figure.png").stat().st_size > 10_000
    rmse = json.loads((tmp_path / "out" / "freeze" / "metrics.json").read_text())["results"]["freeze"]["test"]["metrics"][
        "rmse"
    ]
    assert f"| Atomica pretrained, head only | {rmse['value']:.3f} [" in table
    splits = [json.loads((tmp_path / "out" / name / "split.json").read_text())["test"] for name in ("scratch", "finetune")]
    assert splits[0] == splits[1]
    with open(tmp_path / "out" / "pretraining.csv", encoding="utf-8") as stream:
        seen = [row["smiles"] for row in csv.DictReader(stream)]
    with open(tmp_path / "out" / "data.csv", encoding="utf-8") as stream:
        all_rows = [row["smiles"] for row in csv.DictReader(stream)]
    assert len(seen) == 28 and not {all_rows[i] for i in splits[0]} & set(seen)  # test molecules are not pretrained on

    (tmp_path / "out" / "freeze" / "README.md").unlink()  # as if it had been stopped there
    done = run(*command, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("was finished before") == 4 and (tmp_path / "out" / "table.md").read_text() == table
    done = run(*command, "--split", "scaffold")
    assert done.returncode and "is of a run with other options" in done.stderr
