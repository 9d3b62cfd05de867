import copy
import json

import pytest
import torch
from conftest import VOCAB_SIZE, random_rotation, tiny_config, tiny_model, to_batch

from atomica_hf import AtomicaConfig, AtomicaForPreTraining, AtomicaModel, AtomicaPreTrainingCollator
from atomica_hf.data_collator_atomica import TASKS, task_flags


HIDDEN = ("last_hidden_state", "pooler_output", "atom_hidden_state")
LABELLED = "pretrain_torsion_masking", "pretrain_gaussian"
SETTINGS = [
    {},
    {"global_message_passing": False, "num_hidden_layers": 2, "num_neighbors": 5, "hidden_size": 12, "edge_size": 6},
    {"atom_global_message_passing": True, "atom_hidden_size": 6, "num_modalities": 3, "num_hidden_layers": 4},
    {"unknown_as_global": True, "atom_global_message_passing": True},
]


def labelled(examples, task, dtype=torch.float64):
    batch = AtomicaPreTrainingCollator(task)(examples)
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}


def add_modalities(batch, config):
    if config.num_modalities:
        batch["modality_ids"] = torch.arange(len(batch["input_ids"])) % config.num_modalities
    return batch


@pytest.mark.parametrize("task", LABELLED)
@pytest.mark.parametrize("settings", SETTINGS)
def test_rotating_and_shifting_the_input(task, settings, examples):
    model = tiny_model(**settings, **task_flags(task))
    batch = add_modalities(labelled(examples, task), model.config)
    rotation, shift = random_rotation(), torch.tensor([7.0, -30.0, 2.0], dtype=torch.float64)
    moved = dict(batch, positions=batch["positions"] @ rotation.T + shift)
    for name in ("translation_labels", "rotation_labels", "atom_noise_labels"):
        if name in batch:
            moved[name] = batch[name] @ rotation.T
    one, two = model(**batch), model(**moved)
    for name in [
        *HIDDEN,
        "loss",
        "torsion_prediction",
        "torsion_loss",
        "mask_loss",
        "rotation_loss",
        "translation_loss",
        "atom_loss",
    ]:
        if getattr(one, name) is not None:
            assert (getattr(one, name) - getattr(two, name)).abs().max() < 1e-9, name
    for name in ("translation_prediction", "rotation_prediction", "atom_prediction"):
        if getattr(one, name) is not None:
            assert getattr(one, name).abs().max() > 1e-3
            assert (getattr(one, name) @ rotation.T - getattr(two, name)).abs().max() < 1e-9, name


def test_a_mirror_image_is_told_apart(examples, processor):
    model = tiny_model()
    batch = to_batch([processor.encode(processor.read("C[C@H](O)[C@@H](F)C(=O)N")[0])])
    mirrored = dict(batch, positions=batch["positions"] * torch.tensor([-1.0, 1, 1]))
    assert (model(**batch).pooler_output - model(**mirrored).pooler_output).abs().max() > 1e-6


@pytest.mark.parametrize("settings", SETTINGS)
def test_alone_equals_in_a_batch_and_complexes_can_be_reordered(settings, examples):
    model = tiny_model(**settings)
    together = model(**add_modalities(to_batch(examples), model.config))
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))
    batch = {name: value[order] for name, value in add_modalities(to_batch(examples), model.config).items()}
    shuffled = model(**batch)
    for name in HIDDEN:
        assert (getattr(together, name)[order] - getattr(shuffled, name)).abs().max() < 1e-9
    for i, example in enumerate(examples):
        single = to_batch([example])
        if settings.get("num_modalities"):
            single["modality_ids"] = torch.tensor([i % 3])
        alone = model(**single)
        assert (alone.pooler_output[0] - together.pooler_output[i]).abs().max() < 1e-9
        assert (alone.last_hidden_state[0] - together.last_hidden_state[i, : len(example["input_ids"])]).abs().max() < 1e-9
        assert (alone.atom_hidden_state[0] - together.atom_hidden_state[i, : len(example["atom_ids"])]).abs().max() < 1e-9


def test_attend_to_padding_brings_back_vectors_that_depend_on_the_batch(examples):
    model = tiny_model(attend_to_padding=True)
    together, alone = model(**to_batch(examples)), model(**to_batch(examples[2:3]))
    assert (alone.pooler_output[0] - together.pooler_output[2]).abs().max() > 1e-4


def test_reordering_blocks_and_atoms_reorders_the_output(examples):
    model = tiny_model()
    example = examples[0]
    plain = model(**to_batch([example]))
    rng = torch.Generator().manual_seed(0)
    blocks = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(len(example["input_ids"]) - 1, generator=rng)])
    atoms = torch.randperm(len(example["atom_ids"]), generator=rng)
    new_place = blocks.argsort()
    mixed = {
        "input_ids": torch.tensor(example["input_ids"])[blocks],
        "token_type_ids": torch.tensor(example["token_type_ids"])[blocks],
        "attention_mask": torch.tensor(example["attention_mask"]),
        "atom_ids": torch.tensor(example["atom_ids"])[atoms],
        "atom_to_block": new_place[torch.tensor(example["atom_to_block"])[atoms]],
        "positions": torch.tensor(example["positions"]).double()[atoms],
    }
    shuffled = model(**{name: value[None] for name, value in mixed.items()})
    assert (shuffled.last_hidden_state[0] - plain.last_hidden_state[0, blocks]).abs().max() < 1e-9
    assert (shuffled.atom_hidden_state[0] - plain.atom_hidden_state[0, atoms]).abs().max() < 1e-9
    assert (shuffled.pooler_output - plain.pooler_output).abs().max() < 1e-9


def test_defaults_of_mask_and_segments_are_counted_from_the_tokens(examples):
    model = tiny_model()
    batch = to_batch(examples)
    short = {name: value for name, value in batch.items() if name not in ("attention_mask", "token_type_ids")}
    assert torch.equal(model(**batch).pooler_output, model(**short).pooler_output)


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_without_a_puzzle_has_a_zero_loss_and_every_gradient(task, examples):
    """A lone ion: nothing turns, nothing moves, and in one task nothing is hidden."""
    model = tiny_model(**task_flags(task)).train()
    batch = labelled(examples[4:5], task)
    output = model(**batch)
    for name in ("atom_loss", "torsion_loss", "translation_loss", "rotation_loss"):
        if getattr(output, name) is not None:
            assert getattr(output, name).item() == 0
    output.loss.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing
    model.zero_grad()
    if "labels" in batch:
        batch["labels"] = torch.full_like(batch["labels"], -100)
    output = model(**batch)
    output.loss.backward()
    assert output.loss.item() == 0
    assert not any(p.grad.any() for p in model.parameters())


def test_a_lone_molecule_has_no_rigid_puzzle_and_does_not_dilute_that_of_others(examples):
    model = tiny_model()
    pair, lone = labelled(examples[1:2], LABELLED[0]), labelled(examples[:1], LABELLED[0])
    assert model(**lone).translation_loss == 0 == model(**lone).rotation_loss
    both = labelled([examples[1], examples[0]], LABELLED[0])
    assert torch.allclose(model(**both).translation_loss, model(**pair).translation_loss, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_float32_is_close_to_float64(processor, examples, seed):
    items = ("CC1(C)SC2C(NC(=O)Cc3ccccc3)C(=O)N2C1C(=O)O", "COc1ccc2nc(S(=O)Cc3ncc(C)c(OC)c3C)[nH]c2c1")
    for batch, bound in (([processor.encode(processor.read(item)[0]) for item in items], 1e-6), (examples, 1e-5)):
        exact = tiny_model(seed)(**to_batch(batch))
        single = tiny_model(seed, dtype=torch.float32)(**to_batch(batch, torch.float32))
        assert (exact.pooler_output - single.pooler_output).abs().max() < bound
        assert (exact.atom_hidden_state - single.atom_hidden_state).abs().max() < 1e-5


def test_symmetric_molecules_keep_their_vectors_in_float32(processor):
    """In a plane or on a line many features are zero. Published size: four layers enlarge what rounding leaves of them."""
    items = ("CC(=O)Oc1ccccc1C(=O)O", "c1ccccc1", "O=C=O", "CC#CC", ("CCO", "c1ccccc1O"), "C", "c1ccc2ccccc2c1")
    encoded = [processor.encode(processor.read(item)[0]) for item in items]
    batch, turned = to_batch(encoded, torch.float32), to_batch(encoded)
    turned["positions"] = (turned["positions"] @ random_rotation(3).T).float()
    torch.manual_seed(0)
    model = AtomicaForPreTraining(AtomicaConfig(vocab_size=VOCAB_SIZE)).eval()
    with torch.no_grad():
        one, other = model(**batch), model(**turned)
    for name, bound in (("pooler_output", 1e-5), ("last_hidden_state", 1e-5), ("atom_hidden_state", 1e-4)):
        assert (one[name] - other[name]).abs().max() < bound, name


def test_gradient_checkpointing_gives_the_same_gradients(examples):
    batch = labelled(examples, LABELLED[0])
    gradients = []
    for enable in (False, True):
        model = tiny_model().train()
        if enable:
            model.gradient_checkpointing_enable()
            assert model.atomica.atom_encoder.layers[0].gradient_checkpointing
        model(**batch).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all((a - b).abs().max() < 1e-10 for a, b in zip(*gradients))


def test_dropout_acts_in_training_only(examples):
    batch = labelled(examples, LABELLED[0])
    model = tiny_model(hidden_dropout_prob=0.3)
    assert torch.equal(model(**batch).loss, model(**batch).loss)
    model.train()
    one, two = model(**batch), model(**batch)
    assert one.loss != two.loss
    one.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("task", TASKS)
def test_a_tiny_model_learns_a_handful_of_complexes_by_heart(task, examples):
    torch.manual_seed(0)
    model = AtomicaForPreTraining(tiny_config(hidden_size=16, atom_hidden_size=16, edge_size=16, **task_flags(task)))
    batch = labelled(examples[:4], task, torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 250)
    for _ in range(250):
        optimizer.zero_grad()
        output = model(**batch)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    for name in ("atom", "torsion", "translation", "rotation", "mask"):
        loss = getattr(output, f"{name}_loss")
        if loss is not None:
            assert loss < 0.35 * getattr(output, f"{name}_baseline"), (name, loss, getattr(output, f"{name}_baseline"))


def test_saved_and_loaded_is_the_same_model(tmp_path, examples):
    model = tiny_model(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    batch = to_batch(examples, torch.float32)
    again, info = AtomicaForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    assert torch.equal(model(**batch).pooler_output, again.eval()(**batch).pooler_output)
    base = AtomicaModel.from_pretrained(tmp_path)
    assert torch.equal(model(**batch).pooler_output, base(**batch).pooler_output)
    base.save_pretrained(tmp_path / "base")
    with_heads, info = AtomicaForPreTraining.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert info["missing_keys"] and all("head" in name for name in info["missing_keys"])
    assert all(p.isfinite().all() for p in with_heads.parameters())
    assert (tmp_path / "model.safetensors").exists() and not list(tmp_path.glob("*.bin"))


def test_outputs_are_model_outputs_and_tuples_on_request(examples):
    model = tiny_model().atomica
    batch = to_batch(examples)
    output = model(**batch, output_irreps=True)
    blocks, atoms = batch["input_ids"].shape[1], batch["atom_ids"].shape[1]
    assert output.last_hidden_state.shape == (len(examples), blocks, 8)
    assert output.atom_irreps.shape == (len(examples), atoms, 8 + 4 * 3 + 4 * 5 + 4 * 3 + 4 * 5 + 8)
    assert not output.last_hidden_state[~batch["attention_mask"].bool()].any()
    assert isinstance(model(**batch, return_dict=False), tuple)
    json.dumps({name: list(value.shape) for name, value in output.items()})


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda b: b.pop("positions"), ["positions", "missing"]),
        (lambda b: b.update(positions=b["positions"][..., :2]), ["positions", "(6, ", "3)"]),
        (lambda b: b.update(positions=b["positions"].long()), ["positions", "int64", "floating-point"]),
        (lambda b: b.update(atom_ids=b["atom_ids"][:, :-1]), ["atom_to_block"]),
        (lambda b: b.update(attention_mask=b["attention_mask"][:2]), ["attention_mask", "(2, ", "expected (6, "]),
        (lambda b: b.update(input_ids=b["input_ids"][0]), ["input_ids", "(batch, num_blocks)"]),
        (lambda b: b.update(attention_mask=torch.zeros_like(b["input_ids"])), ["padding", "nothing to encode"]),
        (lambda b: b.update({name: value[:0] for name, value in b.items()}), ["nothing to encode"]),
        (lambda b: b.update(translation_labels=torch.zeros(6, 3)), ["translation_sigma"]),
        (lambda b: b.update(modality_ids=torch.zeros(6, dtype=torch.long)), ["modality_ids", "num_modalities"]),
    ],
)
def test_wrong_input_is_named(change, words, examples):
    batch = copy.deepcopy(to_batch(examples))
    change(batch)
    with pytest.raises((ValueError, TypeError)) as error:
        tiny_model()(**batch)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("task", TASKS)
def test_mixed_precision_on_this_machine(task, examples):
    model = tiny_model(dtype=torch.float32, **task_flags(task)).train()
    batch = labelled(examples, task, torch.float32)
    exact = model(**batch).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(**batch).loss
    rough.backward()
    assert abs(rough - exact) < 0.02 * exact
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
