import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from atomica_hf import AtomicaCollator, AtomicaPreTrainingCollator, read_structures
from atomica_hf.data_collator_atomica import (
    TASKS,
    Puzzle,
    RotationDistribution,
    superpose,
    task_flags,
    wrapped_normal_score,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def dihedral(p):
    b0, b1, b2 = p[0] - p[1], p[2] - p[1], p[3] - p[2]
    b1 = b1 / np.linalg.norm(b1)
    v, w = b0 - b0 @ b1 * b1, b2 - b2 @ b1 * b1
    return np.arctan2(np.cross(b1, v) @ w, v @ w)


def test_scores_are_derivatives_of_log_densities():
    sigma, step = 0.7, 1e-5
    angles = np.linspace(-6, 6, 41)

    def log_density(x):
        return np.log(np.exp(-((x[:, None] + 2 * np.pi * np.arange(-20, 21)) ** 2) / (2 * sigma**2)).sum(1))

    numeric = (log_density(angles + step) - log_density(angles - step)) / (2 * step)
    assert np.abs(wrapped_normal_score(angles, sigma) - numeric).max() < 1e-6

    rotations = RotationDistribution(0.5, 2.0)
    degree = np.arange(2000)

    def log_angle_density(theta):
        weight = (2 * degree + 1) * np.exp(-degree * (degree + 1) * 0.25)
        f = (weight * np.sin((degree + 0.5) * theta) / np.sin(theta / 2)).sum()
        return np.log(f * (1 - np.cos(theta)))

    for i in (5, 40, 90):
        theta = rotations.angles[i]
        numeric = (log_angle_density(theta + step) - log_angle_density(theta - step)) / (2 * step)
        assert abs(rotations.scores[i] - numeric) < 1e-4 * abs(numeric)
    assert abs(rotations.probabilities.sum() - 1) < 1e-12
    # for a small sigma the angle is that of a normal distribution of variance 2 sigma^2 in three dimensions
    narrow = RotationDistribution(0.1, 1.0)
    expected = narrow.angles**2 * np.exp(-(narrow.angles**2) / (4 * 0.01))
    assert np.abs(narrow.probabilities - expected / expected.sum()).max() < 0.02 * narrow.probabilities.max()


@pytest.mark.parametrize("task", TASKS)
def test_draws_depend_on_seed_epoch_and_index_only(task, examples):
    collator = AtomicaPreTrainingCollator(task, seed=5)
    numbered = [{**e, "example_index": i, "epoch": 2} for i, e in enumerate(examples)]
    together, alone = collator(numbered), collator([numbered[1]])
    other_place = collator([numbered[3], numbered[1]])
    for name in alone:
        one = alone[name][0]
        for batch, row in ((together, 1), (other_place, 1)):
            again = batch[name][row]
            assert torch.equal(again[tuple(slice(n) for n in one.shape)], one), name
    changed = "input_ids" if task == "masking" else "positions"
    for change in ("epoch", "example_index"):  # some of several other numbers give another puzzle
        others = [collator([{**numbered[1], change: value}])[changed] for value in range(3, 9)]
        assert any(other.shape != alone[changed].shape or not torch.equal(other, alone[changed]) for other in others)
    other_seeds = [AtomicaPreTrainingCollator(task, seed=seed)([numbered[1]])[changed] for seed in range(6, 12)]
    assert any(other.shape != alone[changed].shape or not torch.equal(other, alone[changed]) for other in other_seeds)


def test_rotation_and_translation_are_what_the_labels_say(examples):
    example = examples[1]
    puzzle = Puzzle(example)
    atoms, central = puzzle.atoms_of(1)
    clean = puzzle.positions.copy()
    puzzle.rotate(1, RotationDistribution(0.5, 1.5), rng(1))
    puzzle.move_global(1)
    centred = [p[atoms] - p[atoms].mean(0) for p in (clean, puzzle.positions)]
    found, error = Rotation.align_vectors(centred[1], centred[0])
    vector, label = found.as_rotvec(), puzzle.labels["rotation_labels"]
    assert error < 1e-6 and np.allclose(clean[atoms].mean(0), puzzle.positions[atoms].mean(0))
    assert np.allclose(np.abs(vector @ label), np.linalg.norm(vector) * np.linalg.norm(label))
    distribution = RotationDistribution(0.5, 1.5)
    expected = np.interp(np.linalg.norm(vector), distribution.angles, distribution.scores)
    assert np.isclose(vector @ label / np.linalg.norm(vector), expected)

    before = puzzle.positions.copy()
    puzzle.translate(1, 1.0, rng(2))
    puzzle.move_global(1)
    shift = puzzle.labels["translation_sigma"] * puzzle.labels["translation_labels"]
    assert np.allclose(puzzle.positions[atoms] - before[atoms], shift) and 0.1 <= puzzle.labels["translation_sigma"] <= 1
    assert np.allclose(puzzle.positions[central], puzzle.positions[atoms].mean(0))
    untouched, _ = puzzle.atoms_of(0)
    assert np.array_equal(puzzle.positions[untouched], clean[untouched])


def test_bonds_turn_by_the_drawn_angle_and_nothing_is_stretched(processor):
    example = processor.encode(processor.read("CCCCC")[0])
    puzzle = Puzzle(example)
    before = puzzle.positions.copy()
    names = example["atom_origins"]
    chain = [names.index(f"C{i}") for i in range(5)]
    assert len(puzzle.bonds) == 2
    drawn = rng(4).normal(scale=0.5, size=2)
    puzzle.turn_bonds(0, 0.5, rng(4))
    for bond, angle in zip(puzzle.bonds, drawn):
        middle = sorted(chain.index(i) for i in bond)
        ends = [chain[middle[0] - 1], chain[middle[0]], chain[middle[1]], chain[middle[1] + 1]]
        change = dihedral(puzzle.positions[ends]) - dihedral(before[ends])
        # a positive angle turns the moving part about the axis from it to the part that stays
        assert np.isclose(np.angle(np.exp(1j * (change + angle))), 0, atol=1e-6)
    for a, b in zip(chain, chain[1:]):
        assert np.isclose(np.linalg.norm(before[a] - before[b]), np.linalg.norm(puzzle.positions[a] - puzzle.positions[b]))
    assert np.allclose(puzzle.labels["torsion_labels"], wrapped_normal_score(drawn, 0.5))
    atoms, _ = puzzle.atoms_of(0)
    assert np.allclose(superpose(puzzle.positions[atoms], before[atoms]), puzzle.positions[atoms], atol=1e-6)


def test_atom_noise_is_what_the_labels_say(examples):
    puzzle = Puzzle(examples[1])
    clean = puzzle.positions.copy()
    puzzle.add_noise(0, 1.0, rng())
    puzzle.move_global(0)
    atoms, central = puzzle.atoms_of(0)
    moved = np.concatenate([atoms, central])
    sigma, labels = puzzle.labels["atom_noise_sigma"], puzzle.labels["atom_noise_labels"]
    assert np.allclose(clean[atoms] - puzzle.positions[atoms], sigma * labels[atoms])
    assert np.allclose(clean[atoms].mean(0) - puzzle.positions[central], sigma * labels[central])
    assert not labels[np.setdiff1d(np.arange(len(labels)), moved)].any()


def test_masked_blocks_shrink_to_one_atom_at_their_centre(examples):
    collator = AtomicaPreTrainingCollator("masking", mask_proportion=0.5)
    for example in examples:
        found = collator.puzzle(example, rng(1))
        masked = found["labels"] >= 0
        assert masked.sum() == max(1, int(0.5 * (np.asarray(example["input_ids"]) >= 4).sum()))
        assert (found["input_ids"][masked] == 1).all() and (found["labels"][masked] == example["input_ids"][masked]).all()
        assert np.array_equal(found["input_ids"][~masked], example["input_ids"][~masked])
        for block in np.flatnonzero(masked):
            atoms = np.flatnonzero(found["atom_to_block"] == block)
            assert len(atoms) == 1 and found["atom_ids"][atoms[0]] == 1
            centre = example["positions"][example["atom_to_block"] == block].mean(0)
            assert np.allclose(found["positions"][atoms[0]], centre, atol=1e-5)
        assert len(found["atom_ids"]) == len(found["positions"]) == len(found["atom_to_block"])
        assert (np.diff(found["atom_to_block"]) >= 0).all()


def test_turned_bonds_follow_their_atoms_through_masking(processor):
    example = processor.encode(processor.read("O=C(O)CCc1ccccc1CCCN")[0])
    collator = AtomicaPreTrainingCollator(mask_proportion=0.4)
    for seed in range(20):
        generator = rng(seed)
        puzzle = Puzzle(example)
        puzzle.turn_bonds(0, 0.5, generator)
        ends = puzzle.positions[puzzle.labels["torsion_index"]]
        labels = puzzle.labels["torsion_labels"].copy()
        puzzle.mask_blocks(collator.mask_proportion, generator)
        bonds = puzzle.labels["torsion_index"]
        assert len(bonds) == len(puzzle.labels["torsion_labels"]) <= len(labels)
        assert (bonds[:, 0] != bonds[:, 1]).all() and bonds.max(initial=0) < len(puzzle.atom_ids)
        for bond, label in zip(bonds, puzzle.labels["torsion_labels"]):
            before = ends[np.flatnonzero(labels == label)[0]]
            for end, atom in zip(before, bond):
                if puzzle.atom_ids[atom] != 1:
                    assert np.allclose(puzzle.positions[atom], end)


def test_a_lone_molecule_a_lone_ion_and_a_pair_with_a_single_atom(examples):
    collator = AtomicaPreTrainingCollator()
    lone, ion, water = (collator([e]) for e in (examples[0], examples[4], examples[3]))
    assert (
        lone["perturbed_segment"].tolist() == [0] and not lone["rotation_labels"].any() and not lone["translation_sigma"].any()
    )
    assert lone["torsion_index"].shape[1] > 0
    assert ion["perturbed_segment"].tolist() == [-1] and ion["torsion_index"].shape[1] == 0
    assert water["perturbed_segment"].tolist() == [0] and not water["rotation_labels"].any() and water["translation_sigma"] > 0
    assert AtomicaPreTrainingCollator("masking")([examples[1]])["perturbed_segment"].tolist() == [-1]


def test_cropping_keeps_the_interface_and_consistent_indices(processor, shared):
    structure = next(iter(read_structures(shared / "data/complexes/protein_protein/1AZS_target.pdb.gz")))
    example = processor.encode(structure)
    assert len(example["input_ids"]) > 40
    puzzle = Puzzle(example)
    puzzle.crop(40, rng())
    assert len(puzzle.input_ids) == 40 and puzzle.num_segments == 2
    assert (puzzle.input_ids == 3).sum() == 2 and sorted(set(puzzle.atom_to_block.tolist())) == list(range(40))
    assert puzzle.bonds.max() < len(puzzle.atom_ids)
    for bond, turning in zip(puzzle.bonds, puzzle.turning):
        assert np.linalg.norm(np.subtract(*puzzle.positions[bond])) < 2 and bond[1] in turning and bond[0] not in turning
    backbone = {"N", "CA", "C", "O"}
    names = np.array(example["atom_origins"])
    whole = Puzzle(example)
    before = whole.positions.copy()
    whole.turn_bonds(0, 0.5, rng())
    still = np.isin(names, list(backbone))
    assert np.array_equal(whole.positions[still], before[still]) and not np.allclose(whole.positions, before)
    for segment in (0, 1):
        atoms, central = puzzle.atoms_of(segment)
        assert np.allclose(puzzle.positions[central], puzzle.positions[atoms].mean(0))


def test_cropping_to_so_many_atoms_keeps_what_is_nearest(processor):
    example = processor.encode(processor.read(("NCCCCCCCCCCC(=O)NCCCCCCCC(=O)O", "c1ccccc1O"))[0])
    assert len(example["atom_ids"]) > 30
    for limit in (30, 20, 14):
        puzzle = Puzzle(example)
        puzzle.crop(256, rng(), limit)
        assert len(puzzle.atom_ids) <= limit and puzzle.num_segments == 2
        assert set(puzzle.atom_to_block.tolist()) == set(range(len(puzzle.input_ids)))
        atoms = [puzzle.positions[puzzle.atoms_of(segment)[0]] for segment in (0, 1)]
        kept = np.linalg.norm(atoms[0][:, None] - atoms[1], axis=-1).min()
        whole = Puzzle(example)
        all_atoms = [whole.positions[whole.atoms_of(segment)[0]] for segment in (0, 1)]
        assert np.isclose(kept, np.linalg.norm(all_atoms[0][:, None] - all_atoms[1], axis=-1).min())
    untouched = Puzzle(example)
    untouched.crop(256, rng(), len(example["atom_ids"]))
    assert len(untouched.atom_ids) == len(example["atom_ids"])


def test_bad_settings_and_positions_are_named(examples):
    with pytest.raises(ValueError, match="'guess'.*pretrain_gaussian"):
        AtomicaPreTrainingCollator("guess")
    with pytest.raises(ValueError, match="torsion_noise.*0"):
        AtomicaPreTrainingCollator(torsion_noise=0)
    with pytest.raises(ValueError, match="mask_proportion.*2"):
        AtomicaPreTrainingCollator(mask_proportion=2)
    broken = {
        **examples[0],
        "positions": np.where(np.arange(len(examples[0]["positions"]))[:, None] == 3, np.nan, examples[0]["positions"]),
    }
    with pytest.raises(ValueError, match="atom 3 is at .nan"):
        AtomicaPreTrainingCollator()([broken])
    assert set(task_flags("masking").values()) == {True, False}


def test_plain_batches_keep_labels(examples):
    labelled = [{**e, "labels": np.zeros(len(e["input_ids"]), dtype=np.int64)} for e in examples]
    batch = AtomicaCollator()(labelled)
    assert batch["labels"].shape == batch["input_ids"].shape and batch["labels"][4, -1] == -100
    with pytest.raises(ValueError, match="positions"):
        AtomicaCollator()([examples[0], {k: v for k, v in examples[1].items() if k != "positions"}])
