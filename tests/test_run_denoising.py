"""Repairing structures: the motions that undo the collator's noise, and the script."""

import csv
import json
import re

import gemmi
import numpy as np
import pytest
import torch
from conftest import random_rotation, run, tiny_config, tiny_model

import run_denoising
from atomica_hf import AtomicaModel, StructureError
from atomica_hf.data_collator_atomica import RotationDistribution, wrapped_normal_score
from denoising import (
    Noise,
    denoise,
    model_predictor,
    movable,
    perturb,
    puzzle_of,
    rms_sigma,
    rmsd,
    rotation_of,
    step_sizes,
    turn_of,
)
from output_folder import structure_suffix


LEVELS = {"translation": 1.0, "rotation": 0.25, "torsion": 0.5, "atom": 0.7}


def oracle(labels):
    """A predictor that knows what was done: where each loss of the model is zero."""
    known = {}
    if "translation_labels" in labels:
        known["translation"] = -labels["translation_labels"] / labels["translation_sigma"]
    if "rotation_labels" in labels:
        known["rotation"] = labels["rotation_labels"]
    if "torsion_labels" in labels:
        known["torsion"] = labels["torsion_labels"]
    if "atom_noise_labels" in labels:
        known["atom"] = labels["atom_noise_labels"] / labels["atom_noise_sigma"]
    return lambda puzzles, segments: [known]


def sigmas_of(labels):
    found = {"translation": labels.get("translation_sigma"), "atom": labels.get("atom_noise_sigma")}
    return [{kind: sigma for kind, sigma in found.items() if sigma is not None}]


@pytest.fixture(scope="module")
def protein(processor, shared):
    path = shared / "data/complexes/atomica_examples/4yaz.cif"
    (structure,) = processor.read(path, interfaces="all")[:1]
    return processor.encode(structure)


def check_restored(example, segment, kinds, seed):
    puzzle = perturb(example, {kind: LEVELS[kind] for kind in kinds}, segment, np.random.default_rng(seed))
    original = np.asarray(example["positions"], dtype=float)
    atoms = puzzle.atoms_of(segment)[0]
    moved = rmsd(puzzle.positions[atoms], original[atoms])
    frames = denoise(oracle(puzzle.labels), [puzzle], [segment], sigmas=sigmas_of(puzzle.labels))[0]
    assert np.array_equal(frames[-1], puzzle.positions)
    assert rmsd(frames[-1][atoms], original[atoms]) < 1e-5, (kinds, seed, moved)
    return moved


@pytest.mark.parametrize("kinds", [("translation",), ("rotation",), ("torsion",), ("atom",), tuple(LEVELS)[:3]])
def test_one_full_step_of_an_oracle_restores_the_original(kinds, examples, processor):
    flexible = processor.encode(processor.read(("CCOCC", "CC(C)Cc1ccc(cc1)C(C)C(=O)O"))[0])
    moved = [
        check_restored(example, segment, kinds, seed)
        for example in [*examples, flexible]
        for segment in range(max(example["token_type_ids"]) + 1)
        if movable(puzzle_of(example), segment, kinds) == list(kinds)
        for seed in range(3)
    ]
    assert len(moved) > 4 and max(moved) > 0.2


def test_side_chains_turn_back(protein):
    for segment in range(2):
        assert check_restored(protein, segment, ("torsion",), 0) > 0.2
        check_restored(protein, segment, ("translation", "rotation", "torsion"), 1)


def test_half_a_step_goes_half_the_way(examples):
    puzzle = perturb(examples[1], {"translation": 1.0}, 1, np.random.default_rng(0))
    start, original = puzzle.positions.copy(), np.asarray(examples[1]["positions"], dtype=float)
    frames = denoise(oracle(puzzle.labels), [puzzle], [1], factors=[0.5], sigmas=sigmas_of(puzzle.labels))[0]
    atoms = puzzle.atoms_of(1)[0]
    assert np.abs(frames[-1][atoms] - (start + original)[atoms] / 2).max() < 1e-6


def test_scores_are_inverted():
    angles = np.linspace(-1.4, 1.4, 57)
    assert np.abs(turn_of(wrapped_normal_score(angles, 0.5), 0.5) + angles).max() < 1e-6
    assert abs(turn_of(np.array([1e9]), 0.5)[0]) < np.pi  # beyond the largest score there is
    distribution, axis = RotationDistribution(0.25, 0.5), np.array([0.6, 0.0, -0.8])
    for i in (0, 7, 50, 98):
        found = rotation_of(axis * distribution.scores[i], distribution)
        assert np.abs(found + axis * distribution.angles[i]).max() < 1e-9
    assert np.array_equal(rotation_of(np.zeros(3), distribution), np.zeros(3))
    # the linear estimate is the least squares fit over draws
    drawn = np.random.default_rng(0).choice(100, p=distribution.probabilities, size=200_000)
    slope = (distribution.angles[drawn] * distribution.scores[drawn]).sum() / (distribution.scores[drawn] ** 2).sum()
    assert np.abs(rotation_of(axis, distribution, "linear") + slope * axis).max() < 0.05 * slope
    draws = np.random.default_rng(0).uniform(0.1, 1.0, size=200_000)
    assert abs(rms_sigma(1.0) - np.sqrt((draws**2).mean())) < 1e-3


def test_the_repair_turns_with_the_complex_and_does_not_depend_on_its_batch(examples):
    model = tiny_model(use_atom_noise=True)
    rotation, shift = random_rotation(3).numpy(), np.array([3.0, -1.0, 2.0])
    chosen = [examples[1], examples[3], examples[0]]
    segments = [0, 0, 0]
    turned = [{**e, "positions": np.asarray(e["positions"], dtype=float) @ rotation.T + shift} for e in chosen]
    predict = model_predictor(model)
    straight = denoise(predict, [puzzle_of(e) for e in chosen], segments, factors=[0.5, 0.3])
    rotated = denoise(predict, [puzzle_of(e) for e in turned], segments, factors=[0.5, 0.3])
    alone = denoise(predict, [puzzle_of(chosen[1])], [0], factors=[0.5, 0.3])[0]
    for a, b in zip(straight, rotated):
        assert np.abs(a[-1] - a[0]).max() > 1e-3
        assert np.abs(a @ rotation.T + shift - b).max() < 1e-3
    assert np.abs(alone - straight[1]).max() < 1e-5


def test_only_the_segment_moves_and_only_so(examples):
    example = examples[1]
    for kind in ("translation", "rotation", "torsion"):
        puzzle = puzzle_of(example)
        atoms = puzzle.atoms_of(1)[0]
        (frames,) = denoise(model_predictor(tiny_model()), [puzzle], [1], kinds=[kind])
        others = puzzle.atoms_of(0)[0]
        assert np.array_equal(frames[0][others], frames[1][others])
        if kind != "torsion":  # rigid
            assert rmsd(frames[1][atoms], frames[0][atoms], superposed=True) < 1e-6 < rmsd(frames[1][atoms], frames[0][atoms])
        assert np.abs(frames[1][puzzle.atoms_of(1)[1]] - frames[1][atoms].mean(0)).max() < 1e-9  # the global atom follows


def test_mistakes_are_named(examples):
    generator = np.random.default_rng(0)
    for example, segment, levels, words in (
        (examples[0], 0, {"translation": 1.0}, ["segment 0", "translation"]),
        (examples[3], 1, {"rotation": 0.3}, ["segment 1", "rotation"]),
        (examples[1], 2, {"torsion": 0.3}, ["2 segments", "number 2"]),
        (examples[1], 0, {"atom": 0.0}, ["atom", "0.0", "positive"]),
    ):
        with pytest.raises(ValueError) as error:
            perturb(example, levels, segment, generator)
        assert all(word in str(error.value) for word in [*words])
    with pytest.raises(ValueError, match="'cubic', expected one of constant"):
        step_sizes(3, schedule="cubic")
    with pytest.raises(ValueError, match="max_rotation noise is -1"):
        Noise(max_rotation=-1)
    assert np.allclose(step_sizes(3, 0.5, "geometric"), [0.5, 0.05, 0.005])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, processor):
    folder = tmp_path_factory.mktemp("model")
    tiny_model(dtype=torch.float32, use_atom_noise=True).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.smi"
    lines = [f"{'.'.join(item)} pair{i}" for i, item in enumerate((("CCO", "CCc1ccccc1O"), ("O", "CC(=O)NCC")))]
    path.write_text("\n".join([*lines, "C1CC broken", "CCOC(C)C alone"]) + "\n", encoding="utf-8")
    return path


def positions_of(path, chain):
    """Positions of a chain in every model of a PDB file."""
    structure = gemmi.read_structure(str(path))
    return [np.array([atom.pos.tolist() for residue in model[chain] for atom in residue]) for model in structure]


def test_the_script_perturbs_repairs_and_reports(folder, pairs, tmp_path):
    out = tmp_path / "out"
    done = run(
        "run_denoising.py", "--model_name_or_path", folder, "--input_file", pairs, "--output_dir", out, "--device", "cpu",
        "--perturb", "translation=1.0", "rotation=0.25", "torsion=0.5", "atom=0.2", "--steps", "3", "--step_size", "0.3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "3 structures" in done.stdout and "3 kept, 1 left out" in done.stdout and "broken" in done.stdout
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    with open(out / "steps.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == (3 + 3 + 2) * 4 and report["structures"] == 3 and len(report["trajectories"]) == 3
    name = report["trajectories"][0]
    frames = positions_of(out / name, "B")
    (original,) = positions_of(out / name.replace("trajectory", "original"), "B")
    mine = [row for row in rows if row["name"] == "1 pairs.smi row 1: pair0" or row["name"].endswith("pair0")]
    moved = [float(row["rmsd"]) for row in mine if row["moved"] == "True"]
    assert len(frames) == len(moved) == 4 and moved[0] > 0.1
    assert np.allclose([np.sqrt(((frame - original) ** 2).sum(-1).mean()) for frame in frames], moved, atol=2e-3)
    still = [float(row["rmsd"]) for row in mine if row["segment"] == "0"]
    assert still == [0.0] * 4
    first = [float(row["rmsd"]) for row in rows if row["moved"] == "True" and row["step"] == "0"]
    assert abs(report["moved_segments"]["rmsd"]["before"] - np.mean(first)) < 1e-9
    assert all((out / picture).read_bytes()[:4] == b"\x89PNG" for picture in ("rmsd.png", "arrows.png"))
    # what was perturbed is a file that can be repaired against the original one, and moves alike
    again = tmp_path / "again"
    run_denoising.main([
        "--model_name_or_path", str(folder), "--input_file", str(pairs), "--output_dir", str(again), "--device", "cpu",
        "--perturb", "translation=1.0", "rotation=0.25", "torsion=0.5", "atom=0.2", "--steps", "3", "--step_size", "0.3",
        "--batch_size", "1",
    ])  # fmt: skip
    with open(again / "steps.csv", newline="", encoding="utf-8") as stream:
        others = list(csv.DictReader(stream))
    assert np.allclose([float(row["rmsd"]) for row in rows], [float(row["rmsd"]) for row in others], atol=1e-4)


def test_a_file_is_repaired_and_measured_against_another(folder, shared, processor, tmp_path):
    path = shared / "data/complexes/atomica_examples/4yaz.cif"
    options = ["--model_name_or_path", str(folder), "--device", "cpu", "--side_a", "A", "--side_b", "R", "--steps", "1"]
    example = processor.encode(processor.read(path, "A", "R")[0])
    moved = perturb(example, {"translation": 1.0}, 1, np.random.default_rng(0)).positions
    processor.to_pdb(example, path=tmp_path / "good.pdb")
    processor.to_pdb({**example, "positions": moved}, path=tmp_path / "bad.pdb")
    files = ["--input_file", str(tmp_path / "bad.pdb"), "--reference_file", str(tmp_path / "good.pdb")]
    run_denoising.main([*options, *files, "--output_dir", str(tmp_path / "out"), "--motions", "translation"])
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    expected = np.linalg.norm((moved - np.asarray(example["positions"]))[-1])
    found = report["moved_segments"]
    assert abs(found["rmsd"]["before"] - expected) < 2e-3 and found["rmsd_superposed"]["before"] < 2e-3
    assert found["rmsd_superposed"]["after"] < 2e-3 and abs(found["rmsd"]["after"] - expected) > 1e-4
    with pytest.raises(StructureError, match="other atoms|structures, expected"):
        files[3] = str(shared / "data/complexes/atomica_examples/6d1u.cif")
        run_denoising.main([*options[:4], "--steps", "1", *files, "--output_dir", str(tmp_path / "no")])


@pytest.mark.parametrize("side_b, chain, shift", [("B", "B", 1.4), ("A:UDP", "UDP", 0.7)])
def test_a_partner_with_other_neighbours_than_in_the_reference(folder, shared, processor, tmp_path, side_b, chain, shift):
    path, move = shared / "data/complexes/atomica_examples/6llw.cif", gemmi.Position(0.6 * shift, 0, -0.8 * shift)
    document = gemmi.read_structure(str(path))
    for residues in document[0]:
        for residue in residues:
            if chain in (residues.name, residue.name):
                for atom in residue:
                    atom.pos += move
    document.make_mmcif_document().write_file(str(tmp_path / "bad.cif"))
    examples = [processor.encode(processor.read(file, "A", side_b)[0]) for file in (path, tmp_path / "bad.cif")]
    assert set(examples[0]["block_origins"]) != set(examples[1]["block_origins"])
    options = ["--input_file", tmp_path / "bad.cif", "--reference_file", path, "--side_a", "A", "--side_b", side_b]
    options += ["--model_name_or_path", folder, "--device", "cpu", "--steps", "1", "--output_dir", tmp_path / "out"]
    run_denoising.main(list(map(str, [*options, "--motions", "translation"])))
    found = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["moved_segments"]
    assert abs(found["rmsd"]["before"] - shift) < 2e-3 and found["rmsd_superposed"]["before"] < 2e-3


def test_a_reference_of_another_molecule_is_refused(folder, tmp_path):
    files = [tmp_path / "a.smi", tmp_path / "b.smi"]
    for file, smiles in zip(files, ("O.C", "O.CC")):  # the first two atoms have the same names
        file.write_text(f"{smiles} pair\n", encoding="utf-8")
    options = ["--model_name_or_path", folder, "--input_file", files[0], "--reference_file", files[1], "--device", "cpu"]
    with pytest.raises(StructureError, match="b.smi: pair has other atoms than pair.*differ in 1, the first of which is C4"):
        run_denoising.main(list(map(str, [*options, "--output_dir", tmp_path / "out"])))


def test_rigid_motions_have_no_superposed_distances(folder, pairs, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(run_denoising, "save_figure", lambda figure, path: drawn.update({path.name: figure}))
    options = ["--model_name_or_path", str(folder), "--input_file", str(pairs), "--device", "cpu", "--steps", "2"]
    for number, (noise, panels) in enumerate([("translation=1.0", 1), ("torsion=0.5", 2)]):
        run_denoising.main([*options, "--perturb", noise, "--output_dir", str(tmp_path / str(number))])
        assert len(drawn["rmsd.png"].axes) == panels
    found = json.loads((tmp_path / "0" / "report.json").read_text(encoding="utf-8"))["moved_segments"]
    assert found["rmsd_superposed"]["closer"] == 0 and found["rmsd_superposed"]["after"] < 1e-6
    (axis,) = drawn["arrows.png"].axes
    assert "RMSD to the original" in axis.get_title() and axis.collections


@pytest.mark.parametrize(
    "wrong, words",
    [
        (["--perturb", "twist=1"], "twist=1"),
        (["--perturb", "torsion=-1"], "torsion=-1"),
        (["--perturb", "torsion"], "--perturb torsion"),
        (["--perturb", "torsion=0.1", "--reference_file", "x.pdb"], "exclude each other"),
        (["--steps", "0"], "0 steps"),
        (["--segment", "7"], "none is number 7"),
        (["--model_name_or_path", "nowhere"], "nowhere"),
        (["--translation_sigma", "-1"], "translation_sigma"),
        (["--max_rotation", "0"], "max_rotation"),
        (["--max_samples", "0"], "--max_samples is 0"),
        (["--max_trajectories", "-1"], "--max_trajectories is -1"),
        (["--seed", "-1", "--perturb", "torsion=0.1"], "--seed is -1"),
        (["--step_size", "inf"], "size inf"),
        (["--perturb", "translation=inf"], "translation=inf"),
        (["--perturb", "translation=1e9"], "up to 1000"),
        (["--perturb", "torsion=1", "torsion=2"], "torsion=2: torsion has a level already"),
        (["--device", "banana"], "--device banana"),
        (["--rotation_noise", "inf"], "rotation noise is inf"),
    ],
)
def test_wrong_options_are_named(folder, pairs, tmp_path, wrong, words):
    options = {"--model_name_or_path": str(folder), "--input_file": str(pairs), "--output_dir": str(tmp_path / "out")}
    with pytest.raises(StructureError, match=words):
        run_denoising.main([part for pair in options.items() for part in pair] + wrong)
    assert not (tmp_path / "out").exists()


def test_heads_that_are_not_in_the_weights_are_missed(folder, pairs, processor, tmp_path):
    AtomicaModel(tiny_config()).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    options = ["--model_name_or_path", tmp_path, "--input_file", pairs, "--output_dir", tmp_path / "out"]
    done = run("run_denoising.py", *options)
    assert re.search("needs .*torsion_head.*, and the weights have none", done.stderr) and done.returncode == 1
    assert "LOAD REPORT" not in done.stderr + done.stdout and "MISSING" not in done.stderr + done.stdout


def test_what_cannot_move_is_left_out_and_says_so(folder, tmp_path, capsys):
    path, out = tmp_path / "few.smi", tmp_path / "out"
    path.write_text("O water\n[Zn+2].O ion\nCCO.[Na+] salt\n", encoding="utf-8")
    options = ["--model_name_or_path", str(folder), "--input_file", str(path), "--device", "cpu", "--steps", "1"]
    run_denoising.main([*options, "--output_dir", str(out), "--motions", "translation", "torsion"])
    assert "2 structures" in capsys.readouterr().out
    (left_out,) = json.loads((out / "report.json").read_text(encoding="utf-8"))["input"]["rejected"]
    assert left_out["name"].endswith("water") and "nothing that translation, torsion could move" in left_out["message"]
    with pytest.raises(StructureError, match="0 kept, 3 left out"):
        run_denoising.main([*options, "--output_dir", str(out), "--motions", "torsion"])
    # files of a larger run do not stay beside those of a smaller one
    path.write_text("CCO.[Na+] salt\n", encoding="utf-8")
    (out / "mine.txt").write_text("mine")
    run_denoising.main([*options, "--output_dir", str(out), "--perturb", "translation=1"])
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert {file.name for file in out.iterdir()} == {"mine.txt", "report.json", *report["files"]}


@pytest.mark.parametrize(
    "options, words", [({"num_modalities": 2}, "no modality_ids"), ({"block_feature_size": 3}, "no block_features")]
)
def test_models_that_need_more_say_so(pairs, processor, tmp_path, options, words):
    tiny_model(dtype=torch.float32, **options).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(StructureError, match=words):
        run_denoising.main(
            ["--model_name_or_path", str(tmp_path), "--input_file", str(pairs), "--output_dir", str(tmp_path / "o")]
        )


def test_other_vocabularies_and_numbers_that_are_none_are_named(folder, pairs, processor, tmp_path):
    tiny_model(dtype=torch.float32, vocab_size=30).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    options = ["--input_file", str(pairs), "--output_dir", str(tmp_path / "o"), "--device", "cpu"]
    with pytest.raises(StructureError, match="the model has 30 block tokens"):
        run_denoising.main(["--model_name_or_path", str(tmp_path), *options])
    model = tiny_model(dtype=torch.float32)
    for parameter in model.rigid_head.parameters():
        parameter.data.fill_(torch.nan)
    model.save_pretrained(tmp_path)
    with pytest.raises(StructureError, match="pair0: the model predicts numbers that are not finite"):
        run_denoising.main(["--model_name_or_path", str(tmp_path), *options])


@pytest.mark.parametrize("change, ending", [({}, ".pdb"), ({"block_origins": "AAA:GLY:1"}, ".cif")])
def test_steps_are_in_the_file_whatever_the_chain_is_called(examples, processor, tmp_path, change, ending):
    example = {**examples[1], **{key: [value] * len(examples[1][key]) for key, value in change.items()}}
    assert structure_suffix(example) == ending
    positions = np.asarray(example["positions"], dtype=float)
    run_denoising.write_frames(tmp_path / f"x{ending}", processor, example, [positions, positions + 1])
    structure = gemmi.read_structure(str(tmp_path / f"x{ending}"))
    found = [np.array([atom.pos.tolist() for chain in model for residue in chain for atom in residue]) for model in structure]
    assert len(found) == 2 and len(found[0]) == (np.asarray(example["atom_ids"]) != 2).sum()
    assert np.allclose(found[1] - found[0], 1, atol=2e-3)
    assert [path.name for path in tmp_path.iterdir()] == [f"x{ending}"]
