# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""What a pretraining run says of itself: means beside those of guessing, speed, `metrics.jsonl`, a table, a picture, a card."""

import dataclasses
import json
import math
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch

from atomic_files import save_figure, write_text
from model_card import front_matter
from original_data import MODALITIES
from pretraining_checkpoints import writing
from pretraining_losses import LOSSES, TOP


UNITS = {"atom": "angstrom", "translation": "angstrom", "torsion": "degrees", "rotation": "degrees"}
TIMES = ("complexes_per_second", "atoms_per_second", "waiting", "memory_gib", "eta_seconds")


# means ------------------------------------------------------------------------------------------------------------------


def measure_names(losses):
    """Of what `ComplexLosses.measures` gives for these losses, in a fixed order."""
    names = []
    for name in losses:
        kinds = ["loss", "baseline", "error", "error_baseline"]
        if name == "mask":
            kinds = ["loss", "baseline", *(f"top{top}{end}" for top in TOP for end in ("", "_baseline"))]
        if name == "composition":
            kinds = ["loss", "baseline"]
        names += [f"{name}_{kind}" for kind in kinds]
    return names


class Meter:
    """Means over some batches of all processes, each weighted by what it is taken over, complexes or masked blocks, so that
    batches without a puzzle do not count; losses also for each modality."""

    def __init__(self, losses, loss_weights, modalities, device, objectives=()):
        self.losses, self.loss_weights, self.modalities = losses, loss_weights, list(modalities)
        self.names = [*measure_names(losses), *(f"{name}_loss" for name in objectives)]
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.totals = torch.zeros(2, len(self.names), 1 + len(self.modalities), dtype=dtype, device=device)

    def reset(self):
        self.totals.zero_()

    @torch.no_grad()
    def add(self, measures, modalities):
        """`measures`: name -> (`(batch,)` sums, `(batch,)` weights); `modalities`: `(batch,)`."""
        kinds = torch.tensor(self.modalities, device=modalities.device)
        member = torch.cat([torch.ones_like(modalities[:, None]), modalities[:, None] == kinds], dim=1).to(self.totals.dtype)
        both = [torch.stack([measures[name][part].to(self.totals.dtype) for name in self.names]) for part in (0, 1)]
        self.totals += torch.stack(both) @ member

    def means(self, accelerator):
        """Of what all processes have added."""
        sums, weights = accelerator.reduce(self.totals.clone(), reduction="sum").tolist()
        means = {name: value[0] / max(weight[0], 1.0) for name, value, weight in zip(self.names, sums, weights)}
        parts = [self.loss_weights[name] * means[f"{name}_loss"] for name in self.loss_weights]
        means = {"loss": sum(parts), **means}
        if "mask" in self.losses:
            for end, of in (("", "loss"), ("_baseline", "baseline")):
                means[f"mask_perplexity{end}"] = math.exp(min(means[f"mask_{of}"], 700.0))
        for column, kind in enumerate(self.modalities, 1):
            for name, value, weight in zip(self.names, sums, weights):
                if name.endswith("_loss") and weight[column]:
                    means[f"{name}/{modality_name(kind)}"] = value[column] / weight[column]
        return means

    def state(self):
        return self.totals.tolist()

    def load(self, state):
        self.totals.copy_(torch.tensor(state, dtype=self.totals.dtype))


def modality_name(kind):
    return MODALITIES[kind] if 0 <= kind < len(MODALITIES) else "none" if kind < 0 else str(kind)


class Stopwatch:
    """Speed since the last `row`: complexes, atoms, and time in which the model waited for data."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.started, self.complexes, self.atoms, self.waited, self.steps = time.perf_counter(), 0, 0, 0.0, 0

    def add(self, batches, waited):
        self.steps += 1
        self.waited += waited
        for batch in batches:
            self.complexes += batch.num_complexes
            self.atoms += batch.num_atoms

    def row(self, accelerator, steps_left):
        seconds = time.perf_counter() - self.started
        mine = [self.complexes, self.atoms, self.waited, memory_gib(accelerator.device)]
        every = accelerator.gather(torch.tensor([mine], dtype=torch.float32, device=accelerator.device)).tolist()
        complexes, atoms, waited, memory = zip(*every)
        row = {
            "complexes_per_second": sum(complexes) / seconds, "atoms_per_second": sum(atoms) / seconds,
            "waiting": max(waited) / seconds, "memory_gib": max(memory),
            "eta_seconds": steps_left * seconds / max(1, self.steps),
        }  # fmt: skip
        self.reset()
        return row


def memory_gib(device):
    """Largest memory so far, of the GPU where there is one, else of the process (not known on Windows: 0)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024) / 2**30


# words and files --------------------------------------------------------------------------------------------------------


def short(means):
    """`torsion 3.1/3.9`: every loss beside its baseline."""
    names = [name for name in LOSSES if means.get(f"{name}_baseline")]  # without a baseline there was nothing to predict
    parts = [f"{name} {means[f'{name}_loss']:.2f}/{means[f'{name}_baseline']:.2f}" for name in names]
    return " ".join(parts)


def measured(means):
    """(what, unit, value, value of a guess) of everything that there was to predict."""
    rows = []
    for name in LOSSES:
        if not means.get(f"{name}_baseline"):
            continue
        found = [(f"{name} loss", "", "loss", "baseline")]
        if name == "mask":
            found += [("masked blocks: perplexity", "", "perplexity", "perplexity_baseline")]
            found += [(f"masked blocks: among the first {top}", "share", f"top{top}", f"top{top}_baseline") for top in TOP]
        elif name in UNITS:
            what = "angle to the axis of rotation" if name == "rotation" else f"{name} error"
            found += [(what, UNITS[name], "error", "error_baseline")]
        rows += [(what, unit, means[f"{name}_{a}"], means[f"{name}_{b}"]) for what, unit, a, b in found]
    return rows


def table(latest):
    """What was measured at the end, of every split, as lines."""
    lines = []
    for split, means in latest.items():
        lines.append(f"{split}: loss {means['loss']:.3f}; below, what is predicted / predict nothing")
        lines += [f"  {what:<38} {value:>9.3f} / {guess:<9.3f} {unit}".rstrip() for what, unit, value, guess in measured(means)]
    return lines


class MetricsFile:
    """`metrics.jsonl`, a line for every mean that was taken."""

    def __init__(self, path):
        self.path = Path(path)

    def rows(self):
        """A line that a kill cut short is passed over."""
        rows = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else ():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows

    def keep_until(self, step):
        """Drops what came after a step, and returns the rest."""
        kept = [row for row in self.rows() if row["step"] <= step] if step else []
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        return kept

    def add(self, row):
        """Writes one more line, or on a full disk none of it.

        Raises:
            `NotWrittenError`: if it cannot be written.
        """
        line = f"{json.dumps(row)}\n".encode()
        before = self.path.stat().st_size if self.path.exists() else 0
        with writing(self.path, len(line)):
            try:
                with open(self.path, "ab") as stream:
                    stream.write(line)
            except OSError:
                if self.path.exists():
                    os.truncate(self.path, before)
                raise


def means_of(row):
    """What was measured, of a row of `metrics.jsonl`."""
    other = ("step", "epoch", "split", "learning_rate", "gradient_norm", "skipped", *TIMES)
    return {name: value for name, value in row.items() if name not in other}


def plot_losses(rows, picture):
    """Curves of `metrics.jsonl`, every loss with its baseline, as a picture; nothing without matplotlib. The lines are running
    means over a tenth of the run, behind them the means of every few steps."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return None
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
        held_out = [row for row in rows if row["split"] == "validation" and row.get(f"{name}_baseline")]
        if held_out:
            axis.plot(
                [r["step"] for r in held_out], [r[f"{name}_loss"] for r in held_out], "o-", label="validation", color="#d62728"
            )
        axis.set(title=f"{name} loss", xlabel="optimizer step")
        axis.legend(fontsize=8)
    save_figure(figure, picture)
    return picture


# the card ---------------------------------------------------------------------------------------------------------------


CARD = """\

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

Each beside that of predicting nothing (for masked blocks: of knowing only how frequent each is).

| loss | model | predict nothing | unit | on |
|---|---|---|---|---|
{rows}

## Training

{steps} optimizer steps ({skipped} skipped), {seconds:.0f} s on {processes} process(es) of {machine} ({device}), torch {torch}.

```json
{options}
```

The mathematics of the model is that of ATOMICA (Fang et al., bioRxiv 2025.04.02.646906).
"""


def model_card(arguments, model, counts, latest, seconds):
    """Text of the model card: what was run, and what came out."""
    model_arguments, data, puzzle, optimization = arguments
    rows = [
        f"| {what.removesuffix(' loss')} | {value:.3f} | {guess:.3f} | {unit} | {split} |"
        for split, means in latest.items()
        for what, unit, value, guess in measured(means)
    ]
    options = {name: value for part in arguments for name, value in dataclasses.asdict(part).items()}
    options["train_file"] = [Path(path).name for path in data.train_file]
    for name in ("output_dir", "validation_file", "resume_from_checkpoint", "model_name_or_path", "processor_name_or_path"):
        options[name] = options[name] and Path(options[name]).name
    return front_matter(base_model=model_arguments.model_name_or_path) + CARD.format(
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
