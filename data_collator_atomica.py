# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Examples -> one padded batch; and the puzzles of pretraining: cropping, rigid motion, torsion, noise, masking, and labels.

Every draw comes from a generator seeded by (seed, epoch, index of the example), so a puzzle does not depend on the number of
processes or workers, nor on where a run was resumed.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from .configuration_atomica import NUM_SPECIAL_BLOCKS, AtomicaConfig
from .graph_atomica import batch_graph
from .processing_atomica import ATOM_GLOBAL, ATOM_MASK, MODEL_INPUTS, pad_examples


MASK_TOKEN_ID = 1
IGNORE_INDEX = -100

TASKS = {  # puzzle: which heads of the model it uses
    "pretrain_gaussian": ("atom_noise", "translation_noise", "rotation_noise"),
    "pretrain_torsion": ("torsion_noise", "translation_noise", "rotation_noise"),
    "pretrain_torsion_masking": ("torsion_noise", "translation_noise", "rotation_noise", "masking"),
    "masking": ("masking",),
}


def task_flags(task: str):
    """Task -> the `use_*` values of `AtomicaConfig`.

    Raises:
        `ValueError`: for a task that is not known.
    """
    if task not in TASKS:
        raise ValueError(f"The task is {task!r}, expected one of {', '.join(TASKS)}.")
    kinds = ("atom_noise", "torsion_noise", "translation_noise", "rotation_noise", "masking")
    return {f"use_{kind}": kind in TASKS[task] for kind in kinds}


class RotationDistribution:
    """Angles of IGSO(3), the isotropic Gaussian on rotations, on 100 points of [0.001, maximum] (radian), and their scores.

    f(theta) = sum over l < 2000 of (2 l + 1) exp(-l (l + 1) sigma^2) sin((l + 1/2) theta) / sin(theta / 2); the density of an
    angle is f(theta) (1 - cos theta), its score d/dtheta log f + sin theta / (1 - cos theta).
    """

    def __init__(self, sigma: float, maximum: float):
        self.angles = np.linspace(0.001, maximum, 100)
        theta, degree = self.angles[:, None], np.arange(2000)
        weight = (2 * degree + 1) * np.exp(-degree * (degree + 1) * sigma**2)
        high, low = np.sin((degree + 0.5) * theta), np.sin(theta / 2)
        dhigh, dlow = (degree + 0.5) * np.cos((degree + 0.5) * theta), 0.5 * np.cos(theta / 2)
        f = (weight * high / low).sum(1)
        df = (weight * (dhigh * low - high * dlow) / low**2).sum(1)
        density = np.clip(f * (1 - np.cos(self.angles)), 0, None)
        self.probabilities = density / density.sum()
        self.scores = df / f + np.sin(self.angles) / (1 - np.cos(self.angles))

    def draw(self, rng):
        """-> angle (radian), score (per radian)."""
        i = rng.choice(len(self.angles), p=self.probabilities)
        return self.angles[i], self.scores[i]


def wrapped_normal_score(angle, sigma: float):
    """d/d(angle) of the log density of a normal distribution wrapped around the circle; angles in radian."""
    turns = np.asarray(angle)[..., None] + 2 * np.pi * np.arange(-10, 11)
    log_weight = -(turns**2) / (2 * sigma**2)
    weight = np.exp(log_weight - log_weight.max(-1, keepdims=True))
    return -(turns * weight).sum(-1) / (sigma**2 * weight.sum(-1))


def superpose(moved, target):
    """`moved` after the rigid motion that brings it closest to `target` (Kabsch), both `(num_atoms, 3)`."""
    centre, goal = moved.mean(0), target.mean(0)
    u, _, vt = np.linalg.svd((moved - centre).T @ (target - goal))
    sign = np.sign(np.linalg.det(u @ vt))
    rotation = u @ np.diag([1, 1, sign]) @ vt
    return (moved - centre) @ rotation + goal


class Puzzle:
    """One example while it is perturbed: arrays of its blocks, atoms and bonds, and the labels made so far."""

    def __init__(self, example):
        self.name = example.get("name", "example")
        self.input_ids = np.array(example["input_ids"])
        self.segments = np.array(example["token_type_ids"])
        self.atom_ids = np.array(example["atom_ids"])
        self.atom_to_block = np.array(example["atom_to_block"])
        self.positions = np.array(example["positions"], dtype=np.float64).reshape(-1, 3)
        if not np.isfinite(self.positions).all():
            atom = int((~np.isfinite(self.positions)).any(-1).argmax())
            raise ValueError(
                f"{self.name}: atom {atom} is at {self.positions[atom].tolist()}, expected finite coordinates in angstrom."
            )
        self.bonds = np.array(example.get("torsion_bonds", []), dtype=np.int64).reshape(-1, 2)
        self.turning = [np.array(atoms, dtype=np.int64) for atoms in example.get("torsion_atoms", [])]
        self.is_polymer = list(example.get("segment_is_polymer", [0] * (self.segments.max() + 1)))
        self.charges = None if example.get("atom_charges") is None else np.array(example["atom_charges"])
        self.features = None
        if example.get("block_features") is not None:
            self.features = np.array(example["block_features"], dtype=np.float32)
        self.labels = {}

    @property
    def num_segments(self):
        return int(self.segments.max()) + 1

    def atoms_of(self, segment):
        """Indices of the atoms of a segment without its global atom, and that of the global atom."""
        inside = self.segments[self.atom_to_block] == segment
        is_global = self.atom_ids == ATOM_GLOBAL
        return np.flatnonzero(inside & ~is_global), np.flatnonzero(inside & is_global)

    def move_global(self, segment):
        atoms, central = self.atoms_of(segment)
        self.positions[central] = self.positions[atoms].mean(0)

    def crop(self, max_blocks, rng, max_atoms=None):
        """Keeps the blocks nearest to the other segments (of a lone molecule: nearest to a block drawn at random), as many as
        both limits allow, and at least one of every segment."""
        too_many_atoms = max_atoms is not None and len(self.atom_ids) > max_atoms
        if len(self.input_ids) <= max_blocks and not too_many_atoms:
            return
        if 2 * self.num_segments > max_blocks:
            raise ValueError(
                f"{self.name}: {self.num_segments} segments cannot be cropped to {max_blocks} blocks; each needs two."
            )
        is_special = np.isin(np.arange(len(self.input_ids)), self.atom_to_block[self.atom_ids == ATOM_GLOBAL])
        distance = np.full(len(self.input_ids), np.inf)
        segment_of_atom = self.segments[self.atom_to_block]
        real = self.atom_ids != ATOM_GLOBAL
        if self.num_segments > 1:
            for segment in range(self.num_segments):
                mine, others = real & (segment_of_atom == segment), real & (segment_of_atom != segment)
                near = cKDTree(self.positions[others]).query(self.positions[mine])[0]
                np.minimum.at(distance, self.atom_to_block[mine], near)
        else:
            start = rng.choice(np.flatnonzero(~is_special))
            near = cKDTree(self.positions[self.atom_to_block == start]).query(self.positions[real])[0]
            np.minimum.at(distance, self.atom_to_block[real], near)
        distance[is_special] = -1
        for segment in range(self.num_segments):  # the nearest block of every segment stays, whatever the others need
            ordinary = np.flatnonzero((self.segments == segment) & ~is_special)
            distance[ordinary[distance[ordinary].argmin()]] = -1
        keep = np.zeros(len(self.input_ids), dtype=bool)
        nearest = np.argsort(distance, kind="stable")[:max_blocks]
        if too_many_atoms:
            atoms = np.bincount(self.atom_to_block, minlength=len(self.input_ids))[nearest].cumsum()
            nearest = nearest[(atoms <= max_atoms) | (distance[nearest] == -1)]
        keep[nearest] = True
        self._keep_blocks(keep)
        for segment in range(self.num_segments):
            self.move_global(segment)

    def _keep_blocks(self, keep):
        keep_atom = keep[self.atom_to_block]
        new_atom = np.where(keep_atom, keep_atom.cumsum() - 1, -1)
        new_block = keep.cumsum() - 1
        self.input_ids, self.segments = self.input_ids[keep], self.segments[keep]
        if self.features is not None:
            self.features = self.features[keep]
        self.atom_to_block = new_block[self.atom_to_block[keep_atom]]
        self.atom_ids, self.positions = self.atom_ids[keep_atom], self.positions[keep_atom]
        if self.charges is not None:
            self.charges = self.charges[keep_atom]
        bonds, turning = [], []
        for bond, atoms in zip(new_atom[self.bonds], self.turning):
            atoms = new_atom[atoms]
            atoms = atoms[atoms >= 0]
            if (bond >= 0).all() and len(atoms) > 1:
                bonds.append(bond)
                turning.append(atoms)
        self.bonds, self.turning = np.array(bonds, dtype=np.int64).reshape(-1, 2), turning

    def rotate(self, segment, distribution, rng):
        """Turns a segment about the centre of its atoms."""
        atoms, _ = self.atoms_of(segment)
        angle, score = distribution.draw(rng)
        axis = rng.normal(size=3)
        axis /= np.linalg.norm(axis)
        centre = self.positions[atoms].mean(0)
        self.positions[atoms] = Rotation.from_rotvec(angle * axis).apply(self.positions[atoms] - centre) + centre
        self.labels["rotation_labels"] = axis * score

    def translate(self, segment, maximum, rng):
        """Shifts a segment by sigma z."""
        atoms, _ = self.atoms_of(segment)
        sigma, direction = rng.uniform(min(0.1, maximum), maximum), rng.normal(size=3)
        self.positions[atoms] += sigma * direction
        self.labels.update(translation_labels=direction, translation_sigma=sigma)

    def turn_bonds(self, segment, sigma, rng):
        """Turns every rotatable bond of a segment; a molecule is then superposed on where it was."""
        atoms, _ = self.atoms_of(segment)
        chosen = np.flatnonzero(self.segments[self.atom_to_block[self.bonds[:, 0]]] == segment)
        angles = rng.normal(scale=sigma, size=len(chosen))
        before = self.positions[atoms].copy()
        for i, angle in zip(chosen, angles):
            stays, turns = self.bonds[i]
            axis = self.positions[stays] - self.positions[turns]  # a positive angle turns about the axis that points inwards
            rotation = Rotation.from_rotvec(angle * axis / max(np.linalg.norm(axis), 1e-9))
            origin = self.positions[turns]
            self.positions[self.turning[i]] = rotation.apply(self.positions[self.turning[i]] - origin) + origin
        if len(chosen) and not self.is_polymer[segment]:
            self.positions[atoms] = superpose(self.positions[atoms], before)
        self.labels["torsion_index"] = self.bonds[chosen]
        self.labels["torsion_labels"] = wrapped_normal_score(angles, sigma)

    def add_noise(self, segment, maximum, rng):
        """Gaussian noise on every atom of a segment."""
        atoms, central = self.atoms_of(segment)
        sigma = rng.uniform(min(0.1, maximum), maximum)
        noise = rng.normal(size=(len(atoms), 3))
        self.positions[atoms] += sigma * noise
        labels = np.zeros_like(self.positions)
        labels[atoms] = -noise
        labels[central] = -noise.mean(0)
        self.labels.update(atom_noise_labels=labels, atom_noise_sigma=sigma)

    def mask_blocks(self, proportion, rng):
        """Hides a share of the blocks that are not special, at least one."""
        candidates = np.flatnonzero(self.input_ids >= NUM_SPECIAL_BLOCKS)
        if len(candidates):
            candidates = rng.choice(candidates, size=max(1, int(proportion * len(candidates))), replace=False)
        self.hide(candidates)

    def hide(self, blocks):
        """Hides the blocks with these indices: each becomes a mask token with one mask atom at its centre, without features of
        another model, which would give it away. A turned bond follows its atoms; one that lay inside a hidden block is gone,
        because nothing is left of it to see."""
        chosen = np.array(blocks, dtype=np.int64)
        labels = np.full(len(self.input_ids), IGNORE_INDEX)
        self.labels["labels"] = labels
        if not len(chosen):
            return
        labels[chosen] = self.input_ids[chosen]
        self.input_ids[chosen] = MASK_TOKEN_ID
        if self.features is not None:
            self.features[chosen] = 0
        hidden = np.zeros(len(self.input_ids), dtype=bool)
        hidden[chosen] = True
        hidden_atom = hidden[self.atom_to_block]
        first = np.r_[True, self.atom_to_block[1:] != self.atom_to_block[:-1]]
        count = np.bincount(self.atom_to_block, minlength=len(self.input_ids))[:, None]

        def centres(values):
            total = np.zeros((len(self.input_ids), 3))
            np.add.at(total, self.atom_to_block, values)
            return (total / np.maximum(count, 1))[self.atom_to_block]

        keep = ~hidden_atom | first
        new_atom = keep.cumsum() - 1
        self.positions = np.where(hidden_atom[:, None], centres(self.positions), self.positions)[keep]
        if "atom_noise_labels" in self.labels:
            noise = self.labels["atom_noise_labels"]
            self.labels["atom_noise_labels"] = np.where(hidden_atom[:, None], centres(noise), noise)[keep]
        if "torsion_index" in self.labels:
            bonds = new_atom[self.labels["torsion_index"]]
            seen = bonds[:, 0] != bonds[:, 1]
            self.labels["torsion_index"], self.labels["torsion_labels"] = bonds[seen], self.labels["torsion_labels"][seen]
        self.atom_ids = np.where(hidden_atom, ATOM_MASK, self.atom_ids)[keep]
        self.atom_to_block = self.atom_to_block[keep]
        if self.charges is not None:
            self.charges = np.where(hidden_atom, 0, self.charges)[keep]

    def to_example(self):
        return {
            "input_ids": self.input_ids,
            "token_type_ids": self.segments,
            "attention_mask": np.ones(len(self.input_ids), dtype=np.int64),
            "atom_ids": self.atom_ids,
            "atom_to_block": self.atom_to_block,
            "positions": self.positions,
            **({} if self.charges is None else {"atom_charges": self.charges}),
            **({} if self.features is None else {"block_features": self.features}),
            **self.labels,
        }


@dataclass
class AtomicaCollator:
    """Examples of `AtomicaProcessor.encode` -> a padded batch of the model's inputs, with labels where they have them.

    `labels` (or `label`) are one value or one row of values per complex, or one per block; those of blocks are padded with -100
    (integers) or NaN (numbers with a point). None is a missing number.

    Args:
        config (`AtomicaConfig`): of the model; with it, neighbours are found here (`graph`), in the workers of a data loader,
            and not in the model's step.

    Raises:
        `ValueError`: if the examples do not all have the same names, or labels of different shapes that are not of blocks.
    """

    config: AtomicaConfig | None = None

    def __call__(self, examples):
        optional = ("modality_ids", "block_features", "atom_charges")
        batch = pad_examples(examples, [*MODEL_INPUTS, *(name for name in optional if examples[0].get(name) is not None)])
        name = next((name for name in ("labels", "label") if name in examples[0]), None)
        if name is not None:
            batch["labels"] = torch.from_numpy(pad_labels(examples, name, batch["input_ids"].shape[1]))
        return with_graph(batch, self.config)


def with_graph(batch, config):
    return batch if config is None else {**batch, "graph": batch_graph(config, batch)}


def pad_labels(examples, name, num_blocks):
    """Labels of a batch as one array: `(batch, ...)`, or `(batch, num_blocks, ...)` if they belong to blocks."""
    labels = []
    for example in examples:
        if name not in example:
            raise ValueError(f"{example.get('name', 'An example')} has no {name!r}, others of the batch have.")
        label = np.array(example[name])
        labels.append(label.astype(np.float32) if label.dtype == object or label.dtype.kind == "f" else label.astype(np.int64))
    of_blocks = all(label.ndim and len(label) == len(example["input_ids"]) for label, example in zip(labels, examples))
    if not of_blocks and len({label.shape for label in labels}) > 1:
        shapes = ", ".join(str(label.shape) for label in labels)
        raise ValueError(f"The {name!r} of a batch have shapes {shapes}: expected equal ones, or one row per block.")
    if any(label.dtype.kind == "f" for label in labels):
        labels, fill = [label.astype(np.float32) for label in labels], np.nan
    else:
        fill = IGNORE_INDEX
    if of_blocks:
        pad = lambda label: [(0, num_blocks - len(label)), *[(0, 0)] * (label.ndim - 1)]
        labels = [np.pad(label, pad(label), constant_values=fill) for label in labels]
    return np.stack(labels)


@dataclass
class AtomicaPreTrainingCollator:
    """Examples of `AtomicaProcessor.encode` -> a padded batch of puzzles with labels.

    An example carries its `example_index` and the `epoch`; with `seed` they fix every draw of its puzzle.

    Args:
        task (`str`): one of `TASKS`.
        torsion_noise (`float`): standard deviation of the angle a bond turns by, radian.
        translation_noise, atom_noise (`float`): largest sigma of a shift and of the noise on atoms, angstrom; the smallest is
            0.1, or the largest if that is less.
        rotation_noise, max_rotation (`float`): sigma and largest angle of IGSO(3), radian.
        mask_proportion (`float`): share of the blocks that are hidden, at least one.
        max_blocks, max_atoms (`int`): larger complexes are cropped to this many blocks and atoms around the interface.
        seed (`int`): of all draws.
        config (`AtomicaConfig`): of the model; with it, neighbours are found here, as in `AtomicaCollator`.

    Raises:
        `ValueError`: for an unknown task, a noise that is not positive, examples without number or epoch, and examples whose
            positions are not finite.
    """

    task: str = "pretrain_torsion_masking"
    torsion_noise: float = 0.5
    translation_noise: float = 1.0
    rotation_noise: float = 0.25
    max_rotation: float = 0.5
    atom_noise: float = 1.0
    mask_proportion: float = 0.1
    max_blocks: int = 256
    seed: int = 0
    max_atoms: int | None = None
    config: AtomicaConfig | None = None

    def __post_init__(self):
        task_flags(self.task)
        for name in ("torsion_noise", "translation_noise", "rotation_noise", "max_rotation", "atom_noise"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}, expected a positive number.")
        if not 0 < self.mask_proportion <= 1:
            raise ValueError(f"`mask_proportion` is {self.mask_proportion}, expected a share between 0 and 1.")
        if self.max_blocks < 8:
            raise ValueError(f"`max_blocks` is {self.max_blocks}, expected at least 8.")
        if self.max_atoms is not None and self.max_atoms < 1:
            raise ValueError(f"`max_atoms` is {self.max_atoms}, expected a positive number.")
        self.rotations = RotationDistribution(self.rotation_noise, self.max_rotation)

    def puzzle(self, example, rng):
        """One example -> one perturbed example with its labels; every draw comes from `rng`."""
        kinds = TASKS[self.task]
        puzzle = Puzzle(example)
        puzzle.crop(self.max_blocks, rng, self.max_atoms)
        sizes = [len(puzzle.atoms_of(segment)[0]) for segment in range(puzzle.num_segments)]
        movable = [segment for segment, size in enumerate(sizes) if size > 1]
        segment = int(rng.choice(movable)) if movable and kinds != ("masking",) else -1
        puzzle.labels["perturbed_segment"] = segment
        if "rotation_noise" in kinds:
            puzzle.labels.update(rotation_labels=np.zeros(3), translation_labels=np.zeros(3), translation_sigma=0.0)
            if segment >= 0 and puzzle.num_segments > 1:
                if min(sizes) > 1:
                    puzzle.rotate(segment, self.rotations, rng)
                puzzle.translate(segment, self.translation_noise, rng)
        if "torsion_noise" in kinds:
            puzzle.labels.update(torsion_index=np.zeros((0, 2), dtype=np.int64), torsion_labels=np.zeros(0))
            if segment >= 0:
                puzzle.turn_bonds(segment, self.torsion_noise, rng)
        if "atom_noise" in kinds:
            puzzle.labels.update(atom_noise_labels=np.zeros_like(puzzle.positions), atom_noise_sigma=0.0)
            if segment >= 0:
                puzzle.add_noise(segment, self.atom_noise, rng)
        if segment >= 0:
            puzzle.move_global(segment)
        if "masking" in kinds:
            puzzle.mask_blocks(self.mask_proportion, rng)
        return puzzle.to_example()

    def __call__(self, examples):
        puzzles = []
        for example in examples:
            if "epoch" not in example or "example_index" not in example:
                raise ValueError(
                    f"{example.get('name', 'An example')} has no `epoch` and `example_index`: without them every puzzle would "
                    "be the same again in the next batch and epoch."
                )
            draw = (self.seed, int(example["epoch"]), int(example["example_index"]))
            puzzles.append(self.puzzle(example, np.random.default_rng(draw)))
            if example.get("modality_ids") is not None:
                puzzles[-1]["modality_ids"] = example["modality_ids"]
        return with_graph(pad_examples(puzzles), self.config)


__all__ = [
    "TASKS",
    "AtomicaCollator",
    "AtomicaPreTrainingCollator",
    "RotationDistribution",
    "task_flags",
    "wrapped_normal_score",
]
