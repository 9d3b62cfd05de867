# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Pretrains Atomica by repairing perturbed molecules and complexes.

    accelerate launch run_pretraining.py --train_file examples/molecules.csv --output_dir my-atomica

The train file may be .smi, .csv, .tsv (SMILES), .sdf(.gz), an index CSV of complexes, a folder of structures, or a dataset
written by prepare_dataset.py. Options may also stand in one JSON file, given as the only argument. The flags of ATOMICA's
train.py are understood as aliases.
"""

import dataclasses
import hashlib
import json
import math
import os
import platform
import shutil
import sys
import time
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, set_seed
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm.auto import tqdm
from transformers import AutoConfig, HfArgumentParser, get_scheduler
from transformers.hf_argparser import HfArg

from atomica_hf import (
    ROOT,
    AtomicaConfig,
    AtomicaForPreTraining,
    AtomicaPreTrainingCollator,
    AtomicaProcessor,
    StructureError,
)  # fmt: skip
from atomica_hf.configuration_atomica import NUM_SPECIAL_BLOCKS
from atomica_hf.data_collator_atomica import TASKS, task_flags
from prepare_dataset import for_model, join_datasets, load_examples


LOSSES = ("atom", "torsion", "translation", "rotation", "mask")
SCHEDULES = ("cosine_with_restarts", "cosine", "linear", "constant", "constant_with_warmup")
STATE_FILE = "trainer_state.json"


class UsageError(ValueError):
    """Options or files that do not fit together; the message is all the user sees."""


@dataclass
class ModelArguments:
    model_name_or_path: str | None = HfArg(
        default=None, help="Start from this checkpoint (folder or hub id) instead of from scratch."
    )
    processor_name_or_path: str | None = HfArg(
        default=None, help="Processor and tokenizer; by default those of the model, or of this repository."
    )
    hidden_size: int | None = HfArg(
        default=None, aliases=["--block_hidden_size"], help="Channels of a block; by default as many as of an atom."
    )
    atom_hidden_size: int | None = HfArg(default=None, help="Channels of an atom (32).")
    edge_size: int | None = HfArg(default=None, help="Gaussians and width of the edge embeddings (32).")
    num_hidden_layers: int | None = HfArg(default=None, aliases=["--n_layers"], help="Layers of each encoder (4).")
    num_neighbors: int | None = HfArg(default=None, aliases=["--k_neighbors"], help="Nearest neighbours per segment (8).")
    hidden_dropout_prob: float | None = HfArg(default=None, aliases=["--dropout"], help="Dropout (0).")
    atom_loss_weight: float | None = HfArg(default=None, aliases=["--atom_weight"], help="Weight of the atom loss (1).")
    torsion_loss_weight: float | None = HfArg(default=None, aliases=["--torsion_weight"], help="Of the torsion loss (1).")
    translation_loss_weight: float | None = HfArg(
        default=None, aliases=["--translation_weight"], help="Of the translation loss (1)."
    )
    rotation_loss_weight: float | None = HfArg(default=None, aliases=["--rotation_weight"], help="Of the rotation loss (0.1).")
    mask_loss_weight: float | None = HfArg(default=None, aliases=["--mask_weight"], help="Of the masked-block loss (1).")
    gradient_checkpointing: bool = HfArg(default=False, help="Trade time for memory.")


@dataclass
class DataArguments:
    train_file: list[str] = HfArg(
        aliases=["--train_set"], help="What to train on: files, folders, or prepared datasets, one or several."
    )
    validation_file: str | None = HfArg(default=None, aliases=["--valid_set"], help="What to validate on.")
    validation_split_percentage: float = HfArg(
        default=0.0, help="Without a validation file: share of the train file, in percent."
    )
    max_train_samples: int | None = HfArg(default=None, help="Read only this many inputs of each train file.")
    max_eval_samples: int | None = HfArg(default=None, help="Read only this many inputs of the validation file.")
    max_blocks_per_batch: int = HfArg(
        default=1000, aliases=["--max_n_vertex_per_gpu"], help="Blocks in one batch of one process, padding included."
    )
    max_blocks_per_example: int = HfArg(
        default=256, aliases=["--max_n_vertex_per_item"], help="Larger complexes are cropped to this many blocks."
    )
    preprocessing_num_workers: int = HfArg(default=1, help="Processes that read the files.")
    dataloader_num_workers: int = HfArg(default=0, aliases=["--num_workers"], help="Processes that make batches.")


@dataclass
class PuzzleArguments:
    task: str = HfArg(default="pretrain_torsion_masking", metadata={"choices": list(TASKS)}, help="What is repaired.")
    torsion_noise: float = HfArg(default=0.5, help="Standard deviation of a bond's turn, radian.")
    translation_noise: float = HfArg(default=1.0, help="Largest sigma of a shift, angstrom.")
    rotation_noise: float = HfArg(default=0.25, help="Sigma of a rotation, radian.")
    max_rotation: float = HfArg(default=0.5, help="Largest angle of a rotation, radian.")
    atom_noise: float = HfArg(default=1.0, help="Largest sigma of the noise on atoms, angstrom.")
    mask_proportion: float = HfArg(default=0.1, help="Share of blocks that are hidden, at least one.")


@dataclass
class OptimizationArguments:
    output_dir: str = HfArg(aliases=["--save_dir"], help="Where checkpoints and the final model go.")
    run_name: str | None = HfArg(default=None, help="Name of the run in trackers and in the model card.")
    num_train_epochs: float = HfArg(default=1.0, aliases=["--max_epoch"], help="Passes over the train file.")
    max_train_steps: int | None = HfArg(default=None, help="Optimizer steps; overrides --num_train_epochs.")
    learning_rate: float = HfArg(default=1e-4, aliases=["--lr"], help="Largest learning rate of AdamW.")
    final_learning_rate: float = HfArg(default=1e-6, aliases=["--final_lr"], help="Learning rate at the end of a cosine.")
    weight_decay: float = HfArg(default=0.0, help="Weight decay of AdamW.")
    lr_scheduler_type: str = HfArg(
        default="cosine_with_restarts", metadata={"choices": list(SCHEDULES)}, help="Course of the learning rate."
    )
    num_cycles: int = HfArg(default=1, help="Cosines of cosine_with_restarts, each from the largest learning rate.")
    num_warmup_steps: int = HfArg(default=0, help="Optimizer steps of linear warm-up.")
    max_grad_norm: float = HfArg(default=10.0, aliases=["--grad_clip"], help="Gradients are clipped to this norm.")
    gradient_accumulation_steps: int = HfArg(default=1, help="Batches of one process per optimizer step.")
    mixed_precision: str | None = HfArg(default=None, metadata={"choices": ["no", "fp16", "bf16"]}, help="As in accelerate.")
    seed: int = HfArg(default=0, help="Seed of weights, order and puzzles.")
    logging_steps: int = HfArg(default=10, help="Optimizer steps between two lines of metrics.jsonl.")
    eval_steps: int | None = HfArg(default=None, help="Optimizer steps between validations; by default once an epoch.")
    checkpointing_steps: int | None = HfArg(default=None, help="Optimizer steps between checkpoints; by default once an epoch.")
    save_total_limit: int | None = HfArg(default=3, help="Checkpoints kept, the newest ones.")
    overwrite_output_dir: bool = HfArg(default=False, help="Start anew in a folder with checkpoints; they are deleted.")
    resume_from_checkpoint: str | None = HfArg(default=None, help="A checkpoint folder, or 'latest'.")
    report_to: str | None = HfArg(default=None, help="Tracker(s) of accelerate, for example tensorboard or wandb.")
    push_to_hub: bool = HfArg(default=False, help="Upload the final model; the token is taken from the environment.")
    hub_model_id: str | None = HfArg(default=None, help="Repository to upload to; by default the name of the output folder.")
    hub_private_repo: bool = HfArg(default=False, help="Create it as a private one.")


# data -------------------------------------------------------------------------------------------------------------------


class NumberedExamples(Dataset):
    """Examples by (epoch, index), so that a worker knows the seed of the puzzle it makes."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, key):
        epoch, index = key
        return {**self.dataset[index], "epoch": epoch, "example_index": index}


class SizedBatchSampler(Sampler):
    """Batches of (epoch, index) of at most `max_blocks` blocks, padding included; each example once an epoch over all
    processes. Every process makes the same list and takes its share; batches are halved until all have equally many."""

    def __init__(self, sizes, max_blocks, seed, shuffle=True, num_processes=1, rank=0):
        self.sizes, self.max_blocks, self.seed, self.shuffle = np.asarray(sizes), max_blocks, seed, shuffle
        self.num_processes, self.rank = num_processes, rank
        self.epoch = self.first_batch = 0
        if len(self.sizes) < num_processes:
            raise UsageError(f"{len(self.sizes)} examples cannot be shared among {num_processes} processes.")

    def all_batches(self):
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self.sizes)) if self.shuffle else np.arange(len(self.sizes))
        # similar sizes together within a window of the shuffled order: little padding, and still a new mixture every epoch
        window = 512
        batches, batch, widest = [], [], 0
        for start in range(0, len(order), window):
            part = order[start : start + window]
            for index in part[np.argsort(self.sizes[part], kind="stable")]:
                size = max(widest, self.sizes[index])
                if batch and size * (len(batch) + 1) > self.max_blocks:
                    batches.append(batch)
                    batch, size = [], self.sizes[index]
                batch.append(int(index))
                widest = size
        batches.append(batch)
        while len(batches) % self.num_processes:
            largest = max(range(len(batches)), key=lambda i: len(batches[i]))
            half = len(batches[largest]) // 2
            if not half:
                raise UsageError(
                    f"{len(batches)} batches of one example cannot be shared among {self.num_processes} processes."
                )
            batches[largest : largest + 1] = [batches[largest][:half], batches[largest][half:]]
        return [batches[i] for i in rng.permutation(len(batches))] if self.shuffle else batches

    def __len__(self):
        return len(self.all_batches()) // self.num_processes

    def __iter__(self):
        for batch in self.all_batches()[self.rank :: self.num_processes][self.first_batch :]:
            yield [(self.epoch, index) for index in batch]


def block_sizes(dataset, largest):
    lengths = [len(ids) for ids in dataset.select_columns("input_ids")["input_ids"]]
    return np.minimum(lengths, largest)


def class_log_frequencies(dataset, num_classes):
    """Log share of every block token among the maskable blocks, one added to each count: what a guesser without eyes knows."""
    counts = np.ones(num_classes)
    for ids in dataset.select_columns("input_ids")["input_ids"]:
        ids = np.asarray(ids)
        np.add.at(counts, ids[ids >= NUM_SPECIAL_BLOCKS] - NUM_SPECIAL_BLOCKS, 1)
    return torch.tensor(np.log(counts / counts.sum()), dtype=torch.float32)


# model ------------------------------------------------------------------------------------------------------------------


def load_processor(arguments):
    name = arguments.processor_name_or_path or arguments.model_name_or_path or str(ROOT)
    try:
        return AtomicaProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UsageError(f"{name}: no Atomica processor there ({error}).") from error


def load_model(arguments, task, processor):
    """Model from scratch or from a checkpoint, with the heads of the task."""

    def given(names):
        return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}

    sizes = given(("hidden_size", "atom_hidden_size", "edge_size", "num_hidden_layers", "num_neighbors"))
    changes = {**given(("hidden_dropout_prob", *(f"{name}_loss_weight" for name in LOSSES))), **task_flags(task)}
    vocab_size = len(processor.tokenizer)
    if arguments.model_name_or_path is None:
        if "atom_hidden_size" in sizes:
            sizes.setdefault("hidden_size", sizes["atom_hidden_size"])
        try:
            return AtomicaForPreTraining(AtomicaConfig(vocab_size=vocab_size, **sizes, **changes))
        except ValueError as error:
            raise UsageError(str(error)) from error
    name = arguments.model_name_or_path
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UsageError(f"{name}: no configuration of Atomica there ({str(error).splitlines()[0]}).") from error
    if config.model_type != "atomica":
        raise UsageError(f"{name}: a checkpoint of model type {config.model_type!r}, expected 'atomica'.")
    if config.vocab_size != vocab_size:
        raise UsageError(f"{name}: the model has {config.vocab_size} block tokens, the tokenizer {vocab_size}.")
    different = [
        f"{key} ({getattr(config, key)}, asked for {value})" for key, value in sizes.items() if getattr(config, key) != value
    ]
    if different:
        raise UsageError(f"{name}: the sizes of a checkpoint cannot be changed: {', '.join(different)}.")
    try:
        return AtomicaForPreTraining.from_pretrained(name, **changes)
    except (OSError, ValueError) as error:
        raise UsageError(f"{name}: no weights of Atomica there ({str(error).splitlines()[0]}).") from error


def make_scheduler(optimizer, arguments, total_steps):
    """Learning rate per optimizer step; the cosines end at the final learning rate instead of zero."""
    kind, floor = arguments.lr_scheduler_type, arguments.final_learning_rate / arguments.learning_rate
    if not kind.startswith("cosine"):
        return get_scheduler(kind, optimizer, arguments.num_warmup_steps, total_steps)
    cycles = arguments.num_cycles if kind == "cosine_with_restarts" else 1

    def factor(step):
        if step < arguments.num_warmup_steps:
            return (step + 1) / (arguments.num_warmup_steps + 1)
        progress = (step - arguments.num_warmup_steps) / max(1, total_steps - arguments.num_warmup_steps)
        within = (progress * cycles) % 1.0 if progress < 1 else 1.0
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * within))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


# losses -----------------------------------------------------------------------------------------------------------------


class LossMeter:
    """Means of the losses and of their baselines over some batches. Each is weighted by what it was taken over, complexes or
    masked blocks, so that batches without a puzzle do not count."""

    def __init__(self, log_frequencies):
        self.log_frequencies = log_frequencies
        self.sums, self.weights = defaultdict(float), defaultdict(float)

    @torch.no_grad()
    def add(self, output, batch):
        moved = batch["perturbed_segment"] >= 0
        rigid = moved & (batch["token_type_ids"].amax(1) > 0)
        weights = {"atom": moved, "translation": rigid, "rotation": rigid}
        if "torsion_index" in batch:
            weights["torsion"] = (batch["torsion_index"][..., 0] >= 0).any(1) if batch["torsion_index"].shape[1] else moved[:0]
        values = {"loss": (output.loss, torch.ones_like(moved))}
        for name in LOSSES:
            if getattr(output, f"{name}_loss") is not None:
                weight = batch["labels"] >= 0 if name == "mask" else weights[name]
                for kind in ("loss", "baseline"):
                    values[f"{name}_{kind}"] = (getattr(output, f"{name}_{kind}"), weight)
        if "mask_loss" in values:  # the shares of the train file, instead of all classes alike
            classes = (batch["labels"] - NUM_SPECIAL_BLOCKS).clamp_min(0)
            guesses = -self.log_frequencies.to(classes.device)[classes]
            masked = batch["labels"] >= 0
            values["mask_baseline"] = ((guesses * masked).sum() / masked.sum().clamp_min(1), masked)
        for name, (value, weight) in values.items():
            weight = weight.sum()
            self.sums[name] = self.sums[name] + value.detach().float() * weight
            self.weights[name] = self.weights[name] + weight

    def means(self, accelerator):
        names = sorted(self.sums)
        totals = torch.stack([torch.stack([self.sums[name], self.weights[name].float()]) for name in names])
        totals = accelerator.reduce(totals, reduction="sum").tolist()
        return {name: value / max(weight, 1.0) for name, (value, weight) in zip(names, totals)}


def short(means):
    """`torsion 3.1/3.9`: every loss beside its baseline."""
    names = [name for name in LOSSES if means.get(f"{name}_baseline")]  # without a baseline there was nothing to predict
    parts = [f"{name} {means[f'{name}_loss']:.2f}/{means[f'{name}_baseline']:.2f}" for name in names]
    return " ".join(parts)


def read_metrics(path):
    """Rows of `metrics.jsonl`; a line that a kill cut short is passed over."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def plot_losses(metrics_file, picture):
    """Curves of `metrics.jsonl`, every loss with its baseline, as a picture; nothing without matplotlib. The lines are running
    means over a tenth of the run, behind them the means of every few steps."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return None
    rows = read_metrics(metrics_file)
    train = [row for row in rows if row["split"] == "train"]
    names = [name for name in LOSSES if any(row.get(f"{name}_baseline") for row in train)]
    if not names:
        return None
    figure, axes = plt.subplots(1, len(names), figsize=(3.6 * len(names), 3.2), squeeze=False)
    window = max(1, len(train) // 10)
    for axis, name in zip(axes[0], names):
        steps = [row["step"] for row in train]
        for kind, label, colour, style in (("loss", "train", "#1f77b4", "-"), ("baseline", "predict nothing", "#777777", "--")):
            values = np.array([row[f"{name}_{kind}"] for row in train])
            smooth = [values[max(0, k + 1 - window) : k + 1].mean() for k in range(len(values))]
            axis.plot(steps, values, color=colour, alpha=0.15)
            axis.plot(steps, smooth, style, label=label, color=colour)
        held_out = [row for row in rows if row["split"] == "validation"]
        if held_out:
            axis.plot(
                [r["step"] for r in held_out], [r[f"{name}_loss"] for r in held_out], "o-", label="validation", color="#d62728"
            )
        axis.set(title=f"{name} loss", xlabel="optimizer step")
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(picture, dpi=120)
    plt.close(figure)
    return picture


# checkpoints ------------------------------------------------------------------------------------------------------------


def checkpoints(output_dir):
    """Complete checkpoints of a folder, in the order they were written."""
    found = [p for p in Path(output_dir).glob("checkpoint-*") if p.name[11:].isdigit() and (p / STATE_FILE).exists()]
    return sorted(found, key=lambda p: (p / STATE_FILE).stat().st_mtime_ns)


def save_checkpoint(accelerator, state, settings, output_dir, limit):
    """Written to a temporary folder, then renamed: a folder with the final name is complete."""
    final = Path(output_dir) / f"checkpoint-{state['step']}"
    temporary = Path(output_dir) / f"{final.name}.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (temporary / STATE_FILE).write_text(json.dumps({**state, "settings": settings}, indent=1), encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        for old in checkpoints(output_dir)[:-limit] if limit else []:
            shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def find_checkpoint(name, output_dir, settings):
    """Folder and state to resume from.

    Raises:
        `UsageError`: if there is none, or it belongs to another run.
    """
    if name == "latest":
        found = checkpoints(output_dir)
        if not found:
            raise UsageError(f"--resume_from_checkpoint latest: no complete checkpoint in {output_dir}.")
        folder = found[-1]
    else:
        folder = Path(name)
        if not (folder / STATE_FILE).exists():
            raise UsageError(f"--resume_from_checkpoint {name}: no complete checkpoint there (no {STATE_FILE}).")
    try:
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{folder}: a checkpoint that cannot be read ({STATE_FILE}: {error}).") from error
    saved = state.get("settings", {})
    different = [f"{k} was {saved.get(k)!r}, is {v!r}" for k, v in settings.items() if saved.get(k) != v]
    if different:
        raise UsageError(f"{folder} is a checkpoint of another run: {'; '.join(different)}.")
    return folder, state


# the end ----------------------------------------------------------------------------------------------------------------


CARD = """\
---
library_name: transformers
license: apache-2.0
tags:
- chemistry
- biology
- molecules
---

# {name}

An Atomica model of {parameters:,} parameters, pretrained with the task `{task}`.

```python
from transformers import AutoModel, AutoProcessor

folder = "path/to/this/folder"
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
inputs = processor("CC(=O)Oc1ccccc1C(=O)O", return_tensors="pt")
vector = model(**inputs).pooler_output
```

## Data

{train} examples of {files} for training, {validation} for validation.

## Losses at the end

Each beside the loss of predicting nothing (for masked blocks: of knowing only how frequent each is).

| loss | model | predict nothing | on |
|---|---|---|---|
{rows}

## Training

{steps} optimizer steps, {seconds:.0f} s on {processes} process(es) of {machine} ({device}), torch {torch}.

```json
{options}
```

The mathematics of the model is that of ATOMICA (Fang et al., bioRxiv 2025.04.02.646906).
"""


def model_card(arguments, model, counts, means, seconds):
    """Text of the model card: what was run, and what came out."""
    model_arguments, data, puzzle, optimization = arguments
    rows = [
        f"| {name} | {means[split][f'{name}_loss']:.3f} | {means[split][f'{name}_baseline']:.3f} | {split} |"
        for split in means
        for name in LOSSES
        if means[split].get(f"{name}_baseline")
    ]
    options = {name: value for part in arguments for name, value in dataclasses.asdict(part).items()}
    options["train_file"] = [Path(path).name for path in data.train_file]
    for name in ("output_dir", "validation_file", "resume_from_checkpoint", "model_name_or_path", "processor_name_or_path"):
        options[name] = options[name] and Path(options[name]).name
    return CARD.format(
        name=optimization.run_name or Path(optimization.output_dir).name,
        parameters=sum(p.numel() for p in model.parameters()),
        task=puzzle.task,
        files=", ".join(options["train_file"]),
        rows="\n".join(rows),
        seconds=seconds,
        machine=platform.machine(),
        torch=torch.__version__,
        options=json.dumps(options, indent=1),
        **counts,
    )


def check_numbers(data, optimization):
    """Raises `UsageError` for numbers that make no sense, before anything is read."""
    positive = {
        "max_blocks_per_batch": data, "max_blocks_per_example": data, "learning_rate": optimization,
        "gradient_accumulation_steps": optimization, "logging_steps": optimization, "num_train_epochs": optimization,
        "num_cycles": optimization, "max_grad_norm": optimization,
    }  # fmt: skip
    for name, where in positive.items():
        if not getattr(where, name) > 0:
            raise UsageError(f"--{name} is {getattr(where, name)}, expected a positive number.")
    for name, where in (
        ("max_train_steps", optimization), ("eval_steps", optimization), ("checkpointing_steps", optimization),
        ("save_total_limit", optimization), ("max_train_samples", data), ("max_eval_samples", data),
    ):  # fmt: skip
        if getattr(where, name) is not None and getattr(where, name) < 1:
            raise UsageError(f"--{name} is {getattr(where, name)}, expected at least 1.")
    for name, where in (
        ("num_warmup_steps", optimization), ("weight_decay", optimization), ("final_learning_rate", optimization),
        ("dataloader_num_workers", data), ("preprocessing_num_workers", data), ("seed", optimization),
    ):  # fmt: skip
        if not 0 <= getattr(where, name) < 2**32:
            raise UsageError(f"--{name} is {getattr(where, name)}, expected zero or more.")
    if not math.isfinite(optimization.num_train_epochs):
        raise UsageError(f"--num_train_epochs is {optimization.num_train_epochs}, expected a number.")
    if data.validation_file is not None and data.validation_split_percentage:
        raise UsageError("--validation_file and --validation_split_percentage exclude each other.")
    if (
        data.validation_file is None
        and not data.validation_split_percentage
        and (optimization.eval_steps or data.max_eval_samples)
    ):
        raise UsageError("--eval_steps and --max_eval_samples need --validation_file or --validation_split_percentage.")
    if not 0 <= data.validation_split_percentage < 100:
        raise UsageError(f"--validation_split_percentage is {data.validation_split_percentage}, expected 0 to 100.")


def parse_json(path):
    """Options from one JSON file, checked as if they had been typed.

    Raises:
        `UsageError`: if it is not a JSON object.
    """
    try:
        options = json.loads(Path(path).read_text(encoding="utf-8"))
        words = []
        for name, value in options.items():
            values = value if isinstance(value, list) else [value]
            words += [] if value is None else [f"--{name}", *map(str, values)]
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"{path}: not a JSON file with one object of options ({error}).") from error
    return HfArgumentParser(ARGUMENTS).parse_args_into_dataclasses(words)


ARGUMENTS = (ModelArguments, DataArguments, PuzzleArguments, OptimizationArguments)


def main(argv=None):
    parser = HfArgumentParser(ARGUMENTS, description=__doc__)
    argv = sys.argv[1:] if argv is None else argv
    arguments = (
        parse_json(argv[0]) if len(argv) == 1 and argv[0].endswith(".json") else parser.parse_args_into_dataclasses(argv)
    )
    model_arguments, data, puzzle, optimization = arguments
    check_numbers(data, optimization)
    output_dir = Path(optimization.output_dir)
    if output_dir.is_file():
        raise UsageError(f"--output_dir {output_dir} is a file, expected a folder.")
    trackers = optimization.report_to.split(",") if optimization.report_to and optimization.report_to != "none" else None
    used = output_dir.is_dir() and any(output_dir.glob("checkpoint-*"))
    if used and not optimization.resume_from_checkpoint and not optimization.overwrite_output_dir:
        raise UsageError(
            f"--output_dir {output_dir} has checkpoints of an earlier run; continue it with --resume_from_checkpoint latest, "
            "start anew with --overwrite_output_dir, or name another folder."
        )
    try:
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # else torchrun on a machine without one would start separate runs
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=24))],  # the others wait while one process reads
            mixed_precision=optimization.mixed_precision,
            log_with=trackers,
            project_dir=str(output_dir),
        )
    except (ValueError, ImportError) as error:
        raise UsageError(str(error)) from error
    available = {str(getattr(tracker, "value", tracker)) for tracker in accelerator.log_with}
    if missing := set(trackers or ()) - available - {"all"}:
        raise UsageError(f"--report_to {optimization.report_to}: {', '.join(missing)} is not installed.")
    is_main = accelerator.is_main_process
    set_seed(optimization.seed)

    processor = load_processor(model_arguments)
    try:
        collator = AtomicaPreTrainingCollator(
            **dataclasses.asdict(puzzle), max_blocks=data.max_blocks_per_example, seed=optimization.seed
        )
        held_out = dataclasses.replace(collator, seed=optimization.seed + 1)
    except ValueError as error:
        raise UsageError(str(error)) from error
    model = load_model(model_arguments, puzzle.task, processor)
    if model_arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable()

    def load(path, most):
        with accelerator.main_process_first():
            dataset, report = load_examples(
                path, processor, output_dir / "data", data.preprocessing_num_workers, most, progress=is_main
            )
        accelerator.print(f"{path}: {report.summary()}")
        return for_model(dataset, model.config, path)

    train = join_datasets([load(path, data.max_train_samples) for path in data.train_file])
    validation = None
    if data.validation_file is not None:
        validation = load(data.validation_file, data.max_eval_samples)
    elif data.validation_split_percentage:
        order = np.random.default_rng(optimization.seed).permutation(len(train))
        count = max(1, round(len(train) * data.validation_split_percentage / 100))
        if count >= len(train):
            raise UsageError(f"{len(train)} examples cannot be split into training and validation.")
        train, validation = train.select(sorted(order[count:])), train.select(sorted(order[:count]))
        if data.max_eval_samples:
            validation = validation.select(range(min(len(validation), data.max_eval_samples)))

    for dataset in (train, validation):
        for name, segments in zip(dataset["name"], dataset["token_type_ids"]) if dataset is not None else ():
            if 2 * (max(segments) + 1) > data.max_blocks_per_example:
                raise UsageError(
                    f"{name}: has {max(segments) + 1} segments, which need at least two blocks each, "
                    f"but --max_blocks_per_example is {data.max_blocks_per_example}."
                )

    def loader(dataset, collate, shuffle):
        sampler = SizedBatchSampler(
            block_sizes(dataset, data.max_blocks_per_example), data.max_blocks_per_batch, optimization.seed, shuffle,
            accelerator.num_processes, accelerator.process_index,
        )  # fmt: skip
        return sampler, DataLoader(
            NumberedExamples(dataset), batch_sampler=sampler, collate_fn=collate, num_workers=data.dataloader_num_workers,
            pin_memory=accelerator.device.type == "cuda",
        )  # fmt: skip

    sampler, train_loader = loader(train, collator, True)
    validation_loader = loader(validation, held_out, False)[1] if validation is not None else None
    accumulation = optimization.gradient_accumulation_steps
    steps_per_epoch = math.ceil(len(sampler) / accumulation)
    total_steps = optimization.max_train_steps or math.ceil(optimization.num_train_epochs * steps_per_epoch)

    decay, no_decay = [], []
    for parameter in model.parameters():
        (decay if parameter.ndim > 1 else no_decay).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": optimization.weight_decay}, {"params": no_decay, "weight_decay": 0.0}],
        lr=optimization.learning_rate,
    )
    scheduler = make_scheduler(optimizer, optimization, total_steps)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(scheduler)
    log_frequencies = class_log_frequencies(train, len(processor.tokenizer) - NUM_SPECIAL_BLOCKS)

    settings = {
        **{f"config.{k}": v for k, v in accelerator.unwrap_model(model).config.to_dict().items()
           if k.endswith(("_size", "_layers", "_neighbors")) or k.startswith("use_")},
        **dataclasses.asdict(puzzle),
        "train_examples": len(train), "max_blocks_per_batch": data.max_blocks_per_batch, "seed": optimization.seed,
        "train_sizes": hashlib.sha256(sampler.sizes.astype(np.int64).tobytes()).hexdigest()[:16],
        **{
            name: getattr(optimization, name)
            for name in (
                "learning_rate", "final_learning_rate", "weight_decay", "lr_scheduler_type", "num_cycles", "num_warmup_steps",
            )
        },
        "max_blocks_per_example": data.max_blocks_per_example, "processes": accelerator.num_processes,
        "gradient_accumulation_steps": accumulation,
    }  # fmt: skip
    step, epoch, first_batch = 0, 0, 0
    if optimization.resume_from_checkpoint:
        folder, state = find_checkpoint(optimization.resume_from_checkpoint, output_dir, settings)
        try:
            accelerator.load_state(str(folder))
        except Exception as error:  # safetensors, torch and accelerate each have their own for a damaged file
            raise UsageError(f"{folder}: a checkpoint that cannot be read ({type(error).__name__}: {error}).") from error
        step, epoch, first_batch = state["step"], state["epoch"], state["batch"]
        accelerator.print(f"Resuming from {folder}: step {step}, epoch {epoch}, batch {first_batch}.")
    results_file = output_dir / "all_results.json"  # written last: with it, a run is finished
    if step >= total_steps and results_file.exists():
        accelerator.print(f"Nothing left to do: {step} of {total_steps} steps are done.")
        return
    latest = {}  # last means of each split
    metrics_file = output_dir / "metrics.jsonl"
    if is_main:
        output_dir.mkdir(parents=True, exist_ok=True)
        if used and not optimization.resume_from_checkpoint:
            for old in output_dir.glob("checkpoint-*"):
                shutil.rmtree(old)
        results_file.unlink(missing_ok=True)
        kept = [row for row in read_metrics(metrics_file) if row["step"] <= step] if step and metrics_file.exists() else []
        metrics_file.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        for row in kept:
            latest[row["split"]] = {name: value for name, value in row.items() if name.endswith(("loss", "baseline"))}
    if trackers:
        flat = {k: v for a in arguments for k, v in dataclasses.asdict(a).items() if isinstance(v, (int, float, str, bool))}
        accelerator.init_trackers(optimization.run_name or "atomica", config=flat)

    def log(split, means):
        latest[split] = means
        row = {"step": step, "epoch": epoch, "split": split, **means}
        if split == "train":
            row["learning_rate"] = optimizer.param_groups[0]["lr"]
        if is_main:
            with open(metrics_file, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
        if trackers:
            accelerator.log({f"{split}/{name}": value for name, value in row.items() if isinstance(value, float)}, step=step)

    def validate():
        model.eval()
        meter = LossMeter(log_frequencies)
        with torch.no_grad():
            for batch in tqdm(validation_loader, desc="Validating", disable=not is_main, leave=False):
                batch = {name: value.to(accelerator.device) for name, value in batch.items()}
                meter.add(model(**batch), batch)
        model.train()
        means = meter.means(accelerator)
        log("validation", means)
        accelerator.print(f"step {step} validation: loss {means['loss']:.3f} {short(means)}")

    started, first_step = time.time(), step
    bar = tqdm(total=total_steps, initial=step, desc="Pretraining", disable=not is_main, unit="step", dynamic_ncols=True)
    model.train()
    meter = LossMeter(log_frequencies)
    while step < total_steps:
        sampler.epoch, sampler.first_batch = epoch, first_batch
        num_batches = len(sampler)
        for number, batch in enumerate(train_loader, first_batch + 1):
            last_of_epoch = number == num_batches
            batch = {name: value.to(accelerator.device, non_blocking=True) for name, value in batch.items()}
            window = min(accumulation, num_batches - (number - 1) // accumulation * accumulation)
            is_step = number % accumulation == 0 or last_of_epoch
            with nullcontext() if is_step else accelerator.no_sync(model):
                output = model(**batch)
                accelerator.backward(output.loss / window)
            meter.add(output, batch)
            if not is_step:
                continue
            accelerator.clip_grad_norm_(model.parameters(), optimization.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            step += 1
            bar.update()
            if step % optimization.logging_steps == 0 or step == total_steps:
                means = meter.means(accelerator)
                if not math.isfinite(means["loss"]):
                    raise UsageError(f"The loss is {means['loss']} at step {step}; try a smaller --learning_rate.")
                log("train", means)
                bar.set_postfix_str(f"loss {means['loss']:.2f} {short(means)}")
                meter = LossMeter(log_frequencies)
            at_epoch_end = last_of_epoch or step == total_steps
            if validation_loader is not None and (
                (optimization.eval_steps and step % optimization.eval_steps == 0)
                or (at_epoch_end and not optimization.eval_steps)
                or step == total_steps
            ):
                validate()
            every = optimization.checkpointing_steps
            if step % every == 0 if every else at_epoch_end:
                if not all(p.isfinite().all() for p in model.parameters()):
                    raise UsageError(f"Weights are not finite after step {step}; try a smaller --learning_rate.")
                state = {"step": step, "epoch": epoch + last_of_epoch, "batch": 0 if last_of_epoch else number}
                save_checkpoint(accelerator, state, settings, output_dir, optimization.save_total_limit)
            if step == total_steps:
                break
        epoch, first_batch = epoch + 1, 0
    bar.close()
    accelerator.wait_for_everyone()
    if is_main:
        final = accelerator.unwrap_model(model)
        final.save_pretrained(output_dir)
        processor.save_pretrained(output_dir)
        counts = {
            "train": len(train), "validation": 0 if validation is None else len(validation), "steps": step,
            "processes": accelerator.num_processes, "device": str(accelerator.device.type),
        }  # fmt: skip
        card = model_card(arguments, final, counts, latest, time.time() - started)
        (output_dir / "README.md").write_text(card, encoding="utf-8")
        picture = plot_losses(metrics_file, output_dir / "losses.png")
        results = {"steps": step, "new_steps": step - first_step, **latest}
        results_file.write_text(json.dumps(results, indent=1), encoding="utf-8")
        print(
            f"Saved the model, processor and tokenizer in {output_dir}"
            + (f"; losses over steps in {picture}." if picture else ".")
        )
        for split, means in latest.items():
            print(f"  {split}: loss {means['loss']:.3f}; each loss / predict nothing: {short(means)}")
        if optimization.push_to_hub:
            push(output_dir, optimization)
    accelerator.end_training()


def push(output_dir, optimization):
    """Uploads the final model, without checkpoints and data."""
    from huggingface_hub import HfApi

    api = HfApi()
    name = optimization.hub_model_id or Path(optimization.output_dir).name
    repository = api.create_repo(name, private=optimization.hub_private_repo or None, exist_ok=True).repo_id
    api.upload_folder(
        repo_id=repository, folder_path=str(output_dir), ignore_patterns=["checkpoint-*", "data/*", "*.tmp*"],
        commit_message="Upload model",
    )  # fmt: skip
    print(f"Uploaded to {repository}.")


if __name__ == "__main__":
    try:
        main()
    except (StructureError, UsageError, OSError) as error:
        sys.exit(f"run_pretraining.py: error: {error}")
