import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import tiny_config
from rdkit import Chem
from rdkit.Chem import AllChem

import finetuning_data as fd
from atomica_hf import AtomicaCollator, StructureError
from dataset_shards import prepare
from metrics_atomica import CLASSES, MULTI_LABEL, REGRESSION


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return fd.ExampleStore(tmp_path_factory.mktemp("cache") / "structures.sqlite")


def table(folder, text, name="data.csv"):
    path = folder / name
    path.write_text(text)
    return path


def labels_of(folder, processor, text, given=None, problem=None, **options):
    return fd.read_labels(fd.read_source(table(folder, text), processor), given, problem, **options)


def test_the_column_with_smiles(tmp_path, processor):
    def column(header, *rows, **options):
        return fd.read_source(table(tmp_path, "\n".join([header, *rows])), processor, **options).smiles_column

    assert column("id,Canonical_SMILES,y", "a,CCO,1", "b,CCN,2") == "Canonical_SMILES"
    assert column("id,structure,y", "one,c1ccccc1O,1", "two,CCN,2") == "structure"  # by what is in it
    assert column("mol,smiles", "aspirin-1,CCO", "M-2,CCN") == "smiles"  # mol has names here
    assert column("smiles,product_smiles", "CCO,CC=O", "CCN,CC#N", smiles_column="product_smiles") == "product_smiles"
    with pytest.raises(StructureError, match="columns smiles, product_smiles all hold SMILES.*--smiles_column"):
        column("smiles,product_smiles", "CCO,CC=O", "CCN,CC#N")
    with pytest.raises(StructureError, match="no column with SMILES; the columns are name, y"):
        column("name,y", "first one,1")
    with pytest.raises(StructureError, match="no column 'smi' for SMILES; there are smiles, y"):
        column("smiles,y", "CCO,1", smiles_column="smi")


def test_label_columns_and_problems(tmp_path, processor):
    found = labels_of(tmp_path, processor, "smiles,name,y\nCCO,a,1.5\nCCN,b,\nCCC,c,-2\nCCF,d,nan\n")
    assert found.columns == ["y"] and found.problem == REGRESSION
    assert np.array_equal(found.values, [[1.5], [np.nan], [-2.0], [np.nan]], equal_nan=True)
    found = labels_of(tmp_path, processor, "smiles,toxic\nCCO,1\nCCN,0\nCCC,\n")
    assert found.problem == CLASSES and found.classes == ["0", "1"] and np.isnan(found.values[2])
    found = labels_of(tmp_path, processor, "smiles,smell\nCCO,sweet\nCCN,bad\nCCC,bad\nCCF,sweet\n")
    assert found.classes == ["bad", "sweet"] and found.values.tolist() == [1, 0, 0, 1]
    found = labels_of(tmp_path, processor, "smiles,a,b\nCCO,1,\nCCN,0,1\n", ["all"])
    assert found.columns == ["a", "b"] and found.problem == MULTI_LABEL and found.num_labels == 2
    found = labels_of(tmp_path, processor, "smiles,a,b\nCCO,1,2.5\nCCN,0,1\n", ["a", "b"])
    assert found.problem == REGRESSION
    found = labels_of(tmp_path, processor, "smiles,label,mw\nCCO,3.5,46\nCCN,1.5,45\n")
    assert found.columns == ["label"]
    found = labels_of(tmp_path, processor, "smiles,n\nCCO,2\nCCN,3\nCCC,2\nCCF,1\nCO,1\nCN,3\n", problem=CLASSES)
    assert found.classes == ["1", "2", "3"]


@pytest.mark.parametrize(
    "text, given, problem, words",
    [
        ("smiles,a,b\nCCO,1,2\nCCN,2,3\n", None, None, "Candidates: a, b"),
        ("smiles,a,b\nCCO,1,2\n", ["c"], None, "no column 'c'; there are smiles, a, b"),
        ("smiles,y\nCCO,1.5\nCCN,>10\nCCC,2\n", ["y"], None, "numbers, and words such as '>10'"),
        ("smiles,y\nCCO,1.5\nCCN,>10\n", ["y"], REGRESSION, "row 2.*y is '>10', expected a number"),
        ("smiles,y\nCCO,inf\nCCN,1\n", ["y"], REGRESSION, "expected a number"),
        ("smiles,y\nCCO,1\nCCN,1\n", ["y"], None, "one class only, '1'"),
        ("smiles,y\nCCO,2.5\nCCN,2.5\n", ["y"], None, "2.5 everywhere"),
        ("smiles,y\nCCO,\nCCN,nan\n", ["y"], REGRESSION, "no label at all"),
        ("smiles,a,b\nCCO,1,0\nCCN,3,1\n", ["a", "b"], MULTI_LABEL, "label 3, expected 0 or 1"),
        ("smiles,a,b\nCCO,x,0\nCCN,y,1\n", ["a", "b"], None, "each must have numbers"),
        ("smiles,a,b\nCCO,1,0\nCCN,0,1\n", ["a", "b"], CLASSES, "stand in one column"),
        ("smiles,y\nCCO,abc\nCCN,def\nCCC,ghi\nCCF,jkl\n", None, None, "4 different values"),
        ("smiles,E,E\nCCO,1,2\nCCN,2,3\n", None, None, "Candidates: E, E.1"),
        ("smiles,y\nCCO,1,5\nCCN,2,5\n", ["y"], None, "line 2 has 3 cells, expected 2"),
        ("CCO,1.5\nCCN,2.5\nCCC,3.5\n", None, None, "the first line is CCO, 1.5, expected names of columns"),
        ("smiles,y\nCCO,1\nCCN,2\n", ["smiles"], None, "names 'smiles', which is the column of the SMILES"),
        ("smiles,y\nCCO,1e300\nCCN,1\n", ["y"], None, "label 1e.300 in size, expected at most 1e.30"),
        ("smiles,y\nCCO,1e-200\nCCN,2e-200\n", ["y"], None, "too little for 32 bits"),
        ("smiles,y\nCCO,1000000001\nCCN,1000000003\n", ["y"], None, "differ by at most 2 at sizes up to 1e.09"),
        ("smiles,y\nCCO,1_000\nCCN,2\n", ["y"], REGRESSION, "y is '1_000', expected a number"),
        ("smiles,y\nCCO,none\nCCN,active\n", ["y"], None, r"'active' \(1 rows are blank, nan, none"),
    ],
)
def test_labels_that_cannot_be_used(text, given, problem, words, tmp_path, processor):
    with pytest.raises(StructureError, match=words):
        labels_of(tmp_path, processor, text, given, problem)


@pytest.mark.parametrize(
    "cells, problem, words",
    [
        (("[1, 0]", "[Infinity]"), None, "words such as inf"),
        (("[[1]]", "[[0]]"), None, "label .1. of a block, expected one value"),
        (("[1, 2]", "[0]"), MULTI_LABEL, "label 2, expected 0 or 1"),
        (("[1e300, 2]", "[0]"), REGRESSION, "at most 1e.30"),
        (("[2.5, 2.5]", "[2.5]"), None, "2.5 everywhere"),
    ],
)
def test_labels_of_blocks_that_cannot_be_used(cells, problem, words, tmp_path, processor):
    lines = ["smiles,y", *(f'CCO,"{cell}"' for cell in cells)]
    with pytest.raises(StructureError, match=words):
        labels_of(tmp_path, processor, "\n".join(lines), None, problem, of_blocks=True)


def test_columns_of_one_name_are_numbered_and_said(tmp_path, processor):
    source = fd.read_source(table(tmp_path, "smiles,E,E\nCCO,1,2\nCCN,2,4\n"), processor)
    assert fd.read_labels(source, ["E.1"]).values[:, 0].tolist() == [2, 4]
    assert fd.read_labels(source, ["all"]).columns == ["E", "E.1"]
    assert len(source.notes) == 1 and "more than once in the header; the later ones are called E.1" in source.notes[0]


def test_repeated_columns_of_real_data(shared, processor):
    source = fd.read_source(shared / "data/moleculenet/qm8.csv.gz", processor, max_samples=5)
    labels = fd.read_labels(source, ["all"])
    assert len(labels.columns) == 16 and {"E1-PBE0", "E1-PBE0.1", "f2-PBE0.1"} < set(labels.columns)
    assert labels.values.shape == (5, 16) and not np.isnan(labels.values).any()


def test_a_damaged_store_is_an_error(tmp_path):
    (tmp_path / "s.sqlite").write_text("this is no database, and it is long enough to be taken for one " * 20)
    with pytest.raises(StructureError, match="no store of structures that can be used"):
        fd.ExampleStore(tmp_path / "s.sqlite")


def test_a_failure_in_one_process_takes_nothing_from_another(tmp_path):
    one, other = (fd.ExampleStore(tmp_path / "s.sqlite") for _ in range(2))
    failure, examples = {"error": ["no_conformer", "too slow"], "name": "A"}, {"examples": [{"name": "A"}], "notes": []}
    one.save({"A": failure})
    assert other.load("A") == failure
    other.save({"A": examples, "B": failure})
    one.save({"A": failure, "B": examples})
    assert one.load("A") == other.load("B") == examples


def test_structures_are_built_once_and_failures_named(tmp_path, processor, store, monkeypatch):
    text = "name,smiles,y\nethanol,CCO,1\nbad,c1ccc,2\naspirin,CC(=O)Oc1ccccc1C(=O)O,3\nempty,,4\n"
    source = fd.read_source(table(tmp_path, text), processor)
    found = fd.encode_source(source, processor, store, num_conformers=2, progress=False)
    assert [len(items) for items in found.items] == [2, 0, 2, 0]
    assert found.rejected[1][0] == "smiles_syntax" and "bad" in found.rejected[1][1] and 3 in found.rejected
    assert found.report.kept == 2 and {name for name, _, _ in found.report.rejected} == {"bad", "empty"}
    first, second = (store.example(item)["positions"] for item in found.items[2])
    expected = processor.encode(processor.read("CC(=O)Oc1ccccc1C(=O)O")[0])["positions"]
    assert np.array_equal(first.astype(np.float32), expected) and not np.allclose(first, second)

    monkeypatch.setattr(fd, "_build", lambda processor, piece: pytest.fail(f"{piece[0]} was built again"))
    other = table(tmp_path, "smiles,y\nCC(=O)Oc1ccccc1C(=O)O,3\nCCO,1\n", "other.csv")  # the same molecules elsewhere
    again = fd.encode_source(fd.read_source(other, processor), processor, store, 2, progress=False)
    assert again.items == [found.items[2], found.items[0]]
    monkeypatch.undo()
    monkeypatch.setattr(processor, "seed", 5)  # other conformers
    assert fd.encode_source(source, processor, store, progress=False).items[0] != found.items[0][:1]


def test_nothing_usable_is_an_error(tmp_path, processor, store):
    source = fd.read_source(table(tmp_path, "smiles,y\nc1ccc,1\nC(C,2\n"), processor, "smiles")
    with pytest.raises(StructureError, match="no structure could be made"):
        fd.encode_source(source, processor, store, progress=False)


@pytest.mark.slow
def test_in_other_processes_the_same(tmp_path, processor, store):
    source = fd.read_source(table(tmp_path, "smiles,y\nCCO,1\nc1ccc,2\nCCCl,3\n"), processor)
    other = fd.ExampleStore(tmp_path / "other.sqlite")
    found = [fd.encode_source(source, processor, s, num_proc=n, progress=False) for s, n in ((store, 1), (other, 2))]
    assert found[0].items == found[1].items and found[0].rejected == found[1].rejected
    copy = pickle.loads(pickle.dumps(other))
    assert np.array_equal(copy.example(found[0].items[2][0])["positions"], store.example(found[0].items[2][0])["positions"])


def test_properties_of_sdf_are_labels(tmp_path, processor, store):
    path = tmp_path / "molecules.sdf"
    with Chem.SDWriter(str(path)) as writer:
        for smiles, energy in (("CCO", "-1.5"), ("CC(C)N", "2.5"), ("c1ccccc1", "")):
            mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
            AllChem.EmbedMolecule(mol, randomSeed=1)
            mol.SetProp("_Name", "same title")
            mol.SetProp("energy", energy)
            writer.write(mol)
    source = fd.read_source(path, processor)
    assert source.smiles == ["CCO", "CC(C)N", "c1ccccc1"]
    labels = fd.read_labels(source)
    assert labels.columns == ["energy"] and np.array_equal(labels.values[:, 0], [-1.5, 2.5, np.nan], equal_nan=True)
    found = fd.encode_source(source, processor, store, progress=False)
    assert [len(items) for items in found.items] == [1, 1, 1] and found.items[0] != found.items[1]


def test_parquet_and_a_dataset_of_the_hub(tmp_path, processor, monkeypatch):
    import datasets

    rows = {"SMILES": ["CCO", "CCN"], "y": [1.5, None]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    assert np.isnan(fd.read_labels(fd.read_source(tmp_path / "t.parquet", processor)).values[1, 0])
    parts = datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows), "test": datasets.Dataset.from_dict(rows)})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: parts if name == "someone/things" else 1 / 0)
    source = fd.read_source("someone/things", processor)
    assert source.column("split") == ["train", "train", "test", "test"] and source.smiles == ["CCO", "CCN"] * 2
    with pytest.raises(StructureError, match="someone/else: neither a file here nor a dataset on the Hub"):
        fd.read_source("someone/else", processor)
    with pytest.raises(StructureError, match="no such file"):
        fd.read_source(tmp_path / "gone.csv", processor)


def test_prepared_data_and_labels_of_blocks(tmp_path, processor, store):
    path = table(tmp_path, "smiles\nCC(=O)Oc1ccccc1C(=O)O\nCCO.O\n")
    prepare([path], tmp_path / "prepared", processor, progress=False)
    source = fd.read_source(tmp_path / "prepared", processor)
    found = fd.encode_source(source, processor, store)
    example = fd.LabelledExamples(found, [1], tiny_config(), np.array([[1.0], [2.0]]))[0]
    assert source.kind == "prepared" and example["labels"] == [2.0] and "modality_ids" not in example

    ids = [np.asarray(found.store.example(items[0])["input_ids"]) for items in found.items]
    ordinary = [int((one != 3).sum()) for one in ids]
    cells = [json.dumps([0, 1] * (ordinary[0] // 2) + [None] * (ordinary[0] % 2)), json.dumps([1] * (len(ids[1]) + 1))]
    quoted = ['"' + cell.replace('"', '""') + '"' for cell in cells]
    text = f"smiles,labels\nCC(=O)Oc1ccccc1C(=O)O,{quoted[0]}\nCCO.O,{quoted[1]}\nCCN,\n"
    source = fd.read_source(table(tmp_path, text), processor)
    labels = fd.read_labels(source, of_blocks=True)
    assert labels.of_blocks and labels.classes == ["0", "1"] and labels.values[2] is None
    found = fd.encode_source(source, processor, store, progress=False)
    fd.reject_unaligned(labels, source, found)
    assert found.rejected[1][0] == "label_length" and not found.items[1]
    batch = AtomicaCollator()([fd.LabelledExamples(found, [0, 2], tiny_config(), labels.values, True)[i] for i in (0, 1)])
    assert batch["labels"].shape == batch["input_ids"].shape
    assert batch["labels"].isnan()[batch["input_ids"] == 3].all() and batch["labels"][1].isnan().all()


def test_labels_of_blocks_by_their_origin():
    example = {"name": "c", "input_ids": [3, 5, 6, 3, 7], "block_origins": ["", "A:GLY:12", "A:ALA:13", "", "B:SER:4"]}
    found = fd.align_block_labels({"A:ALA:13": 1.0, "B:SER:4": 0.0}, example)
    assert np.array_equal(found, [np.nan, np.nan, 1, np.nan, 0], equal_nan=True)
    assert np.array_equal(fd.align_block_labels([1.0, 2.0, 3.0], example), [np.nan, 1, 2, np.nan, 3], equal_nan=True)
    with pytest.raises(StructureError, match="named like 'A:TRP:99'; one is 'B:SER:4'"):
        fd.align_block_labels({"A:TRP:99": 1.0}, example)
    with pytest.raises(StructureError, match="4 labels, expected 3"):
        fd.align_block_labels([1.0] * 4, example)


def test_an_index_of_complexes(shared, processor, store, tmp_path):
    folder = shared / "data/complexes/atomica_examples"
    lines = (folder / "example_inputs.csv").read_text().splitlines()[:3]
    text = "\n".join([lines[0] + ",label"] + [line + f",{i}.5" for i, line in enumerate(lines[1:])]) + "\n"
    for line in lines[1:]:
        name = line.split(",")[1]
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    source = fd.read_source(table(tmp_path, text), processor)
    assert source.kind == "index" and source.names == ["6llw", "3i5x"] and source.smiles[1] is None
    labels = fd.read_labels(source)
    assert labels.columns == ["label"] and labels.values[:, 0].tolist() == [0.5, 1.5]
    found = fd.encode_source(source, processor, store, progress=False)
    assert all(found.items)
    changed = fd.read_source(table(tmp_path, text.replace("0.5", "7.5"), "other.csv"), processor)
    assert [piece.content for piece in changed.pieces] == [piece.content for piece in source.pieces]
