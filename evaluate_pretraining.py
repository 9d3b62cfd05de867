# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""How well a pretrained model repairs what it has not seen: hidden blocks and moved atoms, beside guesses, set by set.

    python evaluate_pretraining.py split/molecules split/dimers --model_name_or_path my-atomica --output_dir evaluation

A set is a folder with the prepared datasets `train`, from which the guessers know how frequent blocks are, and `validation`, on
which model and guessers are compared. Writes `evaluation.md` and `evaluation.json`.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import send_to_device
from tqdm.auto import tqdm
from transformers.hf_argparser import HfArg

from atomic_files import write_text
from atomica_hf import ROOT, AtomicaForPreTraining, AtomicaPreTrainingCollator, StructureError
from atomica_hf.configuration_atomica import NUM_SPECIAL_BLOCKS
from atomica_hf.data_collator_atomica import task_flags
from model_card import markdown_table
from model_loading import best_device, load_model
from prepared_datasets import for_model, load_prepared
from pretraining_arguments import PuzzleArguments
from pretraining_losses import TOP, ComplexLosses, losses_of
from pretraining_report import UNITS
from run_embedding import batches
from script_arguments import ScriptParser, run_script


RESULTS_FILE, TABLE_FILE = "evaluation.json", "evaluation.md"
NEIGHBOURS = 10  # training examples that the guess by composition looks at


@dataclass
class EvaluationArguments:
    output_dir: str = HfArg(help="Folder for table and numbers.")
    model_name_or_path: str = HfArg(
        default=str(ROOT), help="Folder or hub id of a pretrained model; by default this repository."
    )
    repeats: int = HfArg(default=1, help="Puzzles made of each example.")
    max_samples: int | None = HfArg(default=None, help="Use only this many validation examples of each set.")
    max_blocks_per_example: int = HfArg(default=256, help="Larger complexes are cropped to this many blocks.")
    max_blocks_per_batch: int = HfArg(default=1000, help="Blocks in one batch, padding included.")
    num_bootstrap: int = HfArg(default=1000, help="Resamples of the puzzles for the 95 %% intervals.")
    seed: int = HfArg(default=0, help="Seed of puzzles and resamples.")
    device: str | None = HfArg(default=None, help="cuda, mps or cpu; the best there is by default.")


# guesses of hidden blocks -----------------------------------------------------------------------------------------------


def compositions(dataset, vocab_size):
    """How often each block token is in each example: `(len(dataset), vocab_size)`, without special tokens."""
    counts = np.zeros((len(dataset), vocab_size), dtype=np.float32)
    for row, ids in enumerate(dataset.select_columns(["input_ids"]).with_format("numpy")):
        np.add.at(counts[row], np.asarray(ids["input_ids"]), 1)
    counts[:, :NUM_SPECIAL_BLOCKS] = 0
    return counts


def _unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-9)


class CompositionGuess:
    """Names a hidden block by what else is there: of the training examples whose compositions are the most alike (cosine), the
    blocks that are there more often than here; then those that are frequent in all."""

    def __init__(self, train_counts):
        self.counts, self.unit = train_counts, _unit(train_counts)
        self.frequency = train_counts.sum(0) / max(train_counts.sum(), 1)

    def ranking(self, visible):
        """`(examples, vocab_size)` counts of what is not hidden -> tokens in order, the likeliest first."""
        near = np.argpartition(-(_unit(visible) @ self.unit.T), min(NEIGHBOURS, len(self.unit)) - 1, axis=1)[:, :NEIGHBOURS]
        votes = np.clip(self.counts[near] - visible[:, None], 0, 1).mean(1)
        return np.argsort(-(votes + 1e-3 * self.frequency), axis=1, kind="stable")


# one set ----------------------------------------------------------------------------------------------------------------


def evaluate(model, dataset, train_counts, puzzle, arguments, name):
    """-> measure: (`(puzzles,)` sums, `(puzzles,)` weights), of the model (`mask_top1`) and of guessers (`mask_top1_baseline`).

    The puzzles depend on the examples and the seed alone, not on model, batches or device.
    """
    config = model.config
    log_frequencies = torch.tensor(np.log(train_counts.sum(0)[NUM_SPECIAL_BLOCKS:] + 1), dtype=torch.float32).log_softmax(0)
    losses = ComplexLosses(losses_of(config), puzzle.torsion_noise, log_frequencies)
    collator = AtomicaPreTrainingCollator(
        **asdict(puzzle), config=config, max_blocks=arguments.max_blocks_per_example, seed=arguments.seed
    )
    guess, found = CompositionGuess(train_counts), {}
    sizes = np.minimum([len(ids) for ids in dataset["input_ids"]], arguments.max_blocks_per_example)
    work = [(epoch, batch) for epoch in range(arguments.repeats) for batch in batches(sizes, arguments.max_blocks_per_batch)]
    for epoch, batch in tqdm(work, desc=name, unit="batch"):
        inputs = collator([{**dataset[index], "epoch": epoch, "example_index": index} for index in batch])
        with torch.no_grad():
            inputs = send_to_device(inputs, model.device)
            output = model(**inputs)
            measures = losses.measures(output, inputs, losses.losses(output, inputs))
        if "mask" in losses.names:
            measures.update(_by_composition(guess, inputs["input_ids"].cpu().numpy(), inputs["labels"].cpu().numpy()))
        for key, (sums, weights) in measures.items():
            found.setdefault(key, []).append(np.stack([np.asarray(torch.as_tensor(v).cpu(), float) for v in (sums, weights)]))
    return {key: np.concatenate(parts, axis=1) for key, parts in found.items()}


def _by_composition(guess, input_ids, labels):
    visible = np.zeros((len(input_ids), guess.counts.shape[1]), dtype=np.float32)
    for row, ids in enumerate(input_ids):
        np.add.at(visible[row], ids, 1)
    visible[:, :NUM_SPECIAL_BLOCKS] = 0
    ranking, hidden = guess.ranking(visible), labels >= 0
    rank = np.argsort(ranking, axis=1)  # token -> its place
    place = np.take_along_axis(rank, labels.clip(0), axis=1)
    return {f"mask_top{top}_composition": (((place < top) & hidden).sum(1), hidden.sum(1)) for top in TOP}


def summarise(found, num_bootstrap, seed):
    """Measure -> its mean, and of every loss that divided by what a guess has, with a 95 % interval over the puzzles."""
    means = {key: float(sums.sum() / weights.sum()) if weights.sum() else None for key, (sums, weights) in found.items()}
    rng, number = np.random.default_rng(seed), len(next(iter(found.values()))[0])
    draws = rng.integers(number, size=(num_bootstrap, number))
    for key in [key.removesuffix("_baseline") for key in found if key.endswith("_baseline") and "error" not in key]:
        of_model = f"{key}_loss" if f"{key}_loss" in found else key
        over, under = (found[name][0][draws].sum(1) for name in (of_model, f"{key}_baseline"))
        if means[f"{key}_baseline"]:
            usable = under > 0
            interval = np.quantile(over[usable] / under[usable], [0.025, 0.975]) if usable.any() else (np.nan, np.nan)
            means[f"{key}_ratio"] = [means[of_model] / means[f"{key}_baseline"], *map(float, interval)]
    return means


# the report -------------------------------------------------------------------------------------------------------------


def _percent(value):
    return "" if value is None else f"{100 * value:.1f} %"


def report(results, arguments, puzzle, command):
    """Text of evaluation.md."""
    text = ["# Pretraining, on examples held out", ""]
    hidden = {name: means for name, means in results.items() if means.get("mask_loss") is not None}
    if hidden:
        header = ["set", "puzzles", "hidden blocks", *(f"top-{top}: {who}" for top in TOP for who in ("model", "most frequent",
                  "composition")), "cross-entropy: model / most frequent", "ratio [95 %]"]  # fmt: skip
        rows = [
            [name, f"{means['puzzles']:,}", f"{means['hidden_blocks']:,}",
             *(_percent(means[f"mask_top{top}{who}"]) for top in TOP for who in ("", "_baseline", "_composition")),
             f"{means['mask_loss']:.2f} / {means['mask_baseline']:.2f}", _ratio(means, "mask")]
            for name, means in hidden.items()
        ]  # fmt: skip
        text += ["## Hidden blocks", "", markdown_table(header, rows), ""]
    rows = [
        [name, loss, *_beside_nothing(means, loss)]
        for name, means in results.items()
        for loss in UNITS
        if means.get(f"{loss}_baseline")  # else nothing was moved like this
    ]
    if rows:
        header = ["set", "what", "loss: model / predict nothing", "ratio [95 %]", "error: model / predict nothing"]
        text += ["## Denoising", "", markdown_table(header, rows), ""]
    puzzles = ", ".join(f"{key} {value}" for key, value in asdict(puzzle).items())
    text += [
        f"Puzzles: {puzzles}; {arguments.repeats} of each example, seed {arguments.seed}. Intervals: {arguments.num_bootstrap} "
        "resamples of the puzzles.",
        "",
        "`most frequent`: always the blocks that are the most frequent in the training part of the set. `composition`: blocks "
        f"that the {NEIGHBOURS} training examples of the most similar composition have more often. `predict nothing`: a score "
        "of zero, nothing was moved. The error of a rotation is the angle between predicted and true axis, 90 by chance.",
        "",
        "```",
        command,
        "```",
    ]
    return "\n".join(text) + "\n"


def _beside_nothing(means, loss):
    error = ""
    if means.get(f"{loss}_error") is not None:
        error = f"{means[f'{loss}_error']:.2f} / {means[f'{loss}_error_baseline']:.2f} {UNITS[loss]}"
    return f"{means[f'{loss}_loss']:.3f} / {means[f'{loss}_baseline']:.3f}", _ratio(means, loss), error


def _ratio(means, loss):
    ratio, low, high = means[f"{loss}_ratio"]
    return f"{ratio:.2f} [{low:.2f}, {high:.2f}]"


# the script -------------------------------------------------------------------------------------------------------------


def main(argv=None):
    parser = ScriptParser((EvaluationArguments, PuzzleArguments), description=__doc__)
    parser.add_argument("sets", nargs="+", help="Folders with the prepared datasets train and validation.")
    arguments, puzzle, rest = parser.parse_args_into_dataclasses(argv)
    for name in ("repeats", "max_samples", "max_blocks_per_example", "max_blocks_per_batch", "num_bootstrap"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise StructureError("usage", f"--{name} is {value}, expected at least 1.")
    names = [Path(folder).resolve().name for folder in rest.sets]
    if len(set(names)) < len(names):
        raise StructureError("usage", f"The sets are called {', '.join(names)}, expected different names.")
    model, processor = load_model(
        arguments.model_name_or_path, device=arguments.device or best_device(), model_class=AtomicaForPreTraining
    )
    wrong = [flag for flag, used in task_flags(puzzle.task).items() if used != getattr(model.config, flag)]
    if wrong:
        raise StructureError("other_model", f"--task {puzzle.task}: the model was pretrained with another task ({wrong[0]}).")
    results = {}
    for name, folder in zip(names, rest.sets):
        train, held_out = (
            load_prepared(Path(folder) / part, processor.tokenizer, keep_hydrogens=processor.keep_hydrogens)
            for part in ("train", "validation")
        )
        held_out = held_out.select(range(min(len(held_out), arguments.max_samples or len(held_out))))
        counts = compositions(train, model.config.vocab_size)
        found = evaluate(model, for_model(held_out, model.config, name), counts, puzzle, arguments, name)
        results[name] = {"examples": len(held_out), "puzzles": len(held_out) * arguments.repeats}
        if "mask_loss" in found:
            results[name]["hidden_blocks"] = int(found["mask_loss"][1].sum())
        results[name].update(summarise(found, arguments.num_bootstrap, arguments.seed))
    output = Path(arguments.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    words = sys.argv[1:] if argv is None else argv
    command = " ".join(["python evaluate_pretraining.py", *map(str, words)])
    write_text(output / RESULTS_FILE, json.dumps({"sets": results, "puzzle": asdict(puzzle), "command": command}, indent=1))
    text = report(results, arguments, puzzle, command)
    write_text(output / TABLE_FILE, text)
    print(text)


if __name__ == "__main__":
    run_script(main, ValueError)
