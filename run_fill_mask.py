# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Which blocks would stand where one is hidden: a table of proposals, and a drawing of them.

python run_fill_mask.py --model_name_or_path my-atomica --inputs "CC(=O)Oc1ccccc1C(=O)O" --output_file proposals.csv \\
    --drawing proposals.svg
python run_fill_mask.py --model_name_or_path my-atomica --inputs complex.cif --side_a A --side_b B --blocks A:TYR:42 \\
    --output_file proposals.csv
"""

import json
from dataclasses import dataclass
from pathlib import Path

from transformers import pipeline
from transformers.hf_argparser import HfArg

from atomic_files import write_table, write_text
from atomica_hf import ROOT, AtomicaForMaskedLM, ReadReport, StructureError
from drawing import draw_proposals
from interface_options import Sides
from model_loading import best_device, load_model
from script_arguments import ScriptParser, run_script


@dataclass
class FillMaskArguments:
    inputs: list[str] = HfArg(help="SMILES and files: .pdb .cif .sdf .mol2 .xyz .smi .csv.")
    output_file: str = HfArg(help="CSV to write; beside it a report in JSON.")
    model_name_or_path: str = HfArg(
        default=str(ROOT), help="Folder or hub id of a model that was pretrained with masking; by default this repository."
    )
    drawing: str | None = HfArg(default=None, help="Picture of the proposals, .svg or .png.")
    blocks: list[str] = HfArg(
        default_factory=lambda: ["all"], help="What to hide: 'all', indices of blocks, or origins such as A:TYR:42."
    )
    together: bool = HfArg(default=False, help="Hide all these blocks at once instead of one at a time.")
    top_k: int = HfArg(default=5, help="Proposals for each block.")
    batch_size: int = HfArg(default=16, help="Puzzles that the model sees at once.")
    device: str | None = HfArg(default=None, help="cpu, cuda, mps; by default the best there is.")


def check(arguments):
    """
    Raises:
        `StructureError`: naming the option that is wrong.
    """
    if arguments.drawing and Path(arguments.drawing).suffix.lower() not in (".svg", ".png"):
        raise StructureError("usage", f"--drawing {arguments.drawing}: expected a name that ends in .svg or .png.")
    for name in ("output_file", "drawing"):
        if getattr(arguments, name) and Path(getattr(arguments, name)).is_dir():
            raise StructureError("usage", f"--{name} {getattr(arguments, name)} is a folder, expected the name of a file.")
    if arguments.batch_size < 1:
        raise StructureError("usage", f"--batch_size is {arguments.batch_size}, expected a positive number.")


def main(argv=None):
    parser = ScriptParser([FillMaskArguments, Sides], description=__doc__)
    arguments, sides = parser.parse_args_into_dataclasses(argv)
    check(arguments)
    blocks = [int(block) if block.isdecimal() else block for block in arguments.blocks]
    options = {"top_k": arguments.top_k, "together": arguments.together, **sides.named()}
    model, processor = load_model(
        arguments.model_name_or_path, "float32", arguments.device or best_device(), AtomicaForMaskedLM
    )
    try:
        fill = pipeline("atomica-fill-mask", model=model, processor=processor, device=model.device, **options)
    except ValueError as error:
        raise StructureError("usage", f"{arguments.model_name_or_path}: {error}") from error
    chosen = "all" if blocks == ["all"] else blocks
    try:
        results = fill(arguments.inputs, blocks=chosen, batch_size=arguments.batch_size, on_error="return")
    except RuntimeError as error:
        raise StructureError("no_proposals", f"The model failed, with --batch_size {arguments.batch_size}: {error}") from error
    report, rows = ReadReport(), []
    for number, result in enumerate(results):
        found = [{"input": number, **row, "atoms": " ".join(row["atoms"] or [])} for row in result if "error" not in row]
        report.kept += len({row["structure"] for row in found})
        for row in result:
            if "error" in row:
                report.reject(row["name"], StructureError(row["error"], row["message"]))
        rows += found
    if not rows:
        raise StructureError("nothing", f"Nothing could be asked. {report.summary()}")
    output = Path(arguments.output_file)
    for file in filter(None, (output, arguments.drawing)):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    write_table(output, rows)
    write_text(output.with_name(output.name + ".report.json"), json.dumps(report.to_dict(), indent=1))
    if arguments.drawing:
        draw_proposals(rows, arguments.drawing)
    best = [row for row in rows if row["rank"] == 1]
    right = sum(row["token"] == row["true_token"] for row in best)
    print(f"{output}: {len(rows)} proposals for {len(best)} blocks, {right} of them named right. Input: {report.summary()}")


if __name__ == "__main__":
    run_script(main)
