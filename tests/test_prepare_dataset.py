import numpy as np
import pytest
from datasets import Dataset

import prepare_dataset
from atomica_hf import ReadReport, StructureError


SMILES = "smiles,name\nCCO,a\nc1ccc,b\nCCN,c\nOc1ccccc1.O,d\n"


def test_a_dataset_is_what_the_processor_makes_with_any_number_of_processes(tmp_path, processor):
    (tmp_path / "m.csv").write_text(SMILES)
    found = []
    for processes in (1, 2):
        report = ReadReport()
        found.append(list(prepare_dataset.read_examples(tmp_path / "m.csv", processor, report, processes, progress=False)))
        assert report.kept == 3 and [name for name, _, _ in report.rejected] == ["m.csv row 2: b"]
    for one, two in zip(*found):
        assert one["name"] == two["name"] and all(np.array_equal(one[key], two[key]) for key in ("input_ids", "positions"))
    prepare_dataset.main([str(tmp_path / "m.csv"), "--output_dir", str(tmp_path / "d")])
    dataset = prepare_dataset.load_prepared(tmp_path / "d", processor.tokenizer)
    assert [example["name"] for example in dataset] == ["a", "c", "d"]
    assert np.allclose(dataset[2]["positions"], found[0][2]["positions"]) and dataset[2]["torsion_bonds"] == []
    assert not list(tmp_path.glob("d.*"))
    with pytest.raises(StructureError, match="exists already"):
        prepare_dataset.main([str(tmp_path / "m.csv"), "--output_dir", str(tmp_path / "d")])


def test_what_was_read_is_found_again_until_it_changes(tmp_path, processor, monkeypatch):
    (tmp_path / "m.csv").write_text(SMILES)
    first, report = prepare_dataset.load_examples(tmp_path / "m.csv", processor, tmp_path / "cache", progress=False)
    monkeypatch.setattr(prepare_dataset, "_encode", None)
    again, same = prepare_dataset.load_examples(tmp_path / "m.csv", processor, tmp_path / "cache", progress=False)
    assert again["name"] == first["name"] and same == report
    monkeypatch.undo()
    (tmp_path / "m.csv").write_text(SMILES + "CCCC,e\n")
    assert len(prepare_dataset.load_examples(tmp_path / "m.csv", processor, tmp_path / "cache", progress=False)[0]) == 4


def test_one_bad_structure_does_not_stop_the_others(tmp_path, processor, monkeypatch):
    (tmp_path / "m.csv").write_text(SMILES)
    encode = type(processor).encode

    def fails_for_a(self, structure):
        if structure.name == "a":
            raise RuntimeError("surprise")
        return encode(self, structure)

    monkeypatch.setattr(type(processor), "encode", fails_for_a)
    report = ReadReport()
    assert len(list(prepare_dataset.read_examples(tmp_path / "m.csv", processor, report, progress=False))) == 2
    assert [code for _, code, _ in report.rejected] == ["unexpected_error", "smiles_syntax"] and "surprise" in report.summary()


def test_datasets_that_do_not_fit_are_named(tmp_path, processor):
    Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "other")
    with pytest.raises(StructureError, match="without the columns.*input_ids"):
        prepare_dataset.load_prepared(tmp_path / "other", processor.tokenizer)
    (tmp_path / "m.csv").write_text(SMILES)
    prepare_dataset.main([str(tmp_path / "m.csv"), "--output_dir", str(tmp_path / "d")])
    other = processor.tokenizer.train_new_from_iterator(["CCO"] * 3, 160)
    with pytest.raises(StructureError, match="was made with the vocabulary"):
        prepare_dataset.load_prepared(tmp_path / "d", other)
    (tmp_path / "none.csv").write_text("smiles\nc1cc\n")
    with pytest.raises(StructureError, match="no usable example") as error:
        prepare_dataset.load_examples(tmp_path / "none.csv", processor, tmp_path / "cache", progress=False)
    assert "c1cc" in str(error.value) and not list((tmp_path / "cache").iterdir())
