# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""The same network as `AtomicaForPreTraining`, written straight from e3nn's building blocks, to compare with.

One weight per edge and path, from a perceptron of the edge scalars, goes into `FullyConnectedTensorProduct`; messages are
averaged with `index_add`; neighbours come from all distances of each complex; atoms of a block and blocks of a complex are
padded one by one. Nothing is cut into chunks or computed twice. Features have e3nn's layout, channel first.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from e3nn import o3
from torch import nn
from torch.nn.utils.rnn import pad_sequence


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from atomica_hf import AtomicaForPreTraining, AtomicaModel  # noqa: E402
from atomica_hf.geometry_atomica import HARMONICS, TensorProductConvolution  # noqa: E402
from atomica_hf.graph_atomica import ComplexIndex  # noqa: E402
from atomica_hf.modeling_atomica import (  # noqa: E402
    AtomicaEncoder,
    AtomicaRigidHead,
    AtomicaTorsionHead,
    Encoding,
    encoder_irreps,
)


class Edges(NamedTuple):
    """Edges `(num_edges,)`, their type, the harmonics of their direction and their length in angstrom."""

    senders: torch.Tensor
    receivers: torch.Tensor
    types: torch.Tensor | None
    harmonics: torch.Tensor
    distances: torch.Tensor


def to_o3(irreps):
    return o3.Irreps([(irrep.multiplicity, (irrep.degree, irrep.parity)) for irrep in irreps])


def harmonics_of(vectors, softening):
    """Component-normalised harmonics of degree 0 to 2; directions shorter than `softening` fade."""
    if softening > 0:
        vectors = vectors / (vectors.pow(2).sum(-1, keepdim=True) + softening**2).sqrt()
    return o3.spherical_harmonics([0, 1, 2], vectors, normalize=softening == 0, normalization="component")


def distances_between(points, others):
    return torch.cdist(points, others, compute_mode="donot_use_mm_for_euclid_dist")


def scatter_mean(values, index, size):
    total = values.new_zeros(size, values.shape[1]).index_add_(0, index, values)
    count = values.new_zeros(size).index_add_(0, index, values.new_ones(len(index)))
    return total / count.clamp_min(1).unsqueeze(1)


def complex_edges(positions, segments, is_global, num_neighbors, with_globals):
    """Senders, receivers and types of the edges of one complex."""
    same = segments[:, None] == segments
    one_global, both_global = is_global[:, None] | is_global, is_global[:, None] & is_global
    distances = distances_between(positions, positions).fill_diagonal_(torch.inf)
    found = []
    for edge_type, pairs in ((0, same & ~one_global), (1, ~same & ~one_global)):
        values, nearest = distances.masked_fill(~pairs, torch.inf).topk(min(num_neighbors, len(positions)), largest=False)
        receivers, slots = values.isfinite().nonzero(as_tuple=True)
        found.append((nearest[receivers, slots], receivers, edge_type))
    if with_globals:
        for edge_type, pairs in ((2, same & one_global), (3, both_global)):
            receivers, senders = (pairs & distances.isfinite()).nonzero(as_tuple=True)
            found.append((senders, receivers, edge_type))
    senders, receivers = (torch.cat([part[i] for part in found]) for i in (0, 1))
    return senders, receivers, torch.cat([torch.full_like(part[0], part[2]) for part in found])


def batch_edges(positions, counts, segments, is_global, num_neighbors, with_globals, softening, dtype):
    """Edges of all nodes of one level; the complexes of the batch have `counts` nodes each."""
    start, parts = 0, []
    with torch.no_grad():
        for p, s, g in zip(positions.split(counts), segments.split(counts), is_global.split(counts)):
            senders, receivers, types = complex_edges(p, s, g, num_neighbors, with_globals)
            parts.append((senders + start, receivers + start, types))
            start += len(p)
    senders, receivers, types = (torch.cat(part) for part in zip(*parts))
    vectors = positions[senders] - positions[receivers]
    return Edges(senders, receivers, types, harmonics_of(vectors, softening).to(dtype), vectors.norm(dim=-1).to(dtype))


class E3nnLayerNorm(nn.Module):
    """The equivariant layer norm on e3nn's layout."""

    def __init__(self, irreps, eps=1e-5):
        super().__init__()
        self.irreps, self.eps = irreps, eps
        scalars = sum(mul for mul, ir in irreps if ir.is_scalar())
        self.weight = nn.Parameter(torch.ones(irreps.num_irreps))
        self.bias = nn.Parameter(torch.zeros(scalars)) if scalars else None

    def forward(self, x):
        out, start = [], 0
        for (mul, ir), columns in zip(self.irreps, self.irreps.slices()):
            part = x[:, columns].reshape(-1, mul, ir.dim)
            if ir.is_scalar():
                part = part - part.mean(1, keepdim=True)
            part = part * (part.pow(2).mean((1, 2), keepdim=True) + self.eps).rsqrt()
            part = part * self.weight[start : start + mul, None]
            out.append((part + self.bias[:, None] if ir.is_scalar() else part).flatten(1))
            start += mul
        return torch.cat(out, dim=1)


class E3nnConvolution(nn.Module):
    """Messages of a fully connected tensor product with a weight for each edge, averaged over the neighbours."""

    def __init__(self, irreps_in, irreps_edge, irreps_out, num_features, dropout=0.0):
        super().__init__()
        self.product = o3.FullyConnectedTensorProduct(irreps_in, irreps_edge, irreps_out, shared_weights=False)
        self.edge_dense = nn.Linear(num_features, num_features)
        self.weights = nn.Linear(num_features, self.product.weight_numel)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, senders, receivers, harmonics, features, num_receivers):
        weights = self.weights(self.dropout(F.relu(self.edge_dense(torch.cat(features, dim=1)))))
        return scatter_mean(self.product(x[senders], harmonics, weights), receivers, num_receivers)


class E3nnMessage(nn.Module):
    def __init__(self, config, num_scalars, depth):
        super().__init__()
        self.num_scalars = num_scalars
        irreps_in, irreps_out = (to_o3(encoder_irreps(d, num_scalars)) for d in (depth, depth + 1))
        width = 2 * config.edge_size + 2 * num_scalars
        self.convolution = E3nnConvolution(irreps_in, to_o3(HARMONICS), irreps_out, width, config.hidden_dropout_prob)
        self.norm = E3nnLayerNorm(irreps_out)

    def forward(self, x, edges, radial, types):
        scalars = x[:, : self.num_scalars]
        features = [radial, types, scalars[edges.receivers], scalars[edges.senders]]
        return self.norm(self.convolution(x, edges.senders, edges.receivers, edges.harmonics, features, len(x)))


class E3nnLayer(nn.Module):
    def __init__(self, config, num_scalars, depth):
        super().__init__()
        self.message = E3nnMessage(config, num_scalars, depth)

    def forward(self, x, edges, radial, types):
        update = self.message(x, edges, radial, types)
        return F.pad(x, (0, update.shape[1] - x.shape[1])) + update


class E3nnEncoder(AtomicaEncoder):
    def __init__(self, config, num_scalars, cutoff, long_range_cutoff=None):
        super().__init__(config, num_scalars, cutoff, long_range_cutoff)
        self.layers = nn.ModuleList(E3nnLayer(config, num_scalars, i) for i in range(config.num_hidden_layers))

    def forward(self, x, edges):
        radial, types = self.distance_embedding(edges.distances), self.edge_type_embeddings(edges.types)
        if self.long_range_embedding is not None:
            radial = radial + self.long_range_embedding(edges.distances)
        for layer in self.layers:
            x = layer(x, edges, radial, types)
        irreps = to_o3(self.irreps)
        scalars = torch.cat([x[:, columns] for (_, ir), columns in zip(irreps, irreps.slices()) if ir.l == 0], dim=1)
        return x, F.normalize(self.readout_out(self.dropout(F.relu(self.readout_in(scalars)))), dim=-1)


class E3nnModel(AtomicaModel):
    """The encoder; what is not replaced here is that of `AtomicaModel`."""

    def __init__(self, config):
        if config.attend_to_padding or config.num_modalities or config.block_feature_sizes:
            raise ValueError("The baseline has no attention to padding, no modalities and no block features.")
        super().__init__(config)
        self.atom_encoder = E3nnEncoder(config, config.atom_hidden_size, config.atom_cutoff)
        self.block_encoder = E3nnEncoder(config, config.hidden_size, config.block_cutoff, config.block_long_range_cutoff)

    def attend(self, blocks, atoms, counts):
        """Attention of every block over its atoms, which are padded to the largest block."""
        attention = self.atom_to_block_attention
        padded = pad_sequence(atoms.split(counts), batch_first=True)
        counts = torch.tensor(counts, device=atoms.device).clamp_min(1)
        allowed = torch.arange(padded.shape[1], device=atoms.device) < counts[:, None]
        heads = lambda t: t.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        query, key, value = attention.query(blocks).unsqueeze(1), attention.key(padded), attention.value(padded)
        mixed = F.scaled_dot_product_attention(*map(heads, (query, key, value)), attn_mask=allowed[:, None, None])
        return attention.norm(blocks + attention.output(mixed.transpose(1, 2).flatten(1)))

    def pool(self, blocks, counts):
        x = pad_sequence(blocks.split(counts), batch_first=True)
        counts = torch.tensor(counts, device=x.device)
        allowed = torch.arange(x.shape[1], device=x.device) < counts[:, None]
        for layer in self.pooler.layers:
            x = layer(x, allowed)
        return F.normalize(self.pooler.dense(torch.stack([row[:n].sum(0) for row, n in zip(x, counts)])), dim=-1)

    def encode(self, input_ids, atom_ids, atom_to_block, positions, attention_mask, token_type_ids, *unused):
        config, dtype = self.config, self.dtype
        positions = positions.to(torch.promote_types(positions.dtype, dtype))
        index = ComplexIndex(config, input_ids, atom_to_block, positions, attention_mask, token_type_ids)
        counts, common = attention_mask.sum(1).tolist(), (config.direction_softening, dtype)
        atom_edges = batch_edges(
            index.atom_positions, index.atom_mask.sum(1).tolist(), index.unpad_atoms(index.atom_segments),
            index.unpad_atoms(index.global_atom_nodes), config.num_neighbors, config.atom_global_message_passing, *common,
        )  # fmt: skip
        atom_irreps, h_atom = self.atom_encoder(self.atom_embeddings(index.unpad_atoms(atom_ids)), atom_edges)
        keep = index.is_global_atom & (not config.atom_global_message_passing)
        atoms_per_block = torch.bincount(index.block_of_atom[~keep], minlength=index.total_blocks).tolist()
        blocks = self.block_embeddings(index.unpad_blocks(input_ids))
        blocks = self.attend(blocks, h_atom[~keep], atoms_per_block)
        block_edges = batch_edges(
            index.block_positions, counts, index.unpad_blocks(token_type_ids), index.unpad_blocks(index.global_block_nodes),
            config.num_neighbors, config.global_message_passing, *common,
        )  # fmt: skip
        block_irreps, h_block = self.block_encoder(blocks, block_edges)
        pooled = h_block
        if not config.global_message_passing:
            pooled = h_block[~index.is_global_block]
            counts = torch.bincount(index.complex_of_block[~index.is_global_block], minlength=index.batch).tolist()
        h_graph = self.pool(pooled, counts)
        return Encoding(index, atom_edges, atom_irreps, h_atom, block_irreps, h_block, h_graph)


class E3nnRigidHead(AtomicaRigidHead):
    def __init__(self, config):
        super().__init__(config)
        irreps_in = to_o3(encoder_irreps(config.num_hidden_layers, self.num_scalars))
        irreps_out, width = o3.Irreps("2x1o + 2x1e"), config.edge_size + self.num_scalars
        self.convolution = E3nnConvolution(irreps_in, to_o3(HARMONICS), irreps_out, width, config.hidden_dropout_prob)
        self.norm = E3nnLayerNorm(irreps_out)

    def forward(self, atom_irreps, h_graph, index, perturbed_segment):
        dtype, graphs = atom_irreps.dtype, index.complex_of_atom
        senders = (index.unpad_atoms(index.atom_segments) == perturbed_segment[graphs]).nonzero().squeeze(1)
        receivers, positions = graphs[senders], index.atom_positions[senders].double()
        vectors = positions - scatter_mean(positions, receivers, index.batch)[receivers]
        radial = self.distance_embedding(vectors.norm(dim=-1).to(dtype))
        harmonics = harmonics_of(vectors, self.softening).to(dtype)
        features = [radial, atom_irreps[senders, : self.num_scalars]]
        found = self.norm(self.convolution(atom_irreps, senders, receivers, harmonics, features, index.batch))
        odd, even = found.view(-1, 2, 2, 3).unbind(1)
        scales = (self.translation_scale, self.rotation_scale)
        return [None if scale is None else (odd + even)[:, i] * scale(h_graph) for i, scale in enumerate(scales)]


class E3nnTorsionHead(AtomicaTorsionHead):
    def __init__(self, config):
        super().__init__(config)
        irreps_in = to_o3(encoder_irreps(config.num_hidden_layers, self.num_scalars))
        irreps_out = o3.Irreps([(self.num_scalars, "0o"), (self.num_scalars, "0e")])
        self.product = o3.FullTensorProduct(to_o3(HARMONICS), "2e")
        width, edge = config.edge_size + 2 * self.num_scalars, self.product.irreps_out
        self.convolution = E3nnConvolution(irreps_in, edge, irreps_out, width, config.hidden_dropout_prob)
        self.norm = E3nnLayerNorm(irreps_out)

    def forward(self, atom_irreps, index, torsion_index):
        dtype, parts, start = atom_irreps.dtype, [], 0
        counts = (torsion_index[..., 0] >= 0).sum(1).tolist()
        bonds = [row[:n] + index.flat_atom[i, 0] for i, (row, n) in enumerate(zip(torsion_index, counts))]
        ends = torch.cat(bonds)
        middles = index.atom_positions[ends].mean(1)
        atoms = index.atom_positions.split(index.atom_mask.sum(1).tolist())
        for i, (middle, others) in enumerate(zip(middles.split(counts), atoms)):
            values, nearest = distances_between(middle, others).topk(min(self.num_neighbors, len(others)), largest=False)
            receivers, slots = (values <= self.cutoff).nonzero(as_tuple=True)
            parts.append((nearest[receivers, slots] + index.flat_atom[i, 0], receivers + start))
            start += len(middle)
        senders, receivers = (torch.cat(part) for part in zip(*parts))
        vectors = index.atom_positions[senders] - middles[receivers]
        bond = harmonics_of((index.atom_positions[ends[:, 1]] - index.atom_positions[ends[:, 0]]), self.softening)[:, 4:]
        harmonics = self.product(harmonics_of(vectors, self.softening).to(dtype), bond[receivers].to(dtype))
        scalars = atom_irreps[:, : self.num_scalars]
        features = [self.distance_embedding(vectors.norm(dim=-1).to(dtype)), scalars[ends].sum(1)[receivers], scalars[senders]]
        found = self.norm(self.convolution(atom_irreps, senders, receivers, harmonics, features, len(ends)))
        scores = self.output(self.dropout(torch.tanh(self.dense(found)))).squeeze(-1)
        return pad_sequence(
            [F.pad(row, (0, torsion_index.shape[1] - len(row))) for row in scores.split(counts)], batch_first=True
        )


class E3nnForPreTraining(AtomicaForPreTraining):
    """`AtomicaForPreTraining` with the encoder and the denoising heads above; `from_atomica` copies a model's weights."""

    def __init__(self, config):
        if config.use_atom_noise:
            raise ValueError("The baseline has no head for atom noise.")
        super().__init__(config)
        self.atomica = E3nnModel(config)
        if hasattr(self, "rigid_head"):
            self.rigid_head = E3nnRigidHead(config)
        if hasattr(self, "torsion_head"):
            self.torsion_head = E3nnTorsionHead(config)

    @classmethod
    def from_atomica(cls, model):
        default = torch.get_default_dtype()
        torch.set_default_dtype(model.dtype)  # e3nn rounds its constants to it
        try:
            baseline = cls(model.config)
        finally:
            torch.set_default_dtype(default)
        missing, unexpected = baseline.load_state_dict(rename(model, model.state_dict()), strict=False)
        missing = [name for name in missing if ".product." not in name]  # e3nn's constants
        if missing or unexpected:
            raise ValueError(f"Weights do not fit: missing {missing}, unexpected {unexpected}.")
        return baseline.to(model.device, model.dtype).train(model.training)


def rename(model, tensors):
    """Weights of an `AtomicaForPreTraining` (or their gradients) under the names and in the order of the baseline."""
    tensors = dict(tensors)
    for name, module in model.named_modules():
        if not isinstance(module, TensorProductConvolution):
            continue
        rows, biases, used = [], [], dict.fromkeys(range(len(module.irreps_out)), 0)
        weights = [tensors.pop(f"{name}.weight_{irrep.name}") for irrep in module.irreps_out]
        shifts = [tensors.pop(f"{name}.bias_{irrep.name}") for irrep in module.irreps_out]
        for a, first in enumerate(module.irreps_in):
            for b in range(len(module.irreps_edge)):
                for out, paths in enumerate(module.outputs):
                    if (a, b) in paths:
                        channels = slice(used[out], used[out] + first.multiplicity)
                        rows.append(weights[out][channels].transpose(1, 2).flatten(0, 1))
                        biases.append(shifts[out][channels].flatten())
                        used[out] += first.multiplicity
        tensors[f"{name}.weights.weight"], tensors[f"{name}.weights.bias"] = torch.cat(rows), torch.cat(biases)
    return tensors
