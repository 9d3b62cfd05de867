import csv
import json
import re
import shutil

import gemmi
import numpy as np
import pytest
import torch
from conftest import ROOT, run, tiny_model
from rdkit import Chem
from rdkit.Chem import AllChem
from scipy.stats import ttest_rel

import benchmark_cells
import benchmark_statistics
import benchmark_tasks
import run_benchmark
from atomica_hf import StructureError
from finetuning_data import read_source
from metrics_atomica import scores


SIZES = {"hidden_size": 8, "atom_hidden_size": 8, "edge_size": 8, "num_hidden_layers": 2, "num_pooling_layers": 1}
SMILES = [row["smiles"] for row in csv.DictReader(open(ROOT / "examples" / "molecules.csv", encoding="utf-8"))]
SMILES = [smiles for smiles in SMILES if len(smiles) < 20][:24]
OPTIONS = {"num_train_epochs": 1, "per_device_train_batch_size": 8, "eval_strategy": "no", "save_strategy": "no"}
OPTIONS |= {"load_best_model_at_end": False, "finetune": {"learning_rate": 0.01}}
TASKS = [
    {"name": "share", "file": "tiny.csv", "label_columns": ["share"], "problem_type": "regression", "split_column": "set",
     "units": "percent"},
    {"name": "both", "file": "tiny.csv", "label_columns": "a;b", "problem_type": "multi_label_classification",
     "split": "random", "split_fractions": [0.5, 0.2, 0.3], "resplit": True, "baselines": ["mean"]},
]  # fmt: skip


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def write_dimers(path):
    """Pairs of molecules that RDKit built, at six distances; the energy is a function of the distance."""
    parts = []
    for smiles in ("CO", "CN", "CCO", "C=O", "CF"):
        mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
        AllChem.EmbedMolecule(mol, randomSeed=1)
        parts.append(mol)
    with Chem.SDWriter(str(path)) as writer:
        for i, first in enumerate(parts):
            for number, distance in enumerate(np.linspace(3.5, 6, 6)):
                both = Chem.CombineMols(first, parts[(i + 1) % 5], offset=Chem.rdGeometry.Point3D(float(distance), 0.0, 0.0))
                name = "NCIA_toy" if i < 3 else "other"
                both.SetProp("_Name", f"{name}|{i}_{number}")
                both.SetProp("dataset", name)
                both.SetProp("interaction_energy", f"{-5 / distance**2 - i / 10:.4f}")
                writer.write(both)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with open(folder / "tiny.csv", "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["smiles", "share", "a", "b", "set"])
        for i, smiles in enumerate(SMILES):
            mol = Chem.MolFromSmiles(smiles)
            share = 100 * sum(atom.GetAtomicNum() != 6 for atom in mol.GetAtoms()) / mol.GetNumAtoms() + i / 10
            labels = (int("O" in smiles), "" if i % 4 == 0 else i % 2)
            writer.writerow([smiles, share, *labels, ("train", "train", "valid", "test")[i % 4]])
        writer.writerow(["c1ccc", 50, 1, 1, "test"])
    write_dimers(folder / "dimers.sdf")
    (folder / "tasks.json").write_text(json.dumps(TASKS))
    return folder


@pytest.fixture(scope="module")
def words(data, tmp_path_factory, processor):
    """The command without its output folder: two tasks, two strategies, a model without weights, two seeds."""
    model = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model(dtype=torch.float32, vocab_size=len(processor.tokenizer), **SIZES).save_pretrained(model)
    processor.save_pretrained(model)
    options = json.dumps({**OPTIONS, "config_overrides": ",".join(f"{key}={value}" for key, value in SIZES.items())})
    return [
        "--data_dir", data, "--task_file", data / "tasks.json", "--tasks", "share", "dimer_energy", "--models", model,
        "scratch", "--strategies", "finetune", "linear_probe", "--seeds", "2", "--cache_dir", tmp_path_factory.mktemp("cache"),
        "--in_process", "--disable_tqdm", "--num_bootstrap", "100", "--finetune_options", options,
    ]  # fmt: skip


def benchmark(words, folder, *more):
    return run_benchmark.main([str(word) for word in (*words, "--output_dir", folder, *more)])


@pytest.fixture(scope="module")
def board(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "board"
    assert benchmark(words, folder) == 0
    return folder


@pytest.fixture
def copied(board, words, tmp_path):
    shutil.copytree(board, tmp_path / "board")
    return tmp_path / "board"


def made(monkeypatch):
    """Names of the cells that are made from now on."""
    names, make = [], benchmark_cells.make_cell

    def note(cell, arguments):
        names.append((cell.task.name, cell.row.name, cell.seed))
        return make(cell, arguments)

    monkeypatch.setattr(benchmark_cells, "make_cell", note)
    return names


def test_random_weights_are_the_control_of_a_probe(words, tmp_path):
    """Of the same configuration, others for each seed; the reference of the table, with the options of linear probes."""
    changed = [str(word) for word in words]
    changed[changed.index("share") : changed.index("--models")] = ["share"]
    changed.remove("scratch")
    changed[changed.index("finetune")] = "random_linear_probe"
    options = json.loads(changed[-1])
    changed[-1] = json.dumps({**options, "linear_probe": {"pooling": "mean_std_global"}})
    assert benchmark(changed, tmp_path / "o", "--no_baselines") == 0
    table = {row["row"]: row for row in read_csv(tmp_path / "o" / "scoreboard.csv")}
    assert list(table) == ["tiny, random_linear_probe", "tiny, linear_probe"]
    cells = tmp_path / "o" / "cells" / "share" / "tiny"
    values = {}
    for strategy in ("random_linear_probe", "linear_probe"):
        results = [json.loads((cells / strategy / f"seed-{seed}" / "result.json").read_text()) for seed in (0, 1)]
        values[strategy] = [read_csv(cells / strategy / f"seed-{seed}" / "predictions.csv")[0] for seed in (0, 1)]
        assert all("mean_std_global" in json.dumps(result) for result in results)
    assert values["random_linear_probe"][0] != values["random_linear_probe"][1]
    assert values["linear_probe"][0] == values["linear_probe"][1]  # weights do not depend on the seed, nor does the probe
    assert "minus that of tiny, random_linear_probe" in (tmp_path / "o" / "scoreboard.md").read_text(encoding="utf-8")


def test_the_scoreboard_is_the_mean_of_the_cells(board):
    table = {row["row"]: row for row in read_csv(board / "scoreboard.csv")}
    assert list(table) == [
        "tiny, finetune", "tiny, linear_probe", "scratch", "mean", "ecfp4_random_forest", "descriptors_gradient_boosting"
    ]  # fmt: skip
    text = (board / "scoreboard.md").read_text(encoding="utf-8")
    for task, column, metric in (("share", "share", "rmse"), ("dimer_energy", "interaction_energy", "mae")):
        found = {}
        for name, folder in (
            ("tiny, finetune", "tiny/finetune"), ("tiny, linear_probe", "tiny/linear_probe"), ("scratch", "scratch/scratch"),
            ("mean", "baseline/mean"),
        ):  # fmt: skip
            values = []
            for seed in (0, 1):
                rows = read_csv(board / "cells" / task / folder / f"seed-{seed}" / "predictions.csv")
                rows = [row for row in rows if row["set"] == "test" and not row["reason"]]
                assert len(rows) == {"share": 6, "dimer_energy": 12}[task]
                error = np.array([float(row[f"{column}_predicted"]) - float(row[column]) for row in rows])
                values.append(np.sqrt(np.mean(error**2)) if metric == "rmse" else np.abs(error).mean())
            found[name] = np.array(values)
            assert float(table[name][f"{task} {metric} mean"]) == pytest.approx(np.mean(values))
            assert float(table[name][f"{task} {metric} sd"]) == pytest.approx(np.std(values, ddof=1), abs=1e-12)
            assert f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" in text
        for row in read_csv(board / "differences.csv"):
            if row["task"] == task and row["row"] in found:
                expected = (found[row["row"]] - found["scratch"]).mean()
                assert row["reference"] == "scratch" and float(row["difference"]) == pytest.approx(expected)
                assert float(row["low"]) <= expected <= float(row["high"])
                if row["row"] != "mean":
                    over = ttest_rel(found[row["row"]], found["scratch"]).confidence_interval(0.95)
                    assert (float(row["seeds_low"]), float(row["seeds_high"])) == pytest.approx(tuple(over))
    assert table["ecfp4_random_forest"]["dimer_energy mae mean"] == ""  # it does not see distances
    best = min(table, key=lambda name: float(table[name]["share rmse mean"]))
    assert f"| {best} | **{float(table[best]['share rmse mean']):.3f} ±" in text
    assert "1 rows rejected (smiles_syntax): tiny, finetune, tiny, linear_probe, scratch." in text
    assert "Split: given by the column set; rows: train 12, validation 6, test 6." in text
    assert "python run_benchmark.py --data_dir" in text and "transformers 5" in text
    assert (board / "scoreboard.png").read_bytes()[:4] == b"\x89PNG"
    cells = read_csv(board / "cells.csv")
    assert len(cells) == 2 * (6 + 4) and {row["status"] for row in cells} == {"done"}
    assert not list(board.rglob("*.safetensors")) and not list(board.rglob("*.tmp"))


def test_training_and_test_set_of_dimers_are_other_sets(board):
    for row in read_csv(board / "cells/dimer_energy/scratch/scratch/seed-0/predictions.csv"):
        assert (row["set"] == "test") == row["name"].startswith("other|")
        assert row["set"] == "test" or row["name"].startswith("NCIA_")
    dimers = {}
    for row in read_csv(board / "cells/dimer_energy/baseline/mean/seed-0/predictions.csv"):
        dimers.setdefault(row["name"].rsplit("_", 1)[0], set()).add(row["set"])
    assert all(len(sets) == 1 for sets in dimers.values())  # all distances of a dimer are in one set


def test_the_same_command_makes_nothing_again(copied, words, monkeypatch, capsys):
    before, names = (copied / "scoreboard.csv").read_text(), made(monkeypatch)
    assert benchmark(words, copied) == 0 and names == []
    assert (copied / "scoreboard.csv").read_text() == before
    assert "0 cells done, 0 failed, 20 skipped" in capsys.readouterr().out


def test_a_report_makes_no_cell_and_names_how_many_seeds_there_are(copied, words, monkeypatch, capsys, tmp_path):
    names = made(monkeypatch)
    shutil.rmtree(copied / "cells/share/tiny/finetune/seed-1")
    assert benchmark(words, copied, "--report_only") == 0 and names == []
    assert "0 cells done, 0 failed, 19 skipped because they were finished; 1 are not made yet" in capsys.readouterr().out
    assert re.search(r"\| tiny, finetune \| [^|]*\(1 seed\)", (copied / "scoreboard.md").read_text(encoding="utf-8"))
    with pytest.raises(StructureError, match="no cell of this command is finished"):
        benchmark(words, tmp_path / "empty", "--report_only")


def test_what_was_interrupted_is_made_again_and_nothing_else(copied, words, monkeypatch):
    before, names = (copied / "scoreboard.csv").read_text(), made(monkeypatch)
    gone, cut, lost = (copied / "cells/share" / name for name in ("tiny/finetune/seed-1", "scratch/scratch/seed-0",
                                                                    "baseline/mean/seed-0"))  # fmt: skip
    (gone / "result.json").unlink()
    (cut / "result.json").write_text((cut / "result.json").read_text()[:30])
    (lost / "predictions.csv").unlink()
    todo = [("share", "tiny, finetune", 1), ("share", "scratch", 0), ("share", "mean", 0)]

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(benchmark_cells, "make_baseline", stop)
        with pytest.raises(KeyboardInterrupt):
            benchmark(words, copied)
    assert names == todo and not (lost / "result.json").exists()
    names.clear()
    assert benchmark(words, copied) == 0 and names == todo[2:]
    assert (copied / "scoreboard.csv").read_text() == before  # the same seeds give the same numbers


def test_a_failed_cell_stops_no_other_and_is_tried_again(copied, words, monkeypatch, capsys):
    shutil.rmtree(copied / "cells/share/tiny")
    names, main = made(monkeypatch), benchmark_cells.run_finetune.main

    def fail(arguments):
        if "linear_probe" in arguments and arguments[arguments.index("--seed") + 1] == "0":
            raise RuntimeError("the disk is full")
        main(arguments)

    with monkeypatch.context() as patch:
        patch.setattr(benchmark_cells.run_finetune, "main", fail)
        assert benchmark(words, copied) == 1
    assert len(names) == 4 and "3 cells done, 1 failed, 16 skipped" in capsys.readouterr().out
    text = (copied / "scoreboard.md").read_text(encoding="utf-8")
    assert "- share, tiny, linear_probe, seed 0: RuntimeError: the disk is full" in text and "(1 seed)" in text
    failed = [row for row in read_csv(copied / "cells.csv") if row["status"] == "failed"]
    assert [(row["row"], row["seed"], row["rmse"]) for row in failed] == [("tiny, linear_probe", "0", "")]
    assert "RuntimeError" in (copied / "cells/share/tiny/linear_probe/seed-0/log.txt").read_text()
    names.clear()
    assert benchmark(words, copied) == 0 and names == [("share", "tiny, linear_probe", 0)]
    assert "Failed cells" not in (copied / "scoreboard.md").read_text(encoding="utf-8")


def test_cells_made_with_other_options_are_not_mixed(copied, words, monkeypatch, tmp_path):
    names = made(monkeypatch)
    changed = [
        word.replace('"learning_rate": 0.01', '"learning_rate": 0.02') if isinstance(word, str) else word for word in words
    ]
    with pytest.raises(StructureError, match=r"(?s)4 finished cells.*seed 0: options learning_rate was 0.01, is now 0.02"):
        benchmark(changed, copied)
    assert names == []
    assert benchmark(changed, copied, "--redo_changed", "--tasks", "share") == 0
    assert names == [("share", "tiny, finetune", 0), ("share", "tiny, finetune", 1)]
    assert "8 other cells in the folder do not belong" in (copied / "scoreboard.md").read_text(encoding="utf-8")

    other = [tmp_path / "tiny" if str(word).endswith("tiny") else word for word in words]
    tiny = next(word for word in words if str(word).endswith("tiny"))
    shutil.copytree(tiny, tmp_path / "tiny")
    (tmp_path / "tiny" / "options.json").write_text("{}")  # not of the model
    assert benchmark_cells.weights_hash(tmp_path / "tiny") == benchmark_cells.weights_hash(tiny)
    tiny_model(seed=1, dtype=torch.float32, vocab_size=450, **SIZES).save_pretrained(tmp_path / "tiny")
    with pytest.raises(StructureError, match="(?s)8 finished cells.*weights was"):
        benchmark(other, copied)


def test_molecules_of_the_corpus_are_counted(words, tmp_path, data):
    test = [row["smiles"] for row in read_csv(data / "tiny.csv") if row["set"] == "test"]
    valid = [row["smiles"] for row in read_csv(data / "tiny.csv") if row["set"] == "valid"]
    other = Chem.MolToSmiles(Chem.MolFromSmiles(test[0]), doRandom=True, canonical=False)  # the same, written otherwise
    (tmp_path / "corpus.smi").write_text("\n".join([other, test[1], test[1], valid[2], "CCCCCCCCCCCC"]))
    options = ("--models", "--tasks", "share", "--pretraining_corpus", tmp_path / "corpus.smi")
    start = words.index("--models")
    words = [*words[:start], *words[words.index("--strategies") :]]
    assert benchmark(words, tmp_path / "o", *options[1:]) == 0
    text = (tmp_path / "o" / "scoreboard.md").read_text(encoding="utf-8")
    assert "2 of 6 test molecules and 1 of 6 validation molecules have the canonical SMILES of one in the pretraining" in text
    assert "corpus.smi (4 different molecules in 5 rows)" in text
    assert benchmark(words, tmp_path / "o", "--tasks", "share") == 0
    assert "In the pretraining corpus: not checked." in (tmp_path / "o" / "scoreboard.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_cells_in_processes_of_their_own(words, tmp_path):
    """One that is made, and one that fails there: its encoder has another vocabulary."""
    small = tmp_path / "small"
    shutil.copytree(next(word for word in words if str(word).endswith("tiny")), small)
    tiny_model(dtype=torch.float32, vocab_size=440, **SIZES).save_pretrained(small)
    words = [word for word in words if word != "--in_process"]
    words[words.index("--models") + 1 : words.index("--strategies")] = [f"other={small}", "scratch"]
    options = ("--tasks", "share", "--strategies", "finetune", "--seeds", "1", "--no_baselines", "--keep_models")
    assert benchmark(words, tmp_path / "o", *options) == 1
    found = {row["row"]: row for row in read_csv(tmp_path / "o" / "cells.csv")}
    assert found["scratch"]["status"] == "done" and found["scratch"]["rmse"]
    assert "the model has 440 block tokens" in found["other, finetune"]["reason"]
    assert (tmp_path / "o/cells/share/scratch/scratch/seed-0/run/model.safetensors").exists()


def test_each_seed_has_its_own_split_where_the_task_says_so(words, tmp_path):
    start = words.index("--models")
    words = [*words[:start], *words[words.index("--strategies") :]]
    assert benchmark(words, tmp_path / "o", "--tasks", "both") == 0
    rows = [read_csv(tmp_path / f"o/cells/both/baseline/mean/seed-{seed}/predictions.csv") for seed in (0, 1)]
    tests = [[row["row"] for row in part if row["set"] == "test"] for part in rows]
    assert len(tests[0]) == len(tests[1]) == 7 and tests[0] != tests[1]
    text = (tmp_path / "o" / "scoreboard.md").read_text(encoding="utf-8")
    assert "random, 50/20/30, another for each seed" in text and "of 14 test molecules" in text and "(over 2 splits)" in text


def test_resamples_are_the_metrics_on_repeated_rows():
    rng = np.random.default_rng(0)
    weights = rng.multinomial(40, np.full(40, 1 / 40), size=25)
    labels, predictions = rng.normal(size=(40, 2)), rng.normal(size=(40, 2)).round(1)  # with equal predictions
    labels[rng.random((40, 2)) < 0.2] = np.nan
    binary = np.where(np.isnan(labels), np.nan, labels > 0)
    classes, probabilities = (labels[:, 0] > 0).astype(float), np.stack([1 - predictions[:, 0], predictions[:, 0]], 1)
    for metric, problem, p, y in (
        *((metric, "regression", predictions, labels) for metric in ("mae", "rmse", "pearson", "spearman", "r2")),
        ("roc_auc", "multi_label_classification", predictions, binary),
        ("roc_auc", "single_label_classification", probabilities, classes),
        ("accuracy", "single_label_classification", probabilities, classes),
    ):
        found = benchmark_statistics.resampled_scores(metric, problem, p, y, weights)
        drawn = [np.repeat(np.arange(40), row) for row in weights]
        expected = [scores(problem, p[rows], y[rows])[metric] for rows in drawn]
        assert np.allclose(found, expected, equal_nan=True), (metric, problem)


def test_the_interval_of_a_difference_covers_what_is_known():
    """Errors that differ by exactly one everywhere differ by one in every resample."""
    task = benchmark_tasks.choose_tasks(["dimer_energy"])[0]
    truth = np.arange(30.0)[:, None]
    make = lambda shift: benchmark_cells.Predictions(np.arange(30), truth, truth + shift, {}, {})
    drawn = benchmark_statistics.draws_of(task, [make(1), make(2)], 50)
    assert drawn[1][0] is drawn[1][1]  # one molecule is drawn for all seeds at once
    one, two = (benchmark_statistics._resampled_mean(task, [make(s), make(s + 1)], *drawn) for s in (1, 2))
    assert np.allclose(two - one, 1) and np.ptp(one) > 0


# data ---------------------------------------------------------------------------------------------------------------------


def peptide(sequence, chain, shift, path=None):
    mol = Chem.AddHs(Chem.MolFromSequence(sequence))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    mol = Chem.RemoveHs(mol)
    structure = gemmi.read_pdb_string(Chem.MolToPDBBlock(mol, flavor=4))
    found = structure[0][0]
    found.name = chain
    for residue in found:
        for atom in residue:
            atom.pos += gemmi.Position(shift, 0, 0)
    return found


def test_poses_become_an_index_of_complexes(tmp_path, processor):
    folder = tmp_path / "target_a"
    (folder / "01_protein" / "crd").mkdir(parents=True)
    (folder / "02_ligands").mkdir()
    structure, model = gemmi.Structure(), gemmi.Model(1)
    model.add_chain(peptide("GASGAS", "A", 0))
    model.add_chain(peptide("GGG", "B", 90))  # too far to be kept
    structure.add_model(model)
    structure.write_pdb(str(folder / "01_protein" / "crd" / "protein.pdb"))
    ligand = Chem.AddHs(Chem.MolFromSmiles("NC(=O)c1ccccc1"))
    AllChem.EmbedMolecule(ligand, randomSeed=1)
    ligand.SetProp("_Name", "lig_1")
    with Chem.SDWriter(str(folder / "02_ligands" / "ligands.sdf")) as writer:
        writer.write(ligand)
    (tmp_path / "affinities.csv").write_text("target,ligand,pAff\ntarget_a,lig_1,6.5\ntarget_a,lig_2,7\n")
    task = benchmark_tasks.choose_tasks(["ligand_affinity"])[0]
    data = benchmark_tasks.find_data(task, tmp_path, tmp_path / "made")
    assert data.notes == ("1 ligands without a pose or a protein are left out: target_a/lig_2.",)
    (row,) = read_csv(data.path)
    assert (row["chain1"], row["lig_code"], row["pAff"], row["lig_smiles"]) == ("A", "LIG", "6.5", "NC(=O)c1ccccc1")
    source = read_source(data.path, processor)
    (found,) = source.pieces[0].function(*source.pieces[0].arguments)
    assert [sum(len(c.elements) for c in part) for part in found.segments][1] == 9
    time = data.path.stat().st_mtime_ns
    assert benchmark_tasks.find_data(task, tmp_path, tmp_path / "made").path.stat().st_mtime_ns == time  # made once
    (tmp_path / "affinities.csv").write_text("target,ligand,pAff\ntarget_a,lig_1,7.5\n")
    assert benchmark_tasks.find_data(task, tmp_path, tmp_path / "made").hash != data.hash


def test_complexes_with_similar_chains_are_one_family():
    one = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"  # ubiquitin
    two = (  # lysozyme
        "KVFGRCELAAAMKRHGLDNYRGYSLGNWVCAAKFESNFNTQATNRNTDGSTDYGILQINSRWWCNDGRTPGSRNLCNIPCSALLSSDITASVNCAKKIVSDGNGMNAWVAW"
        "RNRCKGTDVQAWIRGCRL"
    )
    near = one[:10] + "A" + one[11:20] + "GG" + one[22:]
    families = benchmark_tasks.families([[one], [two], [near, "PPPPPPWWWWWWCCCCCC"], ["PPPPPPWWWWWWCCCCCC"]])
    assert families[0] == families[2] == families[3] != families[1]


def test_real_complexes_can_be_read(shared, tmp_path, processor):
    for name, most in (("ligand_affinity", 369), ("protein_affinity", 68)):
        task = benchmark_tasks.choose_tasks([name])[0]
        data = benchmark_tasks.find_data(task, shared / "data", tmp_path / name)
        source = read_source(data.path, processor)
        assert len(source.rows) == most
        for piece in source.pieces[:: most // 3]:
            (found,) = piece.function(*piece.arguments)
            assert len(found.segments) == 2 and processor.encode(found)["positions"].shape[1] == 3
        groups = {row[task.group_column] for row in source.rows}
        assert len(groups) == {"ligand_affinity": 15, "protein_affinity": 44}[name]


@pytest.mark.slow
def test_simple_models_reach_known_levels(shared, tmp_path, monkeypatch):
    """ECFP4 and a forest on the scaffold split without chance: ESOL near 1.7 log units, BBBP about 0.69."""
    tasks = [
        {"name": name, "file": file, "label_columns": [label], "problem_type": problem, "smiles_column": "smiles",
         "baselines": ["ecfp4_random_forest"]}
        for name, file, label, problem in (("one", "delaney.csv", "logp", "regression"),
                                           ("two", "BBBP.csv", "p_np", "single_label_classification"))
    ]  # fmt: skip
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    words = ("--data_dir", shared / "data/moleculenet", "--task_file", tmp_path / "tasks.json", "--tasks", "own", "--seeds", 1)
    assert benchmark(words, tmp_path / "o", "--disable_tqdm") == 0
    (row,) = read_csv(tmp_path / "o" / "scoreboard.csv")
    assert 1.4 < float(row["one rmse mean"]) < 1.75 and 0.65 < float(row["two roc_auc mean"]) < 0.73


@pytest.mark.parametrize(
    "options, message",
    [
        (("--tasks", "esoll"), "no task 'esoll'; there are esol"),
        (("--tasks", "esol"), "esol: no data, expected .*moleculenet.*delaney.csv"),
        (("--data_dir", "nowhere"), "nowhere: no such folder"),
        (("--models", "nowhere"), "nowhere: no such folder"),
        (("--models", "a=scratch/nowhere/x"), "scratch/nowhere/x: no such folder"),
        (("--models", "{data}"), "no Atomica model there|no weights"),
        (("--models", "scratch", "scratch"), "names 'scratch' twice"),
        (("--models", "a b={model}"), "the name 'a b' needs letters"),
        (
            ("--models", "mean={model}", "--no_baselines", "--reference", "mean"),
            "--reference 'mean' is no row; there are mean, f",
        ),
        (("--no_baselines", "--models", "baseline={model}"), "'baseline' has a meaning here"),
        (("--seeds", "0"), "--seeds is 0"),
        (("--finetune_options", "{{bad"), "neither JSON nor a file"),
        (("--finetune_options", '{{"colour": 1}}'), "share, tiny, finetune: .*colour"),
        (("--finetune_options", '{{"learning_rate": "fast"}}'), "share, tiny, finetune: .*learning_rate"),
        (("--finetune_options", '{{"seed": 5}}'), "seed is decided by run_benchmark.py"),
        (("--pretraining_corpus", "gone.smi"), "gone.smi: no such file"),
        (("--task_file", "{data}/gone.csv"), "gone.csv: no such file"),
    ],
)
def test_bad_input_is_named_before_anything_is_made(options, message, words, data, tmp_path, monkeypatch):
    names = made(monkeypatch)
    model = next(word for word in words if str(word).endswith("tiny"))
    options = [option.format(data=data, model=model) for option in options]
    with pytest.raises(StructureError, match=message):
        benchmark([*words, "--tasks", "share", *options], tmp_path / "o")
    assert names == []


@pytest.mark.parametrize(
    "change, message",
    [
        ({"label_columns": ["gone"]}, "no column 'gone'"),
        ({"smiles_column": "gone"}, "no column 'gone' for SMILES"),
        ({"split_column": "gone"}, "no column 'gone'"),
        ({"problem_type": "ranking"}, "problem_type is 'ranking', expected regression"),
        ({"metrics": ["roc_auc"]}, "metrics names roc_auc, expected of mae"),
        ({"colour": 1}, "colour is not known"),
        ({"label_columns": []}, "no label_columns"),
        ({"name": "esol"}, "Two tasks are called 'esol'"),
        ({"name": "a/b"}, "'a/b' has other signs"),
        ({"baselines": ["svm"]}, "baselines names svm"),
        ({"split": "time"}, "split is 'time'"),
        ({"split_column": None, "split": "random", "split_fractions": [1, 1, 1]}, "three that add up to 1"),
        ({"baselines": []}, "No cells"),
    ],
)
def test_bad_tasks_are_named(change, message, data, tmp_path):
    task = {key: value for key, value in {**TASKS[0], **change}.items() if value is not None}
    (tmp_path / "tasks.json").write_text(json.dumps([task]))
    words = ("--data_dir", data, "--task_file", tmp_path / "tasks.json", "--tasks", "share" if "name" not in change else "own")
    with pytest.raises(StructureError, match=message):
        benchmark(words, tmp_path / "o")


def test_tasks_may_stand_in_a_table(tmp_path):
    text = "name,file,label_columns,problem_type,metrics,split,split_fractions,resplit\n"
    text += "mine,m.csv,x;y,regression,mae;rmse,random,0.6;0.2;0.2,true\n"
    (tmp_path / "tasks.csv").write_text(text)
    (task,) = benchmark_tasks.read_tasks(tmp_path / "tasks.csv")
    assert task.files == (("m.csv", ("x", "y")),) and task.metric == "mae" and task.resplit
    assert task.split_fractions == (0.6, 0.2, 0.2) and task.split_in_words() == "random, 60/20/20, another for each seed"


def test_the_command_line(tmp_path, capsys):
    done = run("run_benchmark.py", "--data_dir", tmp_path, "--tasks", "esol", "--output_dir", tmp_path / "o")
    assert done.returncode == 1 and done.stderr.startswith("run_benchmark.py: error: esol: no data")
    assert run_benchmark.main(["--list"]) == 0
    text = capsys.readouterr().out
    assert "moleculenet/delaney.csv: logp" in text and "licence: CC BY 4.0" in text
    with pytest.raises(SystemExit) as stop:
        run_benchmark.main(["--help"])
    options = re.findall(r"\n  (--\w+)[^\n]*", text := capsys.readouterr().out)
    assert stop.value.code == 0 and "--pretraining_corpus" in options
    for option in options:
        described = text.split(f"\n  {option}", 1)[1].split("\n  --", 1)[0]
        assert len(described.split("(default")[0].split()) > 3, f"{option} has no help"
