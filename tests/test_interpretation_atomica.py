import numpy as np
import pytest
import torch
from conftest import random_rotation, tiny_config, tiny_model

from atomica_hf import AtomicaForInterfaceContrast, AtomicaModel, AtomicaProcessor
from atomica_hf.data_collator_atomica import Puzzle
from atomica_hf.processing_atomica import MODEL_INPUTS, pad_examples
from dataset_shards import load_examples


NORMALIZED = "mean_component_normalized"
SMALL = ("CC(=O)Oc1ccccc1C(=O)NCC(=O)Nc1ccc(O)cc1", "NCCc1ccc(O)c(O)c1")
THREE = ("CC(=O)Oc1ccccc1C(=O)O", "OCC(O)c1ccccc1N", "CC(N)C(=O)O")


class Chosen:
    """A generator that draws one block."""

    def __init__(self, block):
        self.block = block

    def choice(self, candidates, size, replace):
        assert self.block in candidates
        return np.array([self.block])


def tensors(example):
    """One example as a batch in double precision; `pad_examples` rounds positions to single."""
    names = [*MODEL_INPUTS, *(name for name in ("block_features", "atom_charges") if name in example)]
    batch = {name: torch.as_tensor(np.array(example[name])).unsqueeze(0) for name in names}
    batch["positions"] = batch["positions"].double().view(1, -1, 3)
    return batch


@torch.no_grad()
def one_by_one(model, example, readout="z_interface", blocks=None):
    """Scores with `Puzzle` and `get_representations`, one forward pass a block; of two segments."""
    segments, found = np.array(example["token_type_ids"]), np.full(len(example["input_ids"]), np.nan)

    def vector(inputs, segment):
        if readout == "h_graph":
            return model.get_representations("h_graph", **inputs)["h_graph"][0]
        return model.get_representations("z_interface", NORMALIZED, 1 - segment, **inputs)["z_interface"][0]

    before = [vector(tensors(example), segment) for segment in range(segments.max() + 1)]
    for block in np.flatnonzero(np.array(example["input_ids"]) >= 4) if blocks is None else blocks:
        puzzle = Puzzle(example)
        puzzle.mask_blocks(0.0, Chosen(block))
        segment = int(segments[block])
        found[block] = torch.cosine_similarity(before[segment], vector(tensors(puzzle.to_example()), segment), dim=0)
    return found


def assert_same(scores, expected, tolerance=1e-6):
    scores = np.asarray(scores)
    assert (np.isnan(scores) == np.isnan(expected)).all()
    assert np.nanmax(np.abs(scores - expected)) < tolerance


@pytest.fixture(scope="module")
def small(processor):
    return processor.encode(processor.read(SMALL)[0])


@pytest.fixture(scope="module")
def complexes(shared, processor, tmp_path_factory):
    path = shared / "data/complexes/atomica_examples/example_inputs.csv"
    return list(load_examples(path, processor, tmp_path_factory.mktemp("cache"), progress=False)[0])


OPTIONS = [
    {},
    {"attend_to_padding": True},
    {"atom_global_message_passing": True, "direction_softening": 0.0},
    {"global_message_passing": False, "num_neighbors": 3},
    {"unknown_as_global": True, "block_long_range_cutoff": 20.0},
]


@pytest.mark.parametrize("readout", ["z_interface", "h_graph"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_scores_equal_those_of_blocks_hidden_one_by_one(small, options, readout):
    model = tiny_model(**options)
    scores = model.interaction_scores(readout=readout, **tensors(small))[0]
    assert_same(scores, one_by_one(model, small, readout), 1e-9)
    assert np.nanmin(scores) < 0.9999  # and hiding does something


def test_seven_complexes_of_all_kinds(complexes):
    model = tiny_model(num_hidden_layers=2, num_neighbors=4)
    assert len(complexes) == 7
    for example in complexes:
        blocks = np.flatnonzero((np.array(example["input_ids"]) >= 4) & (np.array(example["token_type_ids"]) == 1))
        some = np.random.default_rng(0).permutation(blocks)[:4]
        scores = model.interaction_scores([1], **tensors(example))[0].numpy()
        assert (np.flatnonzero(~np.isnan(scores)) == blocks).all()
        assert_same(scores[some], one_by_one(model, example, blocks=some)[some])


@pytest.mark.slow
def test_every_block_of_seven_complexes(complexes):
    model = tiny_model()
    for example in complexes:
        assert_same(model.interaction_scores(**tensors(example))[0], one_by_one(model, example))


def test_batches_and_neighbours_in_a_batch_change_nothing(processor, small):
    model = tiny_model()
    other = processor.encode(processor.read(("CCO", "c1ccccc1O"))[0])
    alone = [model.interaction_scores(**tensors(example))[0] for example in (small, other)]
    batch = pad_examples([small, other], MODEL_INPUTS)
    batch["positions"] = batch["positions"].double()
    for limit in (1, len(small["input_ids"]) * 3, 10_000):
        scores = model.interaction_scores(max_blocks_per_batch=limit, **batch)
        for row, expected in zip(scores, alone):
            assert_same(row[: len(expected)], expected.numpy(), 1e-9)
            assert row[len(expected) :].isnan().all()
    only = model.interaction_scores(np.array([1]), **batch)
    expected = scores.masked_fill(batch["token_type_ids"] != 1, torch.nan)
    torch.testing.assert_close(only, expected, equal_nan=True)
    for name in ("attention_mask", "token_type_ids"):
        del batch[name]
    torch.testing.assert_close(model.interaction_scores(**batch), scores, equal_nan=True)


def test_turning_and_shifting_a_complex_changes_no_score(small):
    model, inputs = tiny_model(), tensors(small)
    scores = model.interaction_scores(**inputs)
    inputs["positions"] = inputs["positions"] @ random_rotation().T + torch.tensor([3.0, -7.0, 11.0])
    assert_same(model.interaction_scores(**inputs)[0], scores[0].numpy(), 1e-9)


@torch.no_grad()
def test_with_three_segments_all_others_are_the_partner(processor):
    model, example = tiny_model(), processor.encode(processor.read(THREE)[0])
    inputs, segments = tensors(example), np.array(example["token_type_ids"])
    scores = model.interaction_scores(**inputs)[0]
    block = int(np.flatnonzero((segments == 1) & (np.array(example["input_ids"]) >= 4))[0])
    puzzle = Puzzle(example)
    puzzle.mask_blocks(0.0, Chosen(block))
    vectors = []
    for batch in (inputs, tensors(puzzle.to_example())):
        z_block = model.get_representations("z_block", **batch)["z_block"][0]
        chosen = torch.from_numpy((segments != 1) & (np.array(example["input_ids"]) != 3))
        hidden = model.config.hidden_size
        mean = z_block[chosen].mean(0)
        atoms = 2 * model.representation_widths()["z_atom"]
        parts = mean.split([hidden, len(mean) - hidden - atoms, atoms])
        vectors.append(torch.cat([part / part.norm() for part in parts]))
    assert abs(float(torch.cosine_similarity(*vectors, dim=0)) - float(scores[block])) < 1e-9


def test_vectors_of_another_model_are_hidden_with_their_block(small):
    model = tiny_model(block_feature_size=3)
    example = {**small, "block_features": np.random.default_rng(0).normal(size=(len(small["input_ids"]), 3))}
    inputs = tensors(example)
    inputs["block_features"] = inputs["block_features"].float().double()
    assert_same(model.interaction_scores(**inputs)[0], one_by_one(model, example), 1e-6)


def test_charges_are_hidden_with_their_block(tokenizer):
    processor = AtomicaProcessor(tokenizer, keep_hydrogens=True, return_charges=True)
    example = processor.encode(processor.read(("CC(=O)Oc1ccccc1C(=O)[O-]", "[NH3+]CCc1ccc(O)c(O)c1"))[0])
    model = tiny_model(use_atom_charges=True, cross_segment_edges=False)
    scores = model.interaction_scores(**tensors(example), readout="h_graph")[0]
    assert_same(scores, one_by_one(model, example, "h_graph"))


def test_a_lone_molecule_has_no_partner_but_a_graph(processor):
    model, inputs = tiny_model(), processor("CC(=O)Nc1ccc(OCC(O)CO)cc1", return_tensors="pt")
    with pytest.raises(ValueError, match="The complex has one segment and no partner.*readout='h_graph'"):
        model.interaction_scores(**inputs)
    scores = model.interaction_scores(readout="h_graph", **inputs)
    assert (scores.isnan() == (inputs["input_ids"] < 4)).all() and scores[~scores.isnan()].max() <= 1


def test_what_does_not_fit_is_named(small):
    model, inputs = tiny_model(), tensors(small)
    for options, words in (
        ({"readout": "z_graph"}, "`readout` is 'z_graph', expected one of z_interface, h_graph"),
        ({"segments": [2]}, "The complex has no segment 2 for `segments`; it has 0, 1."),
        ({"segments": []}, r"`segments` are \[\]"),
        ({"segments": "0"}, "`segments` are '0'"),
        ({"segments": 0}, "`segments` are 0"),
        ({"positions": inputs["positions"] * torch.nan}, "The complex has a z_interface that is not finite"),
        ({"max_blocks_per_batch": 0}, "`max_blocks_per_batch` is 0"),
        ({"atom_ids": inputs["atom_ids"][:, :-1]}, "`atom_ids` has shape|`atom_to_block` has shape"),
    ):
        with pytest.raises(ValueError, match=words):
            model.interaction_scores(**{**inputs, **options})
    with pytest.raises(ValueError, match="training mode"):
        model.train().interaction_scores(**inputs)


def test_every_model_has_it_and_a_graph_is_no_hindrance(small):
    from atomica_hf.graph_atomica import batch_graph

    torch.manual_seed(0)
    model, inputs = AtomicaForInterfaceContrast(tiny_config()).double().eval(), tensors(small)
    assert isinstance(model.base_model, AtomicaModel)
    scores = model.interaction_scores(graph=batch_graph(model.config, inputs), **inputs)
    assert_same(scores[0], model.atomica.interaction_scores(**inputs)[0].numpy(), 1e-12)
    assert not scores.requires_grad


COINCIDING = {"two atoms": [4, 5], "all atoms": slice(None)}


@pytest.mark.parametrize("options", [{}, {"atom_global_message_passing": True, "num_neighbors": 3}], ids=str)
@pytest.mark.parametrize("where", COINCIDING)
def test_atoms_at_one_place(small, options, where):
    positions = np.array(small["positions"])
    positions[COINCIDING[where]] = positions[4]
    model, example = tiny_model(**options), {**small, "positions": positions}
    assert_same(model.interaction_scores(**tensors(example))[0], one_by_one(model, example), 1e-9)


def test_equal_distances_and_fewer_neighbours_than_asked_for(small, processor):
    lattice = np.array([[i % 3, i // 3 % 3, i // 9] for i in range(len(small["atom_ids"]))], dtype=np.float32)
    ions = processor.encode(processor.read(("[Na+]", "[Cl-]"))[0])
    for example in ({**small, "positions": lattice}, ions):
        for options in ({"num_neighbors": 1}, {"num_neighbors": 64}, {"num_neighbors": 3, "global_message_passing": False}):
            model = tiny_model(**options)
            assert_same(model.interaction_scores(**tensors(example))[0], one_by_one(model, example), 1e-9)


def test_the_order_of_blocks_and_of_their_atoms_changes_no_score(small):
    model, inputs, generator = tiny_model(), tensors(small), np.random.default_rng(1)
    starts = [np.flatnonzero(np.array(small["token_type_ids"]) == segment) for segment in (0, 1)]
    order = np.concatenate([np.r_[blocks[0], generator.permutation(blocks[1:])] for blocks in starts])
    to_block = np.argsort(order)[small["atom_to_block"]]
    atoms = np.lexsort((generator.random(len(to_block)), to_block))
    other = {name: value[:, atoms if name in ("atom_ids", "positions") else order] for name, value in inputs.items()
             if name != "atom_to_block"}  # fmt: skip
    scores = model.interaction_scores(**other, atom_to_block=torch.tensor(to_block[atoms])[None])[0]
    assert_same(scores, model.interaction_scores(**inputs)[0].numpy()[order], 1e-9)
