# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""What the denoising heads predict -> motions that repair a structure, applied step by step.

The heads predict scores of the noise that `AtomicaPreTrainingCollator` adds; each function here says which equation of the
collator or of the loss it inverts. Positions are in angstrom, angles in radian.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from atomica_hf import StructureError
from atomica_hf.data_collator_atomica import Puzzle, RotationDistribution, superpose, wrapped_normal_score
from atomica_hf.pipelines_atomica import check_example, model_inputs
from atomica_hf.processing_atomica import pad_examples


KINDS = ("translation", "rotation", "torsion", "atom")
SCHEDULES = ("constant", "linear", "geometric")
ROTATION_ESTIMATES = ("inverse", "linear")
SMALLEST_SIGMA = 0.1  # of shifts and of noise on atoms, as the collator draws them


@dataclass
class Noise:
    """The noise that a model was trained with, named and measured as in `AtomicaPreTrainingCollator`."""

    torsion: float = 0.5
    translation: float = 1.0
    rotation: float = 0.25
    max_rotation: float = 0.5
    atom: float = 1.0

    def __post_init__(self):
        for field in fields(self):
            if not 0 < getattr(self, field.name) < np.inf:
                raise ValueError(f"The {field.name} noise is {getattr(self, field.name)}, expected a positive number.")


def rms_sigma(maximum):
    """Root mean square of the sigma that the collator draws, uniform on [min(0.1, maximum), maximum]."""
    smallest = min(SMALLEST_SIGMA, maximum)
    return float(np.sqrt((smallest**2 + smallest * maximum + maximum**2) / 3))


def shift_of(prediction, sigma):
    """Prediction for a translation `(3,)` or for atoms `(num_atoms, 3)` -> the shift that repairs, in angstrom.

    The loss |sigma p + z|^2 (for atoms |sigma p - label|^2 with label -z) of a displacement sigma z is least where
    p = -z / sigma, so that the repair, -sigma z, is sigma^2 p: Tweedie's formula. The model is not told sigma; where nobody
    knows it, the same losses are least at p = -E[sigma z] / E[sigma^2], so that `rms_sigma` takes its place.
    """
    return sigma**2 * np.asarray(prediction, dtype=np.float64)


def turn_of(prediction, sigma):
    """Predicted scores of bonds `(num_torsions,)` -> the angles that repair.

    The label is the score of a normal distribution wrapped around the circle, -tau / sigma^2 for a small turn tau. It rises and
    falls again towards half a turn; of the two turns with one score this is the smaller, and scores beyond the largest one
    belong to the turn that has it.
    """
    angles = np.linspace(0, np.pi, 20001)
    scores = -wrapped_normal_score(angles, sigma)
    last = int(scores.argmax()) + 1
    prediction = np.asarray(prediction, dtype=np.float64)
    return np.sign(prediction) * np.interp(np.abs(prediction), scores[:last], angles[:last])


def rotation_of(prediction, distribution, estimate="inverse"):
    """Predicted score of a rotation `(3,)` -> the rotation vector that repairs.

    The label is the axis times s(theta) = d/dtheta log f + sin theta / (1 - cos theta), the derivative of the log density of
    the angle (`RotationDistribution`): about 2 / theta - theta / (2 sigma^2), which falls from infinity to zero at the most
    likely angle, 2 sigma.

    Args:
        estimate (`str`): `"inverse"` looks theta up for |prediction|; exact for a perfect prediction whose angle is below the
            most likely one (an angle beyond has a negative score, which the length of a vector cannot show). But the less
            a model knows the shorter its prediction, and the larger this angle. `"linear"` is the best linear estimate of
            theta axis, prediction E[theta s] / E[s^2]: nothing predicted, nothing turned.
    """
    prediction = np.asarray(prediction, dtype=np.float64)
    if estimate == "linear":
        p, angles, scores = distribution.probabilities, distribution.angles, distribution.scores
        return -prediction * (p * angles * scores).sum() / (p * scores**2).sum()
    length = np.linalg.norm(prediction)
    if length == 0:
        return np.zeros(3)
    angle = np.interp(length, distribution.scores[::-1], distribution.angles[::-1])
    return -angle * prediction / length


def puzzle_of(example):
    """An example of `AtomicaProcessor.encode` -> the `Puzzle` that the functions below move."""
    puzzle = Puzzle(example)
    puzzle.modality = example.get("modality_ids")
    return puzzle


def bonds_of(puzzle, segment):
    """Indices of the rotatable bonds of a segment, into `puzzle.bonds`."""
    return np.flatnonzero(puzzle.segments[puzzle.atom_to_block[puzzle.bonds[:, 0]]] == segment)


def move(puzzle, segment, motion):
    """Applies a motion to a segment: a dictionary with any of `atom` (shifts `(num_atoms, 3)`), `torsion` (angles of
    `bonds_of`), `translation` and `rotation` (a vector each); in this order, the reverse of the collator's."""
    atoms, _ = puzzle.atoms_of(segment)
    positions = puzzle.positions
    if "atom" in motion:
        positions[atoms] += motion["atom"][atoms]
    if "torsion" in motion:
        before = positions[atoms].copy()
        bonds = bonds_of(puzzle, segment)
        for i, angle in zip(bonds[::-1], motion["torsion"][::-1]):
            stays, turns = puzzle.bonds[i]
            axis, origin = positions[stays] - positions[turns], positions[turns].copy()
            rotation = Rotation.from_rotvec(angle * axis / max(np.linalg.norm(axis), 1e-9))
            positions[puzzle.turning[i]] = rotation.apply(positions[puzzle.turning[i]] - origin) + origin
        if len(bonds) and not puzzle.is_polymer[segment]:
            positions[atoms] = superpose(positions[atoms], before)
    if "translation" in motion:
        positions[atoms] += motion["translation"]
    if "rotation" in motion:
        centre = positions[atoms].mean(0)
        positions[atoms] = Rotation.from_rotvec(motion["rotation"]).apply(positions[atoms] - centre) + centre
    puzzle.move_global(segment)


def perturb(example, levels, segment, rng, max_rotation=0.5):
    """Moves a segment as the collator does, in its order.

    Args:
        example (`dict`): as `AtomicaProcessor.encode` gives it.
        levels (`dict`): noise of each of `KINDS`: largest sigma of `translation` and `atom`, sigma of `rotation` and `torsion`.
        rng (`numpy.random.Generator`): of all draws.

    Returns:
        The `Puzzle`, with its labels.

    Raises:
        `ValueError`: for a level that is not positive, or noise that this segment cannot have.
    """
    puzzle = puzzle_of(example)
    check_segment(puzzle, segment, levels)
    for kind, level in levels.items():
        if not level > 0:
            raise ValueError(f"The {kind} noise is {level}, expected a positive number.")
    if "rotation" in levels:
        puzzle.rotate(segment, RotationDistribution(levels["rotation"], max_rotation), rng)
    if "translation" in levels:
        puzzle.translate(segment, levels["translation"], rng)
    if "torsion" in levels:
        puzzle.turn_bonds(segment, levels["torsion"], rng)
    if "atom" in levels:
        puzzle.add_noise(segment, levels["atom"], rng)
    puzzle.move_global(segment)
    return puzzle


def check_segment(puzzle, segment, kinds=()):
    """
    Raises:
        `ValueError`: if the segment is not there or cannot move so.
    """
    if not 0 <= segment < puzzle.num_segments:
        raise ValueError(f"{puzzle.name}: it has {puzzle.num_segments} segments, none is number {segment}.")
    missing = sorted(set(kinds) - set(movable(puzzle, segment, kinds)))
    if missing:
        raise ValueError(f"{puzzle.name}: segment {segment} cannot have {', '.join(missing)} noise.")


def movable(puzzle, segment, kinds=KINDS):
    """Kinds of motion that a segment can have: rigid ones with a partner, rotations with several atoms, torsions with bonds."""
    several, partner = len(puzzle.atoms_of(segment)[0]) > 1, puzzle.num_segments > 1
    turns = len(bonds_of(puzzle, segment)) > 0
    can = {"translation": partner, "rotation": partner and several, "torsion": turns, "atom": True}
    return [kind for kind in kinds if can[kind]]


def model_predictor(model):
    """`AtomicaForPreTraining` -> a predictor: (puzzles, segments) -> for each a dictionary of kind -> prediction, as the heads
    give it: `translation` and `rotation` `(3,)`, `torsion` `(num_torsions,)`, `atom` `(num_atoms, 3)`."""
    config = model.config
    heads = [kind for kind in KINDS if getattr(config, f"use_{kind}_noise")]
    names = [*model_inputs(config), "perturbed_segment", "torsion_index"]

    @torch.no_grad()
    def predict(puzzles, segments):
        examples = []
        for puzzle, segment in zip(puzzles, segments):
            bonds = puzzle.bonds[bonds_of(puzzle, segment)]
            examples.append({**puzzle.to_example(), "perturbed_segment": segment, "torsion_index": bonds})
            examples[-1].update(name=puzzle.name, modality_ids=puzzle.modality)
            check_example(examples[-1], config)
        batch = {name: value.to(model.device) for name, value in pad_examples(examples, names).items()}
        output = model(**batch)
        found = {kind: output[f"{kind}_prediction"].double().cpu().numpy() for kind in heads}
        sizes = {"torsion": "torsion_index", "atom": "atom_ids"}
        return [
            {kind: value[i][: len(example[sizes[kind]])] if kind in sizes else value[i] for kind, value in found.items()}
            for i, example in enumerate(examples)
        ]

    predict.kinds = tuple(heads)
    return predict


def step_sizes(steps, step_size=1.0, schedule="constant"):
    """Factor of each step: constant, or falling with the square of a sigma that goes to a tenth, linearly or geometrically.

    Raises:
        `ValueError`: for an unknown schedule, or numbers that are not positive.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"The schedule is {schedule!r}, expected one of {', '.join(SCHEDULES)}.")
    if steps < 1 or not 0 < step_size < np.inf:
        raise ValueError(f"{steps} steps of size {step_size}: expected at least one, of a positive size.")
    sigma = {"constant": np.ones(steps), "linear": np.linspace(1, 0.1, steps), "geometric": np.geomspace(1, 0.1, steps)}
    return step_size * sigma[schedule] ** 2


def motion_of(prediction, noise, sigma=None, rotation_estimate="inverse", rotations=None):
    """One dictionary of predictions -> the full motion that repairs, for `move`.

    Args:
        noise (`Noise`): that the model was trained with.
        sigma (`dict`): `translation` and `atom` sigma where they are known; else `rms_sigma` of the noise.
        rotations (`RotationDistribution`): of the noise, if there is one already.
    """
    sigma, motion = sigma or {}, {}
    for kind, value in prediction.items():
        if kind in ("translation", "atom"):
            motion[kind] = shift_of(value, sigma.get(kind) or rms_sigma(getattr(noise, kind)))
        elif kind == "torsion":
            motion[kind] = turn_of(value, noise.torsion)
        else:
            rotations = rotations or RotationDistribution(noise.rotation, noise.max_rotation)
            motion[kind] = rotation_of(value, rotations, rotation_estimate)
    return motion


def denoise(predict, puzzles, segments, noise=None, factors=(1.0,), kinds=KINDS, sigmas=None, rotation_estimate="inverse"):
    """Repairs segments step by step: predict, turn the predictions into motions, apply a part of each.

    Args:
        predict: a predictor, as `model_predictor` makes it.
        puzzles (`list[Puzzle]`): moved in place.
        segments (`list[int]`): which segment of each is repaired.
        noise (`Noise`): that the model was trained with.
        factors: part of the predicted motion that each step applies; see `step_sizes`.
        kinds: motions that are applied, of those that are predicted.
        sigmas (`list[dict]`): per puzzle, as for `motion_of`.

    Returns:
        Per puzzle, positions `(num_steps + 1, num_atoms, 3)` before the first and after each step.

    Raises:
        `StructureError`: if a prediction is not finite.
    """
    noise = noise or Noise()
    rotations = RotationDistribution(noise.rotation, noise.max_rotation)
    frames = [[puzzle.positions.copy()] for puzzle in puzzles]
    for factor in factors:
        for i, prediction in enumerate(predict(puzzles, segments)):
            allowed = movable(puzzles[i], segments[i], kinds)
            prediction = {kind: value for kind, value in prediction.items() if kind in allowed}
            if not all(np.isfinite(value).all() for value in prediction.values()):
                raise StructureError("bad_prediction", f"{puzzles[i].name}: the model predicts numbers that are not finite.")
            motion = motion_of(prediction, noise, sigmas[i] if sigmas else None, rotation_estimate, rotations)
            move(puzzles[i], segments[i], {kind: factor * value for kind, value in motion.items()})
            frames[i].append(puzzles[i].positions.copy())
    return [np.stack(positions) for positions in frames]


def rmsd(positions, reference, superposed=False):
    """Root mean square distance of atoms, both `(num_atoms, 3)`; if `superposed`, after the best rigid motion (Kabsch)."""
    if superposed:
        positions = superpose(positions, reference)
    return float(np.sqrt(((positions - reference) ** 2).sum(-1).mean()))


__all__ = [
    "KINDS", "ROTATION_ESTIMATES", "SCHEDULES", "Noise", "bonds_of", "check_segment", "denoise", "model_predictor", "motion_of",
    "movable", "move", "perturb", "puzzle_of", "rms_sigma", "rmsd", "rotation_of", "shift_of", "step_sizes", "turn_of",
]  # fmt: skip
