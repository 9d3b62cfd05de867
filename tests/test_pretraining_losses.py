"""Losses complex by complex: the same as the model's own, whatever is batched, accumulated or filled."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_model

from atomica_hf import AtomicaPreTrainingCollator
from atomica_hf.configuration_atomica import NUM_SPECIAL_BLOCKS
from atomica_hf.data_collator_atomica import TASKS, task_flags
from pretraining_losses import ComplexLosses, disagreement, info_nce, losses_of, puzzle_weights
from pretraining_optimization import parameter_groups
from pretraining_report import Meter, measure_names


class Alone:
    """What an `Accelerator` of one process does when means are taken."""

    @staticmethod
    def reduce(values, reduction):
        return values


def batch_of(examples, task, **options):
    batch = AtomicaPreTrainingCollator(task, seed=2, **options)(examples)
    return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}


def made(model, examples, task, log_frequencies=None):
    inputs = batch_of(examples, task)
    if log_frequencies is None:
        log_frequencies = torch.full((model.config.vocab_size - NUM_SPECIAL_BLOCKS,), -3.0, dtype=torch.float64)
    losses = ComplexLosses(losses_of(model.config), 0.5, log_frequencies)
    return losses, model(**inputs), inputs


WITH_COMPOSITION = [(task, {"use_composition": True}) for task in ("pretrain_torsion_masking", "pretrain_torsion", "masking")]


@pytest.mark.parametrize("task, more", [*((task, {}) for task in TASKS), *WITH_COMPOSITION])
def test_sums_over_complexes_are_the_losses_and_gradients_of_the_model(task, more, examples):
    model = tiny_model(**task_flags(task), **more)
    weights = {name: getattr(model.config, f"{name}_loss_weight") for name in losses_of(model.config)}

    def grads():
        found = {name: p.grad.clone() for name, p in model.named_parameters()}  # of every parameter, even without a puzzle
        model.zero_grad()
        return found

    for part in (examples, examples[4:5], examples[:1]):  # all; a lone ion, which has no puzzle but its mask; a lone molecule
        losses, output, inputs = made(model, part, task)
        output.loss.backward()
        expected = grads()
        losses, output, inputs = made(model, part, task)
        values, counts = losses.losses(output, inputs), puzzle_weights(inputs, losses.names)
        means = {name: values[name].sum() / counts[name].sum().clamp_min(1) for name in losses.names}
        for name, mean in means.items():
            assert torch.allclose(mean, output[f"{name}_loss"], rtol=1e-10, atol=1e-12), name
        (sum(weights[name] * mean for name, mean in means.items()) + 0.0 * output.pooler_output.sum()).backward()
        for name, gradient in grads().items():
            assert torch.allclose(gradient, expected[name], rtol=1e-8, atol=1e-10), name
        measures = losses.measures(output, inputs, values)
        for name in losses.names:
            if name not in ("mask", "composition"):  # their guesser knows how frequent blocks are
                total, weight = measures[f"{name}_baseline"]
                assert torch.allclose(total.sum() / weight.sum().clamp_min(1), output[f"{name}_baseline"], rtol=1e-10)


@pytest.mark.parametrize("task", ["pretrain_torsion_masking", "pretrain_gaussian"])
def test_accumulated_parts_give_the_gradient_of_the_whole_batch(task, examples):
    model = tiny_model(**task_flags(task))
    weights = {name: getattr(model.config, f"{name}_loss_weight") for name in losses_of(model.config)}
    found = []
    for parts in ([examples], [examples[:1], examples[1:4], examples[4:]]):
        counts = [puzzle_weights(batch_of(part, task), losses_of(model.config)) for part in parts]
        totals = {name: sum(count[name].sum() for count in counts) for name in weights}
        for part in parts:
            losses, output, inputs = made(model, part, task)
            values = losses.losses(output, inputs)
            sum(weights[name] * values[name].sum() / totals[name] for name in weights).backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    assert all(torch.allclose(found[0][name], found[1][name], rtol=1e-7, atol=1e-10) for name in found[0])


def test_errors_are_what_is_left_after_undoing_the_prediction(examples):
    examples = examples[:4]
    model = tiny_model(**task_flags("pretrain_torsion_masking"))
    losses, output, inputs = made(model, examples, "pretrain_torsion_masking")
    found = losses.measures(output, inputs, losses.losses(output, inputs))

    sigma, z = inputs["translation_sigma"], inputs["translation_labels"]
    guess = -(sigma[:, None] ** 2) * output.translation_prediction  # Tweedie: what was added
    expected = (guess - sigma[:, None] * z).norm(dim=-1)
    assert torch.allclose(found["translation_error"][0], expected * found["translation_error"][1])
    assert torch.allclose(found["translation_error_baseline"][0], (sigma[:, None] * z).norm(dim=-1))

    for row in range(len(examples)):
        turned = inputs["torsion_index"][row, :, 0] >= 0
        if not turned.any():
            continue
        drawn, guess = -0.25 * inputs["torsion_labels"][row, turned], -0.25 * output.torsion_prediction[row, turned]
        expected = math.degrees(1) * (guess - drawn).abs().mean()
        assert torch.isclose(found["torsion_error"][0][row], expected)
        assert 0 < float(found["torsion_error_baseline"][0][row]) < 90
    cosine = F.cosine_similarity(output.rotation_prediction, inputs["rotation_labels"])
    turned = found["rotation_error"][1]
    assert turned.sum() == 1  # the pair; the partner of one atom is not turned
    assert torch.allclose(found["rotation_error"][0][turned], torch.rad2deg(cosine.acos())[turned])

    model = tiny_model(**task_flags("pretrain_gaussian"))
    losses, output, inputs = made(model, examples, "pretrain_gaussian")
    found = losses.measures(output, inputs, losses.losses(output, inputs))
    segment = int(inputs["perturbed_segment"][0])
    to_block = inputs["atom_to_block"][0]
    mine = (to_block >= 0) & (inputs["token_type_ids"][0][to_block.clamp_min(0)] == segment)
    sigma = inputs["atom_noise_sigma"][0]
    off = sigma**2 * output.atom_prediction[0, mine] - sigma * inputs["atom_noise_labels"][0, mine]
    assert torch.isclose(found["atom_error"][0][0], off.pow(2).sum(-1).mean().sqrt())


def test_top_k_and_perplexity_beside_the_most_frequent(examples):
    model = tiny_model(**task_flags("masking"))
    classes = model.config.vocab_size - NUM_SPECIAL_BLOCKS
    log_frequencies = torch.log_softmax(torch.linspace(2, -2, classes, dtype=torch.float64), 0)
    losses, output, inputs = made(model, examples, "masking", log_frequencies)
    found = losses.measures(output, inputs, losses.losses(output, inputs))
    where = inputs["labels"] >= 0
    labels = inputs["labels"][where] - NUM_SPECIAL_BLOCKS
    ranks = (output.prediction_logits[where].argsort(-1, descending=True) == labels[:, None]).nonzero()[:, 1]
    for top in (1, 5):
        assert found[f"mask_top{top}"][0].sum() == (ranks < top).sum()
        assert found[f"mask_top{top}_baseline"][0].sum() == (labels < top).sum()
    assert torch.isclose(found["mask_baseline"][0].sum(), -log_frequencies[labels].sum())
    meter = Meter(("mask",), {"mask": 2.0}, [], torch.device("cpu"))
    meter.add(found, torch.full((len(examples),), -1))
    means = meter.means(Alone)
    assert np.isclose(means["loss"], 2 * float(output.mask_loss.detach()))
    assert np.isclose(means["mask_perplexity"], math.exp(float(output.mask_loss.detach())))
    assert np.isclose(means["mask_top5"], float((ranks < 5).double().mean()))


def test_the_composition_is_of_all_blocks_hidden_ones_too(examples):
    model = tiny_model(**task_flags("masking"), use_composition=True)
    classes = model.config.vocab_size - NUM_SPECIAL_BLOCKS
    log_frequencies = torch.log_softmax(torch.linspace(2, -2, classes, dtype=torch.float64), 0)
    losses, output, inputs = made(model, examples, "masking", log_frequencies)
    found = losses.measures(output, inputs, losses.losses(output, inputs))
    assert set(found) == set(measure_names(losses.names))
    for row, example in enumerate(examples):
        named = np.asarray([token for token in example["input_ids"] if token >= NUM_SPECIAL_BLOCKS]) - NUM_SPECIAL_BLOCKS
        guess = output.composition_logits[row].log_softmax(0)
        assert torch.isclose(found["composition_loss"][0][row], -guess[named].mean())
        assert torch.isclose(found["composition_baseline"][0][row], -log_frequencies[named].mean())
    output.composition_loss.backward()
    assert model.atomica.pooler.dense.weight.grad.abs().sum() > 0
    assert "composition_loss" not in tiny_model(**task_flags("masking"))(**inputs)


def test_a_meter_tells_modalities_apart_and_can_be_saved(examples):
    model = tiny_model(**task_flags("pretrain_torsion_masking"))
    names = losses_of(model.config)
    weights = {name: getattr(model.config, f"{name}_loss_weight") for name in names}
    kinds = torch.tensor([1, 0, 1, -1, 0, 0])
    whole, parts = (Meter(names, weights, [-1, 0, 1], torch.device("cpu")) for _ in range(2))
    losses, output, inputs = made(model, examples, "pretrain_torsion_masking")
    values = losses.losses(output, inputs)
    measures = losses.measures(output, inputs, values)
    assert set(measures) == set(measure_names(names))
    whole.add(measures, kinds)
    for rows in (slice(0, 2), slice(2, 6)):
        restored = Meter(names, weights, [-1, 0, 1], torch.device("cpu"))
        restored.load(parts.state())
        parts = restored
        parts.add({name: (total[rows], weight[rows]) for name, (total, weight) in measures.items()}, kinds[rows])
    one, two = whole.means(Alone), parts.means(Alone)
    assert one.keys() == two.keys() and all(np.isclose(one[name], two[name]) for name in one)
    assert np.isclose(one["loss"], float(output.loss.detach()))
    counts = puzzle_weights(inputs, names)["mask"]
    for kind, name in ((0, "PP"), (1, "PL"), (-1, "none")):
        mine = kinds == kind
        assert np.isclose(one[f"mask_loss/{name}"], float(values["mask"][mine].sum().detach() / counts[mine].sum()))


def test_info_nce_is_lowest_for_matching_views_and_pulls_them_together():
    torch.manual_seed(0)
    first = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    a, b = F.normalize(first, dim=-1), F.normalize(torch.randn(5, 4, dtype=torch.float64), dim=-1)
    across = a @ b.T / 0.2
    expected = [
        0.5 * (across[i].logsumexp(0) + across[:, i].logsumexp(0)) - across[i, i] for i in range(5)
    ]  # written out from the formula
    assert torch.allclose(info_nce(first, b, 0.2), torch.stack(expected))
    same, other = info_nce(first, a.detach(), 0.2).sum(), info_nce(first, a.detach().roll(1, 0), 0.2).sum()
    assert same < other
    other_view = b.clone()
    for _ in range(200):
        gradient = torch.autograd.grad(info_nce(first, other_view, 0.2).sum(), first)[0]
        first = (first - 0.5 * gradient).detach().requires_grad_()
    nearest = (F.normalize(first, dim=-1) @ other_view.T).argmax(1)
    assert nearest.tolist() == list(range(5))
    assert info_nce(first[:0], other_view[:0], 0.2).shape == (0,)


def test_the_teacher_gets_no_gradient():
    student, teacher = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    disagreement(student, teacher).sum().backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None
    assert torch.allclose(disagreement(student, 3 * student), torch.zeros(3), atol=1e-6)


def test_only_matrices_decay():
    model = tiny_model(num_modalities=8, **task_flags("pretrain_torsion_masking"))
    decay, spared = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, kept = ({names[id(p)] for p in group["params"]} for group in (decay, spared))
    assert decayed | kept == set(names.values()) and not decayed & kept
    assert decay["weight_decay"] == 0.1 and spared["weight_decay"] == 0
    assert not [name for name in decayed if "embeddings.weight" in name or "norm" in name or name.endswith("bias")]
    assert any(name.endswith("weight") for name in decayed) and all(p.ndim > 1 for p in decay["params"])
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW([decay, spared], lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = model.state_dict()
    for name in names.values():
        expected = before[name] * 0.99 if name in decayed else before[name]
        assert torch.allclose(after[name], expected), name
