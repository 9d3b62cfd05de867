import csv
import json
import re

import gemmi
import numpy as np
import pytest
from conftest import ROOT, run
from rdkit import Chem

import output_folder
import run_interaction_scores
import structure_page
from atomica_hf import StructureError
from dataset_shards import load_examples


EVIL = "<script>alert(1)</script> & <b>x</b>"


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "m.csv"
    with open(path, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(
            [("name", "smiles"), (EVIL, "CC(=O)Oc1ccccc1C(=O)O.NCCc1ccc(O)c(O)c1"), ("bad", "c1ccc"), ("lone", "CCO")]
        )
    return path


def run_main(*options):
    run_interaction_scores.main([str(x) for x in (*options, "--device", "cpu", "--dtype", "float64")])


def read(path):
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_pair_gets_scores_a_structure_drawings_and_a_page(model_folder, table, tmp_path, processor):
    folder = tmp_path / "out"
    done = run("run_interaction_scores.py", "--model_name_or_path", model_folder, "--input_file", table, "--output_dir", folder,
               "--dtype", "float64", "--device", "cpu")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 kept, 2 left out" in done.stdout and "bad" in done.stdout and "no partner to read out" in done.stdout
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["kept"] == 1 and {row["reason"] for row in report["rejected"]} == {"smiles_syntax", "no_scores"}
    rows = read(folder / "scores.csv")
    assert {row["complex"] for row in rows} == {EVIL}
    assert [int(row["rank"]) for row in rows] == list(range(1, len(rows) + 1))
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores) and len(set(scores)) > 1
    example = processor.encode(processor.read(("CC(=O)Oc1ccccc1C(=O)O", "NCCc1ccc(O)c(O)c1"))[0])
    model, _ = run_interaction_scores.load_model(str(model_folder), "float64")
    inputs = processor(("CC(=O)Oc1ccccc1C(=O)O", "NCCc1ccc(O)c(O)c1"), return_tensors="pt")
    expected = model.interaction_scores(**inputs)[0]
    positions = np.asarray(example["positions"])
    for row in rows:
        block = int(row["block"])
        assert abs(float(expected[block]) - float(row["score"])) < 1e-6
        assert float(row["b_factor"]) == pytest.approx(1000 * (1 - float(row["score"])), abs=0.006)
        of_atom = np.asarray(example["token_type_ids"])[example["atom_to_block"]]
        mine = np.asarray(example["atom_to_block"]) == block
        others = (of_atom != int(row["segment"])) & (np.asarray(example["atom_ids"]) != 2)
        nearest = np.linalg.norm(positions[mine][:, None] - positions[others], axis=-1).min()
        assert float(row["distance"]) == pytest.approx(nearest, abs=0.006)
    assert sorted(path.suffix for path in folder.iterdir()) == [".csv", ".html", ".json", ".pdb", ".svg", ".svg"]

    structure = gemmi.read_structure(str(next(folder.glob("*.pdb"))))
    written = sorted(atom.b_iso for chain in structure[0] for residue in chain for atom in residue)
    of_block = {int(row["block"]): float(row["b_factor"]) for row in rows}
    wanted = sorted(of_block[block] for block, atom in zip(example["atom_to_block"], example["atom_ids"]) if atom != 2)
    assert written == pytest.approx(wanted, abs=0.0051)

    page = next(folder.glob("*.html")).read_text(encoding="utf-8")
    assert_self_contained(page)
    assert EVIL not in page and "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &lt;b&gt;x" in page
    assert page.count("<svg") == 2 and page.count("<tr tabindex") == len(rows)
    for drawing in folder.glob("*.svg"):
        assert drawing.read_text(encoding="utf-8").count("ellipse") and "&lt;" not in drawing.read_text(encoding="utf-8")


def assert_self_contained(page):
    library = (ROOT / "third_party" / "3Dmol-min.js").read_text(encoding="utf-8")
    assert library in page and "University of Pittsburgh" in page.replace(library, "")
    own = page.replace(library, "")
    assert not re.search(r"""(?:src|href|action)\s*=|@import|url\(|\bimport\s*\(|fetch\(|XMLHttpRequest""", own)
    assert "default-src 'none'" in own
    assert page.count("</script>") == 4 and "</script" not in library and "<!--" not in library


def test_residues_of_a_file_have_their_numbers(shared, model_folder, tmp_path):
    index = tmp_path / "index.csv"
    folder = shared / "data/complexes/atomica_examples"
    lines = (folder / "example_inputs.csv").read_text(encoding="utf-8").splitlines()
    index.write_text("\n".join([lines[0], next(line for line in lines if line.startswith("6hrg"))]), encoding="utf-8")
    (tmp_path / "6hrg.cif").write_bytes((folder / "6hrg.cif").read_bytes())
    out = tmp_path / "out"
    run_main("--model_name_or_path", model_folder, "--input_file", index, "--output_dir", out, "--segments", 0, "--top", 5)
    rows = read(out / "scores.csv")
    ranked = [row for row in rows if row["rank"]]
    assert {row["segment"] for row in ranked} == {"0"} and {row["segment"] for row in rows} == {"0", "1"}
    assert all(row["score"] == "" for row in rows if row["segment"] == "1")
    structure = gemmi.read_structure(str(next(out.glob("*.pdb"))))
    residues = {
        (chain.name, str(r.seqid.num), r.seqid.icode.strip()): (r.name, {round(atom.b_iso, 2) for atom in r})
        for chain in structure[0]
        for r in chain
    }
    for row in rows:
        name, b = residues[row["chain"], row["number"], row["insertion"]]
        assert name == row["name"] and b == {float(row["b_factor"])}
    near = [row for row in ranked if float(row["distance"]) < 3]
    assert {row["name"] for row in near} <= {"CYS", "HIS", "ASP", "GLU"} and near  # what holds a zinc ion
    page = next(out.glob("*.html")).read_text(encoding="utf-8")
    assert_self_contained(page)
    assert page.count("<tr tabindex") == 5 and f"5 of {len(rows)} blocks are listed" in page and len(page) < 700_000
    data = data_of(page)
    elements = [line.split()[0] for line in data["xyz"].splitlines()[2:]]
    assert [elements[i] for i in data["single"]] == ["Zn", "Zn"] == [e for e in elements if e == "Zn"]  # bound by residues
    legend = f"Thin sticks: segment 0 (chain A, {len(rows) - 1} blocks); thick sticks: segment 1 (ZN A:301, 1 block); spheres"
    assert legend in page and "<th>token</th>" not in page


def data_of(page):
    return json.loads(re.search('id="data">(.*?)</script>', page)[1])


def test_an_interface_of_a_file_is_named_or_all_are_scored(shared, model_folder, tmp_path, capsys):
    folder = shared / "data/complexes/atomica_examples"
    base = ("--model_name_or_path", model_folder, "--output_dir", tmp_path / "out")
    zinc = ("--input_file", folder / "6hrg.cif")
    with pytest.raises(StructureError, match="no complex got scores") as error:
        run_main(*base, *zinc)
    assert "\n  6hrg: The complex has one segment and no partner to read out; --readout h_graph needs none" in str(error.value)
    assert "list_interfaces.py" in str(error.value) and not (tmp_path / "out").exists()
    run_main(*base, *zinc, "--interfaces", "all", "--pages", False)
    names = {row["complex"] for row in read(tmp_path / "out/scores.csv")}
    assert names == {"6hrg_A_A_ZN_301", "6hrg_A_A_ZN_302", "6hrg_A_A_K_304"}
    ligand = ("--input_file", folder / "6llw.cif", "--segments", 1)
    run_main(*base, *ligand, "--pages", False)
    printed = capsys.readouterr().out
    assert "molecule_left_out:UDP" in printed and "list_interfaces.py" in printed
    run_main(*base, *ligand, "--side_a", "A", "--side_b", "A:UDP:900")
    assert "list_interfaces.py" not in capsys.readouterr().out
    rows = [row for row in read(tmp_path / "out/scores.csv") if row["rank"]]
    assert {(row["name"], row["number"]) for row in rows} == {("UDP", "900")} and len(rows) > 1
    data = data_of(next((tmp_path / "out").glob("*.html")).read_text(encoding="utf-8"))
    assert {data["names"][row["block"]] for row in rows} == {f"UDP A:900 {row['token']}" for row in rows}


def test_a_lone_molecule_is_read_out_as_a_whole(model_folder, tmp_path):
    table = tmp_path / "m.csv"
    table.write_text("name,smiles\nx,CC(=O)Nc1ccc(OCC(O)CO)cc1\n", encoding="utf-8")
    out = tmp_path / "out"
    base = ("--model_name_or_path", model_folder, "--input_file", table, "--output_dir", out, "--readout", "h_graph")
    run_main(*base, "--pages", False)
    rows = read(out / "scores.csv")
    assert all(row["distance"] == "" and row["score"] for row in rows)
    assert sorted(path.name for path in out.iterdir()) == ["report.json", "scores.csv"]
    run_main(*base, "--max_blocks_per_batch", 1)
    assert read(out / "scores.csv") == rows and list(out.glob("*.html"))


def test_what_cannot_be_scored_is_named(model_folder, table, tmp_path):
    out = tmp_path / "out"
    good = {"--model_name_or_path": model_folder, "--input_file": table, "--output_dir": out}
    for change, words in (
        ({"--model_name_or_path": tmp_path / "nowhere"}, "nowhere"),
        ({"--input_file": tmp_path / "gone.sdf"}, "gone.sdf: no such file"),
        ({"--output_dir": table}, "is a file"),
        ({"--top": 0}, "--top is 0"),
        ({"--segments": -1}, "--segments"),
        ({"--segments": 5}, "no segment 5 for --segments; it has 0, 1"),
        ({"--max_samples": 0}, "--max_samples is 0"),
        ({"--interfaces": "all"}, "--interfaces is for PDB and mmCIF files, not for"),
        ({"--interfaces": "all", "--side_a": "A"}, "--interfaces excludes --side_a"),
        ({"--side_a": "A", "--side_b": "B"}, "in PDB and mmCIF files only"),
        ({"--max_blocks_per_batch": 0}, "--max_blocks_per_batch"),
    ):
        with pytest.raises(StructureError, match=words):
            run_main(*(x for pair in {**good, **change}.items() for x in pair))
    assert not out.exists()


def test_names_of_files_and_colours():
    assert structure_page.colors([1.0, 0.5, np.nan]) == ["#f2f2f2", "#e8503e", "#9aa5b1"]
    assert structure_page.colors([1.0, 1.0]) == ["#f2f2f2"] * 2
    assert structure_page.b_factors([1.0, 0.99, -1.0, np.nan]).tolist() == [0.0, 10.0, 999.99, 0.0]
    assert output_folder.file_name(3, "../../etc/passwd") == "00003_etc_passwd"
    assert output_folder.file_name(0, "***") == "00000_complex"
    light = [((int(c, 16) / 255 + 0.055) / 1.055) ** 2.4 for c in ("e8", "50", "3e")]
    assert np.dot([0.2126, 0.7152, 0.0722], light) / 0.05 + 1 > 4.5  # contrast of a black letter on it, as WCAG has it
    with pytest.raises(ValueError, match="3 blocks for 2 atoms"):
        structure_page.draw_fragments(Chem.MolFromSmiles("CC"), [0, 0, 0], [0.5])


def test_long_names_of_chains_go_into_mmcif(model_folder, processor, tmp_path, table):
    example = dict(load_examples(table, processor, tmp_path / "cache", progress=False)[0][0])
    example["block_origins"] = ["AAA:GLY:1" if origin else "" for origin in example["block_origins"]]
    scores = np.where(np.array(example["input_ids"]) >= 4, 0.9, np.nan)
    rows = structure_page.score_rows(
        example, scores, processor.tokenizer.convert_ids_to_tokens(range(len(processor.tokenizer)))
    )
    run_interaction_scores.write_files(tmp_path, "x", example, scores, rows, processor, "", 10)
    structure = gemmi.read_structure(str(tmp_path / "x.cif"))
    assert {atom.b_iso for chain in structure[0] for residue in chain for atom in residue} == {100.0}
    with pytest.raises(ValueError, match="expected one per block"):
        structure_page.score_rows(example, scores[:-1], [])


@pytest.mark.parametrize(
    "change",
    [
        lambda e: {"block_origins": ["" if not text else "A:ABCDE:1" for text in e["block_origins"]]},
        lambda e: {"atom_origins": [f"NAME{i}" for i in range(len(e["atom_ids"]))]},
        lambda e: {"positions": np.asarray(e["positions"]) + 20_000},
        lambda e: {"positions": np.asarray(e["positions"]) - 2_000},
    ],
)
def test_what_a_pdb_file_would_cut_goes_into_mmcif(examples, processor, tmp_path, change):
    example = {**examples[1], **change(examples[1])}
    assert output_folder.structure_suffix(examples[1]) == ".pdb"
    path = tmp_path / f"x{output_folder.structure_suffix(example)}"
    processor.to_pdb(example, path=path)
    found = [(r.name, atom.name, atom.pos.tolist()) for c in gemmi.read_structure(str(path))[0] for r in c for atom in r]
    ordinary = [i for i, atom in enumerate(example["atom_ids"]) if atom != 2]
    assert np.allclose([position for *_, position in found], np.asarray(example["positions"])[ordinary], atol=1e-3)
    assert [name for _, name, _ in found] == [example["atom_origins"][i] for i in ordinary]
    assert {name for name, *_ in found} == ({"ABCDE"} if "ABCDE" in example["block_origins"][1] else {"LIG"})


def test_a_repeated_command_leaves_no_files_of_the_one_before(model_folder, tmp_path):
    table, out = tmp_path / "m.csv", tmp_path / "out"
    base = ("--model_name_or_path", model_folder, "--input_file", table, "--output_dir", out)
    table.write_text("name,smiles\na,CCO.O\nb,CCO.N\n", encoding="utf-8")
    run_main(*base)
    assert len(list(out.glob("*.html"))) == 2
    (out / "mine.txt").write_text("mine")
    table.write_text("name,smiles\nc,CCO.O\n", encoding="utf-8")
    run_main(*base)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert {path.name for path in out.iterdir()} == {"mine.txt", "report.json", *report["files"]}
    assert {name[:7] for name in report["files"]} == {"00000_c", "scores."}
    with pytest.raises(StructureError, match="--num_proc is 0"):
        run_main(*base, "--num_proc", 0)


def test_a_complex_without_scores_does_not_stop_the_others(model_folder, table, tmp_path, monkeypatch):
    real, out = run_interaction_scores.scores_of, tmp_path / "out"
    table.write_text("name,smiles\nfull,CCO.O\nnone,CCO.N\ngood,CCO.O\n", encoding="utf-8")

    def scores_of(model, example, *options):
        if example["name"] == "full":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(model, example, *options) * (np.nan if example["name"] == "none" else 1)

    monkeypatch.setattr(run_interaction_scores, "scores_of", scores_of)
    run_main("--model_name_or_path", model_folder, "--input_file", table, "--output_dir", out)
    assert {row["complex"] for row in read(out / "scores.csv")} == {"good"}
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    reasons = {row["name"]: row["message"] for row in report["rejected"]}
    assert report["kept"] == 1 and "allocate memory" in reasons["full"] and "no block" in reasons["none"]


def test_ctrl_c_keeps_the_scores_there_are(model_folder, table, tmp_path, monkeypatch):
    real, out = run_interaction_scores.scores_of, tmp_path / "out"
    table.write_text("name,smiles\nfirst,CCO.O\nnow,CCO.N\nlater,CCO.O\n", encoding="utf-8")

    def scores_of(model, example, *options):
        if example["name"] == "now":
            raise KeyboardInterrupt
        return real(model, example, *options)

    monkeypatch.setattr(run_interaction_scores, "scores_of", scores_of)
    with pytest.raises(KeyboardInterrupt):
        run_main("--model_name_or_path", model_folder, "--input_file", table, "--output_dir", out)
    assert {row["complex"] for row in read(out / "scores.csv")} == {"first"}
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    reasons = {row["name"]: row["reason"] for row in report["rejected"]}
    assert report["kept"] == 1 and reasons == {"now": "stopped", "later": "stopped"} and report["files"]
