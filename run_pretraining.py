# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Pretrains Atomica by repairing perturbed molecules and complexes.

    accelerate launch run_pretraining.py --train_file examples/molecules.csv --output_dir my-atomica

The train file may be .smi, .csv, .tsv (SMILES), .sdf(.gz), an index CSV of complexes, a folder of structures, or a dataset
written by prepare_dataset.py. Options may also stand in one JSON file, given as the only argument. The flags of ATOMICA's
train.py are understood as aliases.
"""

import dataclasses
import gc
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from contextlib import nullcontext
from datetime import timedelta
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast_object_list, gather_object, set_seed
from tqdm.auto import tqdm
from transformers import AutoConfig

from atomic_files import write_text
from atomica_hf import (
    ROOT,
    AtomicaConfig,
    AtomicaForPreTraining,
    AtomicaPreTrainingCollator,
)  # fmt: skip
from atomica_hf.data_collator_atomica import task_flags
from model_loading import load_processor, read_all_atoms
from pretraining_arguments import UsageError, parse_arguments
from pretraining_checkpoints import (
    NotWrittenError,
    checkpoints,
    clear_leftovers,
    find_checkpoint,
    load_optimizer_tensors,
    num_bytes,
    number_of,
    optimizer_tensors,
    read_checkpoint,
    remove,
    write_checkpoint,
    writing,
)
from pretraining_data import load_training_data
from pretraining_losses import LOSSES, OBJECTIVES, ComplexLosses, disagreement, info_nce, losses_of
from pretraining_optimization import Guard, make_ema, make_scheduler, parameter_groups
from pretraining_report import Meter, MetricsFile, Stopwatch, means_of, model_card, plot_losses, short, table
from pretraining_sharding import load_whole, shard, take_request, whole, whole_tensors
from script_arguments import run_script


RESULTS_FILE = "all_results.json"  # written last: with it, a run is finished
METRICS_FILE = "metrics.jsonl"
PICTURE_FILE = "losses.png"
UPLOADED = (  # names at the top of the output folder
    "config.json", "model*.safetensors", "model.safetensors.index.json", "*_atomica.py", "processor_config.json",
    "tokenizer*.json", "vocab.json", "special_tokens_map.json", "README.md", PICTURE_FILE, RESULTS_FILE,
)  # fmt: skip
SKIPPED, LEFT_OUT = "skipped", "left out"  # rows of metrics.jsonl that have no means
SAME_WHEN_RESUMED = (
    "learning_rate", "final_learning_rate", "weight_decay", "lr_scheduler_type", "num_cycles", "cycle_steps",
    "num_warmup_steps", "num_decay_steps", "max_grad_norm", "gradient_accumulation_steps", "ema_decay", "spike_factor",
    "contrastive_weight", "contrastive_temperature", "distillation_weight", "seed",
)  # fmt: skip


# what a run begins with -------------------------------------------------------------------------------------------------


def load_model(arguments, task, processor):
    """Model from scratch or from a checkpoint, with the heads of the task."""

    def given(names):
        return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}

    sizes = given(("hidden_size", "atom_hidden_size", "edge_size", "num_hidden_layers", "num_neighbors"))
    if arguments.use_atom_charges:
        sizes["use_atom_charges"] = True
    changes = {**given(("hidden_dropout_prob", *(f"{name}_loss_weight" for name in LOSSES))), **task_flags(task)}
    if arguments.composition_loss_weight:
        changes["use_composition"] = True
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


def make_collators(puzzle, data, optimization, config):
    """Puzzles for training and for validation, and for the second view of a complex where an objective needs one. They also
    find the neighbours, so that the workers do."""
    options = {**dataclasses.asdict(puzzle), "config": config}
    limits = {
        "max_blocks": min(data.max_blocks_per_example, data.max_blocks_per_batch), "max_atoms": data.max_atoms_per_batch,
    }  # fmt: skip
    try:
        training = AtomicaPreTrainingCollator(**options, **limits, seed=optimization.seed)
    except ValueError as error:
        raise UsageError(str(error)) from error
    held_out, other = (dataclasses.replace(training, seed=optimization.seed + more) for more in (1, 2))
    has_views = optimization.contrastive_weight or optimization.distillation_weight
    return training, held_out, other if has_views else None


def make_accelerator(optimization):
    """-> (`Accelerator`, whether the model is to be shared out among the processes)."""
    trackers = optimization.report_to.split(",") if optimization.report_to and optimization.report_to != "none" else None
    is_sharded = take_request()
    try:
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # else torchrun on a machine without one would start separate runs
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=24))],  # the others wait while one process reads
            mixed_precision=optimization.mixed_precision,
            log_with=trackers,
            project_dir=str(optimization.output_dir),
        )
    except (ValueError, ImportError) as error:
        raise UsageError(str(error)) from error
    available = {str(getattr(tracker, "value", tracker)) for tracker in accelerator.log_with}
    if missing := set(trackers or ()) - available - {"all"}:
        raise UsageError(f"--report_to {optimization.report_to}: {', '.join(missing)} is not installed.")
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise UsageError(
            f"accelerate is configured for {accelerator.distributed_type.value}; expected DDP, or FSDP with fsdp_version: 2."
        )
    is_sharded = is_sharded and accelerator.num_processes > 1
    refused = [name for name in ("ema_decay", "contrastive_weight", "distillation_weight") if getattr(optimization, name)]
    refused += ["mixed_precision fp16"] if accelerator.mixed_precision == "fp16" else []
    if is_sharded and refused:
        raise UsageError(f"--{refused[0]} needs the whole model on every device (DDP), not FSDP.")
    return accelerator, is_sharded


def check_output(optimization):
    """Raises `UsageError` for an output folder that cannot be one, or has another run in it."""
    output_dir = Path(optimization.output_dir)
    if output_dir.is_file():
        raise UsageError(f"--output_dir {output_dir} is a file, expected a folder.")
    used = output_dir.is_dir() and any(output_dir.glob("checkpoint-*"))
    if used and not optimization.resume_from_checkpoint and not optimization.overwrite_output_dir:
        raise UsageError(
            f"--output_dir {output_dir} has checkpoints of an earlier run; continue it with --resume_from_checkpoint latest, "
            "start anew with --overwrite_output_dir, or name another folder."
        )


class Termination:
    """Within its block SIGTERM and a first Ctrl-C end nothing, but are remembered: the run stops when a step is done."""

    def __init__(self, speaks):
        self.speaks, self.asked, self.before = speaks, None, {}  # asked: when

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _ask(self, number, frame):
        now = time.monotonic()
        if self.asked is None:
            self.asked = now
            if self.speaks and number == signal.SIGINT:
                os.write(2, b"\nStopping after this step, with a checkpoint; Ctrl-C again stops at once.\n")
        elif number == signal.SIGINT and now > self.asked + 2:  # torchrun passes on what the terminal has sent already
            raise KeyboardInterrupt

    def __exit__(self, *exception):
        for number, handler in self.before.items():
            signal.signal(number, handler)


# the run ----------------------------------------------------------------------------------------------------------------


def windows(batches, size):
    """Iterator of batches -> (at most `size` of them, whether more follow, seconds waited for them), without end."""
    waited = 0.0

    def take():
        nonlocal waited
        started = time.perf_counter()
        batch = next(batches, None)
        waited += time.perf_counter() - started
        return batch

    ahead = take()
    while True:
        window = []
        while ahead is not None and len(window) < size:
            window.append(ahead)
            ahead = take()
        yield window, ahead is not None, waited
        waited = 0.0


@dataclasses.dataclass
class Agreement:
    """What all processes know of a step before it is made."""

    totals: dict  # what each loss is divided by
    batches: int  # most of one process
    more: bool  # whether any has more
    left_out: int  # examples of all that are damaged
    stop: bool  # whether any was asked to stop


class Pretraining:
    """One run: its model, data, optimizer and place, and what is done each step."""

    def __init__(self, accelerator, arguments, model, processor, data, is_sharded=False):
        self.accelerator, self.arguments, self.processor, self.data = accelerator, arguments, processor, data
        _, _, puzzle, optimization = arguments
        self.options, self.output_dir = optimization, Path(optimization.output_dir)
        self.dtype = getattr(torch, arguments[0].dtype)
        self.config = model.config
        self.losses = losses_of(model.config)
        self.objectives = {name: w for name in OBJECTIVES if (w := getattr(optimization, f"{name}_weight"))}
        self.loss_weights = {name: getattr(model.config, f"{name}_loss_weight") for name in self.losses}
        self.complex_losses = ComplexLosses(self.losses, puzzle.torsion_noise, data.log_frequencies)
        self.total_steps = optimization.max_train_steps or math.ceil(optimization.num_train_epochs * self.steps_per_epoch())
        model = model.to(self.dtype)
        self.ema = make_ema(model, optimization.ema_decay).to(accelerator.device) if optimization.ema_decay else None
        if is_sharded:
            model = shard(model.to(accelerator.device))
        optimizer = torch.optim.AdamW(parameter_groups(model, optimization.weight_decay), lr=optimization.learning_rate)
        self.scheduler = make_scheduler(optimizer, optimization, self.total_steps)
        self.model = model if is_sharded else accelerator.prepare(model)
        self.optimizer = accelerator.prepare(optimizer)
        self.guard = Guard(optimization.max_skipped_steps, optimization.spike_factor)
        self.meter = self.new_meter({**self.loss_weights, **self.objectives}, tuple(self.objectives))
        self.step = self.epoch = self.first_step = 0
        self.left_out = {}  # (name, file) -> row of metrics.jsonl, of damaged examples
        self.position = data.train.start
        self.seconds, self.stopped, self.latest = 0.0, False, {}  # latest: last means of each split
        self.metrics = MetricsFile(self.output_dir / METRICS_FILE)
        self.filler = None

    @property
    def plain_model(self):
        return self.accelerator.unwrap_model(self.model)

    @property
    def final_model(self):
        """What is validated and saved in the end."""
        return self.ema.module if self.options.save_ema else self.plain_model

    def new_meter(self, loss_weights, objectives=()):
        return Meter(self.losses, loss_weights, self.data.modalities, self.accelerator.device, objectives)

    def steps_per_epoch(self):
        if self.options.max_train_steps:
            return None
        per_step = self.accelerator.num_processes * self.options.gradient_accumulation_steps
        return math.ceil(self.data.train.sampler.num_batches() / per_step)

    def on_main(self, write, *arguments):
        """Lets the main process write; if it cannot, all processes stop together, and none waits for it."""
        failed = [None]
        if self.accelerator.is_main_process:
            try:
                write(*arguments)
            except NotWrittenError as error:
                failed = [str(error)]
        if failed := broadcast_object_list(failed)[0]:
            raise NotWrittenError(failed)

    # beginning and resuming

    def settings(self):
        """What must be the same in the run that is resumed."""
        parts = {
            f"config.{k}": v for k, v in self.config.to_dict().items()
            if k.endswith(("_size", "_layers", "_neighbors", "_loss_weight", "_dropout_prob")) or k.startswith("use_")
        }  # fmt: skip
        parts |= dataclasses.asdict(self.arguments[2])
        parts |= {name: getattr(self.options, name) for name in SAME_WHEN_RESUMED}
        parts |= {"train_examples": self.data.num_train, "processes": self.accelerator.num_processes}
        return parts | self.data.identity | {"dtype": self.arguments[0].dtype}

    def begin(self, begun):
        """Makes the output folder, or goes on from a checkpoint; `begun` says whether there was a run in it before."""
        resumed = self.options.resume_from_checkpoint
        nothing_yet = resumed == "latest" and begun and not checkpoints(self.output_dir)
        if nothing_yet:
            self.accelerator.print(f"{self.output_dir}: no checkpoint was written yet; starting from the beginning.")
        elif resumed:
            self.load_checkpoint()
        if not self.is_finished():
            self.on_main(self.make_folder, bool(resumed))
        if self.accelerator.log_with and not self.is_finished():
            flat = {
                k: v for a in self.arguments for k, v in dataclasses.asdict(a).items() if isinstance(v, (int, float, str, bool))
            }
            name = {"name": self.options.run_name} if self.options.run_name else {}
            self.accelerator.init_trackers("atomica", config=flat, init_kwargs={"wandb": name, "trackio": name})

    def make_folder(self, resumed):
        """The output folder as it was at this step."""
        with writing(self.output_dir, 0):
            self.output_dir.mkdir(parents=True, exist_ok=True)
            clear_leftovers(self.output_dir)
            for later in checkpoints(self.output_dir):
                if number_of(later) > self.step or not resumed:
                    print(f"{later} is removed: this run is at step {self.step}.") if resumed else None
                    remove(later)
            (self.output_dir / RESULTS_FILE).unlink(missing_ok=True)
            for row in self.metrics.keep_until(self.step):
                if row["split"] not in (SKIPPED, LEFT_OUT):
                    self.latest[row["split"]] = means_of(row)

    def load_checkpoint(self):
        chosen = [None]
        if self.accelerator.is_main_process:
            chosen = [str(find_checkpoint(self.options.resume_from_checkpoint, self.output_dir))]
        folder = Path(broadcast_object_list(chosen)[0])
        state, tensors = read_checkpoint(folder, self.settings())
        load_whole(self.plain_model, tensors["model"])
        raw = self.optimizer.optimizer
        load_optimizer_tensors(self.plain_model, raw, tensors["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(tensors["ema"])
        self.scheduler.load_state_dict(state["scheduler"])
        for group, rate in zip(raw.param_groups, state["scheduler"]["_last_lr"]):
            group["lr"] = rate
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.guard.load(state["guard"])
        self.left_out = {(row["name"], row["file"]): row for row in state["left_out"]}
        rank = self.accelerator.process_index
        self.meter.load(state["meters"][rank])
        self.position = state["positions"][rank]
        self.step = self.first_step = state["step"]
        self.epoch, self.seconds = state["epoch"], state["seconds"]
        self.accelerator.print(f"Resuming from {folder}: step {self.step}, epoch {self.epoch}, position {self.position}.")

    def is_finished(self):
        return self.step >= self.total_steps and (self.output_dir / RESULTS_FILE).exists()

    def save_checkpoint(self):
        meters, positions = gather_object([self.meter.state()]), gather_object([self.position])
        scaler, model = self.accelerator.scaler, self.plain_model
        tensors = {"model": model.state_dict(), "optimizer": optimizer_tensors(model, self.optimizer.optimizer)}
        tensors = {name: whole_tensors(part) for name, part in tensors.items()}
        if not all(value.isfinite().all() for value in tensors["model"].values()):
            raise UsageError(f"Weights are not finite after step {self.step}; try a smaller --learning_rate.")
        if self.ema is not None:
            tensors["ema"] = self.ema.state_dict()
        state = {
            "step": self.step, "epoch": self.epoch, "positions": positions, "meters": meters, "seconds": self.seconds,
            "scheduler": self.scheduler.state_dict(), "scaler": scaler.state_dict() if scaler else None,
            "guard": self.guard.state(), "settings": self.settings(), "left_out": list(self.left_out.values()),
        }  # fmt: skip
        self.on_main(write_checkpoint, self.output_dir, tensors, state, self.options.save_total_limit)

    # training

    def train(self):
        self.started, self.watch = time.time(), Stopwatch()
        self.bar = tqdm(
            total=self.total_steps, initial=self.step, desc="Pretraining", disable=not self.accelerator.is_main_process,
            unit="step", dynamic_ncols=True,
        )  # fmt: skip
        self.model.train()
        with Termination(self.accelerator.is_main_process) as self.termination:
            while self.step < self.total_steps and not self.stopped:
                self.train_epoch()
        self.bar.close()

    def train_epoch(self):
        batches = self.data.train.batches(self.epoch, self.position)
        for window, more, waited in windows(batches, self.options.gradient_accumulation_steps):
            agreed = self.agree(window, more)
            norm = self.make_step(window, agreed) if agreed.batches else None
            for batch in window:
                self.position = self.data.train.after(self.position, batch)
            if agreed.batches:
                self.watch.add(window, waited)
                self.after_step(norm, agreed)
            if not agreed.more or self.stopped or self.step == self.total_steps:
                return

    def agree(self, window, more):
        """Adds up over processes what the losses of the next step are divided by."""
        names = (*self.losses, "complexes")
        weights = [sum(batch.weights[name] for batch in window) for name in self.losses]
        mine = [*weights, sum(batch.num_complexes for batch in window), len(window), more]
        mine += [sum(len(batch.left_out) for batch in window), self.termination.asked is not None]
        every = [mine]
        if self.accelerator.num_processes > 1:
            every = self.accelerator.gather(torch.tensor(every, dtype=torch.float64, device=self.accelerator.device)).tolist()
        *totals, batches, mores, left_out, stops = zip(*every)
        return Agreement(dict(zip(names, map(sum, totals))), int(max(batches)), any(mores), int(sum(left_out)), any(stops))

    def make_step(self, window, agreed):
        """One optimizer step over the batches of all processes; returns the norm of its gradient."""
        seen = []
        for number in range(agreed.batches):
            is_real = number < len(window) and window[number].num_complexes > 0
            batch = window[number] if is_real else self.filler_batch()
            batch = batch.to(self.accelerator.device, self.dtype)
            # so that dropout, too, does not depend on where a run was resumed
            place = [self.options.seed, self.step, self.accelerator.process_index, number]
            torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
            with nullcontext() if number + 1 == agreed.batches else self.accelerator.no_sync(self.model):
                loss, measures = self.loss(batch, agreed.totals, is_real)
                # DDP takes the mean over processes, and the loss is already divided by the counts of all
                self.accelerator.backward(loss * self.accelerator.num_processes)
            if is_real:
                seen.append((batch, measures))
        norm = float(whole(self.accelerator.clip_grad_norm_(self.model.parameters(), self.options.max_grad_norm)))
        reason = self.guard.reason_to_skip(norm, agreed.totals["complexes"] > 0)
        if reason is None:
            for batch, measures in seen:
                self.meter.add(measures, batch.modalities)
        else:
            self.optimizer.zero_grad()  # without gradients the step changes nothing, but the scaler of fp16 learns of it
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        if self.ema is not None and reason is None:
            self.ema.update_parameters(self.plain_model)
        self.step += 1
        if agreed.left_out:
            self.say_left_out(window, self.data.origin)
        if reason is not None:
            self.say_skipped(reason, norm, seen)
        return norm

    def filler_batch(self):
        """For a process that has no batch left: what it adds to the loss is zero, but it takes part."""
        if self.filler is None:
            self.filler = self.data.train.filler()
        return self.filler

    def loss(self, batch, totals, is_real):
        """-> (part of the loss of the step that this batch gives, measures of its complexes)."""
        with self.accelerator.autocast():
            output = self.model(**batch.inputs)
        values = self.complex_losses.losses(output, batch.inputs)
        measures = self.complex_losses.measures(output, batch.inputs, values)
        loss = 0.0 * output.pooler_output.sum()  # distributed training wants every parameter in the graph
        for name, weight in self.loss_weights.items():
            loss = loss + weight * values[name].sum() / max(totals[name], 1.0)
        vectors = output.pooler_output if is_real else output.pooler_output[:0]
        for name, weight in self.objectives.items():
            value = self.objective(name, batch.view, vectors)
            loss = loss + weight * value.sum() / max(totals["complexes"], 1.0)
            measures[f"{name}_loss"] = (value.detach(), torch.ones_like(value))
        return loss if is_real else 0.0 * loss, measures

    def objective(self, name, view, vectors):
        """InfoNCE or self-distillation between `vectors` and those of the other view of the same complexes."""
        with self.accelerator.autocast():
            if name == "contrastive":
                other = self.plain_model.atomica(**inputs_of(view)).pooler_output[: len(vectors)]
                return info_nce(vectors, other, self.options.contrastive_temperature)
            with torch.no_grad():
                teacher = self.ema.module.atomica(**inputs_of(view)).pooler_output[: len(vectors)]
            return disagreement(vectors, teacher)

    def total_of_each(self, measures):
        """Weighted sum of the losses of each complex; of masked blocks, the mean."""
        parts = [self.loss_weights[n] * measures[f"{n}_loss"][0] / measures[f"{n}_loss"][1].clamp_min(1) for n in self.losses]
        return torch.stack(parts).sum(0).detach()

    def say_skipped(self, reason, norm, seen):
        """Names the complexes that are to blame, or else those with the largest losses, and stops if this has no end."""
        mine = [pair for batch, measures in seen for pair in zip(batch.names, self.total_of_each(measures).tolist())]
        found = gather_object(mine)
        bad = [pair for pair in found if not math.isfinite(pair[1])]
        bad = bad or sorted(found, key=lambda pair: -pair[1])[:3]
        names = ", ".join(name for name, _ in bad[:10]) or "none was left"
        row = {"step": self.step, "epoch": self.epoch, "split": SKIPPED, "reason": reason, "gradient_norm": str(norm)}
        self.on_main(self.metrics.add, {**row, "examples": [name for name, _ in bad]})
        if self.accelerator.is_main_process:
            print(f"Step {self.step} was skipped: the gradient is {reason} (norm {norm:.3g}); see {names}.")
        if self.guard.exhausted:
            raise UsageError(
                f"{self.guard.in_a_row} steps in a row were skipped until step {self.step}, the last because its gradient was "
                f"{reason} (examples: {names}); {self.left_out_text()}; try a smaller --learning_rate, or "
                "--max_skipped_steps."
            )

    def left_out_text(self):
        if not self.left_out:
            return "no damaged examples"
        first = next(iter(self.left_out.values()))
        return (
            f"{len(self.left_out)} damaged examples were left out, first {first['name']} of {first['file']}: {first['reason']}"
        )

    def say_left_out(self, batches, origin):
        """Names the damaged examples of these batches of all processes, each the first time that it comes."""
        found = [
            {"name": name, "file": str(origin(index)), "reason": reason}
            for batch in batches
            for name, index, reason in batch.left_out
        ]
        new = {(row["name"], row["file"]): row for row in gather_object(found)}
        for row in [row for key, row in new.items() if key not in self.left_out]:
            self.left_out[row["name"], row["file"]] = row
            self.on_main(self.metrics.add, {"step": self.step, "epoch": self.epoch, "split": LEFT_OUT, **row})
            self.accelerator.print(f"{row['file']}: {row['name']} is left out: {row['reason']}.")

    def after_step(self, norm, agreed):
        """Logs, validates and saves where it is time to; then the place is that of the next step."""
        options, done = self.options, self.step == self.total_steps
        self.bar.update()
        if self.step % options.logging_steps == 0 or done:
            self.log_training(norm)
        at_epoch_end = not agreed.more or done
        if self.data.validation is not None and (
            (options.eval_steps and self.step % options.eval_steps == 0) or (at_epoch_end and not options.eval_steps) or done
        ):
            self.validate()
        if not agreed.more:
            self.epoch, self.position = self.epoch + 1, self.data.train.start
        self.stopped = agreed.stop and not done
        every = options.checkpointing_steps
        if (self.step % every == 0 if every else at_epoch_end) or self.stopped:
            now = time.time()
            self.seconds, self.started = self.seconds + now - self.started, now
            self.save_checkpoint()

    def log_training(self, norm):
        means = self.meter.means(self.accelerator)
        self.meter.reset()
        speed = self.watch.row(self.accelerator, self.total_steps - self.step)
        rate = self.optimizer.param_groups[0]["lr"]
        more = {"learning_rate": rate, "gradient_norm": norm if math.isfinite(norm) else None, "skipped": self.guard.skipped}
        self.log("train", means, {**more, **speed})
        self.bar.set_postfix_str(f"loss {means['loss']:.2f} {short(means)} {speed['complexes_per_second']:.0f} complexes/s")

    def log(self, split, means, more=None):
        self.latest[split] = means
        row = {"step": self.step, "epoch": self.epoch, "split": split, **means, **(more or {})}
        self.on_main(self.metrics.add, row)
        if self.accelerator.log_with:
            values = {f"{split}/{name}": value for name, value in row.items() if isinstance(value, float)}
            self.accelerator.log(values, step=self.step)

    @torch.no_grad()
    def validate(self):
        """The losses on the validation data, always with the same puzzles."""
        meter, model = self.new_meter(self.loss_weights), self.final_model
        model.eval()
        batches, damaged = self.data.validation.batches(0, self.data.validation.start), []
        rounds = range(self.data.validation.rounds)  # as many for every process, or a model that is shared out would wait
        for _ in tqdm(rounds, desc="Validating", disable=not self.accelerator.is_main_process, leave=False):
            found = next(batches, None)
            damaged += [found] if found is not None and found.left_out else []
            is_real = found is not None and found.num_complexes > 0
            batch = (found if is_real else self.filler_batch()).to(self.accelerator.device, self.dtype)
            with self.accelerator.autocast():
                output = model(**batch.inputs)
            if not is_real:
                continue
            values = self.complex_losses.losses(output, batch.inputs)
            meter.add(self.complex_losses.measures(output, batch.inputs, values), batch.modalities)
        self.model.train()
        self.say_left_out(damaged, lambda index: self.arguments[1].validation_file or "validation")
        means = meter.means(self.accelerator)
        self.log("validation", means)
        self.accelerator.print(f"step {self.step} validation: loss {means['loss']:.3f} {short(means)}")

    # the end

    def finish(self):
        """Saves the final model with its card, picture and results."""
        self.accelerator.wait_for_everyone()
        self.seconds += time.time() - self.started
        self.on_main(self.save_results, whole_tensors(self.final_model.state_dict()))
        if self.accelerator.is_main_process:
            has_picture = (self.output_dir / PICTURE_FILE).exists()
            where = f"; losses over steps in {self.output_dir / PICTURE_FILE}." if has_picture else "."
            print(f"Saved the model, processor and tokenizer in {self.output_dir}{where}")
            print(f"{self.left_out_text()}.") if self.left_out else None
            print("\n".join(table(self.latest)))
            self.push()

    def push(self):
        if self.accelerator.is_main_process and (self.options.push_to_hub or self.options.hub_dry_run):
            push(self.output_dir, self.options)

    def save_results(self, tensors):
        temporary = self.output_dir / "model.tmp"
        with writing(self.output_dir / "model.safetensors", num_bytes(tensors), temporary):
            self.save_model(temporary, tensors)
        results = {
            "steps": self.step, "new_steps": self.step - self.first_step, "skipped_steps": self.guard.skipped,
            "left_out_examples": len(self.left_out), **self.latest,
        }  # fmt: skip
        results = json.dumps(results, indent=1)
        with writing(self.output_dir / PICTURE_FILE, 200_000):
            plot_losses(self.metrics.rows(), self.output_dir / PICTURE_FILE)
        with writing(self.output_dir / RESULTS_FILE, len(results)):
            write_text(self.output_dir / RESULTS_FILE, results)

    def close(self):
        """Lets go of DDP before its process group: in the other order the two can wait for each other without end."""
        self.accelerator.wait_for_everyone()
        self.model = self.plain_model
        self.accelerator.free_memory()
        gc.collect()
        self.accelerator.end_training()

    def save_model(self, temporary, tensors):
        shutil.rmtree(temporary, ignore_errors=True)
        model = self.final_model
        if type(model) is not AtomicaForPreTraining:  # fully_shard makes a class of its own, which the saved folder would name
            model = AtomicaForPreTraining(self.config).to(self.dtype)
            model.load_state_dict(tensors)
        model.save_pretrained(temporary)
        self.processor.save_pretrained(temporary)
        counts = {
            "train": self.data.num_train, "validation": self.data.num_validation, "steps": self.step,
            "processes": self.accelerator.num_processes, "device": str(self.accelerator.device.type),
            "skipped": self.guard.skipped,
        }  # fmt: skip
        write_text(temporary / "README.md", model_card(self.arguments, self.final_model, counts, self.latest, self.seconds))
        for file in temporary.iterdir():
            os.replace(file, self.output_dir / file.name)
        temporary.rmdir()


def inputs_of(view):
    """What `AtomicaModel` takes, of a perturbed batch."""
    names = ("input_ids", "attention_mask", "token_type_ids", "atom_ids", "atom_to_block", "positions", "modality_ids",
             "block_features", "atom_charges", "graph")  # fmt: skip
    return {name: view[name] for name in names if name in view}


def files_to_upload(output_dir):
    """Names and sizes in bytes of what is uploaded of a finished run: the files that open the model, its card and what the card
    is made of; no checkpoints, data or logs."""
    found = [path for path in sorted(Path(output_dir).iterdir()) if path.is_file()]
    return {path.name: path.stat().st_size for path in found if any(fnmatch(path.name, pattern) for pattern in UPLOADED)}


def push(output_dir, optimization):
    """Uploads the final model, or on request only says what that would be."""
    files = files_to_upload(output_dir)
    name = optimization.hub_model_id or Path(optimization.output_dir).name
    if optimization.hub_dry_run:
        print(f"--push_to_hub would upload {len(files)} files, {sum(files.values()):,} bytes, to {name}:")
        print("\n".join(f"{size:>15,}  {file}" for file, size in files.items()))
        return
    from huggingface_hub import HfApi

    api = HfApi()
    repository = api.create_repo(name, private=optimization.hub_private_repo or None, exist_ok=True).repo_id
    api.upload_folder(
        repo_id=repository, folder_path=str(output_dir), allow_patterns=list(files),
        commit_message="Upload model",
    )  # fmt: skip
    print(f"Uploaded to {repository}.")


def main(argv=None):
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv, __doc__)
    model_arguments, data_arguments, puzzle, optimization = arguments
    check_output(optimization)
    output_dir = Path(optimization.output_dir)
    begun = output_dir.is_dir()
    accelerator, is_sharded = make_accelerator(optimization)
    set_seed(optimization.seed)
    processor = load_processor(model_arguments.processor_name_or_path or model_arguments.model_name_or_path or str(ROOT))
    model = load_model(model_arguments, puzzle.task, processor)
    read_all_atoms(processor, model_arguments.keep_hydrogens, model.config.use_atom_charges)
    collators = make_collators(puzzle, data_arguments, optimization, model.config)
    if model_arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    data = load_training_data(
        data_arguments, optimization.seed, processor, model.config, accelerator, output_dir / "data", collators
    )
    run = Pretraining(accelerator, arguments, model, processor, data, is_sharded)
    run.begin(begun)
    if run.is_finished():
        accelerator.print(f"Nothing left to train: {run.step} of {run.total_steps} steps are done.")
        run.push()
    else:
        run.train()
        if run.stopped:
            accelerator.print(f"Stopped at step {run.step}, with a checkpoint; go on with --resume_from_checkpoint latest.")
        else:
            run.finish()
    run.close()


if __name__ == "__main__":
    run_script(
        main, UsageError, stopped="stopped; --resume_from_checkpoint latest goes on from the last checkpoint, if there is one."
    )
