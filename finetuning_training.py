# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""One run of the Trainer: its arguments, checkpoints, losses and metrics, and what the trained model predicts."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import EarlyStoppingCallback, Trainer

from atomica_hf import AtomicaCollator, StructureError
from finetuning_data import LabelledExamples, check_model
from finetuning_models import (
    GradualUnfreezing,
    load_config,
    make_model,
    pooling_of,
    scale_head,
    target_scale,
)
from finetuning_report import stack
from metrics_atomica import (
    CLASS_METRICS,
    CLASSES,
    LOWER_IS_BETTER,
    METRICS,
    MULTI_LABEL,
    PRIMARY,
    REGRESSION,
    REGRESSION_METRICS,
    scores,
)
from noisy_nodes import (
    DenoisingCollator,
    EpochOfNoise,
    NoisyExamples,
    attach_denoising_head,
    detach_denoising_head,
)
from splitting import SETS


def class_weights(task):
    """Balanced weights: of each class, or of the positives of each task; from the training set."""
    values, _ = task.targets(task.rows("train"))
    if task.problem == CLASSES:
        counts = np.bincount(values[~np.isnan(values)].astype(np.int64), minlength=task.labels.num_labels)
        return torch.tensor(counts.sum() / (len(counts) * np.maximum(counts, 1)), dtype=torch.float32)
    positive, negative = (values == 1).sum(0), (values == 0).sum(0)
    return torch.tensor(np.where(positive * negative > 0, negative / np.maximum(positive, 1), 1.0), dtype=torch.float32)


def weighted_loss(logits, labels, weights, problem):
    """Weighted mean over the labels that are there; shapes as for the model."""
    weights = weights.to(logits)
    if problem == CLASSES:
        classes = torch.where(labels.isnan(), -100, labels).long().flatten() if labels.is_floating_point() else labels.flatten()
        total = F.cross_entropy(logits.flatten(0, -2), classes, weights, reduction="sum")
        return total / weights[classes[classes >= 0]].sum().clamp_min(1e-6)
    there = labels >= 0
    losses = F.binary_cross_entropy_with_logits(logits, labels.clamp_min(0).nan_to_num(), pos_weight=weights, reduction="none")
    return (losses * there).sum() / there.sum().clamp_min(1)


class FinetuningTrainer(Trainer):
    """The Trainer with balanced classes, a loss of noise, and an encoder that stays as it is if it is frozen.

    Args:
        weights (`torch.Tensor`): of classes; see `class_weights`.
        frozen (`bool`): whether the encoder is frozen; its dropout is then off.
        noise_weight (`float`): of the loss of a denoising head. It is logged as `noise_loss`, that of predicting nothing as
            `noise_baseline`; `loss` stays that of the labels.
    """

    def __init__(self, *args, weights=None, frozen=False, noise_weight=0.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.weights, self.frozen, self.noise_weight = weights, frozen, noise_weight
        self.noise_losses = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        plain = self.accelerator.unwrap_model(model)
        if self.frozen:
            plain.atomica.eval()
        outputs = model(**inputs)
        loss = outputs.loss
        if self.weights is not None:
            weighted = weighted_loss(outputs.logits, inputs["labels"], self.weights, plain.config.problem_type)
            loss = weighted + 0.0 * loss  # distributed training wants every parameter in the graph
        if "noise_loss" in outputs:
            self.noise_losses.append(torch.stack([outputs["noise_loss"], outputs["noise_baseline"]]).detach())
            loss = loss + self.noise_weight * outputs["noise_loss"]
        return (loss, outputs) if return_outputs else loss

    def log(self, logs, *args, **kwargs):
        if "loss" in logs and self.noise_losses:
            means = self.accelerator.gather(torch.stack(self.noise_losses).mean(0)).view(-1, 2).mean(0)
            logs["noise_loss"], logs["noise_baseline"] = means.tolist()
            logs["loss"] -= self.noise_weight * logs["noise_loss"]
            self.noise_losses.clear()
        super().log(logs, *args, **kwargs)

    def create_model_card(self, *args, **kwargs):
        """The card is written at the end of the run, with its numbers."""


def to_predictions(logits, problem, scale=None):
    """Logits `(..., num_labels)` -> predictions in the units of the labels, or probabilities."""
    logits = torch.as_tensor(np.asarray(logits)).double()
    if problem == CLASSES:
        return logits.softmax(-1).numpy()
    if problem == MULTI_LABEL:
        return logits.sigmoid().numpy()
    return logits.numpy() if scale is None else logits.numpy() * scale[1] + scale[0]


def average_by_row(predictions, dataset):
    """Predictions of examples -> row -> their mean over the examples of the row. Those of blocks lose their padding."""
    found = {}
    for i, (row, item) in enumerate(dataset.items):
        value = predictions[i]
        if value.ndim == 2:
            value = value[: len(dataset.store.example(item)["input_ids"])]
        found.setdefault(row, []).append(value)
    return {row: np.mean([v for v in values if v.shape == values[0].shape], axis=0) for row, values in found.items()}


def validation_metrics(task, dataset, scale):
    """The function that the Trainer calls after each validation."""
    rows, metric = task.rows("validation"), METRICS[task.problem]()
    targets, _ = task.targets(rows)

    def compute(found):
        predictions = average_by_row(to_predictions(found.predictions, task.problem, scale), dataset)
        result = metric.compute(predictions=stack(predictions, rows), references=targets)
        return {name: value for name, value in result.items() if name != "num_tasks"}

    return compute


def best_metric(task):
    """Name of the metric that chooses the best model: the loss where the usual one is not defined on the validation set."""
    name = PRIMARY[task.problem]
    targets, _ = task.targets(task.rows("validation"))
    shape = (len(targets), task.labels.num_labels)
    value = scores(task.problem, np.full(shape, 0.5), targets)[name]
    return "loss" if np.isnan(value) else name


def training_arguments(options, task, seed, folder):
    """Arguments of the Trainer for one seed."""
    first = seed == options.training.seed
    push = options.training.push_to_hub and first
    changes = {"output_dir": str(folder), "seed": seed, "push_to_hub": push, "hub_strategy": "end", "label_names": ["labels"]}
    arguments = dataclasses.replace(options.training, **changes)
    metric = best_metric(task) if arguments.metric_for_best_model == "auto" else arguments.metric_for_best_model
    metric = metric.removeprefix("eval_")
    known = ("loss", *(REGRESSION_METRICS if task.problem == REGRESSION else CLASS_METRICS))
    if metric not in known:
        raise StructureError("usage", f"--metric_for_best_model is {metric!r}, expected one of {', '.join(known)}.")
    arguments.metric_for_best_model, arguments.greater_is_better = metric, metric not in LOWER_IS_BETTER
    if options.model.strategy == "gradual":
        arguments.ddp_find_unused_parameters = True
    return arguments


def last_checkpoint(folder):
    """The last checkpoint in a folder that was written to its end; None if there is none."""
    found = []
    for path in Path(folder).glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))  # the Trainer writes it last
            found.append((int(path.name.removeprefix("checkpoint-")), str(path)))
        except (OSError, ValueError):
            continue
    return max(found)[1] if found else None


def check_checkpoint(checkpoint, config):
    """Raises `StructureError` if the model of a checkpoint is not the one that is to be trained on."""
    before, now = load_config(checkpoint).to_dict(), config.to_dict()
    unlike = [name for name in now if name in before and before[name] != now[name]]
    unlike = [name for name in unlike if name not in ("architectures", "dtype", "transformers_version", "_name_or_path")]
    if unlike:
        differences = "; ".join(f"has {name} {before[name]!r}, expected {now[name]!r}" for name in unlike)
        raise StructureError("other_model", f"{checkpoint}: {differences}. A run can be resumed only as it was started.")


def checkpoint_of(options, folder):
    """Checkpoint to resume from, or None.

    Raises:
        `StructureError`: if there is none, or one that would be overwritten.
    """
    given, last = options.training.resume_from_checkpoint, last_checkpoint(folder)
    if given is None or str(given).lower() == "false":
        if last is not None:
            raise StructureError(
                "usage",
                f"{folder} has checkpoints of an earlier run: continue it with --resume_from_checkpoint latest, or name "
                "another folder.",
            )
        return None
    if str(given).lower() in ("latest", "true"):
        return last
    if not (Path(given) / "trainer_state.json").exists():
        raise StructureError("usage", f"--resume_from_checkpoint {given}: no checkpoint there.")
    return str(given)


def make_trainer(options, task, extra, processor, seed, folder, **changes):
    """(Trainer, scale of the targets) of one seed.

    Args:
        extra: the function of `pseudo_labels`, or None.
        changes: of the training arguments, for a search: the Trainer then makes its model anew for each trial.
    """
    pooling = pooling_of(options, len(processor.tokenizer), task.labels)
    scale = target_scale(task, "graph" if task.labels.of_blocks else pooling)
    frozen, noise_weight = options.model.strategy == "freeze", options.run.noisy_nodes_weight

    def make():
        model = make_model(options, task.labels, len(processor.tokenizer), seed, scale)
        model.atomica.requires_grad_(not frozen)
        return attach_denoising_head(model) if noise_weight else model

    model = make()
    check_model(task.encoded, model.config, task.source.path)
    values = training_labels(task.labels, scale)
    sets = [LabelledExamples(task.encoded, task.rows(part), model.config, values, task.labels.of_blocks) for part in SETS[:2]]
    if extra is not None:
        sets[0] = torch.utils.data.ConcatDataset([sets[0], extra(model.config, scale)])
    arguments = dataclasses.replace(training_arguments(options, task, seed, folder), **changes)
    callbacks = []
    if options.run.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(options.run.early_stopping_patience))
    if options.model.strategy == "gradual":
        callbacks.append(GradualUnfreezing(options.model.unfreeze_every))
    if options.run.coordinate_noise:
        sets[0] = NoisyExamples(sets[0], options.run.coordinate_noise, seed)
        callbacks.append(EpochOfNoise(sets[0]))
    weights = class_weights(task) if options.run.class_weights and task.problem != REGRESSION else None
    trainer = FinetuningTrainer(
        None if changes else model, arguments, DenoisingCollator() if noise_weight else AtomicaCollator(), sets[0], sets[1],
        model_init=make if changes else None, compute_metrics=validation_metrics(task, sets[1], scale), callbacks=callbacks,
        weights=weights, frozen=frozen, noise_weight=noise_weight,
    )  # fmt: skip
    return trainer, scale


def training_labels(labels, scale):
    """Labels as the model learns them: standardised, if they are numbers."""
    if scale is None:
        return labels.values
    mean, std = scale
    if not labels.of_blocks:
        return ((labels.values - mean) / std).astype(np.float32)
    number = lambda value: (value - float(mean[0])) / float(std[0])
    plain = lambda value: {k: number(v) for k, v in value.items()} if isinstance(value, dict) else [number(v) for v in value]
    return [None if value is None else plain(value) for value in labels.values]


def train_one(options, task, extra, processor, seed, folder):
    """Trains with one seed, saves the model in `folder`, and predicts every row. Returns (predictions by row, trainer)."""
    trainer, scale = make_trainer(options, task, extra, processor, seed, folder)
    checkpoint = checkpoint_of(options, folder)
    if checkpoint is not None:
        check_checkpoint(checkpoint, trainer.accelerator.unwrap_model(trainer.model).config)
    trainer.train(resume_from_checkpoint=checkpoint)
    model = detach_denoising_head(trainer.accelerator.unwrap_model(trainer.model))
    model.requires_grad_(True)
    if scale is not None:
        scale_head(model, *scale)
    predictions = predict_rows(trainer, task.encoded, task.problem)
    if trainer.is_world_process_zero():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return predictions, trainer


def predict_rows(trainer, encoded, problem):
    """Row -> prediction of a trained model for all rows that have examples.

    Raises:
        `StructureError`: if they are not finite.
    """
    rows = [row for row, items in enumerate(encoded.items) if items]
    dataset = LabelledExamples(encoded, rows, trainer.accelerator.unwrap_model(trainer.model).config)
    trainer.compute_metrics = None
    logits = trainer.predict(dataset).predictions
    found = average_by_row(to_predictions(logits, problem), dataset)
    if not all(np.isfinite(value).all() for value in found.values()):
        raise StructureError(
            "not_finite", "Predictions are not finite numbers: training diverged (try a smaller --learning_rate)."
        )
    return found


def mean_of(members):
    """Predictions by row of several models -> their means."""
    return {row: np.mean([member[row] for member in members], axis=0) for row in members[0]}
