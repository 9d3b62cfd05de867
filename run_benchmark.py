# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints and simple models on many tasks, with several seeds: one scoreboard.

python run_benchmark.py --data_dir data --tasks moleculenet --models small=my-atomica --strategies finetune scratch --seeds 3 \\
    --finetune_options '{"num_train_epochs": 20}' --output_dir out
python run_benchmark.py --list

A cell is one task, model, strategy and seed, made by run_finetune.py. The same command again makes what is missing. Keys of
--finetune_options are options of run_finetune.py; under the name of a task or strategy stand those for it alone.
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.constants import HF_HOME
from transformers.hf_argparser import HfArg

from atomic_files import write_table, write_text
from atomica_hf import StructureError
from benchmark_cells import (
    BASELINE,
    CHECKPOINT_STRATEGIES,
    RANDOM_PROBE,
    RESULT_FILE,
    SCRATCH,
    make_all,
    make_cells,
    pending,
    read_result,
    rows_of,
    task_of,
    usage,
)
from benchmark_report import cell_rows, difference_rows, draw, scoreboard, wide_rows
from benchmark_statistics import corpus_molecules, leakage, summarise
from benchmark_tasks import choose_tasks, describe, find_data, read_tasks
from script_arguments import ScriptParser, run_script


@dataclass
class BenchmarkArguments:
    data_dir: str | None = HfArg(default=None, help="Folder with the data of the tasks; --list says which files.")
    tasks: list[str] = HfArg(
        default_factory=lambda: ["moleculenet"], help="Names of tasks or of groups (moleculenet, complexes), or all."
    )
    task_file: str | None = HfArg(default=None, help="JSON or CSV with tasks of your own; see docs/benchmarks.md.")
    models: list[str] = HfArg(
        default_factory=list,
        help="Folders or hub ids of checkpoints, also as name=path; scratch is a model without weights, of the configuration "
        "that --finetune_options gives.",
    )
    strategies: list[str] = HfArg(
        default_factory=lambda: ["finetune"],
        metadata={"choices": list(CHECKPOINT_STRATEGIES)},
        help="What is done with each checkpoint. scratch trains its configuration without its weights; random_linear_probe is "
        "the linear probe on vectors of random weights, others for each seed.",
    )
    seeds: int = HfArg(default=3, help="How many seeds; each trains everything once.")
    first_seed: int = HfArg(default=0, help="The first of the seeds.")
    output_dir: str | None = HfArg(default=None, help="Folder for the cells and the scoreboard.")
    finetune_options: str = HfArg(
        default="{}", help="Options of run_finetune.py as JSON, or a file with it; see the first lines above."
    )
    baselines: bool = HfArg(default=True, help="Also train simple models: mean, ECFP4 forest, descriptor boosting.")
    reference: str | None = HfArg(
        default=None,
        help="Row of the table that others are compared with; by default the first from scratch, else the first model.",
    )
    pretraining_corpus: list[str] = HfArg(
        default_factory=list, help="Files with SMILES, or prepared datasets, that the checkpoints were pretrained on."
    )
    num_bootstrap: int = HfArg(default=1000, help="Resamples for the 95 %% intervals.")
    in_process: bool = HfArg(
        default=False, help="Make all cells in this process: starts faster, but a crash of one ends the others too."
    )
    keep_models: bool = HfArg(default=False, help="Keep the trained model of each cell; otherwise only its predictions.")
    redo_changed: bool = HfArg(default=False, help="Make finished cells again whose options, data or weights have changed.")
    cache_dir: str = HfArg(default=str(Path(HF_HOME) / "atomica"), help="Where built structures are kept, for all cells.")
    report_only: bool = HfArg(
        default=False, help="Make no cell: write the tables of those that are finished, also while others are being made."
    )
    disable_tqdm: bool = HfArg(default=False, help="Show no progress bars.")
    list: bool = HfArg(default=False, help="List the tasks and where their data is expected, and do nothing else.")


def choose_reference(given, rows):
    """Name of the row to compare with: the one given, else the first from scratch, the first model, or the first of all.

    Raises:
        `StructureError`: if the one given is not there.
    """
    names = [row.name for row in rows]
    usage(given is not None and given not in names, f"--reference {given!r} is no row; there are {'; '.join(names)}.")
    models = [row.name for row in rows if row.model != BASELINE]
    scratch = [row.name for row in rows if row.strategy in (SCRATCH, RANDOM_PROBE)]
    return given or [*scratch, *models, *names][0]


def report(arguments, tasks, data, rows, cells, molecules, corpus):
    """Writes the tables and the picture from the cells that are there; returns the text of the first."""
    results = {cell.folder: read_result(cell) for cell in cells}
    cells = [cell for cell in cells if results[cell.folder] is not None]
    reference = choose_reference(arguments.reference, rows)
    summaries, leaks = [], {}
    for task in tasks:
        mine = [cell for cell in cells if cell.task.name == task.name]
        if any(results[cell.folder]["status"] == "done" for cell in mine):
            summaries.append(summarise(task, mine, results, reference, arguments.num_bootstrap))
            leaks[task.name] = leakage(task, mine, molecules)
    failures = [(c, results[c.folder]["reason"]) for c in cells if results[c.folder]["status"] == "failed"]
    used = {}
    for cell in cells:
        words = ", ".join(f"{name} {version}" for name, version in results[cell.folder]["versions"].items())
        used[words] = used.get(words, 0) + 1
    folder = Path(arguments.output_dir)
    mine = {cell.folder.resolve() for cell in cells}
    left_over = sum(file.parent.resolve() not in mine for file in (folder / "cells").rglob(RESULT_FILE))
    write_table(folder / "cells.csv", cell_rows(cells, results, summaries))
    if not summaries:
        return None
    write_table(folder / "scoreboard.csv", wide_rows(summaries, rows))
    lines = difference_rows(summaries, reference)
    if lines:
        write_table(folder / "differences.csv", lines)
    draw(summaries, rows, folder / "scoreboard.png")
    text = scoreboard(arguments, summaries, rows, reference, leaks, data, failures, corpus, used, left_over)
    write_text(folder / "scoreboard.md", text)
    return text


def parse(argv):
    parser = ScriptParser(BenchmarkArguments, description=__doc__)
    try:
        (arguments,) = parser.parse_args_into_dataclasses(argv)
    except ValueError as error:
        raise StructureError("usage", str(error)) from error
    arguments.command = "python run_benchmark.py " + shlex.join(argv)
    return arguments


def check_arguments(arguments):
    """Raises `StructureError` for what is missing or cannot be."""
    usage(arguments.data_dir is None, "--data_dir is missing: the folder with the data; --list says what is expected there.")
    usage(not Path(arguments.data_dir).is_dir(), f"--data_dir {arguments.data_dir}: no such folder.")
    usage(arguments.output_dir is None, "--output_dir is missing: a folder for the cells and the scoreboard.")
    usage(Path(arguments.output_dir).is_file(), f"--output_dir {arguments.output_dir} is a file, expected a folder.")
    usage(arguments.seeds < 1, f"--seeds is {arguments.seeds}, expected at least 1.")
    usage(arguments.num_bootstrap < 0, f"--num_bootstrap is {arguments.num_bootstrap}, expected at least 0.")


def main(argv=None):
    """Returns how many cells failed."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    own = read_tasks(arguments.task_file) if arguments.task_file else ()
    if arguments.list:
        print(describe(choose_tasks(["all"], own)))
        return 0
    check_arguments(arguments)
    tasks = choose_tasks(arguments.tasks, own)
    rows = rows_of(arguments.models, arguments.strategies, arguments.baselines)
    folder = Path(arguments.output_dir)
    data = {task.name: find_data(task, arguments.data_dir, folder / "data" / task.name) for task in tasks}
    cells = make_cells(arguments, tasks, data, rows)
    rows = [row for row in rows if any(cell.row == row for cell in cells)]
    choose_reference(arguments.reference, rows)
    for cell in {(cell.task.name, cell.seed): cell for cell in cells}.values():
        task_of(cell)  # what is wrong with the data shows before what takes long
    missing = pending(cells, arguments.redo_changed)
    todo = [] if arguments.report_only else missing
    molecules, corpus = None, []
    if arguments.pretraining_corpus:
        molecules, corpus = corpus_molecules(arguments.pretraining_corpus, not arguments.disable_tqdm)
    skipped = len(cells) - len(missing)
    usage(arguments.report_only and not skipped, f"--report_only: no cell of this command is finished in {folder}.")
    if skipped:
        print(f"{skipped} of {len(cells)} cells are finished already.")
    failed = make_all(todo, arguments)
    text = report(arguments, tasks, data, rows, cells, molecules, corpus)
    if text is not None:
        print(text.split("## Tasks")[0].strip())
    left = f"; {len(missing)} are not made yet" if arguments.report_only and missing else ""
    print(
        f"\n{len(todo) - failed} cells done, {failed} failed, {skipped} skipped because they were finished{left}; see {folder}."
    )
    return failed


if __name__ == "__main__":
    run_script(lambda: bool(main()), stopped="stopped; the same command goes on where it was.")
