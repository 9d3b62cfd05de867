"""What the demo computes: every kind of input, its limits, bad input, files of a request, requests at the same time."""

import copy
import csv
import gzip
import io
import json
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor

import gemmi
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, shipped_smiles, tiny_config, to_batch
from rdkit import Chem
from rdkit.Chem import AllChem

from atomica_hf import AtomicaConfig, AtomicaForPreTraining, AtomicaModel, StructureError
from demo import analysis
from demo.analysis import NO_MEANING, Limits, Settings, analyse, list_choices, load, open_demo, read_file, read_smiles


ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
PAIR = "CC(=O)Nc1ccc(O)cc1.OC(=O)c1ccccc1O"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, processor):
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    AtomicaForPreTraining(tiny_config()).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    path = tmp_path_factory.mktemp("molecules") / "some.csv"
    rows = [("aspirin", ASPIRIN), ("phenol", "Oc1ccccc1"), ("ethanol", "CCO"), ("broken", "C1CC")]
    path.write_text("name,smiles\n" + "".join(f"{name},{smiles}\n" for name, smiles in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def demo(folder, molecules):
    return open_demo(folder, molecules=molecules)


def add_molecule(chain, name, number, smiles, shift, elements=None):
    """A ligand built in 3D, or a lone atom, as a residue of a chain of gemmi."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    mol = Chem.RemoveHs(mol)
    residue = gemmi.Residue()
    residue.name, residue.seqid, residue.het_flag = name, gemmi.SeqId(number, " "), "H"
    for i, (atom, position) in enumerate(zip(mol.GetAtoms(), mol.GetConformer().GetPositions() + shift)):
        found = gemmi.Atom()
        found.element, found.name, found.pos = (
            gemmi.Element(atom.GetSymbol()),
            f"{atom.GetSymbol()}{i}",
            gemmi.Position(*position),
        )
        residue.add_atom(found)
    chain.add_residue(residue)


def add_peptide(chain, names, shift):
    """A strand of residues, each with a backbone."""
    for number, name in enumerate(names, 1):
        residue = gemmi.Residue()
        residue.name, residue.seqid, residue.het_flag = name, gemmi.SeqId(number, " "), "A"
        for atom, place in {
            "N": (0, 0, 0),
            "CA": (1.2, 0.8, 0),
            "C": (2.4, 0, 0),
            "O": (2.4, -1.2, 0),
            "CB": (1.2, 1.6, 1.2),
        }.items():
            found = gemmi.Atom()
            found.element, found.name = gemmi.Element(atom[0]), atom
            found.pos = gemmi.Position(*(np.array(place) + shift + [3.6 * number, 0, 0]))
            residue.add_atom(found)
        chain.add_residue(residue)


@pytest.fixture(scope="module")
def structure():
    """Two chains, a large and a small ligand, and an ion."""
    found, model = gemmi.Structure(), gemmi.Model(1)
    names = "ALA SER LEU VAL THR ILE SER ALA LEU VAL SER THR".split()
    a, b = gemmi.Chain("A"), gemmi.Chain("B")
    add_peptide(a, names, np.zeros(3))
    add_peptide(b, names, np.array([0, 6.0, 0]))
    add_molecule(a, "PRL", 101, "CCCO", np.array([14, -5.0, 0]))
    add_molecule(a, "SAL", 102, "OC(=O)c1ccccc1NC", np.array([24, -6.0, 0]))
    add_molecule(a, "ZN", 103, "[Zn]", np.array([34, -4.0, 0]))
    for chain in (a, b):
        model.add_chain(chain)
    found.add_model(model)
    found.name = "made"
    found.setup_entities()
    return found


@pytest.fixture(scope="module")
def pdb(structure, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "made.pdb"
    path.write_text(structure.make_pdb_string(), encoding="utf-8")
    return path


def refused(function, *arguments, **options):
    with pytest.raises(StructureError) as caught:
        function(*arguments, **options)
    assert "Traceback" not in str(caught.value)
    return caught.value


def names_of(archive):
    with zipfile.ZipFile(archive) as opened:
        assert opened.testzip() is None
        return {name: opened.read(name).decode("utf-8") for name in opened.namelist()}


def test_a_molecule(demo, tmp_path):
    seen = []
    result = analyse(demo, tmp_path, smiles=f"  {ASPIRIN}\n", progress=lambda share, words: seen.append((share, words)))
    example = demo.processor.encode(demo.processor.read(ASPIRIN)[0])
    expected = demo.model.interaction_scores(None, "h_graph", **to_batch([example], torch.float32))[0]
    found = {row["block"]: row["score"] for row in result.score_rows}
    assert found == pytest.approx({i: float(expected[i]) for i in found}, abs=1e-6) and len(found) == 2
    assert [row["rank"] for row in result.score_rows] == [1, 2]

    assert len(result.proposals) == 2 * 5 and {row["true_token_str"] for row in result.proposals} == {
        row["token"] for row in result.score_rows
    }
    assert [row["block"] for row in result.proposals[::5]] == [row["block"] for row in result.score_rows]  # lowest score first
    hidden = demo.fill([example], blocks=[1], top_k=5)[0]
    mine = [row["score"] for row in result.proposals if row["block"] == 1]
    assert mine == pytest.approx([row["score"] for row in hidden], abs=1e-6)

    assert result.neighbors[0]["name"] == "aspirin" and result.neighbors[0]["distance"] < 1e-6
    assert [row["rank"] for row in result.neighbors] == [1, 2, 3]
    shares = [share for share, _ in seen]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1
    assert len(result.drawings) == 1 and result.drawings[0].lstrip().startswith("<?xml") and "<svg" in result.neighbor_drawing


def test_the_zip_has_everything_that_is_shown(demo, pdb, tmp_path):
    result = analyse(demo, tmp_path, path=pdb, settings=Settings(3, 4, 2))
    files = names_of(result.archive)
    assert len([name for name in files if name.endswith(".svg")]) == 3 and len(files) == 9
    rows = list(csv.DictReader(io.StringIO(next(text for name, text in files.items() if name.endswith("_scores.csv")))))
    assert [{key: str(value) for key, value in row.items()} for row in result.score_rows] == rows
    proposals = list(csv.DictReader(io.StringIO(next(t for n, t in files.items() if n.endswith("_proposals.csv")))))
    assert len(proposals) == len(result.proposals) == 3 * 4
    asked = list(dict.fromkeys(row["block"] for row in result.proposals))
    assert asked == [row["block"] for row in result.score_rows[:4]] != sorted(asked)  # lowest score first
    near = list(csv.DictReader(io.StringIO(next(t for n, t in files.items() if n.endswith("_neighbours.csv")))))
    assert [row["name"] for row in near] == [row["name"] for row in result.neighbors] and len(near) == 2
    (page,) = (text for name, text in files.items() if name.endswith(".html"))
    assert page == result.page and "3Dmol" in page and "http-equiv" in page
    report = json.loads(next(text for name, text in files.items() if name.endswith("_report.json")))
    assert report["kind"] == "protein-ligand" and report["readout"] == "z_interface" and not report["random_weights"]
    assert report["settings"] == {"top_k": 3, "hidden_blocks": 4, "neighbors": 2} and report["blocks"] == len(rows)
    (text,) = (text for name, text in files.items() if name.endswith(".pdb"))
    factors = {
        (residue.name, atom.name): atom.b_iso
        for chain in gemmi.read_pdb_string(text)[0]
        for residue in chain
        for atom in residue
    }
    of_name = {row["name"]: row for row in result.score_rows if row["name"] == "SAL"}
    assert any(key[0] == "SAL" for key in factors) and of_name
    assert sorted({round(value, 2) for value in factors.values()}) == sorted({row["b_factor"] for row in result.score_rows})


def test_interfaces_to_choose_from_and_the_default(demo, pdb, structure, tmp_path):
    labels, default, total = list_choices(demo, pdb)
    assert total == len(labels) == 4
    assert "protein-peptide" in labels[0] and "SAL_102" in labels[default] and "protein-ligand" in labels[default]
    assert num(read_file(demo, pdb)) != num(read_file(demo, pdb, 1))
    for number, label in enumerate(labels, 1):
        found = read_file(demo, pdb, number)
        sizes = [sum(len(component.elements) for component in segment) for segment in found.segments]
        assert label.startswith(f"{number}. {found.properties['kind']}: {found.name}, {sizes[0]} + {sizes[1]} atoms")
    assert read_file(demo, pdb).name == read_file(demo, pdb, default + 1).name
    assert "1 to 4" in str(refused(read_file, demo, pdb, 9))
    assert read_file(demo, pdb, labels[0]).name == read_file(demo, pdb, 1).name
    assert "choose again" in str(refused(read_file, demo, pdb, "1. an interface of another file"))

    cif, packed = tmp_path / "made.cif", tmp_path / "made.pdb.gz"
    cif.write_text(structure.make_mmcif_document().as_string(), encoding="utf-8")
    packed.write_bytes(gzip.compress(pdb.read_bytes()))
    for other in (cif, packed):
        assert [label.split(":")[0] for label in list_choices(demo, other)[0]] == [label.split(":")[0] for label in labels]

    alone = structure.clone()
    alone[0].remove_chain("B")
    for name in ("SAL", "PRL", "ZN"):
        chain = alone[0]["A"]
        del chain[next(i for i, residue in enumerate(chain) if residue.name == name)]
    lone = tmp_path / "lone.pdb"
    lone.write_text(alone.make_pdb_string(), encoding="utf-8")
    labels, default, total = list_choices(demo, lone)
    assert total == 1 and default == 0 and "alone" in labels[0]
    result = analyse(demo, tmp_path, path=lone)
    assert len(result.score_rows) == 12 and not result.neighbors and "small molecules only" in " ".join(result.notes)
    assert "h_graph" in result.summary and not result.drawings


def num(structure):
    return analysis.num_atoms(structure)


def test_records_of_sdf_and_many_of_them(demo, tmp_path, monkeypatch):
    path, count = tmp_path / "three.sdf", 3
    with Chem.SDWriter(str(path)) as writer:
        for number, smiles in enumerate(shipped_smiles()[:count]):
            mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
            AllChem.EmbedMolecule(mol, randomSeed=1)
            mol.SetProp("_Name", "record" if number else "first record")
            writer.write(mol)
    labels, default, total = list_choices(demo, path)
    assert labels == ["1. first record", "2. record", "3. record"] and default == 0 and total == 3
    assert read_file(demo, path).name == "first record"
    sizes = [Chem.MolFromSmiles(smiles).GetNumAtoms() for smiles in shipped_smiles()[:count]]
    assert [num(read_file(demo, path, label)) for label in labels] == sizes
    assert f"{sizes[2]} atoms" in analyse(demo, tmp_path, path=path, choice=3).summary
    monkeypatch.setattr(analysis, "MOST_CHOICES", 2)
    assert list_choices(demo, path) == (["1. first record", "2. record"], 0, 3)


def test_a_default_behind_the_last_that_is_listed_is_listed(demo, pdb, monkeypatch):
    labels, default, _ = list_choices(demo, pdb)
    monkeypatch.setattr(analysis, "MOST_CHOICES", 2)
    few, last, total = list_choices(demo, pdb)
    assert few == [labels[0], labels[default]] and last == 1 and total == 4 and default > 1


def test_size_limits_say_what_was_found_and_what_is_allowed(demo, pdb, tmp_path):
    allowed = pdb.stat().st_size // 2
    error = refused(read_file, demo, pdb, limits=Limits(megabytes=allowed / 1e6))
    assert (
        error.code == "too_large"
        and f"{pdb.stat().st_size / 1e6:.2f} MB" in str(error)
        and f"{allowed / 1e6:g} MB" in str(error)
    )
    bomb = tmp_path / "bomb.pdb.gz"
    bomb.write_bytes(gzip.compress(b" " * 3_000_000))
    error = refused(list_choices, demo, bomb, Limits(megabytes=1))
    assert bomb.stat().st_size < 1e5 and "bomb.pdb.gz has more than 1 MB when unpacked" in str(error)
    error = refused(read_file, demo, pdb, limits=Limits(atoms=20))
    assert error.code == "too_large" and f"{num(read_file(demo, pdb))} atoms" in str(error) and "20 are allowed" in str(error)
    error = refused(read_smiles, demo, ASPIRIN, Limits(smiles_atoms=12))
    assert "13 atoms" in str(error) and "12 are allowed" in str(error)
    error = refused(read_smiles, demo, "C" * 300, Limits(smiles_atoms=10))
    assert "300 characters" in str(error) and "200 are allowed" in str(error)
    assert num(read_smiles(demo, ASPIRIN, Limits(smiles_atoms=13, atoms=13))) == 13
    assert refused(Limits, seconds=0).code == "usage"


def test_the_time_limit_stops_between_steps(demo, pdb, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(analysis, "BLOCKS_PER_BATCH", 20)
    monkeypatch.setattr(analysis.time, "monotonic", lambda: now[0])
    stages = []

    def progress(share, words):
        stages.append(words)
        now[0] += 10 if "hiding" in words else 0

    error = refused(analyse, demo, tmp_path, path=pdb, limits=Limits(seconds=25), progress=progress)
    assert error.code == "too_long" and "25 s are allowed" in str(error) and "30.0 s" in str(error)
    assert not list(tmp_path.rglob("*.zip")) and any("hiding" in words for words in stages)


@pytest.mark.parametrize(
    "text, found",
    [
        ("", "Nothing was given"),
        (" \n", "Nothing was given"),
        ("C1CC", "C1CC"),
        ("CCO benzene", "2 words"),
        ("c1ccccc1C(C)(C)(C)C", "cannot be sanitised"),
        ("*CC", "expected an element"),
        ("/etc/passwd", "not a SMILES"),
        ("<script>alert(1)</script>", "not a SMILES"),
    ],
)
def test_bad_smiles(demo, tmp_path, text, found):
    assert found in str(refused(analyse, demo, tmp_path, smiles=text))
    assert not list(tmp_path.rglob("*.zip"))


@pytest.mark.parametrize(
    "name, content",
    [
        ("empty.pdb", b""),
        ("noise.pdb", bytes(range(256)) * 20),
        ("cut.pdb.gz", gzip.compress(b"ATOM" * 100)[:-12]),
        ("table.csv", b"smiles\nCCO\n"),
        ("text.txt", b"hello"),
        ("nothing.sdf", b"\n"),
        ("broken.sdf", b"broken one\n\n\n  9  9  0  0  0  0  0  0  0  0999 V2000\n$$$$\n"),
        ("header.cif", b"data_x\nloop_\n_atom_site.id\n"),
    ],
)
def test_bad_files(demo, tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    for function, arguments in ((list_choices, (demo, path)), (analyse, (demo, tmp_path, "", path))):
        if function is list_choices and name == "broken.sdf":
            continue  # records are read when they are chosen
        error = refused(function, *arguments)
        assert str(tmp_path) not in str(error) and name.split(".")[0] in str(error)
    assert "no such file" in str(refused(read_file, demo, tmp_path / "absent.pdb"))


def test_settings_and_two_inputs_at_once(demo, pdb, tmp_path):
    assert "clear the other" in str(refused(analyse, demo, tmp_path, smiles="CCO", path=pdb))
    for changes in ({"top_k": 0}, {"top_k": 21}, {"hidden_blocks": 51}, {"neighbors": 0}):
        (name,) = changes
        assert name in str(refused(analyse, demo, tmp_path, smiles="CCO", settings=Settings(**changes)))


def test_requests_at_the_same_time_do_not_mix(demo, pdb, tmp_path):
    inputs = [{"smiles": ASPIRIN}, {"smiles": PAIR}, {"path": pdb}, {"path": pdb, "choice": 1}]
    alone = [analyse(demo, tmp_path / f"alone{i}", **one) for i, one in enumerate(inputs)]
    before = {name: weight.clone() for name, weight in demo.model.state_dict().items()}
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(analyse, demo, tmp_path / f"beside{i}", **one) for i, one in enumerate(inputs)]
        beside = [one.result() for one in waiting]
    for i, (one, other) in enumerate(zip(alone, beside)):
        assert one.name == other.name and one.neighbors == other.neighbors
        scores, others = ({row["block"]: row["score"] for row in found.score_rows} for found in (one, other))
        assert scores == pytest.approx(others, abs=1e-6)
        assert other.archive.parent == tmp_path / f"beside{i}" and set(names_of(one.archive)) == set(names_of(other.archive))
        assert [row["token"] for row in one.proposals] == [row["token"] for row in other.proposals]
    assert all(torch.equal(before[name], weight) for name, weight in demo.model.state_dict().items())
    assert "encode" not in vars(demo.model.base_model)


def test_everything_is_written_into_the_folder_of_the_request(demo, tmp_path, monkeypatch):
    elsewhere, own = tmp_path / "temporary", tmp_path / "own"
    elsewhere.mkdir(), own.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    monkeypatch.chdir(elsewhere)
    result = analyse(demo, own, smiles="CCO.O")
    assert result.archive.is_relative_to(own) and not list(elsewhere.iterdir())
    assert not list(own.rglob("*.tmp*"))


def test_without_weights_only_when_asked_for_and_never_silently(processor, molecules, tmp_path):
    folder = tmp_path / "bare"
    AtomicaConfig(**{**tiny_config().to_dict(), "architectures": ["AtomicaForPreTraining"]}).save_pretrained(folder)
    processor.save_pretrained(folder)
    error = refused(load, folder)
    assert error.code == "no_weights" and "--allow_random_weights" in str(error)
    opened = open_demo(folder, True, molecules=molecules)
    again = open_demo(folder, True, molecules=molecules)
    assert opened.is_random and np.array_equal(opened.vectors, again.vectors)
    result = analyse(opened, tmp_path, smiles="CCO")
    report = json.loads(next(text for name, text in names_of(result.archive).items() if name.endswith(".json")))
    assert NO_MEANING in result.page and report["random_weights"] is True and report["meaning"] == NO_MEANING
    assert refused(load, tmp_path / "nowhere", True).code == "no_model"
    (folder / "model.safetensors").write_bytes(b"not weights")
    assert refused(load, folder, True).code == "no_model"  # broken ones are no missing ones


def test_a_model_without_a_head_for_hidden_blocks(processor, molecules, tmp_path):
    torch.manual_seed(0)
    AtomicaModel(tiny_config()).save_pretrained(tmp_path / "encoder")
    processor.save_pretrained(tmp_path / "encoder")
    opened = open_demo(tmp_path / "encoder", molecules=molecules)
    result = analyse(opened, tmp_path, smiles=ASPIRIN)
    assert not result.proposals and "no trained head" in " ".join(result.notes)
    assert result.score_rows and result.neighbors and not any("proposals" in name for name in names_of(result.archive))
    assert opened.molecules[0]["name"] == "aspirin" and len(opened.molecules) == 3


def test_the_copy_that_is_watched_shares_the_weights(demo):
    encoder = copy.copy(demo.model.base_model)
    assert all(a is b for a, b in zip(encoder.parameters(), demo.model.base_model.parameters()))


def test_the_files_of_a_space():
    text = (ROOT / "demo" / "README.md").read_text(encoding="utf-8")
    card = yaml.safe_load(text.split("---")[1])
    assert card["sdk"] == "gradio" and card["license"] == "apache-2.0" and (ROOT / card["app_file"]).is_file()
    assert card["sdk_version"].startswith("6.") and len(card["short_description"]) <= 60
    needed = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    own = (ROOT / "demo" / "requirements.txt").read_text(encoding="utf-8").split()
    assert [line for line in own if not line.startswith("gradio")] == needed and "gradio>=6.0,<7" in own
    table = dict(re.findall(r"^\| `--(\w+)` \| (\d+) \|", text, re.MULTILINE))
    assert {name: float(table[name]) for name in ("megabytes", "atoms", "smiles_atoms", "seconds")} == vars(Limits())
