import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from atomica_hf import geometry_atomica as geometry
from atomica_hf.geometry_atomica import HARMONICS, EdgeFeatures, EquivariantLayerNorm, TensorProductConvolution
from atomica_hf.modeling_atomica import encoder_irreps


def oracle():
    return pytest.importorskip("e3nn.o3", reason="e3nn is the oracle of this test")


def e3nn_irreps(o3, irreps):
    return o3.Irreps([(i.multiplicity, (i.degree, i.parity)) for i in irreps])


def test_wigner_3j_equals_e3nn():
    o3 = oracle()
    for l1 in range(3):
        for l2 in range(3):
            for l3 in range(abs(l1 - l2), l1 + l2 + 1):
                expected = o3.wigner_3j(l1, l2, l3, dtype=torch.float64)
                assert (geometry.wigner_3j(l1, l2, l3) - expected).abs().max() < 1e-12
    with pytest.raises(ValueError, match=r"\(0, 1, 2\)"):
        geometry.wigner_3j(0, 1, 2)


def test_harmonics_equal_e3nn_and_fade_with_softening():
    o3 = oracle()
    vectors = torch.randn(20, 3, dtype=torch.float64)
    expected = o3.spherical_harmonics([0, 1, 2], vectors, normalize=True, normalization="component")
    assert (geometry.spherical_harmonics(vectors, 0.0) - expected).abs().max() < 1e-12
    short = geometry.spherical_harmonics(vectors / vectors.norm(dim=-1, keepdim=True) * 1e-3, 0.1)
    assert (short[:, 1:4].norm(dim=-1) - math.sqrt(3) * 1e-2).abs().max() < 1e-5
    assert short[:, 4:].norm(dim=-1).max() < 1e-3
    assert geometry.spherical_harmonics(torch.zeros(1, 3), 0.0).isfinite().all()


def small_convolution(dtype=torch.float64, dropout=0.0):
    torch.manual_seed(0)
    irreps_in, irreps_out = encoder_irreps(3, 6), encoder_irreps(4, 6)
    convolution = TensorProductConvolution(irreps_in, HARMONICS, irreps_out, 4, 5, 6, 6, dropout).to(dtype)
    n, k = 13, 7
    mask = torch.rand(n, k) < 0.7
    leaves = {
        "x": torch.randn(n, geometry.irreps_size(irreps_in), dtype=dtype),
        "harmonics": geometry.spherical_harmonics(torch.randn(n, k, 3, dtype=dtype), 0.1),
        "radial": torch.rand(n, k, 4, dtype=dtype),
        "types": torch.randn(4, 5, dtype=dtype),
    }
    leaves = {name: value.requires_grad_() for name, value in leaves.items()}
    senders, kinds = torch.randint(n, (n, k)), torch.randint(4, (n, k))
    edges = EdgeFeatures(senders, kinds, leaves["harmonics"], leaves["radial"], geometry.mean_weight(mask, dtype))
    return convolution, edges, leaves, mask


def run_convolution(convolution, edges, leaves):
    scalars = leaves["x"][:, :6]
    return convolution(leaves["x"], edges, leaves["types"], scalars, scalars)


def test_convolution_equals_e3nn_in_value_and_gradient():
    """Against `FullyConnectedTensorProduct` with weights made per edge, averaged over neighbours."""
    o3 = oracle()
    convolution, edges, leaves, mask = small_convolution()
    ours = run_convolution(convolution, edges, leaves)

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # e3nn rounds its constants to it
    product = o3.FullyConnectedTensorProduct(
        e3nn_irreps(o3, convolution.irreps_in), e3nn_irreps(o3, HARMONICS), e3nn_irreps(o3, convolution.irreps_out),
        shared_weights=False,
    )  # fmt: skip
    torch.set_default_dtype(default)
    scalars, x = leaves["x"][:, :6], geometry.to_channel_major(leaves["x"], convolution.irreps_in)
    n, k = mask.shape
    edge_scalars = torch.cat(
        [leaves["radial"], leaves["types"][edges.edge_types], scalars[:, None].expand(n, k, 6), scalars[edges.senders]], -1
    )
    hidden = F.relu(convolution.edge_dense(edge_scalars))
    weights = []
    for a, first in enumerate(convolution.irreps_in):
        for b in range(3):
            for out, paths in zip(convolution.irreps_out, convolution.outputs):
                if (a, b) in paths:
                    start = sum(convolution.irreps_in[i].multiplicity for i, _ in paths[: paths.index((a, b))])
                    rows = slice(start, start + first.multiplicity)
                    weight = getattr(convolution, f"weight_{out.name}")[rows]
                    bias = getattr(convolution, f"bias_{out.name}")[rows]
                    weights.append((torch.einsum("uhw,nkh->nkuw", weight, hidden) + bias).flatten(2))
    messages = product(x[edges.senders], leaves["harmonics"], torch.cat(weights, -1))
    expected = (messages * edges.weight[..., None]).sum(1)
    ours = geometry.to_channel_major(ours, convolution.irreps_out)
    assert (ours - expected).abs().max() < 1e-12

    direction = torch.randn_like(expected)
    inputs = [*leaves.values(), *convolution.parameters()]
    for mine, theirs in zip(torch.autograd.grad((ours * direction).sum(), inputs, retain_graph=True),
                            torch.autograd.grad((expected * direction).sum(), inputs)):  # fmt: skip
        assert (mine - theirs).abs().max() < 1e-11


def test_convolution_does_not_depend_on_chunks(monkeypatch):
    convolution, edges, leaves, _ = small_convolution()
    inputs = [*leaves.values(), *convolution.parameters()]
    found = []
    for elements in (1, 2**30):
        monkeypatch.setitem(geometry._CHUNK_ELEMENTS, "cpu", elements)
        monkeypatch.setattr(geometry, "_BLOCK_ELEMENTS", elements)
        out = run_convolution(convolution, edges, leaves)
        found.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    assert all((a - b).abs().max() < 1e-10 for a, b in zip(*found))


def test_convolution_with_dropout_has_the_gradient_of_its_own_mask():
    convolution, edges, leaves, _ = small_convolution(dropout=0.5)
    convolution.train()

    def loss(scale):
        torch.manual_seed(3)
        changed = {**leaves, "x": leaves["x"].detach() * scale}
        return run_convolution(convolution, edges, changed).square().sum()

    one, step = torch.tensor(1.0, dtype=torch.float64, requires_grad=True), 1e-6
    (gradient,) = torch.autograd.grad(loss(one), one)
    numeric = (loss(one.detach() + step) - loss(one.detach() - step)) / (2 * step)
    assert abs(gradient - numeric) < 1e-5 * abs(numeric)
    convolution.eval()
    without = loss(one)
    convolution.train()
    assert without != loss(one)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_convolution_and_norm_compile_as_one_graph_with_the_same_values_and_gradients(dropout):
    convolution, edges, leaves, _ = small_convolution(dropout=dropout)
    norm = EquivariantLayerNorm(convolution.irreps_out).double()
    both = torch.nn.ModuleList([convolution, norm])

    def forward(x, edges, types, scalars):
        return norm(convolution(x, edges, types, scalars, scalars))

    given = (leaves["x"], edges, leaves["types"], leaves["x"][:, :6])
    found = []
    for run in (forward, torch.compile(forward, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(3)
        out = run(*given)
        found.append([out, *torch.autograd.grad(out.square().sum(), [*leaves.values(), *both.parameters()])])
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(*found))


def test_compiled_convolution_without_optional_inputs_and_gradients():
    """As the heads call it, and with inputs that want no gradient."""
    torch.manual_seed(0)
    convolution = TensorProductConvolution(encoder_irreps(3, 6), HARMONICS, encoder_irreps(1, 6)[1:], 4, sender_size=6).double()
    _, edges, leaves, _ = small_convolution()
    edges = EdgeFeatures(edges.senders, None, edges.harmonics.detach(), edges.radial.detach(), edges.weight)
    found = []
    for run in (convolution, torch.compile(convolution, fullgraph=True, backend="aot_eager")):
        out = run(leaves["x"].detach(), edges, sender_scalars=leaves["x"].detach()[:, :6])
        found.append([out, *torch.autograd.grad(out.square().sum(), list(convolution.parameters()))])
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(*found))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_normalised_in_single_precision(dtype):
    torch.manual_seed(0)
    irreps = encoder_irreps(3, 6)
    norm = EquivariantLayerNorm(irreps).to(dtype)
    x = (100 * torch.randn(5, geometry.irreps_size(irreps))).to(dtype)  # whose squares leave the range of float16
    found, expected = norm(x), norm.double()(x.double())
    assert found.dtype == dtype
    assert (found - expected).abs().max() < 0.6 * torch.finfo(dtype).eps * expected.abs().max()  # it is rounded once


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_convolution_and_norm_compute_in_single_precision(dtype):
    """Against double precision with the same rounded weights and inputs; the norm scales rounding up."""
    convolution, edges, leaves, _ = small_convolution()
    norm = EquivariantLayerNorm(convolution.irreps_out)
    found = []
    for own in (dtype, torch.float64):
        layers = [module.to(dtype).to(own) for module in (convolution, norm)]
        given = {name: value.detach().to(dtype).to(own).requires_grad_() for name, value in leaves.items()}
        features = EdgeFeatures(
            edges.senders, edges.edge_types, given["harmonics"], given["radial"], edges.weight.to(dtype).to(own)
        )
        out = layers[1](run_convolution(layers[0], features, given))
        assert out.dtype == torch.promote_types(own, torch.float32)
        gradients = torch.autograd.grad(out.sum(), [*given.values(), *convolution.parameters()], allow_unused=True)
        assert all(gradient.isfinite().all() for gradient in gradients)
        found.append(out.double())
    assert (found[0] - found[1]).abs().max() < 1e-5 * found[1].abs().max()


def test_convolution_without_receivers_gives_zero_gradients():
    convolution, edges, leaves, _ = small_convolution()
    empty = EdgeFeatures(*(getattr(edges, name)[:0] for name in ("senders", "edge_types", "harmonics", "radial", "weight")))
    out = convolution(leaves["x"], empty, leaves["types"], leaves["x"][:0, :6], leaves["x"][:, :6])
    out.sum().backward()
    assert out.shape[0] == 0
    assert all(p.grad is not None and not p.grad.any() for p in convolution.parameters())


def test_layer_norm_commutes_with_rotation():
    o3 = oracle()
    irreps = encoder_irreps(3, 6)
    norm = EquivariantLayerNorm(irreps).double()
    torch.nn.init.uniform_(norm.weight), torch.nn.init.uniform_(norm.bias)
    matrix = o3.Irreps([(1, (i.degree, i.parity)) for i in irreps])
    rotation = o3.rand_matrix(dtype=torch.float64)
    x = torch.randn(5, geometry.irreps_size(irreps), dtype=torch.float64)

    def turn(features):
        parts = geometry.split_irreps(features, irreps)
        return torch.cat([(ir.D_from_matrix(rotation) @ p).flatten(1) for p, (_, ir) in zip(parts, matrix)], 1)

    assert (norm(turn(x)) - turn(norm(x))).abs().max() < 1e-12


def brute_force_edges(positions, segments, is_global, k, with_globals):
    edges = set()
    for i in range(len(positions)):
        if not is_global[i]:
            for kind in (0, 1):
                others = [
                    j for j in range(len(positions)) if j != i and not is_global[j] and (segments[i] != segments[j]) == kind
                ]
                others.sort(key=lambda j: ((positions[i] - positions[j]).pow(2).sum().item(), j))
                edges |= {(i, j, kind) for j in others[:k]}
        for j in range(len(positions)):
            if with_globals and i != j:
                if segments[i] == segments[j] and (is_global[i] or is_global[j]):
                    edges.add((i, j, 2))
                if is_global[i] and is_global[j]:
                    edges.add((i, j, 3))
    return edges


@pytest.mark.parametrize("num_segments", [1, 2, 3])
def test_trees_find_the_neighbours_that_all_distances_find(num_segments, monkeypatch):
    torch.manual_seed(0)
    positions, segments = 30 * torch.rand(2, 700, 3), torch.randint(0, num_segments, (2, 700))
    valid, is_global = torch.ones(2, 700, dtype=torch.bool), torch.rand(2, 700) < 0.01
    valid[1, 100:] = False
    by_trees = geometry.neighbor_lists(positions, valid, segments, is_global, 8, False)
    monkeypatch.setattr(geometry, "_TREE_NODES", 10**9)
    by_distances = geometry.neighbor_lists(positions, valid, segments, is_global, 8, False)
    for ours, theirs in zip(by_trees, by_distances):
        assert torch.equal(ours.receivers, theirs.receivers) and torch.equal(ours.mask, theirs.mask)
        assert torch.equal(ours.senders.sort(1).values, theirs.senders.sort(1).values)
        assert torch.equal(
            (10 * ours.senders + ours.edge_types).sort(1).values, (10 * theirs.senders + theirs.edge_types).sort(1).values
        )


@pytest.mark.parametrize("with_globals", [True, False])
@pytest.mark.parametrize("limit, tree_nodes, dtype", [
    (2**22, 512, torch.float64), (50, 512, torch.float64), (50, 10, torch.float64), (2**22, 0, torch.float32)
])  # fmt: skip
def test_neighbours_equal_brute_force_with_ties_padding_and_several_globals(
    with_globals, limit, tree_nodes, dtype, monkeypatch
):
    monkeypatch.setattr(geometry, "_MAX_DISTANCES", limit)
    monkeypatch.setattr(geometry, "_TREE_NODES", tree_nodes)
    monkeypatch.setattr(geometry, "_TREE_SPARE", 2)
    torch.manual_seed(1)
    sizes, width, k = (17, 1, 9, 30), 32, 4
    positions = torch.randint(0, 4, (len(sizes), width, 3)).to(dtype)  # a lattice: many equal distances
    valid = torch.arange(width) < torch.tensor(sizes)[:, None]
    segments = torch.randint(0, 3, (len(sizes), width))
    is_global = torch.rand(len(sizes), width) < 0.2
    lists = geometry.neighbor_lists(positions, valid, segments, is_global, k, with_globals)
    found, receivers, start = set(), [], 0
    for part in lists:
        receivers += part.receivers.tolist()
        for receiver, senders, types, mask in zip(part.receivers, part.senders, part.edge_types, part.mask):
            found |= {(int(receiver), int(j), int(t)) for j, t, m in zip(senders, types, mask) if m}
    expected = set()
    for c, size in enumerate(sizes):
        edges = brute_force_edges(positions[c, :size], segments[c], is_global[c], k, with_globals)
        expected |= {(i + start, j + start, t) for i, j, t in edges}
        start += size
    assert found == expected
    assert sorted(receivers) == list(range(sum(sizes)))
    assert sum(int(part.mask.sum()) for part in lists) == len(expected)


@pytest.mark.parametrize("limit, tree_nodes, spare", [(2**20, 512, 8), (50, 512, 8), (2**20, 0, 2), (50, 0, 8)])
def test_nearest_atoms_equal_brute_force(limit, tree_nodes, spare, monkeypatch):
    for name, value in (("_MAX_DISTANCES", limit), ("_TREE_NODES", tree_nodes), ("_TREE_SPARE", spare)):
        monkeypatch.setattr(geometry, name, value)
    torch.manual_seed(1)
    positions = torch.randint(0, 4, (3, 60, 3)).double()  # a lattice: many equal distances
    valid = torch.rand(3, 60) < 0.8
    valid[1, 3:] = False
    valid[1, :3] = True
    complex_id = torch.tensor([0] * 20 + [1] * 5 + [2] * 30)
    points = torch.randint(0, 8, (55, 3)) / 2
    nearest, found = geometry.nearest_atoms(points, complex_id, positions, valid, 6)
    assert nearest.shape == found.shape == (55, 6)
    for point, number, near, is_one in zip(points, complex_id, nearest, found):
        atoms = valid[number].nonzero().flatten().tolist()
        atoms.sort(key=lambda j: ((point - positions[number, j]).pow(2).sum().item(), j))
        assert near[is_one].tolist() == sorted(atoms[:6])
    nearest, found = geometry.nearest_atoms(points[:0], complex_id[:0], positions, valid, 6)
    assert nearest.shape == found.shape == (0, 6)


@pytest.mark.parametrize("tree_nodes", [512, 10**9])
def test_nearest_atoms_hold_no_matrix_of_all_distances(tree_nodes, monkeypatch):
    monkeypatch.setattr(geometry, "_TREE_NODES", tree_nodes)
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            sizes.extend(part.numel() for part in torch.utils._pytree.tree_leaves(found) if isinstance(part, torch.Tensor))
            return found

    torch.manual_seed(0)
    positions, points = 60 * torch.rand(1, 20_000, 3), 60 * torch.rand(1000, 3)
    arguments = (points, torch.zeros(1000, dtype=torch.long), positions, torch.ones(1, 20_000, dtype=torch.bool), 8)
    with Sizes():
        nearest, _ = geometry.nearest_atoms(*arguments)
    assert torch.equal(nearest, (points[:, None] - positions).norm(dim=-1).topk(8, largest=False).indices.sort(1).values)
    assert max(sizes) <= 3 * geometry._MAX_DISTANCES
