# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""What the demo computes for one input: scores of its blocks, proposals for hidden ones, neighbours, and files of all this.

Nothing here knows of gradio. A `Demo` holds the model and the bundled molecules and is only read, so that several requests can
use it at once; what belongs to one request is in its arguments, its result and its own folder.
"""

import copy
import gzip
import json
import time
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from rdkit import Chem
from rdkit.Chem import Draw
from safetensors import SafetensorError
from transformers import AutoConfig, pipeline

from atomic_files import replacing, write_table, write_text
from atomica_hf import ROOT, AtomicaForMaskedLM, AtomicaProcessor, ReadReport, Structure, StructureError, read_structures
from atomica_hf.configuration_atomica import NUM_SPECIAL_BLOCKS
from atomica_hf.molecule_atomica import parse_smiles
from atomica_hf.pipelines_atomica import check_example
from atomica_hf.structure_atomica import MACROMOLECULE_SUFFIXES, MOLECULE_SUFFIXES, format_of, list_inputs
from drawing import draw_proposals
from output_folder import file_name
from run_embedding import batches, embed
from run_interaction_scores import scores_of, write_files
from search_embeddings import Nearest, prepared
from structure_page import score_rows


MOLECULES = ROOT / "examples" / "molecules.csv"
NO_MEANING = "These weights are random: no training has touched them, and the numbers mean nothing."
MOST_CHOICES = 200
BLOCKS_PER_BATCH = 1000  # between two looks at the clock
PROPOSALS_AT_ONCE = 8
CHARACTERS_PER_ATOM = 20  # of a SMILES, far more than any needs
ROWS_OF_PAGE = 50
_STRUCTURES = ("macromolecule", "sdf", "mol2", "xyz")


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Args:
        megabytes (`float`): of an uploaded file, unpacked.
        atoms (`int`): without hydrogens, of the complex or molecule that is looked at.
        smiles_atoms (`int`): without hydrogens, of a SMILES, which is built in 3D first.
        seconds (`float`): of one request. It is looked at between steps; a step is finished first.
    """

    megabytes: float = 10.0
    atoms: int = 5000
    smiles_atoms: int = 150
    seconds: float = 300.0

    def __post_init__(self):
        for name, value in asdict(self).items():
            if not value > 0:
                raise StructureError("usage", f"The limit of {name} is {value}, expected a positive number.")


@dataclass(frozen=True)
class Settings:
    """How many proposals for each hidden block, how many blocks are hidden for them, how many neighbours."""

    top_k: int = 5
    hidden_blocks: int = 8
    neighbors: int = 5

    def check(self, most_tokens):
        """
        Raises:
            `StructureError`: naming the number that is out of its range.
        """
        for name, most in (("top_k", min(20, most_tokens)), ("hidden_blocks", 50), ("neighbors", 50)):
            value = getattr(self, name)
            if not 1 <= value <= most:
                raise StructureError("usage", f"{name} is {value}, expected 1 to {most}.")


@dataclass
class Result:
    """What was found for one input.

    Attributes: `score_rows` as of `structure_page.score_rows`; `page`, HTML with a 3D view; `drawings`, SVG of the fragments of
    each small molecule; `proposals`, rows of the pipeline `atomica-fill-mask`; `neighbors`, rows; `archive`, a zip with all.
    """

    name: str
    summary: str
    score_rows: list
    page: str
    drawings: list
    proposals: list
    proposal_drawing: str
    neighbors: list
    neighbor_drawing: str
    notes: list
    archive: Path


class Clock:
    """Seconds of one request, and where it stands.

    Args:
        seconds (`float`): allowed.
        progress (`Callable`): gets a share of the work done, 0 to 1, and a few words.
    """

    def __init__(self, seconds: float, progress: Callable = lambda share, words: None):
        self.allowed, self.progress, self.start = seconds, progress, time.monotonic()

    @property
    def elapsed(self):
        return time.monotonic() - self.start

    def tick(self, share, words):
        """
        Raises:
            `StructureError`: if the time is over.
        """
        if self.elapsed > self.allowed:
            raise StructureError(
                "too_long",
                f"Stopped after {self.elapsed:.1f} s, at: {words}. {self.allowed:g} s are allowed for one input.",
            )
        self.progress(min(share, 1.0), words)


# the model ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demo:
    """The model and the molecules among which neighbours are looked for; nothing in it changes.

    Attributes: `fill` is the pipeline of proposals, or None with the reason in `no_proposals`; `molecules` are rows with `name`
    and `smiles`, `vectors` their `h_graph` of shape `(num_molecules, width)`.
    """

    name: str
    model: AtomicaForMaskedLM
    processor: AtomicaProcessor
    is_random: bool
    fill: object
    no_proposals: str
    molecules: list
    vectors: np.ndarray
    tokens: list = field(repr=False)


def load(name, allow_random_weights=False):
    """(`AtomicaForMaskedLM`, `AtomicaProcessor`, whether its weights are random) of a folder or hub id.

    Raises:
        `StructureError`: if there is no Atomica model, or it has no weights and random ones were not asked for.
    """
    try:
        config = AutoConfig.from_pretrained(name)
        if config.model_type != "atomica":
            raise ValueError(f"a checkpoint of model type {config.model_type!r}, expected 'atomica'")
        processor = AtomicaProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise StructureError("no_model", f"{name}: no Atomica model there: {str(error).splitlines()[0]}") from error
    if len(processor.tokenizer) != config.vocab_size:
        sizes = f"{config.vocab_size} block tokens, the tokenizer {len(processor.tokenizer)}"
        raise StructureError("other_vocabulary", f"{name}: the model has {sizes}.")
    try:
        return AtomicaForMaskedLM.from_pretrained(name).eval(), processor, False
    except (ValueError, SafetensorError, RuntimeError) as error:
        raise StructureError("no_model", f"{name}: weights that cannot be read: {str(error).splitlines()[0]}") from error
    except OSError as error:
        if not allow_random_weights:
            raise StructureError(
                "no_weights",
                f"{name}: no weights there: {str(error).splitlines()[0]} With --allow_random_weights the page opens without, "
                "and says that its numbers mean nothing.",
            ) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AtomicaForMaskedLM(config).eval(), processor, True


def open_demo(name=ROOT, allow_random_weights=False, device="cpu", molecules=MOLECULES):
    """Opens the model and embeds the bundled molecules.

    Args:
        name (`str` or `Path`): folder or hub id of an Atomica model.
        allow_random_weights (`bool`): go on with random ones where the model has none.
        device (`str`): cpu, cuda, mps.
        molecules (`str` or `Path`): a table with SMILES.

    Raises:
        `StructureError`: if there is no model, no such device, or nothing in the table can be read.
    """
    model, processor, is_random = load(str(name), allow_random_weights)
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise StructureError("no_device", f"--device {device}: {str(error).splitlines()[0]}") from error
    fill, no_proposals = None, ""
    try:
        fill = pipeline("atomica-fill-mask", model=model, processor=processor, device=device, batch_size=PROPOSALS_AT_ONCE)
    except ValueError as error:
        no_proposals = str(error)
    rows, vectors = [], np.zeros((0, model.config.hidden_size))
    if not model.config.num_modalities and not model.config.block_feature_sizes:
        rows, vectors = _bundled(model, processor, molecules)
    tokens = processor.tokenizer.convert_ids_to_tokens(range(len(processor.tokenizer)))
    title = "the model of this repository" if str(name) == str(ROOT) else Path(name).name
    return Demo(title, model, processor, is_random, fill, no_proposals, rows, vectors, tokens)


def _bundled(model, processor, path):
    report = ReadReport()
    found = list(read_structures(path, report, processor.read_options))
    if not found:
        raise StructureError("no_molecules", f"{path}: no molecule in it could be read. {report.summary()}")
    examples = [processor.encode(structure) for structure in found]
    rows = [{"name": structure.name, **structure.properties} for structure in found]
    vectors = np.zeros((len(rows), model.config.hidden_size))
    one_by_one = model.config.attend_to_padding
    for batch in batches([len(e["input_ids"]) for e in examples], 1 if one_by_one else BLOCKS_PER_BATCH):
        vectors[batch] = [row["h_graph"] for row in embed(model, [examples[i] for i in batch])]
    return rows, vectors


# reading --------------------------------------------------------------------------------------------------------------------


def num_atoms(structure: Structure, segment=None):
    """Atoms of a structure, or of one of its segments."""
    segments = structure.segments if segment is None else [structure.segments[segment]]
    return sum(len(component.elements) for components in segments for component in components)


def check_size(structure: Structure, limits: Limits):
    """
    Raises:
        `StructureError`: if it has more atoms than are allowed.
    """
    if (found := num_atoms(structure)) > limits.atoms:
        raise StructureError("too_large", f"{structure.name}: {found} atoms without hydrogens, {limits.atoms} are allowed.")
    return structure


def read_smiles(demo: Demo, text: str, limits: Limits = Limits()):
    """
    Raises:
        `StructureError`: if it is not one SMILES, too large, or cannot be built in 3D.
    """
    words = text.split()
    if not words:
        raise StructureError("empty", "Nothing was given, expected a SMILES or a file.")
    if len(words) > 1:
        raise StructureError(
            "smiles_syntax", f"Found {len(words)} words, expected one SMILES; a dot joins the partners of a complex: CCO.O"
        )
    (smiles,), allowed = words, CHARACTERS_PER_ATOM * limits.smiles_atoms
    if len(smiles) > allowed:
        raise StructureError("too_large", f"The SMILES has {len(smiles)} characters, {allowed} are allowed.")
    found = parse_smiles(smiles, "SMILES").GetNumHeavyAtoms()
    if found > limits.smiles_atoms:
        raise StructureError(
            "too_large", f"The SMILES has {found} atoms without hydrogens, {limits.smiles_atoms} are allowed to be built in 3D."
        )
    return check_size(demo.processor.read((smiles,))[0], limits)


def check_file(path, limits: Limits = Limits()):
    """
    Raises:
        `StructureError`: if the file is missing, empty, too large as it is or unpacked, or not one of structures.
    """
    path, allowed = Path(path), int(limits.megabytes * 1e6)
    if not path.is_file():
        raise StructureError("missing_file", f"{path.name}: no such file.")
    size = path.stat().st_size
    if not size:
        raise StructureError("empty_file", f"{path.name}: the file is empty.")
    if size > allowed:
        raise StructureError("too_large", f"{path.name} has {size / 1e6:.2f} MB, {limits.megabytes:g} MB are allowed.")
    with open(path, "rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    try:
        if packed and len(gzip.open(path).read(allowed + 1)) > allowed:
            found = f"{path.name} has more than {limits.megabytes:g} MB when unpacked"
            raise StructureError("too_large", f"{found}, {limits.megabytes:g} MB are allowed.")
    except (OSError, EOFError, gzip.zlib.error) as error:
        raise StructureError("unreadable_file", f"{path.name}: cannot be unpacked: {error}.") from error
    if format_of(path) not in _STRUCTURES:
        known = " ".join(MACROMOLECULE_SUFFIXES + MOLECULE_SUFFIXES)
        raise StructureError("unknown_format", f"{path.name}: a table, expected a file with structures: {known}, also .gz.")


@contextmanager
def _by_name(path):
    """Errors name the file as its owner does, without the folder it was put into."""
    try:
        yield
    except StructureError as error:
        text = str(error).replace(str(path), Path(path).name)
        raise StructureError(error.code, text) from error


def _contents(demo, path, limits):
    """What a file holds -> list of (label, function without arguments that gives the `Structure`), and which is the default."""
    check_file(path, limits)
    options = replace(demo.processor.read_options, interfaces="all")
    work = list_inputs(path, options)
    if format_of(path) != "macromolecule":
        return [(name, partial(read, *arguments)) for name, read, arguments in work], 0
    ((_, read, arguments),) = work
    try:
        found = read(*arguments)
    except StructureError as error:
        if error.code != "no_interface":
            raise
        found = list(read_structures(path, options=demo.processor.read_options))  # a chain or ligand by itself
    labels, ligands = [], {}
    for number, structure in enumerate(found):
        kind = structure.properties.get("kind", "alone" if len(structure.segments) == 1 else "complex")
        sizes = [num_atoms(structure, segment) for segment in range(len(structure.segments))]
        labels.append(f"{kind}: {structure.name}, {' + '.join(map(str, sizes))} atoms")
        if kind.endswith("-ligand"):
            ligands[number] = sizes[-1]
    default = max(ligands, key=ligands.get) if ligands else 0
    return [(label, partial(_itself, structure)) for label, structure in zip(labels, found)], default


def _itself(structure):
    return structure


def list_choices(demo: Demo, path, limits: Limits = Limits()):
    """What can be looked at in a file: the interfaces of a PDB or mmCIF file, the records of an SDF file.

    Returns:
        Labels, at most `MOST_CHOICES` of them; the index of the default, the interface with the largest ligand or else the
        first; and how many there are in the file.

    Raises:
        `StructureError`: if the file is too large or cannot be read.
    """
    with _by_name(path):
        found, default = _contents(demo, path, limits)
    labels = _numbered(found)
    shown = labels[:MOST_CHOICES] if default < MOST_CHOICES else [*labels[: MOST_CHOICES - 1], labels[default]]
    return shown, min(default, MOST_CHOICES - 1), len(labels)


def _numbered(found):
    return [f"{number}. {label}" for number, (label, _) in enumerate(found, 1)]


def read_file(demo: Demo, path, choice: int | str | None = None, limits: Limits = Limits()):
    """A file -> the `Structure` of one of its interfaces or records.

    Args:
        choice (`int` or `str`): its number, from 1, or its label in `list_choices`; None for the default.

    Raises:
        `StructureError`: if the file is too large or cannot be read, has no such interface, or that has too many atoms.
    """
    with _by_name(path):
        found, default = _contents(demo, path, limits)
        if isinstance(choice, str):
            labels = _numbered(found)
            if choice not in labels:
                raise StructureError("no_choice", f"{Path(path).name} has no {choice!r}, which was chosen; choose again.")
            choice = labels.index(choice) + 1
        number = default if choice is None else choice - 1
        if not 0 <= number < len(found):
            raise StructureError("no_choice", f"{Path(path).name}: number {choice} was chosen, there are 1 to {len(found)}.")
        structure = found[number][1]()
        return check_size(structure[0] if isinstance(structure, list) else structure, limits)


# computing ------------------------------------------------------------------------------------------------------------------


def example_of(demo: Demo, structure: Structure):
    """
    Raises:
        `StructureError`: if it cannot be encoded, or `check_example` finds something missing.
    """
    example = demo.processor.encode(structure)
    check_example(example, demo.model.config)
    return example


def score(demo: Demo, example, clock: Clock):
    """Scores of the blocks `(num_blocks,)`, and which read-out they are of: that of the whole for a lone molecule."""
    segments = np.asarray(example["token_type_ids"])
    readout = "z_interface" if segments.max() else "h_graph"
    sizes = np.bincount(segments[np.asarray(example["input_ids"]) >= NUM_SPECIAL_BLOCKS])
    copies = max(1, BLOCKS_PER_BATCH // len(segments) - 1)
    total, done = max(1, int(np.ceil(sizes / copies).sum())), 0
    encoder = copy.copy(demo.model.base_model)  # shares its weights; what is watched below is of this request alone

    def watched(**inputs):
        nonlocal done
        clock.tick(0.1 + 0.6 * done / total, f"hiding {int(sizes.sum())} blocks one by one")
        done += 1
        return demo.model.base_model.encode(**inputs)

    encoder.encode = watched
    return scores_of(encoder, example, None, readout, BLOCKS_PER_BATCH), readout


def propose(demo: Demo, example, blocks, top_k, clock: Clock):
    """Proposals for these blocks, hidden one at a time, as rows of the pipeline `atomica-fill-mask`."""
    rows = []
    for start in range(0, len(blocks), PROPOSALS_AT_ONCE):
        clock.tick(0.7 + 0.15 * start / len(blocks), f"asking for proposals for {len(blocks)} hidden blocks")
        rows += demo.fill([example], blocks=blocks[start : start + PROPOSALS_AT_ONCE], top_k=top_k)[0]
    order = {block: place for place, block in enumerate(blocks)}
    return sorted(rows, key=lambda row: order[row["block"]])  # the pipeline goes by block


def neighbors_of(demo: Demo, structure: Structure, k):
    """The bundled molecules nearest to each small molecule of a structure, taken by itself: rows with `molecule`, `rank`,
    `distance` (1 - cosine of `h_graph`), `name`, `smiles`."""
    rows = []
    for number, segment in enumerate(structure.segments):
        if not demo.molecules or any(component.mol is None for component in segment) or num_atoms(structure, number) < 2:
            continue
        alone = example_of(demo, Structure(structure.name, [segment]))
        vector = embed(demo.model, [alone])[0]["h_graph"]
        nearest = Nearest(prepared(vector[None], "cosine")[0], k)
        nearest.add(0, demo.vectors)
        title = " ".join(dict.fromkeys(str(component.origin) for component in segment if str(component.origin)))
        for rank, (distance, row) in enumerate(zip(nearest.distances[0].tolist(), nearest.rows[0].tolist()), 1):
            found = demo.molecules[row]
            row = {"molecule": title or f"molecule {number + 1}", "rank": rank, "distance": round(distance, 8)}
            rows.append({**row, "name": found["name"], "smiles": found.get("smiles", "")})
    return rows


def draw_neighbors(rows, most=20):
    """Rows of `neighbors_of` as a grid, SVG."""
    rows = rows[:most]
    legends = [f"{row['rank']}. {row['name']} {row['distance']:.4f}" for row in rows]
    drawer = Draw.MolDraw2DSVG(5 * 190, -(-len(rows) // 5) * 160, 190, 160)
    drawer.drawOptions().legendFontSize = 13
    drawer.DrawMolecules([Chem.MolFromSmiles(row["smiles"]) for row in rows], legends=legends)
    drawer.FinishDrawing()
    return drawer.GetDrawingText()


# everything together --------------------------------------------------------------------------------------------------------


def analyse(demo, folder, smiles="", path=None, choice=None, limits=Limits(), settings=Settings(), progress=None):
    """One input -> everything that the page shows, and a zip of it.

    Args:
        demo (`Demo`): of `open_demo`.
        folder (`str` or `Path`): of this request alone; all files are written there.
        smiles (`str`), path (`str` or `Path`): one of the two.
        choice (`int` or `str`): which interface or record of the file, as for `read_file`.
        progress (`Callable`): gets a share of the work done, 0 to 1, and a few words.

    Returns:
        `Result`.

    Raises:
        `StructureError`: saying what is wrong with the input, or that it is too large or took too long.
    """
    clock = Clock(limits.seconds, progress or (lambda share, words: None))
    clock.tick(0.0, "reading")
    if demo.fill is not None:
        settings.check(len(demo.tokens) - NUM_SPECIAL_BLOCKS)
    if smiles.strip() and path is not None:
        raise StructureError("usage", f"Found a SMILES and a file ({Path(path).name}), expected one of them; clear the other.")
    structure = read_smiles(demo, smiles, limits) if path is None else read_file(demo, path, choice, limits)
    example = example_of(demo, structure)
    clock.tick(0.1, "scoring")
    try:
        scores, readout = score(demo, example, clock)
        rows, notes = score_rows(example, scores, demo.tokens), _notes(demo, structure)
        proposals = []
        if demo.fill is not None:
            known = np.asarray(example["input_ids"]) >= NUM_SPECIAL_BLOCKS
            blocks = [row["block"] for row in rows if known[row["block"]]][: settings.hidden_blocks]
            proposals = propose(demo, example, blocks, settings.top_k, clock)
        clock.tick(0.85, "looking for neighbours")
        neighbors = neighbors_of(demo, structure, settings.neighbors)
    except StructureError:
        raise
    except ValueError as error:
        raise StructureError("no_scores", f"{structure.name}: {error}") from error
    if not demo.molecules:
        notes.append("No neighbours: this model reads more than the structures of the bundled molecules.")
    elif not neighbors:
        notes.append("Neighbours are looked for among small molecules only, and there is none here.")
    clock.tick(0.9, "drawing and writing files")
    name, folder = file_name(0, structure.name)[6:], Path(folder) / "files"
    folder.mkdir(parents=True, exist_ok=True)
    caption = f"Cosine of {readout} before and after hiding one block. Model: {demo.name}."
    caption += f" {NO_MEANING}" if demo.is_random else ""
    write_files(folder, name, example, scores, rows, demo.processor, caption, ROWS_OF_PAGE)
    write_table(folder / f"{name}_scores.csv", rows)
    proposal_drawing = neighbor_drawing = ""
    if proposals:
        write_table(folder / f"{name}_proposals.csv", [{**row, "atoms": " ".join(row["atoms"] or [])} for row in proposals])
        proposal_drawing = draw_proposals(proposals, folder / f"{name}_proposals.svg")
    if neighbors:
        write_table(folder / f"{name}_neighbours.csv", neighbors)
        neighbor_drawing = draw_neighbors(neighbors)
        write_text(folder / f"{name}_neighbours.svg", neighbor_drawing)
    parts = "one molecule or chain" if len(structure.segments) == 1 else f"{len(structure.segments)} partners"
    sizes = f"{num_atoms(structure)} atoms in {len(rows)} blocks, {parts}"
    report = {
        "input": structure.name, "kind": structure.properties.get("kind", ""), "model": demo.name,
        "random_weights": demo.is_random, "readout": readout, "atoms": num_atoms(structure), "blocks": len(rows),
        "segments": len(structure.segments), "scored_blocks": int(np.isfinite(scores).sum()), "notes": notes,
        "meaning": NO_MEANING if demo.is_random else caption, "limits": asdict(limits), "settings": asdict(settings),
        "seconds": round(clock.elapsed, 2), "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }  # fmt: skip
    write_text(folder / f"{name}_report.json", json.dumps(report, indent=1))
    result = Result(
        name=structure.name,
        summary=f"{structure.name}: {sizes}; {report['scored_blocks']} scores of {readout} in {clock.elapsed:.1f} s.",
        score_rows=rows,
        page=(folder / f"{name}.html").read_text(encoding="utf-8"),
        drawings=[file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.svg")) if file.stem[-1].isdigit()],
        proposals=proposals,
        proposal_drawing=proposal_drawing,
        neighbors=neighbors,
        neighbor_drawing=neighbor_drawing,
        notes=notes,
        archive=folder.parent / f"{name}.zip",
    )
    with replacing(result.archive) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    clock.progress(1.0, "done")
    return result


def _notes(demo, structure):
    notes = [f"{count} x {note}" for note, count in sorted(structure.notes.items())]
    if demo.fill is None:
        notes.append(f"No proposals: {demo.no_proposals}")
    return notes


__all__ = [
    "NO_MEANING", "Clock", "Demo", "Limits", "Result", "Settings", "analyse", "check_file", "list_choices", "load",
    "neighbors_of", "open_demo", "propose", "read_file", "read_smiles", "score",
]  # fmt: skip
