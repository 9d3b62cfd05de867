# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""The options of `run_pretraining.py`: names, defaults, help, and what does not fit together."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from transformers.hf_argparser import HfArg

from atomica_hf.data_collator_atomica import TASKS
from script_arguments import ScriptParser


SCHEDULES = ("cosine_with_restarts", "cosine", "warmup_stable_decay", "linear", "constant", "constant_with_warmup")


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
    keep_hydrogens: bool = HfArg(
        default=False, help="Hydrogens become atoms too: molecules get those they lack, residues need them in the file."
    )
    use_atom_charges: bool = HfArg(default=False, help="The model is told the formal charges of atoms (from scratch only).")
    atom_loss_weight: float | None = HfArg(default=None, aliases=["--atom_weight"], help="Weight of the atom loss (1).")
    torsion_loss_weight: float | None = HfArg(default=None, aliases=["--torsion_weight"], help="Of the torsion loss (1).")
    translation_loss_weight: float | None = HfArg(
        default=None, aliases=["--translation_weight"], help="Of the translation loss (1)."
    )
    rotation_loss_weight: float | None = HfArg(default=None, aliases=["--rotation_weight"], help="Of the rotation loss (0.1).")
    mask_loss_weight: float | None = HfArg(default=None, aliases=["--mask_weight"], help="Of the masked-block loss (1).")
    composition_loss_weight: float | None = HfArg(
        default=None, help="Of telling from the vector of the whole which blocks it has; without it, no such head."
    )
    gradient_checkpointing: bool = HfArg(default=False, help="Trade time for memory.")
    dtype: str = HfArg(
        default="float32", metadata={"choices": ["float32", "float64"]}, help="Of the weights; float64 to compare runs exactly."
    )


@dataclass
class DataArguments:
    train_file: list[str] = HfArg(
        aliases=["--train_set"],
        help="What to train on: files, folders, or prepared datasets, one or several; with ':0.7' behind each, its share of "
        "the examples of an epoch. hf://datasets/USER/NAME (or NAME@REVISION) is downloaded before training, with --streaming "
        "shard by shard while it goes on, and found in the cache the next time.",
    )
    validation_file: str | None = HfArg(default=None, aliases=["--valid_set"], help="What to validate on.")
    validation_split_percentage: float = HfArg(
        default=0.0, help="Without a validation file: share of the train file, in percent."
    )
    max_train_samples: int | None = HfArg(default=None, help="Read only this many inputs of each train file.")
    max_eval_samples: int | None = HfArg(default=None, help="Read only this many inputs of the validation file.")
    balance_modalities: bool = HfArg(default=False, help="Every kind of complex (modality_ids) as often as every other.")
    streaming: bool = HfArg(
        default=False,
        help="Read the shards of prepared datasets one after another instead of by index; needs --max_train_steps.",
    )
    max_blocks_per_batch: int = HfArg(
        default=1000, aliases=["--max_n_vertex_per_gpu"], help="Blocks in one batch of one process, padding included."
    )
    max_atoms_per_batch: int | None = HfArg(
        default=None, help="Atoms in one batch of one process, padding included; a larger complex is cropped to it."
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
    final_learning_rate: float = HfArg(
        default=1e-6, aliases=["--final_lr"], help="Learning rate at the end of a cosine, or of the decay."
    )
    weight_decay: float = HfArg(default=0.0, help="Weight decay of AdamW; none on biases, norms and embeddings.")
    lr_scheduler_type: str = HfArg(
        default="cosine_with_restarts", metadata={"choices": list(SCHEDULES)}, help="Course of the learning rate."
    )
    num_cycles: int = HfArg(default=1, help="Cosines of cosine_with_restarts, each from the largest learning rate.")
    cycle_steps: int | None = HfArg(default=None, help="Optimizer steps of one such cosine, instead of --num_cycles.")
    num_warmup_steps: int = HfArg(default=0, aliases=["--warmup"], help="Optimizer steps of linear warm-up.")
    num_decay_steps: int | None = HfArg(
        default=None, help="Last optimizer steps of warmup_stable_decay, in which the rate falls (a tenth of all)."
    )
    max_grad_norm: float = HfArg(default=10.0, aliases=["--grad_clip"], help="Gradients are clipped to this norm.")
    gradient_accumulation_steps: int = HfArg(default=1, help="Batches of one process per optimizer step.")
    ema_decay: float | None = HfArg(default=None, help="Keep a running mean of the weights with this decay, such as 0.999.")
    save_ema: bool = HfArg(default=False, help="Validate and save the running mean of the weights as the final model.")
    max_skipped_steps: int = HfArg(
        default=20, help="Stop after this many steps in a row that were skipped because a gradient was not finite or a spike."
    )
    spike_factor: float | None = HfArg(
        default=None, help="Skip a step whose gradient norm is this many times the median of the last 50."
    )
    contrastive_weight: float = HfArg(
        default=0.0, help="Weight of InfoNCE between two noised views of each complex, the others as negatives."
    )
    contrastive_temperature: float = HfArg(default=0.1, help="Temperature of InfoNCE.")
    distillation_weight: float = HfArg(
        default=0.0, help="Weight of agreeing with the running mean of the weights on another view; needs --ema_decay."
    )
    mixed_precision: str | None = HfArg(default=None, metadata={"choices": ["no", "fp16", "bf16"]}, help="As in accelerate.")
    seed: int = HfArg(default=0, help="Seed of weights, order and puzzles.")
    logging_steps: int = HfArg(default=10, help="Optimizer steps between two lines of metrics.jsonl.")
    eval_steps: int | None = HfArg(default=None, help="Optimizer steps between validations; by default once an epoch.")
    checkpointing_steps: int | None = HfArg(default=None, help="Optimizer steps between checkpoints; by default once an epoch.")
    save_total_limit: int | None = HfArg(default=3, help="Checkpoints kept, the newest ones.")
    overwrite_output_dir: bool = HfArg(default=False, help="Start anew in a folder with checkpoints; they are deleted.")
    resume_from_checkpoint: str | None = HfArg(default=None, help="A checkpoint folder, or 'latest'.")
    report_to: str | None = HfArg(
        default=None, help="Trackers, with commas between them: tensorboard, wandb, trackio, or another that accelerate knows."
    )
    push_to_hub: bool = HfArg(default=False, help="Upload the final model; the token is taken from the environment.")
    hub_dry_run: bool = HfArg(
        default=False,
        help="Print the files that --push_to_hub would upload, with their sizes, and upload nothing; with "
        "--resume_from_checkpoint latest also of a run that is finished.",
    )
    hub_model_id: str | None = HfArg(default=None, help="Repository to upload to; by default the name of the output folder.")
    hub_private_repo: bool = HfArg(default=False, help="Create it as a private one.")


ARGUMENTS = (ModelArguments, DataArguments, PuzzleArguments, OptimizationArguments)


def check_arguments(data, optimization):
    """Raises `UsageError` for numbers that make no sense and options that exclude each other, before anything is read."""
    positive = {
        "max_blocks_per_batch": data, "max_blocks_per_example": data, "learning_rate": optimization,
        "gradient_accumulation_steps": optimization, "logging_steps": optimization, "num_train_epochs": optimization,
        "num_cycles": optimization, "max_grad_norm": optimization, "contrastive_temperature": optimization,
    }  # fmt: skip
    for name, where in positive.items():
        if not getattr(where, name) > 0:
            raise UsageError(f"--{name} is {getattr(where, name)}, expected a positive number.")
    for name, where in (
        ("max_train_steps", optimization), ("eval_steps", optimization), ("checkpointing_steps", optimization),
        ("save_total_limit", optimization), ("max_skipped_steps", optimization), ("cycle_steps", optimization),
        ("num_decay_steps", optimization), ("max_train_samples", data), ("max_eval_samples", data),
        ("max_atoms_per_batch", data),
    ):  # fmt: skip
        if getattr(where, name) is not None and getattr(where, name) < 1:
            raise UsageError(f"--{name} is {getattr(where, name)}, expected at least 1.")
    for name, where in (
        ("num_warmup_steps", optimization), ("weight_decay", optimization), ("final_learning_rate", optimization),
        ("contrastive_weight", optimization), ("distillation_weight", optimization),
        ("dataloader_num_workers", data), ("preprocessing_num_workers", data), ("seed", optimization),
    ):  # fmt: skip
        if not 0 <= getattr(where, name) < 2**32:
            raise UsageError(f"--{name} is {getattr(where, name)}, expected zero or more.")
    if not math.isfinite(optimization.num_train_epochs):
        raise UsageError(f"--num_train_epochs is {optimization.num_train_epochs}, expected a number.")
    if optimization.ema_decay is not None and not 0 < optimization.ema_decay < 1:
        raise UsageError(f"--ema_decay is {optimization.ema_decay}, expected a number between 0 and 1.")
    if optimization.spike_factor is not None and not optimization.spike_factor > 1:
        raise UsageError(f"--spike_factor is {optimization.spike_factor}, expected more than 1.")
    if data.validation_file is not None and data.validation_split_percentage:
        raise UsageError("--validation_file and --validation_split_percentage exclude each other.")
    if not 0 <= data.validation_split_percentage < 100:
        raise UsageError(f"--validation_split_percentage is {data.validation_split_percentage}, expected 0 to 100.")
    has_validation = data.validation_file is not None or data.validation_split_percentage
    if not has_validation and (optimization.eval_steps or data.max_eval_samples):
        raise UsageError("--eval_steps and --max_eval_samples need --validation_file or --validation_split_percentage.")
    if optimization.ema_decay is None and (optimization.save_ema or optimization.distillation_weight):
        raise UsageError("--save_ema and --distillation_weight need --ema_decay.")
    for option, schedule in (("cycle_steps", "cosine_with_restarts"), ("num_decay_steps", "warmup_stable_decay")):
        if getattr(optimization, option) is not None and optimization.lr_scheduler_type != schedule:
            raise UsageError(f"--{option} belongs to --lr_scheduler_type {schedule}, not {optimization.lr_scheduler_type}.")
    if optimization.cycle_steps is not None and optimization.num_cycles != 1:
        raise UsageError("--cycle_steps and --num_cycles exclude each other.")
    if data.streaming:
        if optimization.max_train_steps is None:
            raise UsageError("--streaming needs --max_train_steps: how many batches an epoch has is not known beforehand.")
        for name in ("validation_split_percentage", "max_train_samples", "balance_modalities"):
            if getattr(data, name):
                raise UsageError(f"--{name} needs examples by index, which --streaming does not have.")


def parse_arguments(argv, description=None):
    """Words of the command line, or one JSON file with the options -> one object of each class of `ARGUMENTS`.

    Raises:
        `UsageError`: if the file is not a JSON object, or the options do not fit together.
    """
    if len(argv) == 1 and argv[0].endswith(".json"):
        argv = _words(argv[0])
    arguments = ScriptParser(ARGUMENTS, description=description).parse_args_into_dataclasses(argv)
    check_arguments(arguments[1], arguments[3])
    return arguments


def _words(path):
    """Options of a JSON file as if they had been typed, so that they are checked alike."""
    try:
        options = json.loads(Path(path).read_text(encoding="utf-8"))
        words = []
        for name, value in options.items():
            values = value if isinstance(value, list) else [value]
            words += [] if value is None else [f"--{name}", *map(str, values)]
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"{path}: not a JSON file with one object of options ({error}).") from error
    return words
