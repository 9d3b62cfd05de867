# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""How the weights change: groups of parameters, the course of the learning rate, the running mean of the weights, and the
guard that skips what would spoil them."""

import math
import statistics
from collections import deque

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import get_scheduler

from pretraining_arguments import UsageError


NOT_FINITE, SPIKE, WITHOUT_EXAMPLES = "not finite", "spike", "without examples"
REMEMBERED = 50  # gradient norms
LEAST_REMEMBERED = 10  # before a spike can be told


def parameter_groups(model, weight_decay):
    """Groups for AdamW: weight decay on matrices, none on biases, scales, norms and embeddings."""
    spared = set()
    for module in model.modules():
        if isinstance(module, nn.Embedding) or "Norm" in type(module).__name__:
            spared.update(id(parameter) for parameter in module.parameters(recurse=False))
    decay, no_decay = [], []
    for name, parameter in model.named_parameters():
        is_bias = name.rsplit(".", 1)[-1].endswith("bias")
        (no_decay if id(parameter) in spared or is_bias or parameter.ndim < 2 else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]


def make_scheduler(optimizer, arguments, total_steps):
    """Learning rate per optimizer step; cosines and the decay of `warmup_stable_decay` end at the final learning rate instead
    of zero."""
    kind, floor = arguments.lr_scheduler_type, arguments.final_learning_rate / arguments.learning_rate
    warmup = arguments.num_warmup_steps
    if kind == "warmup_stable_decay":
        decay = arguments.num_decay_steps or max(1, total_steps // 10)
        if warmup + decay > total_steps:
            raise UsageError(f"{warmup} steps of warm-up and {decay} of decay do not fit into {total_steps} steps.")
        options = {"num_decay_steps": decay, "min_lr_ratio": floor}
        return get_scheduler(kind, optimizer, warmup, total_steps, scheduler_specific_kwargs=options)
    if not kind.startswith("cosine"):
        return get_scheduler(kind, optimizer, warmup, total_steps)
    cycles = arguments.num_cycles if kind == "cosine_with_restarts" else 1

    def factor(step):
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if arguments.cycle_steps:
            within = (step - warmup) % arguments.cycle_steps / arguments.cycle_steps
        else:
            progress = (step - warmup) / max(1, total_steps - warmup)
            within = (progress * cycles) % 1.0 if progress < 1 else 1.0
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * within))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def make_ema(model, decay):
    """A copy of the model whose weights are the running mean: mean <- decay mean + (1 - decay) weights, beginning with the
    weights after the first step."""
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)).eval()
    return ema.requires_grad_(False)


class Guard:
    """Tells from the norm of a gradient whether a step may be made, and stops a run that only skips.

    Args:
        most: steps that may be skipped in a row.
        spike_factor: a norm of this many times the median of the last ones is a spike; None for no such test.
    """

    def __init__(self, most, spike_factor=None):
        self.most, self.spike_factor = most, spike_factor
        self.norms, self.skipped, self.in_a_row = deque(maxlen=REMEMBERED), 0, 0

    def reason_to_skip(self, norm, has_examples=True):
        """None, `NOT_FINITE`, `SPIKE` or `WITHOUT_EXAMPLES`; to be asked once a step."""
        reason = None
        if not has_examples:
            reason = WITHOUT_EXAMPLES
        elif not math.isfinite(norm):
            reason = NOT_FINITE
        elif self.spike_factor and len(self.norms) >= LEAST_REMEMBERED:
            reason = SPIKE if norm > self.spike_factor * statistics.median(self.norms) else None
        if reason is None:
            self.norms.append(norm)
            self.in_a_row = 0
        else:
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        return reason

    @property
    def exhausted(self):
        return self.in_a_row >= self.most

    def state(self):
        return {"norms": list(self.norms), "skipped": self.skipped, "in_a_row": self.in_a_row}

    def load(self, state):
        self.norms.extend(state["norms"])
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
