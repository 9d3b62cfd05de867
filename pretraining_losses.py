# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Losses and errors of single complexes, so that they can be summed over accumulated batches, processes and kinds of complex
before anything is divided; and two objectives on whole complexes, InfoNCE and self-distillation."""

import math

import torch
import torch.nn.functional as F

from atomica_hf.configuration_atomica import NUM_SPECIAL_BLOCKS
from atomica_hf.modeling_atomica import composition


LOSSES = ("atom", "torsion", "translation", "rotation", "mask", "composition")
OBJECTIVES = ("contrastive", "distillation")
TOP = (1, 5)


def losses_of(config):
    """Names of the losses that a model of this configuration has."""
    used = {
        "atom": config.use_atom_noise, "torsion": config.use_torsion_noise, "translation": config.use_translation_noise,
        "rotation": config.use_rotation_noise, "mask": config.use_masking,
        "composition": config.use_composition,
    }  # fmt: skip
    return tuple(name for name in LOSSES if used[name])


def puzzle_weights(inputs, names):
    """What each loss is a mean over: loss -> `(batch,)`, 1 or 0 for each complex, or how many of its blocks are masked."""
    moved = inputs["perturbed_segment"] >= 0
    rigid = moved & (inputs["token_type_ids"].amax(1) > 0)
    weights = {}
    for name in names:
        if name == "mask":
            weights[name] = (inputs["labels"] >= 0).sum(1)
        elif name == "composition":
            hidden = inputs["labels"] >= 0 if "labels" in inputs else False
            weights[name] = ((inputs["input_ids"] >= NUM_SPECIAL_BLOCKS) | hidden).any(1)
        elif name == "torsion":
            weights[name] = (inputs["torsion_index"][..., 0] >= 0).any(1)
        else:
            weights[name] = moved if name == "atom" else rigid
    return weights


def _segment_mask(inputs):
    """`(batch, num_atoms)`: the atoms of the perturbed segment."""
    blocks = inputs["atom_to_block"].clamp_min(0)
    of_atom = inputs["token_type_ids"].gather(1, blocks)
    return (inputs["atom_to_block"] >= 0) & (of_atom == inputs["perturbed_segment"][:, None])


def _mean(values, mask):
    return (values * mask).sum(1) / mask.sum(1).clamp_min(1)


def _wide(tensor):
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class ComplexLosses:
    """The losses of `AtomicaForPreTraining` complex by complex, and how far off its predictions are.

    Args:
        names: losses, of `LOSSES`.
        torsion_noise: standard deviation of a bond's turn, radian.
        log_frequencies: `(num_classes,)`, log share of every block token: the guess of who sees nothing.
    """

    def __init__(self, names, torsion_noise, log_frequencies):
        self.names, self.torsion_noise, self.log_frequencies = names, torsion_noise, log_frequencies
        self.most_frequent = log_frequencies.argsort(descending=True)

    def losses(self, output, inputs):
        """-> loss: `(batch,)`, the mean over what was moved in a complex; of masked blocks, the sum. Zero where nothing was."""
        weights = puzzle_weights(inputs, self.names)
        return {name: getattr(self, f"_{name}")(output, inputs) * (weights[name] > 0) for name in self.names}

    def _atom(self, output, inputs, scale=1.0):
        prediction = _wide(output.atom_prediction) * scale
        error = inputs["atom_noise_sigma"][:, None, None] * prediction - inputs["atom_noise_labels"]
        return _mean(error.pow(2).sum(-1), _segment_mask(inputs))

    def _torsion(self, output, inputs, scale=1.0):
        turned = inputs["torsion_index"][..., 0] >= 0
        return _mean((_wide(output.torsion_prediction) * scale - inputs["torsion_labels"]).pow(2), turned)

    def _translation(self, output, inputs, scale=1.0):
        prediction = _wide(output.translation_prediction) * scale
        return (inputs["translation_sigma"][:, None] * prediction + inputs["translation_labels"]).pow(2).mean(-1)

    def _rotation(self, output, inputs, scale=1.0):
        return (_wide(output.rotation_prediction) * scale - inputs["rotation_labels"]).pow(2).mean(-1)

    def _mask(self, output, inputs):
        classes = torch.where(inputs["labels"] >= 0, inputs["labels"] - NUM_SPECIAL_BLOCKS, -100)
        return F.cross_entropy(_wide(output.prediction_logits).transpose(1, 2), classes, reduction="none").sum(1)

    def _composition(self, output, inputs):
        logits = _wide(output.composition_logits)
        return F.cross_entropy(logits, self._shares(inputs, logits), reduction="none")

    def _shares(self, inputs, logits):
        return composition(inputs["input_ids"], inputs.get("labels"), logits.shape[1] + NUM_SPECIAL_BLOCKS).to(logits.dtype)

    @torch.no_grad()
    def measures(self, output, inputs, losses):
        """Losses, baselines, and errors in units that mean something: name -> (`(batch,)` sums, `(batch,)` weights).

        A predicted score s of a Gaussian of width sigma says that what was added is -sigma^2 s (Tweedie). `translation_error`
        and `atom_error` (root mean square over a segment) are in angstrom, `torsion_error` in degrees, beside what was added.
        `rotation_error` is the angle between the predicted and the true rotation vector, in degrees; that of a guess is 90. Of
        masked blocks, `mask_top1` and `mask_top5` are shares, beside those of always naming the most frequent.
        """
        weights = puzzle_weights(inputs, self.names)
        found = {f"{name}_loss": (losses[name], weights[name]) for name in self.names}
        for name in self.names:
            add = lambda kind, values, name=name: found.update(
                {f"{name}_{kind}": (values * (weights[name] > 0), weights[name])}
            )
            if name == "mask":
                self._add_mask(add, output, inputs)
                continue
            if name == "composition":
                logits = _wide(output.composition_logits)
                add("baseline", -(self._shares(inputs, logits) * self.log_frequencies.to(logits)).sum(1))
                continue
            add("baseline", getattr(self, f"_{name}")(output, inputs, scale=0.0))
            if name in ("atom", "translation"):
                sigma = inputs["atom_noise_sigma" if name == "atom" else "translation_sigma"]
                factor = 1.0 if name == "atom" else 3.0  # the translation loss is a mean over three coordinates
                add("error", sigma * (factor * losses[name]).sqrt())
                add("error_baseline", sigma * (factor * found[f"{name}_baseline"][0]).sqrt())
            elif name == "torsion":
                turned = inputs["torsion_index"][..., 0] >= 0
                degrees = math.degrees(self.torsion_noise**2)
                off = (_wide(output.torsion_prediction) - inputs["torsion_labels"]).abs()
                add("error", degrees * _mean(off, turned))
                add("error_baseline", degrees * _mean(inputs["torsion_labels"].abs(), turned))
            elif name == "rotation":
                cosine = F.cosine_similarity(_wide(output.rotation_prediction), inputs["rotation_labels"], dim=-1)
                turned = weights[name] & (inputs["rotation_labels"] != 0).any(-1)  # a partner of one atom is not turned
                found["rotation_error"] = (torch.rad2deg(cosine.clamp(-1, 1).acos()) * turned, turned)
                found["rotation_error_baseline"] = (90.0 * turned, turned)
        return found

    def _add_mask(self, add, output, inputs):
        masked = inputs["labels"] >= 0
        classes = (inputs["labels"] - NUM_SPECIAL_BLOCKS).clamp_min(0)
        frequent, log_frequencies = (
            values.to(classes.device) for values in (self.most_frequent, self.log_frequencies)
        )  # the shares of the train file, instead of all classes alike
        add("baseline", -(log_frequencies[classes] * masked).sum(1))
        ranked = output.prediction_logits.topk(min(max(TOP), output.prediction_logits.shape[-1]), dim=-1).indices
        for top in TOP:
            add(f"top{top}", ((ranked[..., :top] == classes[..., None]).any(-1) & masked).sum(1))
            add(f"top{top}_baseline", (torch.isin(classes, frequent[:top]) & masked).sum(1))


# whole complexes --------------------------------------------------------------------------------------------------------


def gather_rows(rows):
    """`(batch, hidden)` of every process, one after another, with gradients; and where the own rows begin."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows, 0
    counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    counts = [int(count) for count in counts]
    padded = F.pad(rows, (0, 0, 0, max(counts) - len(rows)))
    parts = torch.distributed.nn.functional.all_gather(padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts)]), sum(counts[: torch.distributed.get_rank()])


def info_nce(first, second, temperature):
    """InfoNCE between two views, both directions: `(batch,)`, the loss of each own complex.

    loss_i = -log(exp(a_i b_i / t) / sum_j exp(a_i b_j / t)), and with a and b exchanged, halved; j runs over the complexes of
    all processes. van den Oord et al., arXiv:1807.03748.
    """
    first, second = F.normalize(_wide(first), dim=-1), F.normalize(_wide(second), dim=-1)
    all_first, start = gather_rows(first)
    all_second, _ = gather_rows(second)
    own = torch.arange(start, start + len(first), device=first.device)
    across, back = first @ all_second.T / temperature, second @ all_first.T / temperature
    return 0.5 * (F.cross_entropy(across, own, reduction="none") + F.cross_entropy(back, own, reduction="none"))


def disagreement(student, teacher):
    """1 - cosine between the vectors of a student and of its teacher, which gets no gradient: `(batch,)`."""
    return 1 - F.cosine_similarity(_wide(student), _wide(teacher.detach()), dim=-1)
