# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Atomica model: a hierarchical SE(3)-equivariant encoder of atoms and blocks, and its denoising heads.

The mathematics is that of ATOMICA (Fang et al., bioRxiv 2025.04.02.646906), so that its weights give the same numbers.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MaskedLMOutput, TokenClassifierOutput
from transformers.utils import ModelOutput

from .configuration_atomica import NUM_SPECIAL_BLOCKS, REPRESENTATION_POOLINGS, AtomicaConfig
from .elements_atomica import NUM_DESCRIPTORS, element_descriptors
from .energy_atomica import PairEnergy
from .geometry_atomica import (
    BOND_HARMONICS,
    HARMONICS,
    EdgeFeatures,
    EquivariantLayerNorm,
    Irrep,
    TensorProductConvolution,
    bond_harmonics,
    gaussian_basis,
    gram_invariants,
    mean_weight,
    nearest_atoms,
    spherical_harmonics,
    split_irreps,
    to_channel_major,
)
from .graph_atomica import ComplexIndex, NodeEdges, node_edges, segment_mean, segment_sum
from .interpretation_atomica import changes, edges_of_copies, interaction_scores


NUM_EDGE_TYPES = 4
FIRST_ELEMENT = 3  # token of hydrogen
IGNORE_INDEX = -100
REPRESENTATIONS = ("h_atom", "h_block", "h_graph", "h_interface", "z_atom", "z_block", "z_graph", "z_interface")


def encoder_irreps(depth: int, num_scalars: int):
    """Irreps of a node after `depth` layers: scalars, then vectors and more as harmonics reach them."""
    half = num_scalars // 2
    irreps = [Irrep(num_scalars, 0, 1)]
    if depth > 0:
        irreps += [Irrep(half, 1, -1), Irrep(half, 2, 1)]
    if depth > 1:
        irreps += [Irrep(half, 1, 1), Irrep(half, 2, -1)]
    if depth > 2:
        irreps += [Irrep(num_scalars, 0, -1)]
    return tuple(irreps)


def masked_mean(values, mask):
    """Mean of `values` where `mask`; zero, with a zero gradient, where there is nothing."""
    return (values * mask).sum() / mask.sum().clamp_min(1)


def finish(output, return_dict):
    return output if return_dict is None or return_dict else output.to_tuple()


def label_loss(logits, labels, problem_type: str, regression_loss: str = "mse"):
    """Loss of logits `(n, num_labels)` as Transformers computes it for a `problem_type`, over the labels that are there; for
    `"regression"` also absolute errors, or Huber's loss.

    Classes of -100 or NaN, negative or NaN labels of `"multi_label_classification"` and NaN of `"regression"` are missing;
    without any label the loss is zero, with a zero gradient.

    Raises:
        `ValueError`: for an unknown problem type, labels of another shape, or classes for a single output.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if problem_type == "single_label_classification":
        if labels.shape != logits.shape[:1]:
            raise ValueError(f"`labels` have shape {tuple(labels.shape)}, expected one class each: {tuple(logits.shape[:1])}.")
        if logits.shape[1] == 1:
            raise ValueError(
                "`num_labels` is 1: classes need at least two; for yes or no set problem_type='multi_label_classification'."
            )
        if labels.is_floating_point():
            labels = torch.where(labels.isnan(), IGNORE_INDEX, labels)
        labels = labels.long()
        total = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
        return total / (labels != IGNORE_INDEX).sum().clamp_min(1)
    if problem_type not in ("regression", "multi_label_classification"):
        raise ValueError(
            f"`problem_type` is {problem_type!r}, expected 'regression', 'single_label_classification' or "
            "'multi_label_classification'."
        )
    if labels.ndim == logits.ndim - 1 and logits.shape[-1] == 1:
        labels = labels.unsqueeze(-1)
    if labels.shape != logits.shape:
        raise ValueError(f"`labels` have shape {tuple(labels.shape)}, expected {tuple(logits.shape)}.")
    labels = labels.to(logits.dtype)
    present = ~labels.isnan() if problem_type == "regression" else labels >= 0
    labels = torch.where(present, labels, 0.0)
    if problem_type == "regression":
        loss = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss}[regression_loss]
        return masked_mean(loss(logits, labels, reduction="none"), present)
    return masked_mean(F.binary_cross_entropy_with_logits(logits, labels, reduction="none"), present)


@dataclass
class AtomicaModelOutput(ModelOutput):
    """
    Output of `AtomicaModel`.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, num_blocks, hidden_size)`): h_block, unit length, zero on
            padding.
        pooler_output (`torch.FloatTensor` of shape `(batch, hidden_size)`): h_graph, unit length.
        atom_hidden_state (`torch.FloatTensor` of shape `(batch, num_atoms, atom_hidden_size)`): h_atom, unit length, zero
            on padding.
        atom_irreps, block_irreps (`torch.FloatTensor` of shape `(batch, num_atoms or num_blocks, size)`): features before
            the read-out, in e3nn's layout; returned with `output_irreps=True`.
    """

    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    atom_hidden_state: torch.FloatTensor | None = None
    atom_irreps: torch.FloatTensor | None = None
    block_irreps: torch.FloatTensor | None = None


@dataclass
class AtomicaForPreTrainingOutput(ModelOutput):
    """
    Output of `AtomicaForPreTraining`. A loss without anything to predict in the batch is exactly zero; a `*_baseline` is the
    same loss for predicting zero (for the masked blocks: for predicting all classes alike).

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`): weighted sum of the losses below; returned with labels.
        atom_prediction (`torch.FloatTensor` of shape `(batch, num_atoms, 3)`): times sigma, estimates (clean - noisy) / sigma.
        torsion_prediction (`torch.FloatTensor` of shape `(batch, num_torsions)`): score of the angle each bond was turned by.
        translation_prediction (`torch.FloatTensor` of shape `(batch, 3)`): times sigma, estimates minus the drawn direction z.
        rotation_prediction (`torch.FloatTensor` of shape `(batch, 3)`): score of the rotation vector.
        prediction_logits (`torch.FloatTensor` of shape `(batch, num_blocks, vocab_size - 4)`): class = token id - 4.
        composition_logits (`torch.FloatTensor` of shape `(batch, vocab_size - 4)`): their softmax estimates the share that each
            token has of the blocks of the complex, hidden ones too.
        last_hidden_state, pooler_output, atom_hidden_state: as in `AtomicaModelOutput`.
    """

    loss: torch.FloatTensor | None = None
    atom_loss: torch.FloatTensor | None = None
    torsion_loss: torch.FloatTensor | None = None
    translation_loss: torch.FloatTensor | None = None
    rotation_loss: torch.FloatTensor | None = None
    mask_loss: torch.FloatTensor | None = None
    composition_loss: torch.FloatTensor | None = None
    atom_baseline: torch.FloatTensor | None = None
    torsion_baseline: torch.FloatTensor | None = None
    translation_baseline: torch.FloatTensor | None = None
    rotation_baseline: torch.FloatTensor | None = None
    mask_baseline: torch.FloatTensor | None = None
    composition_baseline: torch.FloatTensor | None = None
    prediction_logits: torch.FloatTensor | None = None
    composition_logits: torch.FloatTensor | None = None
    atom_prediction: torch.FloatTensor | None = None
    torsion_prediction: torch.FloatTensor | None = None
    translation_prediction: torch.FloatTensor | None = None
    rotation_prediction: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    atom_hidden_state: torch.FloatTensor | None = None


@dataclass
class AtomicaSequenceClassifierOutput(ModelOutput):
    """
    Output of `AtomicaForSequenceClassification`.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`): returned with labels.
        logits (`torch.FloatTensor` of shape `(batch, num_labels)`): scores, or the values of a regression.
        block_logits (`torch.FloatTensor` of shape `(batch, num_blocks, num_labels)`): what each block adds to `logits`; with
            `config.pooling` `"block_sum"` or `"pair_energy"`.
        energy_terms (`torch.FloatTensor` of shape `(batch, 5)`): `energy_atomica.ENERGY_TERMS`, whose sum is the energy; with
            `config.pooling="pair_energy"`.
        last_hidden_state, pooler_output, atom_hidden_state: as in `AtomicaModelOutput`.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    block_logits: torch.FloatTensor | None = None
    energy_terms: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    atom_hidden_state: torch.FloatTensor | None = None


@dataclass
class AtomicaInterfaceContrastOutput(ModelOutput):
    """
    Output of `AtomicaForInterfaceContrast`.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`): contrastive loss; returned with the inputs of the complexes.
        side_embeds (`torch.FloatTensor` of shape `(batch, hidden_size)`): of one side alone, unit length.
        complex_embeds (`torch.FloatTensor` of shape `(batch, hidden_size)`): of the complexes, unit length.
        logits_per_side (`torch.FloatTensor` of shape `(batch, batch)`): cosines of sides and complexes over the temperature.
        last_hidden_state, pooler_output, atom_hidden_state: of the side, as in `AtomicaModelOutput`.
    """

    loss: torch.FloatTensor | None = None
    side_embeds: torch.FloatTensor | None = None
    complex_embeds: torch.FloatTensor | None = None
    logits_per_side: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    atom_hidden_state: torch.FloatTensor | None = None


class AtomicaDistanceEmbedding(nn.Module):
    """Distances `(...)` in angstrom -> `(..., edge_size)`: Gaussians from `start` to `cutoff`, then linear-ReLU-linear."""

    def __init__(self, config, cutoff: float, start: float = 0.0):
        super().__init__()
        self.size, self.start, self.cutoff = config.edge_size, start, cutoff
        self.dense_in = nn.Linear(config.edge_size, config.edge_size)
        self.dense_out = nn.Linear(config.edge_size, config.edge_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, distances):
        basis = gaussian_basis(distances, self.size, self.cutoff, self.start).to(self.dense_in.weight.dtype)
        return self.dense_out(self.dropout(F.relu(self.dense_in(basis))))


class AtomicaLongRangeEmbedding(AtomicaDistanceEmbedding):
    """Distance embedding beyond the first one's range, times a learned gate; zero until it is trained."""

    def __init__(self, config, cutoff: float, start: float):
        super().__init__(config, cutoff, start)
        self.gate = nn.Parameter(torch.ones(1))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.ones_(self.gate)
        nn.init.zeros_(self.dense_out.weight)
        nn.init.zeros_(self.dense_out.bias)

    def forward(self, distances):
        return self.gate * super().forward(distances)


class AtomicaElementEmbedding(nn.Embedding):
    """Atom tokens -> a linear map of what the periodic table says, and what is learnt of each beyond, zero at first."""

    def __init__(self, num_embeddings, embedding_dim):
        super().__init__(num_embeddings, embedding_dim)
        self.descriptors = nn.Linear(NUM_DESCRIPTORS, embedding_dim, bias=False)

    def reset_parameters(self):
        nn.init.zeros_(self.weight)

    def forward(self, tokens):
        weight = self.descriptors.weight
        table = element_descriptors(self.num_embeddings, FIRST_ELEMENT, weight.dtype, weight.device)
        return super().forward(tokens) + self.descriptors(table[tokens])


class AtomicaMLP(nn.Module):
    """Activation-dropout-linear, again and again, through the given sizes; the last layer has a bias or not."""

    def __init__(self, sizes, dropout: float, last_bias: bool = True, activation: str = "relu"):
        super().__init__()
        pairs = list(zip(sizes, sizes[1:]))
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=last_bias or i < len(pairs) - 1) for i, (a, b) in enumerate(pairs))
        self.dropout = nn.Dropout(dropout)
        self.activation = getattr(F, activation)

    def forward(self, x):
        for layer in self.layers:
            x = layer(self.dropout(self.activation(x)))
        return x


def classifier(config):
    """The perceptron that turns a vector of `hidden_size` into `num_labels` outputs."""
    hidden = config.classifier_hidden_sizes
    sizes = (config.hidden_size, *([config.hidden_size] * 2 if hidden is None else hidden), config.num_labels)
    dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
    return AtomicaMLP(sizes, dropout, activation=config.classifier_activation)


def check_energy_labels(config):
    """Raises `ValueError` if the labels cannot be an interaction energy."""
    if config.num_labels != 1 or config.problem_type not in (None, "regression"):
        raise ValueError(
            f"`pooling` is 'pair_energy' with {config.num_labels} labels and `problem_type` {config.problem_type!r}, expected "
            "one label of a regression: an interaction energy."
        )


def mask_head(config):
    """The perceptron that names a hidden block: one score per token that is not special."""
    num_classes = config.vocab_size - NUM_SPECIAL_BLOCKS
    return AtomicaMLP((config.hidden_size, config.hidden_size, num_classes, num_classes), config.hidden_dropout_prob)


class AtomicaBlockFeatures(nn.Module):
    """Mixes the vectors of another model into the blocks: project them, set them beside the block's own, mix.

    With a width per segment each segment has layers of its own; segments beyond the last width share the last layers.
    """

    def __init__(self, config):
        super().__init__()
        self.sizes = config.block_feature_sizes
        hidden, inside = config.hidden_size, [config.block_feature_hidden_size] * (config.block_feature_layers - 1)
        options = {"dropout": config.block_feature_dropout, "activation": config.block_feature_activation}
        mixing = [2 * hidden] * config.block_feature_layers
        self.projectors = nn.ModuleList(AtomicaMLP((size, *inside, hidden), **options) for size in self.sizes)
        self.mixers = nn.ModuleList(AtomicaMLP((*mixing, hidden), **options) for _ in self.sizes)

    def forward(self, blocks, features, segments):
        """blocks `(total, hidden)`, features `(total, largest width)`, segments `(total,)` -> `(total, hidden)`."""
        mixed = [
            mixer(torch.cat([blocks, projector(features[:, :size])], dim=-1))
            for size, projector, mixer in zip(self.sizes, self.projectors, self.mixers)
        ]
        found = mixed[-1]
        for segment, candidate in enumerate(mixed[:-1]):
            found = torch.where((segments == segment).unsqueeze(-1), candidate, found)
        return found


class AtomicaConvolution(nn.Module):
    """Tensor-product convolution over the edges of all nodes, then the equivariant layer norm."""

    def __init__(self, config, num_scalars: int, irreps_in, irreps_out):
        super().__init__()
        self.num_scalars = num_scalars
        self.convolution = TensorProductConvolution(
            irreps_in, HARMONICS, irreps_out, config.edge_size, config.edge_size, num_scalars, num_scalars,
            config.hidden_dropout_prob, config.conv_implementation,
        )  # fmt: skip
        self.norm = EquivariantLayerNorm(irreps_out)

    def forward(self, x, edges: NodeEdges, radials, type_embeddings):
        scalars = x[:, : self.num_scalars]
        updates = []
        for (receivers, features, _), radial in zip(edges.groups, radials):
            features = EdgeFeatures(features.senders, features.edge_types, features.harmonics, radial, features.weight)
            updates.append(self.convolution(x, features, type_embeddings, scalars[receivers], scalars))
        return self.norm(torch.cat(updates)[edges.order])


class AtomicaLayer(GradientCheckpointingLayer):
    """One encoder layer: x <- pad(x) + norm(convolution(x))."""

    def __init__(self, config, num_scalars: int, depth: int):
        super().__init__()
        self.message = AtomicaConvolution(
            config, num_scalars, encoder_irreps(depth, num_scalars), encoder_irreps(depth + 1, num_scalars)
        )

    def forward(self, x, edges, radials, type_embeddings):
        update = self.message(x, edges, radials, type_embeddings)
        return F.pad(x, (0, update.shape[1] - x.shape[1])) + update


class AtomicaEncoder(nn.Module):
    """Encoder of one level. Flat scalars `(num_nodes, num_scalars)` -> (irreps, unit-length read-out of the same width)."""

    def __init__(self, config, num_scalars: int, cutoff: float, long_range_cutoff: float | None = None):
        super().__init__()
        self.num_scalars = num_scalars
        self.irreps = encoder_irreps(config.num_hidden_layers, num_scalars)
        self.edge_type_embeddings = nn.Embedding(NUM_EDGE_TYPES, config.edge_size)
        self.distance_embedding = AtomicaDistanceEmbedding(config, cutoff)
        self.long_range_embedding = None
        if long_range_cutoff is not None:
            self.long_range_embedding = AtomicaLongRangeEmbedding(config, long_range_cutoff, start=cutoff)
        self.layers = nn.ModuleList(AtomicaLayer(config, num_scalars, i) for i in range(config.num_hidden_layers))
        scalars = sum(irrep.multiplicity for irrep in self.irreps if irrep.degree == 0)
        self.readout_in = nn.Linear(scalars, scalars)
        self.readout_out = nn.Linear(scalars, num_scalars)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def radials(self, edges: NodeEdges):
        """Embedded distances of each group of edges."""
        found = [self.distance_embedding(distances) for _, _, distances in edges.groups]
        if self.long_range_embedding is not None:
            found = [radial + self.long_range_embedding(distances) for radial, (_, _, distances) in zip(found, edges.groups)]
        return found

    def forward(self, x, edges: NodeEdges | list[NodeEdges]):
        """`edges` are the same for all layers, or a list with those of each."""
        of_layers = edges if isinstance(edges, list) else [edges] * len(self.layers)
        radials = None if isinstance(edges, list) else self.radials(edges)
        for layer, own in zip(self.layers, of_layers):
            x = layer(x, own, self.radials(own) if radials is None else radials, self.edge_type_embeddings.weight)
        parts = zip(split_irreps(x, self.irreps), self.irreps)
        scalars = torch.cat([part.squeeze(-2) for part, irrep in parts if irrep.degree == 0], dim=-1)
        scalars = scalars.to(self.readout_in.weight.dtype)
        readout = self.readout_out(self.dropout(F.relu(self.readout_in(scalars))))
        return x, F.normalize(readout, dim=-1)


class AtomicaAtomToBlockAttention(nn.Module):
    """Each block attends over its own atoms with one query; residual and layer norm.

    With `attend_to_padding`, the atoms of a block are followed by rows of zeros up to the largest block of the batch; their
    keys and values are the biases, so they need not be written out.
    """

    def __init__(self, config):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.attend_to_padding = config.attend_to_padding
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.atom_hidden_size, config.hidden_size)
        self.value = nn.Linear(config.atom_hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, blocks, atoms, block_of_atom):
        with torch.autocast(device_type=blocks.device.type, enabled=False):  # sums of exponentials want full precision
            return self._attend(blocks.to(self.query.weight.dtype), atoms.to(self.query.weight.dtype), block_of_atom)

    def _attend(self, blocks, atoms, block_of_atom):
        num_blocks = len(blocks)
        dtype = torch.promote_types(blocks.dtype, torch.float32)
        heads = lambda x: x.to(dtype).view(*x.shape[:-1], self.num_heads, -1)
        query = heads(self.query(blocks)) * (blocks.shape[-1] // self.num_heads) ** -0.5
        key, value = heads(self.key(atoms)), heads(self.value(atoms))
        scores = (query[block_of_atom] * key).sum(-1)
        empty_score = (query * heads(self.key.bias)).sum(-1)

        count = segment_sum(torch.ones_like(block_of_atom), block_of_atom, num_blocks)
        rows = count.amax().clamp_min(1) if self.attend_to_padding and len(count) else count.clamp_min(1)
        empty_rows = (rows - count).unsqueeze(-1).to(scores.dtype)
        with torch.no_grad():
            largest = torch.where(empty_rows > 0, empty_score, -torch.inf)
            largest = largest.scatter_reduce(0, block_of_atom.unsqueeze(-1).expand_as(scores), scores, "amax")
        weights = (scores - largest[block_of_atom]).exp()
        empty_weights = empty_rows * torch.where(empty_rows > 0, empty_score - largest, 0.0).exp()
        total = segment_sum(weights, block_of_atom, num_blocks) + empty_weights
        mixed = segment_sum(weights.unsqueeze(-1) * value, block_of_atom, num_blocks)
        mixed = (mixed + empty_weights.unsqueeze(-1) * heads(self.value.bias)) / total.unsqueeze(-1)
        return self.norm(blocks + self.output(mixed.flatten(1).to(blocks.dtype)))


class AtomicaPoolingLayer(nn.Module):
    """Self-attention over the blocks of a complex; residual and layer norm."""

    def __init__(self, config):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, x, allowed):
        heads = [p.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for p in self.query_key_value(x).chunk(3, dim=-1)]
        mixed = F.scaled_dot_product_attention(*heads, attn_mask=allowed[:, None, None])
        return self.norm(x + self.output(mixed.transpose(1, 2).flatten(2)))


class AtomicaPooler(nn.Module):
    """Blocks of a complex -> one unit-length vector: self-attention, sum, linear.

    With `attend_to_padding`, rows of zeros up to the largest complex take part in every layer and are left out of the sum.
    """

    def __init__(self, config):
        super().__init__()
        self.attend_to_padding = config.attend_to_padding
        self.layers = nn.ModuleList(AtomicaPoolingLayer(config) for _ in range(config.num_pooling_layers))
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, blocks, takes_part, index):
        """blocks `(total, hidden)`, takes_part `(total,)` of the blocks of a `ComplexIndex` -> `(batch, hidden)`."""
        width, complex_id = index.num_blocks, index.complex_of_block
        padded = index.pad_blocks(takes_part)
        count = padded.sum(1, keepdim=True)
        # those that take part move to the left; the others share a last column, which is cut off
        row = torch.where(takes_part, index.unpad_blocks(padded.cumsum(1)) - 1, width)
        x = blocks.new_zeros(index.batch, width + 1, blocks.shape[-1]).index_put((complex_id, row), blocks)[:, :width]
        arange = torch.arange(width, device=blocks.device)
        valid = arange < count
        # a complex without any block to attend to attends to one row of zeros
        allowed = arange < (count.amax() if self.attend_to_padding else count.clamp_min(1))
        allowed = allowed.expand_as(valid)
        for layer in self.layers:
            x = layer(x, allowed)
        return F.normalize(self.dense((x * valid.unsqueeze(-1)).sum(1)), dim=-1)


def segment_mean_std(values, index, num_segments: int):
    """Mean and population standard deviation of rows `values` with the same `index`."""
    mean = segment_mean(values, index, num_segments)
    variance = segment_mean((values - mean[index]).pow(2), index, num_segments)
    varies = variance > 0  # the square root has no gradient at zero
    return mean, torch.where(varies, torch.where(varies, variance, 1.0).sqrt(), 0.0)


def pool_blocks(parts, index, chosen, pooling: str):
    """The three parts of z_block `(total_blocks, width)` -> one vector per complex, of the `chosen` blocks."""
    z_block, complex_of_block = torch.cat(parts, dim=-1), index.complex_of_block
    row = torch.where(chosen, complex_of_block, index.batch)  # the others share a last row, which is cut off
    if pooling == "mean_component_normalized":
        mean = segment_mean(z_block, row, index.batch + 1)[:-1]
        return torch.cat([F.normalize(p, dim=-1) for p in mean.split([p.shape[1] for p in parts], dim=-1)], dim=-1)
    mean, deviation = (values[:-1] for values in segment_mean_std(z_block, row, index.batch + 1))
    # the first global block of the complex, also for an interface, as in ATOMICA
    position = torch.arange(index.total_blocks, device=z_block.device)
    first = torch.where(index.is_global_block, position, index.total_blocks)
    first = first.new_full((index.batch,), index.total_blocks).scatter_reduce(0, complex_of_block, first, "amin")
    has_global = (first < index.total_blocks).unsqueeze(-1)
    central = torch.where(has_global, z_block[first.clamp_max(index.total_blocks - 1)], mean)
    return torch.cat([mean, deviation, central], dim=-1)


def charge_features(index, charges):
    """Formal charges `(total_atoms,)` -> for each atom the net charge of its segment, at most 3 either way, and that over the
    number of its atoms, `(total_atoms, 2)`; and the net charge of every segment. Where in a segment a charge is drawn makes no
    difference: of resonance structures one is as good as another."""
    segment, number = index.segment_of_atom, index.batch * index.num_blocks
    count = (~index.is_global_atom).to(charges.dtype)
    net, count = (segment_sum(values, segment, number) for values in (charges, count))
    return torch.stack([net.clamp(-3, 3), net / count.clamp_min(1)], dim=-1)[segment], net


def gram_width(irreps) -> int:
    return sum(irrep.multiplicity * (irrep.multiplicity + 1) // 2 for irrep in irreps if irrep.degree > 0)


def invariant_width(irreps) -> int:
    return sum(irrep.multiplicity for irrep in irreps if irrep.degree == 0) + gram_width(irreps)


def check_representations(names, pooling, segment):
    """
    Raises:
        `ValueError`: if the names are not known, or need a pooling or segment that is missing, or none of them needs it.
    """
    unknown = [name for name in names if name not in REPRESENTATIONS]
    if unknown or not names:
        raise ValueError(f"`names` are {list(names)!r}, expected some of {', '.join(REPRESENTATIONS)}.")
    needs_pooling = [name for name in names if name in ("z_graph", "z_interface")]
    expected = " or ".join(f"{p!r}" for p in REPRESENTATION_POOLINGS)
    if needs_pooling and pooling not in REPRESENTATION_POOLINGS:
        raise ValueError(f"{needs_pooling[0]} needs a `pooling`, {expected}; got {pooling!r}. The two are not comparable.")
    if pooling is not None and not needs_pooling:
        raise ValueError(f"`pooling` is {pooling!r}, but {', '.join(names)} take none.")
    needs_segment = [name for name in names if name.endswith("interface")]
    if needs_segment and segment is None:
        raise ValueError(f"{needs_segment[0]} needs a `segment`: 0, 1, ...")
    if segment is not None and not needs_segment:
        raise ValueError(f"`segment` is {segment!r}, but {', '.join(names)} take none.")


class AtomicaPreTrainedModel(PreTrainedModel):
    config_class = AtomicaConfig
    base_model_prefix = "atomica"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["AtomicaLayer", "AtomicaPoolingLayer"]

    def _init_weights(self, module):
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()

    def resize_token_embeddings(self, new_num_tokens=None, *args, **kwargs):
        """As in Transformers; the head that names hidden blocks gets as many classes as there are tokens then."""
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        head = getattr(self, "mask_head", None)
        if head is not None:
            old, kept = head.layers[1], min(head.layers[1].out_features, self.config.vocab_size - NUM_SPECIAL_BLOCKS)
            fresh = mask_head(self.config).to(old.weight.device, old.weight.dtype)
            with torch.no_grad():
                fresh.layers[0].load_state_dict(head.layers[0].state_dict())
                for new, former, columns in (
                    (fresh.layers[1], head.layers[1], slice(None)),
                    (fresh.layers[2], head.layers[2], slice(kept)),
                ):
                    new.weight[:kept, columns] = former.weight[:kept, columns]
                    new.bias[:kept] = former.bias[:kept]
                fresh.layers[2].weight[:kept, kept:] = 0  # what was there keeps its scores
            self.mask_head = fresh
        return embeddings

    def representation_widths(self, pooling: str | None = None) -> dict[str, int]:
        """Name -> width of the vectors of `get_representations`; without a pooling, z_graph and z_interface are left out.

        Raises:
            `ValueError`: for a pooling that is not known.
        """
        config = self.config
        z_atom = invariant_width(encoder_irreps(config.num_hidden_layers, config.atom_hidden_size))
        block_irreps = encoder_irreps(config.num_hidden_layers, config.hidden_size)
        z_block = config.hidden_size + gram_width(block_irreps) + 2 * z_atom
        widths = {"h_atom": config.atom_hidden_size, "h_block": config.hidden_size, "h_graph": config.hidden_size,
                  "h_interface": config.hidden_size, "z_atom": z_atom, "z_block": z_block}  # fmt: skip
        if pooling is not None:
            check_representations(("z_graph",), pooling, None)
            widths["z_graph"] = widths["z_interface"] = z_block * (3 if pooling == "mean_std_global" else 1)
        return widths

    def get_representations(self, names=("h_graph",), pooling: str | None = None, segment: int | None = None, **inputs):
        """Rotation-invariant vectors of atoms, blocks, complexes, or of one partner inside its complex.

        Args:
            names (`list[str]`): any of `REPRESENTATIONS`. The h family are the scalars of the read-outs. The z family adds
                invariants of all channels: `z_atom` is the 0e and 0o channels and, for each other irrep, the inner products
                of its channels (upper triangle); `z_block` is h_block, the inner products of the block's channels, and mean
                and standard deviation of z_atom over its atoms; `z_graph` pools z_block over the complex. `h_interface` and
                `z_interface` pool the blocks of one segment only, which has seen its partner.
            pooling (`str`): for z_graph and z_interface, without a default because the two are not comparable:
                `"mean_std_global"` (mean and standard deviation over the blocks that are not global, and the first global
                block of the complex: for training a head) or `"mean_component_normalized"` (the mean, each of the three parts
                of z_block at unit length: for comparing with a cosine).
            segment (`int`): for h_interface and z_interface.
            inputs: the inputs of `AtomicaModel`.

        Returns:
            `dict` of name -> `(batch, num_atoms or num_blocks, width)`, zero on padding, or `(batch, width)`; see
            `representation_widths`.

        Raises:
            `ValueError`: for unknown names, a missing or needless pooling or segment, a complex without that segment.
        """
        names = (names,) if isinstance(names, str) else tuple(names)
        check_representations(names, pooling, segment)
        model = self.base_model
        found = model.encode(**inputs)
        index = found.index
        vectors = {"h_atom": found.h_atom, "h_block": found.h_block}
        outputs = {"h_graph": found.h_graph}
        if segment is None:
            in_segment = torch.zeros_like(index.is_global_block)
        else:
            in_segment = index.unpad_blocks(index.segments) == segment
            present = index.pad_blocks(in_segment.long()).sum(1) > 0
            if not present.all():
                which = (~present).nonzero().squeeze(1).tolist()
                raise ValueError(f"`segment` is {segment}, but complexes {which} of the batch have no such segment.")
        if "h_interface" in names:
            outputs["h_interface"] = model.pooler(found.h_block, in_segment, index)
        if any(name.startswith("z_") for name in names):
            vectors["z_atom"], parts = model.invariants(found)
            vectors["z_block"] = torch.cat(parts, dim=-1)
            for name, chosen in (("z_graph", torch.ones_like(in_segment)), ("z_interface", in_segment)):
                if name in names:
                    outputs[name] = pool_blocks(parts, index, chosen & ~index.is_global_block, pooling)
        for name in ("h_atom", "z_atom", "h_block", "z_block"):
            if name in names:
                outputs[name] = (index.pad_atoms if name.endswith("atom") else index.pad_blocks)(vectors[name])
        return {name: outputs[name] for name in names}

    def interaction_scores(self, segments=None, readout: str = "z_interface", max_blocks_per_batch: int = 4000, **inputs):
        """How far a read-out turns when one block is hidden: for each block the cosine between the vector of the whole complex
        and that of the complex in which this block is `<mask>`, one atom at its centre, as in pretraining. The lower, the
        more the read-out depends on the block.

        The blocks are hidden one at a time, many copies of a complex in one batch, where nodes that a hidden block cannot have
        reached are computed once; scores depend on neither. Models that attend to padding see one copy at a time.

        Args:
            segments (`list[int]`): whose blocks get a score; None for all.
            readout (`str`): `"z_interface"`, the partner's vector (`z_interface` with `"mean_component_normalized"`; with more
                than two segments, of all blocks that are not of the hidden block's segment), or `"h_graph"`, the vector of the
                whole complex, which a lone molecule has too.
            max_blocks_per_batch (`int`): blocks in one batch, at most, but at least one copy of a complex.
            inputs: the inputs of `AtomicaModel`; a `graph` among them is not used, because hidden blocks change it.

        Returns:
            `torch.FloatTensor` of shape `(batch, num_blocks)`, in double precision where the device has it; NaN on padding,
            for blocks with special tokens (`<global>`, `<unk>`), and for segments not asked for. It has no gradient.

        Raises:
            `ValueError`: for a model in training mode, an unknown read-out, a complex without one of the segments, or one
                without a partner where the read-out needs it.
        """
        model = self.base_model
        if model.training:
            raise ValueError("The model is in training mode, where dropout would pass for scores; call `model.eval()` first.")
        inputs.pop("graph", None)
        names = ("input_ids", "atom_ids", "atom_to_block", "positions", "attention_mask", "token_type_ids", "modality_ids")
        model.check_inputs(**{**dict.fromkeys((*names, "block_features", "atom_charges")), **inputs})

        def read_out(batch, of_partner, are_copies):
            found = model.encode(**batch, are_copies=are_copies)
            if readout == "h_graph":
                return found.h_graph
            chosen = found.index.unpad_blocks(of_partner) & ~found.index.is_global_block
            return pool_blocks(model.invariants(found)[1], found.index, chosen, "mean_component_normalized")

        return interaction_scores(read_out, self.config, inputs, segments, readout, max_blocks_per_batch)


class Encoding(NamedTuple):
    """What the encoder found, flat: `(total_atoms, ...)`, `(total_blocks, ...)` and, for h_graph, `(batch, hidden_size)`."""

    index: ComplexIndex
    atom_edges: NodeEdges
    atom_irreps: torch.Tensor
    h_atom: torch.Tensor
    block_irreps: torch.Tensor
    h_block: torch.Tensor
    h_graph: torch.Tensor
    net_charges: torch.Tensor | None = None  # of the segments, by `index.segment_of_atom`

    def hidden_states(self):
        """The fields that every output has."""
        index = self.index
        return {
            "last_hidden_state": index.pad_blocks(self.h_block),
            "pooler_output": self.h_graph,
            "atom_hidden_state": index.pad_atoms(self.h_atom),
        }


class AtomicaModel(AtomicaPreTrainedModel):
    """Encoder of molecules and complexes: atoms, blocks and whole complexes to vectors."""

    _keys_to_ignore_on_load_unexpected = [
        r"^(atom_noise|rigid|torsion|mask|composition)_head\.",
        r"^(classifier|projection|pair_energy|complex_atomica|side_projection|complex_projection)\.",
    ]

    def __init__(self, config):
        super().__init__(config)
        self.block_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        atom_embedding = AtomicaElementEmbedding if config.use_element_descriptors else nn.Embedding
        self.atom_embeddings = atom_embedding(config.atom_vocab_size, config.atom_hidden_size)
        if config.use_atom_charges:
            self.charge_embedding = nn.Linear(2, config.atom_hidden_size, bias=False)
        if config.num_modalities:
            self.modality_embeddings = nn.Embedding(config.num_modalities, config.hidden_size)
        self.atom_encoder = AtomicaEncoder(config, config.atom_hidden_size, config.atom_cutoff)
        self.atom_to_block_attention = AtomicaAtomToBlockAttention(config)
        self.block_encoder = AtomicaEncoder(config, config.hidden_size, config.block_cutoff, config.block_long_range_cutoff)
        if config.block_feature_sizes:
            self.block_features_before = AtomicaBlockFeatures(config)
            self.block_features_after = AtomicaBlockFeatures(config) if config.block_feature_after else None
        self.pooler = AtomicaPooler(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.block_embeddings

    def set_input_embeddings(self, value):
        self.block_embeddings = value

    def check_inputs(
        self, input_ids, atom_ids, atom_to_block, positions, attention_mask, token_type_ids, modality_ids, block_features,
        atom_charges,
    ):  # fmt: skip
        """Shapes and types only; values are checked where examples are made, because reading them would stall a device."""
        given = {"input_ids": input_ids, "atom_ids": atom_ids, "atom_to_block": atom_to_block, "positions": positions}
        missing = [name for name, value in given.items() if value is None]
        if missing:
            raise ValueError(f"Atomica needs {', '.join(given)}; missing: {', '.join(missing)}. `AtomicaProcessor` makes them.")
        if input_ids.ndim != 2 or atom_ids.ndim != 2:
            raise ValueError(
                "`input_ids` and `atom_ids` must have shapes (batch, num_blocks) and (batch, num_atoms), got "
                f"{tuple(input_ids.shape)} and {tuple(atom_ids.shape)}."
            )
        if 0 in (*input_ids.shape, atom_ids.shape[1]):
            raise ValueError(
                f"`input_ids` has shape {tuple(input_ids.shape)}, `atom_ids` {tuple(atom_ids.shape)}: nothing to encode."
            )
        expected = {
            "attention_mask": (attention_mask, tuple(input_ids.shape)),
            "token_type_ids": (token_type_ids, tuple(input_ids.shape)),
            "atom_ids": (atom_ids, (len(input_ids), atom_ids.shape[1])),
            "atom_to_block": (atom_to_block, tuple(atom_ids.shape)),
            "positions": (positions, (*atom_ids.shape, 3)),
            "modality_ids": (modality_ids, (len(input_ids),)),
            "block_features": (block_features, (*input_ids.shape, max(self.config.block_feature_sizes, default=0))),
            "atom_charges": (atom_charges, tuple(atom_ids.shape)),
        }
        if block_features is None and self.config.block_feature_sizes:
            shape = expected["block_features"][1]
            raise ValueError(f"This model takes vectors of another model: `block_features` of shape {shape} are needed.")
        if block_features is not None and not self.config.block_feature_sizes:
            raise ValueError("`block_features` were given to a model without (`block_feature_size` is 0).")
        if (atom_charges is not None) != self.config.use_atom_charges:
            raise ValueError(
                "This model takes charges of atoms: `atom_charges` are needed; a processor with `return_charges` gives them."
                if self.config.use_atom_charges
                else "`atom_charges` were given to a model without (`use_atom_charges` is False)."
            )
        for name, (value, shape) in expected.items():
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(f"`{name}` has shape {tuple(value.shape)}, expected {shape}.")
        if not positions.is_floating_point():
            raise ValueError(f"`positions` are {positions.dtype}, expected floating-point numbers in angstrom.")
        if self.config.num_modalities and modality_ids is None:
            raise ValueError(f"This model has {self.config.num_modalities} modalities: `modality_ids` are needed.")
        if modality_ids is not None and not self.config.num_modalities:
            raise ValueError("`modality_ids` were given to a model without modalities (`num_modalities` is 0).")

    def encode(
        self,
        input_ids=None,
        atom_ids=None,
        atom_to_block=None,
        positions=None,
        attention_mask=None,
        token_type_ids=None,
        modality_ids=None,
        block_features=None,
        atom_charges=None,
        graph=None,
        are_copies=False,
    ):
        """Inputs as in `forward` -> `Encoding`. With `are_copies`, the complexes are the first one and copies of it of
        `mask_each_block`: what they share is computed once, without a gradient, and `atom_edges` are a list, one per layer."""
        self.check_inputs(
            input_ids, atom_ids, atom_to_block, positions, attention_mask, token_type_ids, modality_ids, block_features,
            atom_charges,
        )  # fmt: skip
        config = self.config
        if attention_mask is None:
            attention_mask = input_ids != config.pad_token_id
        if token_type_ids is None:
            token_type_ids = ((input_ids == config.global_token_id).cumsum(1) - 1).clamp_min(0)
        dtype = self.dtype
        wide = torch.promote_types(dtype, torch.float32)  # of distances, directions and sums, also in a half-precision model
        positions = positions.to(torch.promote_types(positions.dtype, wide))
        index = ComplexIndex(config, input_ids, atom_to_block, positions, attention_mask, token_type_ids, graph)

        def edges(positions, lists, base=None, changed=None):
            if not are_copies:
                return node_edges(positions, lists, config.direction_softening, wide), None
            return edges_of_copies(
                lists, positions, base, changed, config.num_hidden_layers, config.direction_softening, wide
            )  # fmt: skip

        atoms, net_charges = self.atom_embeddings(index.unpad_atoms(atom_ids)), None
        if config.use_atom_charges:
            charged, net_charges = charge_features(index, index.unpad_atoms(atom_charges).to(wide))
            atoms = atoms + self.charge_embedding(charged.to(dtype))
        of_copies = ()
        if are_copies:
            base = index.flat_atom[0][index.atom_slots % index.num_atoms]
            moved = index.unpad_atoms(changes(atom_ids) | changes(positions))
            if config.use_atom_charges:  # with a hidden charge goes its share of the net charge, which every atom is told
                moved = moved | (charged != charged[base]).any(-1)
            of_copies = base, moved
        atom_edges, changed = edges(index.atom_positions, index.atom_neighbors(), *of_copies)
        atom_irreps, h_atom = self.atom_encoder(atoms, atom_edges)

        blocks = self.block_embeddings(index.unpad_blocks(input_ids))
        if config.block_feature_sizes:
            block_features, segments = index.unpad_blocks(block_features).to(dtype), index.unpad_blocks(token_type_ids)
            blocks = self.block_features_before(blocks, block_features, segments)
        if config.num_modalities:
            modality = self.modality_embeddings(modality_ids)[index.complex_of_block]
            blocks = blocks + index.is_global_block.unsqueeze(-1) * modality
        atoms = index.attended_atoms()
        blocks = self.atom_to_block_attention(blocks, h_atom[atoms], index.block_of_atom[atoms])

        if are_copies:
            of_blocks = index.unpad_blocks(changes(input_ids))  # features of another model are hidden with their block
            of_blocks = of_blocks | (segment_sum(changed.long(), index.block_of_atom, index.total_blocks) > 0)
            of_copies = (index.block_mask[0].cumsum(0) - 1)[index.block_slots % index.num_blocks], of_blocks
        block_edges, _ = edges(index.block_positions, index.block_neighbors(), *of_copies)
        block_irreps, h_block = self.block_encoder(blocks, block_edges)
        if config.block_feature_sizes and self.block_features_after is not None:
            h_block = self.block_features_after(h_block, block_features, segments)
        takes_part = torch.ones_like(index.is_global_block) if config.global_message_passing else ~index.is_global_block
        h_graph = self.pooler(h_block, takes_part, index)
        return Encoding(index, atom_edges, atom_irreps, h_atom, block_irreps, h_block, h_graph, net_charges)

    def invariants(self, found: Encoding):
        """z_atom `(total_atoms, width)`, and the three parts of z_block `(total_blocks, ...)`; see `get_representations`."""
        index, irreps = found.index, self.atom_encoder.irreps
        scalars = [p.flatten(-2) for p, irrep in zip(split_irreps(found.atom_irreps, irreps), irreps) if irrep.degree == 0]
        z_atom = torch.cat([*scalars, gram_invariants(found.atom_irreps, irreps)], dim=-1)
        return z_atom, (
            found.h_block,
            gram_invariants(found.block_irreps, self.block_encoder.irreps),
            torch.cat(segment_mean_std(z_atom, index.block_of_atom, index.total_blocks), dim=-1),
        )

    def forward(
        self,
        input_ids: torch.LongTensor,
        atom_ids: torch.LongTensor,
        atom_to_block: torch.LongTensor,
        positions: torch.FloatTensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        modality_ids: torch.LongTensor | None = None,
        block_features: torch.FloatTensor | None = None,
        atom_charges: torch.LongTensor | None = None,
        graph: dict | None = None,
        output_irreps: bool = False,
        return_dict: bool | None = None,
    ) -> AtomicaModelOutput:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, num_blocks)`): block tokens; each segment starts with `<global>`.
            atom_ids (`torch.LongTensor` of shape `(batch, num_atoms)`): atom tokens, 0 on padding.
            atom_to_block (`torch.LongTensor` of shape `(batch, num_atoms)`): block of each atom, -1 on padding.
            positions (`torch.FloatTensor` of shape `(batch, num_atoms, 3)`): in angstrom.
            attention_mask (`torch.LongTensor` of shape `(batch, num_blocks)`): 1 for a block, 0 for padding; by default what
                is not `<pad>`.
            token_type_ids (`torch.LongTensor` of shape `(batch, num_blocks)`): segment of each block; by default counted
                from the `<global>` blocks.
            modality_ids (`torch.LongTensor` of shape `(batch,)`): kind of each complex, for models with modalities.
            block_features (`torch.FloatTensor` of shape `(batch, num_blocks, size)`): vectors of another model, for models with
                `block_feature_size`; zero where there is none. With a width per segment, `size` is the largest, and a segment
                reads the first of its own width.
            atom_charges (`torch.LongTensor` of shape `(batch, num_atoms)`): formal charges, in elementary charges, for models
                with `use_atom_charges`.
            graph (`dict`): indices and neighbours of this batch, made by `batch_graph` or a collator; found here if absent.
            output_irreps (`bool`): also return the features before the read-outs.

        Raises:
            `ValueError`: if an input is missing or of another shape.
        """
        found = self.encode(
            input_ids, atom_ids, atom_to_block, positions, attention_mask, token_type_ids, modality_ids, block_features,
            atom_charges, graph,
        )  # fmt: skip
        output = AtomicaModelOutput(**found.hidden_states())
        if output_irreps:
            index = found.index
            output["atom_irreps"] = index.pad_atoms(to_channel_major(found.atom_irreps, self.atom_encoder.irreps))
            output["block_irreps"] = index.pad_blocks(to_channel_major(found.block_irreps, self.block_encoder.irreps))
        return finish(output, return_dict)


class AtomicaAtomNoiseHead(nn.Module):
    """One vector per atom: a convolution over the encoder's edges to 1o + 1e, scaled by a number from the atom's block."""

    def __init__(self, config):
        super().__init__()
        self.distance_embedding = AtomicaDistanceEmbedding(config, config.atom_cutoff)
        irreps_in = encoder_irreps(config.num_hidden_layers, config.atom_hidden_size)
        self.message = AtomicaConvolution(config, config.atom_hidden_size, irreps_in, (Irrep(1, 1, -1), Irrep(1, 1, 1)))
        self.scale = AtomicaMLP((config.hidden_size, config.hidden_size, 1), config.hidden_dropout_prob, last_bias=False)

    def forward(self, atom_irreps, atom_edges, type_embeddings, h_block, block_of_atom):
        radials = [self.distance_embedding(distances) for _, _, distances in atom_edges.groups]
        vectors = self.message(atom_irreps, atom_edges, radials, type_embeddings)
        return (vectors[:, :3] + vectors[:, 3:]) * self.scale(h_block)[block_of_atom]


class AtomicaRigidHead(nn.Module):
    """Translation and rotation of the perturbed segment: one message from each of its atoms to their centre."""

    def __init__(self, config):
        super().__init__()
        self.num_scalars = config.atom_hidden_size
        self.softening = config.direction_softening
        self.distance_embedding = AtomicaDistanceEmbedding(config, config.rigid_cutoff)
        irreps_out = (Irrep(2, 1, -1), Irrep(2, 1, 1))
        self.convolution = TensorProductConvolution(
            encoder_irreps(config.num_hidden_layers, config.atom_hidden_size), HARMONICS, irreps_out, config.edge_size,
            sender_size=config.atom_hidden_size, dropout=config.hidden_dropout_prob,
            implementation=config.conv_implementation,
        )  # fmt: skip
        self.norm = EquivariantLayerNorm(irreps_out)
        scale = ((config.hidden_size, config.hidden_size, 1), config.hidden_dropout_prob, False)
        self.translation_scale = AtomicaMLP(*scale) if config.use_translation_noise else None
        self.rotation_scale = AtomicaMLP(*scale) if config.use_rotation_noise else None

    def forward(self, atom_irreps, h_graph, index, perturbed_segment):
        """-> translation and rotation, each `(batch, 3)`, or None for what the model does not predict."""
        dtype = torch.promote_types(atom_irreps.dtype, torch.float32)
        inside = index.atom_mask & (index.atom_segments == perturbed_segment[:, None])
        # a global atom lies at the centre but for rounding: its direction is the difference of nearly equal numbers
        positions = index.positions if index.positions.device.type == "mps" else index.positions.double()
        weight = mean_weight(inside, positions.dtype)
        centre = (positions * weight.unsqueeze(-1)).sum(1, keepdim=True)
        vectors = (positions - centre) * inside.unsqueeze(-1)
        harmonics = spherical_harmonics(vectors, self.softening).to(dtype)
        radial = self.distance_embedding(vectors.norm(dim=-1).to(dtype))
        edges = EdgeFeatures(index.flat_atom.clamp_min(0), None, harmonics, radial, weight.to(dtype))
        found = self.norm(self.convolution(atom_irreps, edges, sender_scalars=atom_irreps[:, : self.num_scalars]))
        odd, even = split_irreps(found, self.norm.irreps)
        vectors = odd + even
        translation = None if self.translation_scale is None else vectors[..., 0] * self.translation_scale(h_graph)
        rotation = None if self.rotation_scale is None else vectors[..., 1] * self.rotation_scale(h_graph)
        return translation, rotation


class AtomicaTorsionHead(nn.Module):
    """One score per bond: a message from the atoms around its middle, with harmonics that know the bond's axis."""

    def __init__(self, config):
        super().__init__()
        self.num_scalars = config.atom_hidden_size
        self.num_neighbors, self.cutoff, self.softening = (
            config.num_neighbors,
            config.torsion_cutoff,
            config.direction_softening,
        )
        self.distance_embedding = AtomicaDistanceEmbedding(config, config.torsion_cutoff)
        irreps_out = (Irrep(self.num_scalars, 0, -1), Irrep(self.num_scalars, 0, 1))
        self.convolution = TensorProductConvolution(
            encoder_irreps(config.num_hidden_layers, self.num_scalars), BOND_HARMONICS, irreps_out, config.edge_size,
            receiver_size=self.num_scalars, sender_size=self.num_scalars, dropout=config.hidden_dropout_prob,
            implementation=config.conv_implementation,
        )  # fmt: skip
        self.norm = EquivariantLayerNorm(irreps_out)
        self.dense = nn.Linear(2 * self.num_scalars, self.num_scalars, bias=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.output = nn.Linear(self.num_scalars, 1, bias=False)

    def forward(self, atom_irreps, index, torsion_index):
        """torsion_index `(batch, num_torsions, 2)` -> scores `(batch, num_torsions)`, zero on padding."""
        dtype = torch.promote_types(atom_irreps.dtype, torch.float32)
        slots = index.torsion_slots(torsion_index)
        complex_id = slots // torsion_index.shape[1] if torsion_index.shape[1] else slots
        first, second = torsion_index.flatten(0, 1)[slots].unbind(-1)
        start, end = index.positions[complex_id, first], index.positions[complex_id, second]
        middle = (start + end) / 2
        with torch.no_grad():
            nearest, found = nearest_atoms(middle, complex_id, index.positions, index.atom_mask, self.num_neighbors)
        vectors = index.positions[complex_id.unsqueeze(1), nearest] - middle.unsqueeze(1)
        found = found & (vectors.detach().pow(2).sum(-1) <= self.cutoff**2)
        harmonics = spherical_harmonics(vectors, self.softening)
        bond = spherical_harmonics(end - start, self.softening).unsqueeze(1).expand(-1, nearest.shape[1], -1)
        senders = index.flat_atom[complex_id.unsqueeze(1), nearest].clamp_min(0)
        edges = EdgeFeatures(
            senders, None, bond_harmonics(harmonics, bond).to(dtype),
            self.distance_embedding(vectors.norm(dim=-1).to(dtype)), mean_weight(found, dtype),
        )  # fmt: skip
        scalars = atom_irreps[:, : self.num_scalars]
        ends = scalars[index.flat_atom[complex_id, first]] + scalars[index.flat_atom[complex_id, second]]
        features = self.norm(self.convolution(atom_irreps, edges, receiver_scalars=ends, sender_scalars=scalars))
        scores = self.output(self.dropout(torch.tanh(self.dense(features.to(self.dense.weight.dtype))))).squeeze(-1)
        return scores.new_zeros(torsion_index.shape[:2].numel()).index_copy(0, slots, scores).view(torsion_index.shape[:2])


def composition(input_ids, labels, vocab_size):
    """Share of the blocks of each complex that each token has, hidden blocks by their labels: `(batch, vocab_size - 4)`, zeros
    for a complex without a block that can be named."""
    tokens = input_ids if labels is None else torch.where(labels >= 0, labels, input_ids)
    counts = torch.zeros(len(tokens), vocab_size, device=tokens.device).scatter_add_(1, tokens, torch.ones_like(tokens).float())
    counts = counts[:, NUM_SPECIAL_BLOCKS:]
    return counts / counts.sum(1, keepdim=True).clamp_min(1)


class AtomicaForPreTraining(AtomicaPreTrainedModel):
    """Atomica with the heads that repair a perturbed complex; `config.use_*` says which."""

    def __init__(self, config):
        super().__init__(config)
        self.atomica = AtomicaModel(config)
        if config.use_atom_noise:
            self.atom_noise_head = AtomicaAtomNoiseHead(config)
        if config.use_translation_noise or config.use_rotation_noise:
            self.rigid_head = AtomicaRigidHead(config)
        if config.use_torsion_noise:
            self.torsion_head = AtomicaTorsionHead(config)
        if config.use_masking:
            self.mask_head = mask_head(config)
        if config.use_composition:
            self.composition_head = nn.Linear(config.hidden_size, config.vocab_size - NUM_SPECIAL_BLOCKS)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor,
        atom_ids: torch.LongTensor,
        atom_to_block: torch.LongTensor,
        positions: torch.FloatTensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        modality_ids: torch.LongTensor | None = None,
        block_features: torch.FloatTensor | None = None,
        atom_charges: torch.LongTensor | None = None,
        graph: dict | None = None,
        labels: torch.LongTensor | None = None,
        perturbed_segment: torch.LongTensor | None = None,
        atom_noise_labels: torch.FloatTensor | None = None,
        atom_noise_sigma: torch.FloatTensor | None = None,
        torsion_index: torch.LongTensor | None = None,
        torsion_labels: torch.FloatTensor | None = None,
        translation_labels: torch.FloatTensor | None = None,
        translation_sigma: torch.FloatTensor | None = None,
        rotation_labels: torch.FloatTensor | None = None,
        return_dict: bool | None = None,
    ) -> AtomicaForPreTrainingOutput:
        """
        The inputs of `AtomicaModel`, of a perturbed complex, and what was done to it.

        Args:
            labels (`torch.LongTensor` of shape `(batch, num_blocks)`): token of each masked block, -100 elsewhere.
            perturbed_segment (`torch.LongTensor` of shape `(batch,)`): the segment that was moved, -1 for none.
            atom_noise_labels (`torch.FloatTensor` of shape `(batch, num_atoms, 3)`): (clean - noisy) / sigma of the perturbed
                segment.
            atom_noise_sigma (`torch.FloatTensor` of shape `(batch,)`): sigma, in angstrom.
            torsion_index (`torch.LongTensor` of shape `(batch, num_torsions, 2)`): atoms of each turned bond, -1 on padding.
            torsion_labels (`torch.FloatTensor` of shape `(batch, num_torsions)`): score of each angle, per radian.
            translation_labels (`torch.FloatTensor` of shape `(batch, 3)`): z, where the segment moved by sigma z.
            translation_sigma (`torch.FloatTensor` of shape `(batch,)`): sigma, in angstrom.
            rotation_labels (`torch.FloatTensor` of shape `(batch, 3)`): score of the rotation vector, per radian.
        """
        config = self.config
        for label, sigma in (
            ("atom_noise_labels", (atom_noise_labels, atom_noise_sigma)),
            ("translation_labels", (translation_labels, translation_sigma)),
        ):
            if sigma[0] is not None and sigma[1] is None:
                raise ValueError(f"`{label}` need `{label.replace('labels', 'sigma')}` beside them.")
        found = self.atomica.encode(
            input_ids, atom_ids, atom_to_block, positions, attention_mask, token_type_ids, modality_ids, block_features,
            atom_charges, graph,
        )  # fmt: skip
        index, atom_edges, atom_irreps, h_block, h_graph = (
            found.index, found.atom_edges, found.atom_irreps, found.h_block, found.h_graph
        )  # fmt: skip
        if perturbed_segment is None:
            perturbed_segment = input_ids.new_full((index.batch,), -1)
        out = found.hidden_states()

        losses = []

        def add_loss(name, prediction, loss_of):
            out[f"{name}_loss"] = loss_of(prediction)
            out[f"{name}_baseline"] = loss_of(torch.zeros_like(prediction)).detach()
            losses.append(getattr(config, f"{name}_loss_weight") * out[f"{name}_loss"])

        rigid = (perturbed_segment >= 0) & (index.num_segments > 1)
        if config.use_atom_noise:
            out["atom_prediction"] = index.pad_atoms(
                self.atom_noise_head(
                    atom_irreps, atom_edges, self.atomica.atom_encoder.edge_type_embeddings.weight, h_block, index.block_of_atom
                )
            )
            if atom_noise_labels is not None:
                moved = index.atom_mask & (index.atom_segments == perturbed_segment[:, None])

                def atom_loss(prediction):
                    error = atom_noise_sigma[:, None, None] * prediction - atom_noise_labels
                    per_complex = (error.pow(2).sum(-1) * moved).sum(1) / moved.sum(1).clamp_min(1)
                    return masked_mean(per_complex, moved.any(1))

                add_loss("atom", out["atom_prediction"], atom_loss)
        if config.use_torsion_noise and torsion_index is not None:
            out["torsion_prediction"] = self.torsion_head(atom_irreps, index, torsion_index)
            if torsion_labels is not None:
                turned = torsion_index[..., 0] >= 0

                def torsion_loss(prediction):
                    error = (prediction - torsion_labels).pow(2) * turned
                    return masked_mean(error.sum(1) / turned.sum(1).clamp_min(1), turned.any(1))

                add_loss("torsion", out["torsion_prediction"], torsion_loss)
        if config.use_translation_noise or config.use_rotation_noise:
            translation, rotation = self.rigid_head(atom_irreps, h_graph, index, perturbed_segment)
            out["translation_prediction"], out["rotation_prediction"] = translation, rotation
            if config.use_translation_noise and translation_labels is not None:
                add_loss(
                    "translation",
                    translation,
                    lambda p: masked_mean((translation_sigma[:, None] * p + translation_labels).pow(2).mean(-1), rigid),
                )
            if config.use_rotation_noise and rotation_labels is not None:
                add_loss("rotation", rotation, lambda p: masked_mean((p - rotation_labels).pow(2).mean(-1), rigid))
        if config.use_masking:
            out["prediction_logits"] = index.pad_blocks(self.mask_head(h_block))
            if labels is not None:
                masked = labels >= 0
                classes = torch.where(masked, labels - NUM_SPECIAL_BLOCKS, IGNORE_INDEX).flatten()
                add_loss(
                    "mask",
                    out["prediction_logits"],
                    lambda p: label_loss(p.flatten(0, 1), classes, "single_label_classification"),
                )
        if config.use_composition:
            out["composition_logits"] = self.composition_head(h_graph)
            share = composition(input_ids, labels, config.vocab_size)
            inside = share.sum(1) > 0
            if losses or labels is not None:
                add_loss(
                    "composition",
                    out["composition_logits"],
                    lambda p: masked_mean(F.cross_entropy(p, share.to(p.dtype), reduction="none"), inside),
                )
        if losses:
            if not (config.use_translation_noise or config.use_rotation_noise or config.use_composition):
                losses.append(0.0 * h_graph.sum())  # distributed training wants every parameter in the graph
            out["loss"] = sum(losses)
        return finish(AtomicaForPreTrainingOutput(**out), return_dict)


class AtomicaForMaskedLM(AtomicaPreTrainedModel):
    """Atomica with the head that names hidden blocks."""

    def __init__(self, config):
        super().__init__(config)
        self.atomica = AtomicaModel(config)
        self.mask_head = mask_head(config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor,
        atom_ids: torch.LongTensor,
        atom_to_block: torch.LongTensor,
        positions: torch.FloatTensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        modality_ids: torch.LongTensor | None = None,
        block_features: torch.FloatTensor | None = None,
        atom_charges: torch.LongTensor | None = None,
        graph: dict | None = None,
        labels: torch.LongTensor | None = None,
        return_dict: bool | None = None,
    ) -> MaskedLMOutput:
        """
        The inputs of `AtomicaModel`, and what is hidden. A hidden block is one `<mask>` with one `<mask>` atom at its centre.

        Args:
            labels (`torch.LongTensor` of shape `(batch, num_blocks)`): token of each masked block, -100 elsewhere.

        Returns:
            `MaskedLMOutput`: `logits` of shape `(batch, num_blocks, vocab_size)`, so that a class is a token id; those of the
            four special tokens, which are never predicted, are the least number there is.
        """
        found = self.atomica.encode(
            input_ids, atom_ids, atom_to_block, positions, attention_mask, token_type_ids, modality_ids, block_features,
            atom_charges, graph,
        )  # fmt: skip
        scores = self.mask_head(found.h_block)
        logits = F.pad(scores, (NUM_SPECIAL_BLOCKS, 0), value=torch.finfo(scores.dtype).min)
        loss = None
        if labels is not None:
            flat = found.index.unpad_blocks(labels)
            classes = torch.where(flat >= 0, flat - NUM_SPECIAL_BLOCKS, IGNORE_INDEX)
            loss = label_loss(scores, classes, "single_label_classification") + 0.0 * found.h_graph.sum()
        return finish(MaskedLMOutput(loss=loss, logits=found.index.pad_blocks(logits)), return_dict)


class AtomicaForSequenceClassification(AtomicaPreTrainedModel):
    """Atomica with a head for one label or many of a whole complex: classification or regression."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.atomica = AtomicaModel(config)
        if config.pooling in REPRESENTATION_POOLINGS:
            width = self.representation_widths(config.pooling)["z_graph"]
            self.projection = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.hidden_size))
        if config.pooling == "pair_energy":
            check_energy_labels(config)
            irreps = self.atomica.atom_encoder.irreps
            self.pair_energy = PairEnergy(irreps, 2 * config.atom_hidden_size, config.energy_unit, config.energy_cutoff)
        else:
            self.classifier = classifier(config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor,
        atom_ids: torch.LongTensor,
        atom_to_block: torch.LongTensor,
        positions: torch.FloatTensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        modality_ids: torch.LongTensor | None = None,
        block_features: torch.FloatTensor | None = None,
        atom_charges: torch.LongTensor | None = None,
        graph: dict | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> AtomicaSequenceClassifierOutput:
        """
        The inputs of `AtomicaModel`, and labels.

        Args:
            labels (`torch.Tensor` of shape `(batch,)` or `(batch, num_labels)`): classes (-100 is missing) for
                `problem_type="single_label_classification"`, 0 and 1 (negative or NaN is missing) for
                `"multi_label_classification"`, numbers (NaN is missing) for `"regression"`. Without a `problem_type` in the
                config one label is a regression, several are classes if they are integers and else many labels.
        """
        config = self.config
        found = self.atomica.encode(
            input_ids, atom_ids, atom_to_block, positions, attention_mask, token_type_ids, modality_ids, block_features,
            atom_charges, graph,
        )  # fmt: skip
        index, out = found.index, found.hidden_states()
        if config.pooling == "block_sum":
            per_block = self.classifier(found.h_block)
            if not config.global_message_passing:
                per_block = per_block * ~index.is_global_block.unsqueeze(-1)
            out["block_logits"] = index.pad_blocks(per_block)
            out["logits"] = segment_sum(per_block, index.complex_of_block, index.batch)
        elif config.pooling == "pair_energy":
            with torch.autocast(device_type=found.h_atom.device.type, enabled=False):
                terms = self.pair_energy(found)
            per_block = segment_sum(terms, index.block_of_atom, index.total_blocks)
            out["block_logits"] = index.pad_blocks(per_block.sum(-1, keepdim=True))
            out["energy_terms"] = segment_sum(per_block, index.complex_of_block, index.batch)
            out["logits"] = out["energy_terms"].sum(-1, keepdim=True)
        elif config.pooling in REPRESENTATION_POOLINGS:
            _, parts = self.atomica.invariants(found)
            z_graph = pool_blocks(parts, index, ~index.is_global_block, config.pooling)
            out["logits"] = self.classifier(self.projection(z_graph.to(self.dtype)))
        else:
            out["logits"] = self.classifier(found.h_graph)
        if labels is not None:
            problem = config.problem_type
            if problem is None and self.num_labels == 1:
                problem = "regression"
            elif problem is None:
                many = labels.is_floating_point() and labels.ndim == 2
                problem = "multi_label_classification" if many else "single_label_classification"
            out["loss"] = label_loss(out["logits"], labels, problem, config.regression_loss) + 0.0 * found.h_graph.sum()
        return finish(AtomicaSequenceClassifierOutput(**out), return_dict)


class AtomicaForTokenClassification(AtomicaPreTrainedModel):
    """Atomica with a head for a label of every block: a residue, a nucleotide, a fragment."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.atomica = AtomicaModel(config)
        self.classifier = classifier(config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor,
        atom_ids: torch.LongTensor,
        atom_to_block: torch.LongTensor,
        positions: torch.FloatTensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        modality_ids: torch.LongTensor | None = None,
        block_features: torch.FloatTensor | None = None,
        atom_charges: torch.LongTensor | None = None,
        graph: dict | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> TokenClassifierOutput:
        """
        The inputs of `AtomicaModel`, and labels.

        Args:
            labels (`torch.Tensor` of shape `(batch, num_blocks)` or `(batch, num_blocks, num_labels)`): as for
                `AtomicaForSequenceClassification`, one (or one row) per block; without a `problem_type` in the config integers
                are classes, numbers with a point one regression or many labels.
        """
        found = self.atomica.encode(
            input_ids, atom_ids, atom_to_block, positions, attention_mask, token_type_ids, modality_ids, block_features,
            atom_charges, graph,
        )  # fmt: skip
        logits, loss = self.classifier(found.h_block), None
        if labels is not None:
            problem = self.config.problem_type
            if problem is None and labels.is_floating_point() and self.num_labels == 1:
                problem = "regression"
            elif problem is None:
                many = labels.is_floating_point() and labels.ndim == 3
                problem = "multi_label_classification" if many else "single_label_classification"
            if labels.shape[:2] != input_ids.shape:
                raise ValueError(
                    f"`labels` have shape {tuple(labels.shape)}, expected one per block: {tuple(input_ids.shape)}."
                )
            loss = label_loss(logits, found.index.unpad_blocks(labels), problem, self.config.regression_loss)
            loss = loss + 0.0 * found.h_graph.sum()
        return finish(TokenClassifierOutput(loss=loss, logits=found.index.pad_blocks(logits)), return_dict)


class AtomicaForInterfaceContrast(AtomicaPreTrainedModel):
    """Two encoders, of one side alone and of the whole complex, that learn to give matching vectors (as ATOMICA-Interface).

    The encoder of the side is `atomica`; `AutoModel` finds it in a saved folder.
    """

    def __init__(self, config):
        super().__init__(config)
        self.atomica = AtomicaModel(config)
        self.complex_atomica = AtomicaModel(config)
        sizes = (config.hidden_size,) * 4
        self.side_projection = AtomicaMLP(sizes, dropout=0.0)
        self.complex_projection = AtomicaMLP(sizes, dropout=0.0)
        self.post_init()
        self.complex_atomica.requires_grad_(not config.freeze_complex_encoder)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.complex_atomica.requires_grad_(not model.config.freeze_complex_encoder)  # loading makes new parameters
        return loaded

    @classmethod
    def from_encoder(cls, pretrained_model_name_or_path, **kwargs):
        """Both encoders from one pretrained checkpoint, new projections; arguments as of `from_pretrained`."""
        model = cls.from_pretrained(pretrained_model_name_or_path, **kwargs)
        model.complex_atomica.load_state_dict(model.atomica.state_dict())
        return model

    def forward(
        self,
        input_ids: torch.LongTensor,
        atom_ids: torch.LongTensor,
        atom_to_block: torch.LongTensor,
        positions: torch.FloatTensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        modality_ids: torch.LongTensor | None = None,
        block_features: torch.FloatTensor | None = None,
        atom_charges: torch.LongTensor | None = None,
        graph: dict | None = None,
        complex_input_ids: torch.LongTensor | None = None,
        complex_atom_ids: torch.LongTensor | None = None,
        complex_atom_to_block: torch.LongTensor | None = None,
        complex_positions: torch.FloatTensor | None = None,
        complex_attention_mask: torch.Tensor | None = None,
        complex_token_type_ids: torch.LongTensor | None = None,
        complex_block_features: torch.FloatTensor | None = None,
        return_dict: bool | None = None,
    ) -> AtomicaInterfaceContrastOutput:
        """
        The inputs of `AtomicaModel` for one side alone, and under names with `complex_` those of the complexes it belongs to,
        row by row. Without the latter only the side is embedded, and there is no loss.

        The loss is the mean over both directions of -log(exp(ab_ii) / (sum over j of exp(ab_ij) + sum over j != i of
        exp(aa_ij))), where ab and aa are cosines over `contrast_temperature`.
        """
        found = self.atomica.encode(
            input_ids, atom_ids, atom_to_block, positions, attention_mask, token_type_ids, modality_ids, block_features,
            atom_charges, graph,
        )  # fmt: skip
        side = F.normalize(self.side_projection(found.h_graph), dim=-1)
        out = {"side_embeds": side, **found.hidden_states()}
        if complex_input_ids is not None:
            if len(complex_input_ids) != len(input_ids):
                raise ValueError(f"{len(complex_input_ids)} complexes were given for {len(input_ids)} sides, expected as many.")
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_complex_encoder):
                whole = self.complex_atomica.encode(
                    complex_input_ids, complex_atom_ids, complex_atom_to_block, complex_positions, complex_attention_mask,
                    complex_token_type_ids, modality_ids, complex_block_features,
                )  # fmt: skip
            partner = F.normalize(self.complex_projection(whole.h_graph), dim=-1)
            temperature = self.config.contrast_temperature
            across = side @ partner.T / temperature
            itself = torch.eye(len(side), dtype=torch.bool, device=side.device)

            def direction(across, own):
                own = (own @ own.T / temperature).masked_fill(itself, -torch.inf)
                return torch.cat([across, own], dim=1).logsumexp(1) - across.diagonal()

            out["complex_embeds"], out["logits_per_side"] = partner, across
            out["loss"] = torch.cat([direction(across, side), direction(across.T, partner)]).mean()
        return finish(AtomicaInterfaceContrastOutput(**out), return_dict)


__all__ = [
    "REPRESENTATIONS",
    "REPRESENTATION_POOLINGS",
    "AtomicaForInterfaceContrast",
    "AtomicaForMaskedLM",
    "AtomicaForPreTraining",
    "AtomicaForSequenceClassification",
    "AtomicaForTokenClassification",
    "AtomicaModel",
    "AtomicaPreTrainedModel",
]
