# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Structures -> which blocks the model's view of an interaction hangs on: a table, structure files, drawings, pages.

python run_interaction_scores.py --model_name_or_path my-atomica --input_file complexes.csv --output_dir scores
python run_interaction_scores.py --model_name_or_path my-atomica --input_file complex.cif --output_dir scores \\
    --side_a A --side_b A:UDP:900 --segments 0 --top 20

A PDB or mmCIF file by itself is read as its two chains with the most contacts, without its ligands. `list_interfaces.py` prints
what else touches what; `--interfaces all` scores all of it.
"""

import csv
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm
from transformers.hf_argparser import HfArg

from atomic_files import replacing, write_text
from atomica_hf import ROOT, StructureError
from atomica_hf.interpretation_atomica import READOUTS, check_arguments
from atomica_hf.pipelines_atomica import model_inputs
from atomica_hf.processing_atomica import pad_examples
from interface_options import Interfaces
from model_loading import best_device, load_model
from output_folder import file_name, new_folder, remove_earlier, structure_suffix
from prepared_datasets import for_model
from script_arguments import ScriptParser, run_script
from structure_page import COLUMNS, b_factors, draw_fragments, molecule_of, page, score_rows


LARGEST_DRAWING = 150  # atoms of a molecule


@dataclass
class InteractionArguments:
    input_file: str = HfArg(help="What to look at: .smi .csv .sdf .pdb .cif, an index CSV, a folder, or a prepared dataset.")
    output_dir: str = HfArg(help="Folder for scores.csv, report.json, and the files of each complex.")
    model_name_or_path: str = HfArg(default=str(ROOT), help="Folder or hub id of an Atomica model; by default this repository.")
    segments: list[int] = HfArg(
        default_factory=list, help="Sides whose blocks get a score: 0, 1, ...; without this option all of them."
    )
    readout: str = HfArg(
        default="z_interface",
        metadata={"choices": list(READOUTS)},
        help="What is compared: z_interface, the partner's vector; h_graph, that of the whole complex or lone molecule.",
    )
    top: int = HfArg(default=50, help="Blocks in the table of a page; the CSV file has all.")
    pages: bool = HfArg(default=True, help="Whether a page, a structure file and drawings are written for each complex.")
    max_samples: int | None = HfArg(default=None, help="Read only this many inputs.")
    max_blocks_per_batch: int = HfArg(default=4000, help="Blocks in one batch, all copies of the complex together.")
    num_proc: int = HfArg(default=1, help="Processes that read the input.")
    device: str | None = HfArg(default=None, help="cpu, cuda, mps; by default the best there is.")
    dtype: str = HfArg(default="float32", metadata={"choices": ["float32", "float64"]}, help="Precision of the model.")


def scores_of(model, example, segments=None, readout="z_interface", max_blocks_per_batch=4000):
    """An example of `AtomicaProcessor.encode` -> scores of its blocks `(num_blocks,)`; see `interaction_scores`."""
    batch = {key: value.to(model.device) for key, value in pad_examples([example], model_inputs(model.config)).items()}
    batch["positions"] = batch["positions"].to(model.dtype)
    return model.interaction_scores(segments, readout, max_blocks_per_batch, **batch)[0].cpu().numpy()


def write_files(folder, name, example, scores, rows, processor, caption, top):
    """The structure with B-factors, drawings of small molecules, and the page of one complex; returns names of the files."""
    files = [f"{name}{structure_suffix(example)}"]
    with replacing(folder / files[0]) as temporary:
        processor.to_pdb(example, b_factors(scores), temporary)
    drawings = []
    for segment, is_polymer in enumerate(example.get("segment_is_polymer", ())):
        size = sum(example["token_type_ids"][block] == segment for block in example["atom_to_block"]) - 1
        if is_polymer or not 1 < size <= LARGEST_DRAWING:
            continue
        mol, blocks = molecule_of(example, segment)
        if mol is not None and not np.isnan(scores[blocks]).all():
            drawings.append(draw_fragments(mol, blocks, scores))
            files.append(f"{name}_{segment}.svg")
            write_text(folder / files[-1], drawings[-1])
    files.append(f"{name}.html")
    write_text(folder / files[-1], page(example["name"], example, scores, rows, caption, drawings, top))
    return files


def check(arguments):
    """
    Raises:
        `StructureError`: naming the option that is wrong.
    """
    try:
        check_arguments(arguments.segments or None, arguments.readout, arguments.max_blocks_per_batch)
    except ValueError as error:
        raise StructureError("usage", as_options(error)) from error
    for name in ("top", "num_proc", "max_samples"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise StructureError("usage", f"--{name} is {value}, expected a positive number.")
    if Path(arguments.output_dir).is_file():
        raise StructureError("usage", f"--output_dir {arguments.output_dir} is a file, expected the name of a folder.")


def as_options(error):
    """An error about arguments in Python -> the same about options of the command line."""
    return re.sub(r"`(\w+)(?:='(\w+)')?`", lambda found: f"--{found[1]}" + (f" {found[2]}" if found[2] else ""), str(error))


def main(argv=None):
    parser = ScriptParser([InteractionArguments, Interfaces], description=__doc__)
    arguments, interfaces = parser.parse_args_into_dataclasses(argv)
    check(arguments)
    interfaces.check(arguments.input_file)
    model, processor = load_model(arguments.model_name_or_path, arguments.dtype, arguments.device or best_device())
    if model.config.attend_to_padding:
        print("This model attends to padding: hidden blocks are looked at one by one, so that no score depends on others.")
    tokens = processor.tokenizer.convert_ids_to_tokens(range(len(processor.tokenizer)))
    folder, written, files, late = Path(arguments.output_dir), 0, ["scores.csv"], []
    model_name = Path(arguments.model_name_or_path).name
    caption = f"Cosine of {arguments.readout} before and after hiding one block. Model: {model_name}."
    options = (arguments.segments or None, arguments.readout, arguments.max_blocks_per_batch)
    with tempfile.TemporaryDirectory() as cache:
        dataset, report = interfaces.read(
            arguments.input_file, processor, cache, arguments.num_proc, arguments.max_samples
        )  # fmt: skip
        dataset = for_model(dataset, model.config, arguments.input_file)
        with (
            new_folder(folder),
            replacing(folder / "scores.csv") as temporary,
            open(temporary, "w", encoding="utf-8", newline="") as stream,
            tqdm(total=len(dataset), desc="Scores", unit="complex") as bar,
        ):
            writer = csv.DictWriter(stream, ["index", "complex", *COLUMNS], lineterminator="\n")
            writer.writeheader()
            try:
                for index, example in enumerate(dataset):
                    try:
                        scores = scores_of(model, example, *options)
                        if np.isnan(scores).all():
                            raise ValueError("no block that was asked for has a name that the model knows.")
                        rows = score_rows(example, scores, tokens)
                        if arguments.pages:
                            name = file_name(index, example["name"])
                            files += write_files(folder, name, example, scores, rows, processor, caption, arguments.top)
                    except (ValueError, RuntimeError, MemoryError) as error:  # one complex must not stop ten thousand
                        report.kept -= 1
                        report.reject(example["name"], StructureError("no_scores", as_options(error)))
                    else:
                        writer.writerows({"index": index, "complex": example["name"], **row} for row in rows)
                        written += sum(row["rank"] != "" for row in rows)
                    bar.update()
            except KeyboardInterrupt:  # what there is by now is kept
                late = dataset[bar.n :]["name"]
                report.kept -= len(late)
                for name in late:
                    report.reject(name, StructureError("stopped", "Ctrl-C came before it had scores."))
            summary = report.summary() + interfaces.hint(arguments.input_file, report)
            if not report.kept:
                raise StructureError("no_scores", f"{arguments.input_file}: no complex got scores. {summary}")
    remove_earlier(folder, files)
    write_text(folder / "report.json", json.dumps({**report.to_dict(), "files": files}, indent=1))
    print(f"{folder / 'scores.csv'}: {written} scores. Input: {summary}")
    if late:
        raise KeyboardInterrupt


if __name__ == "__main__":
    run_script(main, stopped="stopped; the scores there were by then are written.")
