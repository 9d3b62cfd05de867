# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Repairs perturbed molecules and complexes with the denoising heads of a pretrained model, step by step.

    python run_denoising.py --model_name_or_path my-atomica --input_file pairs.sdf --output_dir out \\
        --perturb translation=1.0 rotation=0.25 torsion=0.5 --steps 10

With --perturb a good structure is moved by the noise of pretraining, and the distance to where it was is measured; without it
the structure itself is repaired, and measured against --reference_file if there is one. In the output folder: report.json,
steps.csv (distances after every step), rmsd.png, arrows.png, and the first trajectories as PDB with several models (mmCIF for
what does not fit into PDB). Files of an earlier run into the same folder are removed.
"""

import dataclasses
import json
import math
import textwrap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree
from tqdm.auto import tqdm
from transformers.hf_argparser import HfArg

from atomic_files import replacing, save_figure, write_table, write_text
from atomica_hf import ROOT, AtomicaForPreTraining, ReadReport, StructureError, read_structures
from atomica_hf.pipelines_atomica import check_example
from denoising import (
    KINDS,
    ROTATION_ESTIMATES,
    SCHEDULES,
    Noise,
    check_segment,
    denoise,
    model_predictor,
    movable,
    perturb,
    puzzle_of,
    rmsd,
    step_sizes,
)
from interface_options import Sides
from model_loading import best_device, load_model
from output_folder import file_name, remove_earlier, structure_suffix
from script_arguments import ScriptParser, run_script


@dataclass
class DenoisingArguments:
    input_file: str = HfArg(help="What to repair: .sdf .pdb .cif .smi .csv, or a folder of structures.")
    output_dir: str = HfArg(help="Folder for the report, the pictures and the trajectories.")
    model_name_or_path: str = HfArg(
        default=str(ROOT), help="Folder or hub id of a pretrained Atomica model; by default this repository."
    )
    segment: int | None = HfArg(default=None, help="Which partner moves: 0, 1, ...; by default the last one.")
    perturb: list[str] = HfArg(
        default_factory=list,
        help="Noise to add first, such as translation=1.0 rotation=0.25 torsion=0.5 atom=0.3: largest sigma of a shift and of "
        "the noise on atoms in angstrom, sigma of a rotation and of a bond's turn in radian.",
    )
    seed: int = HfArg(default=0, help="Seed of the noise.")
    reference_file: str | None = HfArg(default=None, help="Without --perturb: the same structures as they should be.")
    steps: int = HfArg(default=10, help="Number of steps.")
    step_size: float = HfArg(default=0.5, help="Part of the predicted motion that a step applies.")
    schedule: str = HfArg(
        default="constant",
        metadata={"choices": list(SCHEDULES)},
        help="Parts of later steps: constant, or falling with the square of a sigma that goes to a tenth.",
    )
    motions: list[str] = HfArg(
        default_factory=list,
        metadata={"choices": list(KINDS)},
        help="Motions that are applied: by default those of --perturb, or without it all that the model predicts.",
    )
    rotation_estimate: str = HfArg(
        default="linear",
        metadata={"choices": list(ROTATION_ESTIMATES)},
        help="Predicted score to angle: linear, which is short where the model is unsure, or the exact inverse.",
    )
    translation_sigma: float | None = HfArg(default=None, help="Sigma of the shift, if it is known, angstrom.")
    atom_sigma: float | None = HfArg(default=None, help="Sigma of the noise on atoms, if it is known, angstrom.")
    torsion_noise: float = HfArg(default=0.5, help="As in the pretraining of the model.")
    translation_noise: float = HfArg(default=1.0, help="As in the pretraining of the model.")
    rotation_noise: float = HfArg(default=0.25, help="As in the pretraining of the model.")
    max_rotation: float = HfArg(default=0.5, help="As in the pretraining of the model.")
    atom_noise: float = HfArg(default=1.0, help="As in the pretraining of the model.")
    max_samples: int | None = HfArg(default=None, help="Read only this many structures.")
    max_trajectories: int = HfArg(default=5, help="Write this many trajectories.")
    batch_size: int = HfArg(default=16, help="Structures that the model sees at once.")
    device: str | None = HfArg(default=None, help="cpu, cuda, mps; by default the best there is.")


def usage(message):
    return StructureError("usage", message)


ROUNDING = 1e-6  # angstrom; a smaller change of an RMSD is none
RIGID = 0.01  # angstrom; below that nothing within a segment moved, but for the three decimals of a PDB file
BOND = 1.9  # angstrom
LARGEST_NOISE = 1000.0  # angstrom or radian; more than that is a mistake


def parse_levels(texts):
    """`translation=1.0` ... -> dictionary of kind -> level.

    Raises:
        `StructureError`: for anything else.
    """
    levels = {}
    for text in texts:
        kind, _, level = text.partition("=")
        if kind in levels:
            raise usage(f"--perturb {text}: {kind} has a level already.")
        try:
            levels[kind] = float(level)
        except ValueError:
            levels[kind] = -1.0
        if kind not in KINDS or not 0 < levels[kind] <= LARGEST_NOISE:
            raise usage(
                f"--perturb {text}: expected one of {', '.join(KINDS)}, =, and a positive number up to {LARGEST_NOISE:g}."
            )
    return levels


def read_examples(path, processor, sides, max_samples, report, **changes):
    """File -> examples, at most `max_samples`. `changes` are those of `ReadOptions`."""
    options = dataclasses.replace(processor.read_options, **changes)
    if sides.named():
        structures = iter(processor.read(Path(path), **sides.named(), **changes))
    else:
        structures = read_structures(path, report, options)
    examples = []
    for structure in structures:
        if len(examples) == max_samples:
            break
        try:
            examples.append(processor.encode(structure))
        except StructureError as error:
            report.reject(structure.name, error)
    return examples


def named_atoms(example):
    """Dictionary of (segment, origin of the block, name, element, how many such came before) -> index of the atom."""
    found, before = {}, Counter()
    segments, origins = np.asarray(example["token_type_ids"]).tolist(), example["block_origins"]
    atoms = zip(*(np.asarray(example[name]).tolist() for name in ("atom_to_block", "atom_origins", "atom_ids")))
    for i, (block, name, element) in enumerate(atoms):
        key = segments[block], origins[block], name, element
        found[(*key, before[key])] = i
        before[key] += 1
    return found


def references(examples, arguments, sides, processor):
    """Positions that examples should have, from --reference_file, or None for each. Its sides are not cut to what is near the
    other one: a side that moved has other neighbours."""
    if arguments.reference_file is None:
        return [None] * len(examples)
    try:
        report = ReadReport(strict=True)
        others = read_examples(
            arguments.reference_file, processor, sides, arguments.max_samples, report, distance=math.inf
        )  # fmt: skip
    except StructureError as error:
        raise StructureError(error.code, f"--reference_file {arguments.reference_file}: {error}") from error
    if len(others) != len(examples):
        raise usage(f"{arguments.reference_file}: {len(others)} structures, expected {len(examples)} as in the input.")
    found = []
    for example, other in zip(examples, others):
        mine, theirs = named_atoms(example), named_atoms(other)
        blocks = {key[:2] for key in mine}
        if differ := sorted(mine.keys() ^ {key for key in theirs if key[:2] in blocks}):
            _, origin, name, *_ = differ[0]
            raise usage(
                f"{arguments.reference_file}: {other['name']} has other atoms than {example['name']}, expected the same; they "
                f"differ in {len(differ)}, the first of which is {name}{origin and f' of {origin}'}. In a PDB or mmCIF file, "
                "--side_a and --side_b say which partners are meant."
            )
        target = puzzle_of({**example, "positions": np.asarray(other["positions"])[[theirs[key] for key in mine]]})
        for segment in range(target.num_segments):
            target.move_global(segment)
        found.append(target.positions)
    return found


def distances(name, puzzle, segment, frames, reference):
    """Rows of steps.csv: after every step, of every segment and of the whole complex, the RMSD to the reference as they are,
    and superposed."""
    groups = {number: puzzle.atoms_of(number)[0] for number in range(puzzle.num_segments)}
    groups["all"] = np.concatenate(list(groups.values()))
    rows = []
    for step, positions in enumerate(frames):
        for group, atoms in groups.items():
            moved, target = positions[atoms], reference[atoms]
            row = {"name": name, "step": step, "segment": group, "moved": group == segment}
            rows.append({**row, "rmsd": rmsd(moved, target), "rmsd_superposed": rmsd(moved, target, superposed=True)})
    return rows


def write_frames(path, processor, example, frames):
    """Positions `(num_frames, num_atoms, 3)` as a PDB or mmCIF file, by its ending, with one model each."""
    import gemmi

    trajectory = None
    with replacing(path) as temporary:
        for number, positions in enumerate(frames, 1):
            processor.to_pdb({**example, "positions": positions}, path=temporary)
            structure = gemmi.read_structure(str(temporary))
            structure[0].num = number
            if trajectory is None:
                trajectory = structure
            else:
                trajectory.add_model(structure[0])
        is_pdb = Path(path).suffix == ".pdb"
        text = trajectory.make_pdb_string() if is_pdb else trajectory.make_mmcif_document().as_string()
        temporary.write_text(text, encoding="utf-8")


def plot_distances(rows, path):
    """RMSD of the moved segments by step: every structure as a thin line, the mean as a thick one; and superposed, unless the
    segments moved as rigid bodies."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    moved = [row for row in rows if row["moved"]]
    titles = {"rmsd": "as it lies", "rmsd_superposed": "superposed"}
    if max(row["rmsd_superposed"] for row in moved) < RIGID:
        del titles["rmsd_superposed"]
    figure, axes = plt.subplots(1, len(titles), figsize=(4 * len(titles), 3.2), squeeze=False)
    for axis, (column, title) in zip(axes[0], titles.items()):
        lines = {}
        for row in moved:
            lines.setdefault(row["name"], []).append(row[column])
        for values in list(lines.values())[:200]:
            axis.plot(values, color="tab:blue", alpha=max(0.3, 1 / len(lines)), linewidth=0.8)
        axis.plot(np.mean(list(lines.values()), axis=0), color="black", linewidth=2, label=f"mean of {len(lines)}")
        axis.set(xlabel="step", ylabel="RMSD to the original (Å)", title=f"Moved segment, {title}", ylim=(0, None))
        axis.legend()
    save_figure(figure, path)


def plot_arrows(puzzle, segment, frames, reference, path):
    """Where each atom of the moved segment went, in three dimensions, with bonds between atoms closer than `BOND`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from mpl_toolkits.mplot3d.art3d import Line3DCollection

    atoms = puzzle.atoms_of(segment)[0]
    others = np.concatenate([np.zeros(0, int)] + [puzzle.atoms_of(i)[0] for i in range(puzzle.num_segments) if i != segment])
    start, end = frames[0], frames[-1]
    if len(others) > 200:  # the nearest ones
        nearest = np.linalg.norm(start[others][:, None] - start[atoms], axis=-1).min(1).argsort()[:200]
        others = others[nearest]
    figure = plt.figure(figsize=(7, 6.5))
    axis = figure.add_subplot(projection="3d")

    def draw(positions, chosen, color, label, size=16):
        bonds = cKDTree(layout[chosen]).query_pairs(BOND, output_type="ndarray") if len(chosen) else []
        if len(bonds):
            axis.add_collection3d(Line3DCollection(positions[chosen[bonds]], colors=color, linewidths=1.2, alpha=0.8))
        axis.scatter(*positions[chosen].T, color=color, s=size, label=label, depthshade=False)

    layout = start if reference is None else reference  # noise on atoms breaks bonds
    draw(start, others, "dimgrey", "partner", 10)
    if reference is not None:
        draw(reference, atoms, "darkgrey", "original")
    draw(start, atoms, "tab:orange", "before")
    draw(end, atoms, "tab:blue", "after")
    axis.quiver(*start[atoms].T, *(end - start)[atoms].T, color="tab:blue", linewidth=1, arrow_length_ratio=0.2)
    title = textwrap.shorten(puzzle.name, 60, placeholder="…")
    if reference is not None:
        before, after = (rmsd(positions[atoms], reference[atoms]) for positions in (start, end))
        title += f"\nRMSD to the original {before:.2f} Å before, {after:.2f} Å after"
    axis.set(xlabel="x (Å)", ylabel="y (Å)", zlabel="z (Å)", title=title)
    axis.set_aspect("equal")
    figure.legend(loc="lower left")
    save_figure(figure, path)


def summary_of(rows, steps):
    """Mean RMSD of the moved segments before and after, and how many came closer."""
    before = {row["name"]: row for row in rows if row["moved"] and row["step"] == 0}
    after = {row["name"]: row for row in rows if row["moved"] and row["step"] == steps}
    found = {}
    for column in ("rmsd", "rmsd_superposed"):
        pairs = np.array([(before[name][column], after[name][column]) for name in before])
        closer = int((pairs[:, 1] < pairs[:, 0] - ROUNDING).sum())
        found[column] = {"before": pairs[:, 0].mean(), "after": pairs[:, 1].mean(), "closer": closer}
    return found


def check(arguments, levels):
    """
    Raises:
        `StructureError`: naming the option that is wrong.
    """
    if levels and arguments.reference_file:
        raise usage("--perturb and --reference_file exclude each other: what is perturbed here is its own reference.")
    for name, least in (("batch_size", 1), ("max_samples", 1), ("max_trajectories", 0), ("seed", 0), ("segment", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise usage(f"--{name} is {value}, expected {least} or more.")
    for name in ("translation_sigma", "atom_sigma"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value <= LARGEST_NOISE:
            raise usage(f"--{name} is {value}, expected a positive length in angstrom, up to {LARGEST_NOISE:g}.")
    if Path(arguments.output_dir).is_file():
        raise usage(f"--output_dir {arguments.output_dir} is a file, expected the name of a folder.")


def main(argv=None):
    parser = ScriptParser([DenoisingArguments, Sides], description=__doc__)
    arguments, sides = parser.parse_args_into_dataclasses(argv)
    levels = parse_levels(arguments.perturb)
    check(arguments, levels)
    try:
        factors = step_sizes(arguments.steps, arguments.step_size, arguments.schedule)
        noise = Noise(
            arguments.torsion_noise, arguments.translation_noise, arguments.rotation_noise, arguments.max_rotation,
            arguments.atom_noise,
        )  # fmt: skip
    except ValueError as error:
        raise usage(str(error)) from error
    model, processor = load_model(
        arguments.model_name_or_path, "float32", arguments.device or best_device(), AtomicaForPreTraining
    )
    predict = model_predictor(model)
    asked = arguments.motions or list(levels) or list(predict.kinds)
    kinds = [kind for kind in asked if kind in predict.kinds]
    if not kinds or len(kinds) < len(arguments.motions):
        raise usage(f"This model predicts {', '.join(predict.kinds) or 'no motion'}, asked for is {', '.join(asked)}.")
    known = {"translation": arguments.translation_sigma, "atom": arguments.atom_sigma}

    report = ReadReport()
    examples = read_examples(arguments.input_file, processor, sides, arguments.max_samples, report)
    work, rows = [], []
    for index, (example, reference) in enumerate(zip(examples, references(examples, arguments, sides, processor))):
        segment = max(example["token_type_ids"]) if arguments.segment is None else arguments.segment
        try:
            puzzle, segment = puzzle_of(example), int(segment)
            check_example(example, model.config)
            check_segment(puzzle, segment)
            if not movable(puzzle, segment, kinds):
                raise ValueError(f"{puzzle.name}: segment {segment} has nothing that {', '.join(kinds)} could move.")
            if levels:
                reference, rng = puzzle.positions, np.random.default_rng((arguments.seed, index))
                can = {kind: levels[kind] for kind in movable(puzzle, segment, levels)}
                if not can:
                    check_segment(puzzle, segment, levels)
                report.notes.update(f"no {kind} noise, because there is nothing to move so" for kind in set(levels) - set(can))
                puzzle = perturb(example, can, segment, rng, arguments.max_rotation)
        except ValueError as error:
            report.reject(example["name"], StructureError(getattr(error, "code", "bad_segment"), str(error)))
            continue
        work.append((f"{index + 1} {example['name']}", example, puzzle, segment, reference))
    report.kept = len(work)
    if not work:
        raise StructureError("nothing", f"{arguments.input_file}: nothing that can be repaired. {report.summary()}")

    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    batch_size = 1 if model.config.attend_to_padding else arguments.batch_size
    trajectories, files = [], ["steps.csv", "rmsd.png"]
    with tqdm(total=len(work), desc="Repairing", unit="structure") as bar:
        for start in range(0, len(work), batch_size):
            batch = work[start : start + batch_size]
            try:
                frames = denoise(
                    predict, [item[2] for item in batch], [item[3] for item in batch], noise, factors, kinds,
                    [{kind: sigma for kind, sigma in known.items() if sigma} for _ in batch], arguments.rotation_estimate,
                )  # fmt: skip
            except RuntimeError as error:
                message = f"The model failed, with --batch_size {batch_size}, at {batch[0][0]} or the next ones: {error}"
                raise StructureError("no_prediction", message) from error
            for (name, example, puzzle, segment, reference), positions in zip(batch, frames):
                target = positions[0] if reference is None else reference
                rows += distances(name, puzzle, segment, positions, target)
                if len(trajectories) < arguments.max_trajectories:
                    place = f"{file_name(int(name.split()[0]), example['name'])}{structure_suffix(example)}"
                    trajectories.append(f"trajectory_{place}")
                    write_frames(folder / trajectories[-1], processor, example, positions)
                    if reference is not None:
                        files.append(f"original_{place}")
                        write_frames(folder / files[-1], processor, example, [reference])
                    if len(trajectories) == 1:
                        files.append("arrows.png")
                        plot_arrows(puzzle, segment, positions, reference, folder / files[-1])
                bar.update()
    measured_to = "the original" if levels else arguments.reference_file or "where they were before"
    result = {
        "structures": len(work), "measured_to": measured_to, "moved_segments": summary_of(rows, arguments.steps),
        "motions": kinds, "factors": factors.tolist(),
        "arguments": {**dataclasses.asdict(arguments), **dataclasses.asdict(sides)},
        "trajectories": trajectories, "files": files + trajectories, "input": report.to_dict(),
    }  # fmt: skip
    write_table(folder / "steps.csv", rows)
    plot_distances(rows, folder / "rmsd.png")
    remove_earlier(folder, result["files"])
    write_text(folder / "report.json", json.dumps(result, indent=1) + "\n")
    moved = result["moved_segments"]["rmsd"]
    print(
        f"{folder}: {len(work)} structures, RMSD of the moved segment to {measured_to}: {moved['before']:.3f} before, "
        f"{moved['after']:.3f} after {arguments.steps} steps; {moved['closer']} came closer. Input: {report.summary()}"
    )


if __name__ == "__main__":
    run_script(main)
