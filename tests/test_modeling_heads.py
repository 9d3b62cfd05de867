"""The heads of `modeling_atomica.py` for downstream tasks, block features, and named representations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import VOCAB_SIZE, random_rotation, run, tiny_config, to_batch

from atomica_hf import (
    AtomicaCollator,
    AtomicaForInterfaceContrast,
    AtomicaForMaskedLM,
    AtomicaForPreTraining,
    AtomicaForSequenceClassification,
    AtomicaForTokenClassification,
    AtomicaModel,
    AtomicaPreTrainingCollator,
)
from atomica_hf.configuration_atomica import POOLINGS, REPRESENTATION_POOLINGS


CLASSES = (AtomicaForMaskedLM, AtomicaForSequenceClassification, AtomicaForTokenClassification, AtomicaForInterfaceContrast)


def build(cls, seed=0, dtype=torch.float64, **changes):
    torch.manual_seed(seed)
    return cls(tiny_config(**changes)).to(dtype).eval()


def everything(seed=0, **changes):
    return build(AtomicaModel, seed, **changes)


@pytest.mark.parametrize(
    "problem, num_labels, labels, expected",
    [
        ("regression", 1, [0.5, -100.0, np.nan, 2.0, 0.0, np.nan], lambda x, y, k: F.mse_loss(x[k, 0], y[k])),
        ("regression", 2, np.arange(12.0).reshape(6, 2), lambda x, y, k: F.mse_loss(x, y)),
        ("single_label_classification", 3, [0, 2, -100, 1, 1, -100], lambda x, y, k: F.cross_entropy(x, y)),
        ("multi_label_classification", 1, [0.0, 1.0, np.nan, 1.0, -100.0, 0.0], None),
        (
            "multi_label_classification",
            2,
            [[0.0, 1.0], [np.nan, 1.0], [1.0, 1.0], [0.0, 0.0], [-1.0, np.nan], [1.0, 0.0]],
            None,
        ),
        (None, 1, [0.5, 1.0, np.nan, 2.0, 0.0, np.nan], lambda x, y, k: F.mse_loss(x[k, 0], y[k])),
        (None, 3, [0, 2, -100, 1, 1, -100], lambda x, y, k: F.cross_entropy(x, y)),
        (None, 2, np.ones((6, 2)), None),
    ],
)
@pytest.mark.parametrize("pooling", [pooling for pooling in POOLINGS if pooling != "pair_energy"])
def test_losses_of_complexes_are_those_of_transformers_over_the_labels_there_are(
    problem, num_labels, labels, expected, pooling, examples
):
    model = build(AtomicaForSequenceClassification, num_labels=num_labels, problem_type=problem, pooling=pooling)
    labels = torch.tensor(np.array(labels))
    output = model(**to_batch(examples), labels=labels)
    assert output.logits.shape == (6, num_labels)
    if expected is None:
        present = labels >= 0
        x = output.logits.view(labels.shape)
        wanted = F.binary_cross_entropy_with_logits(x[present], labels[present])
    else:
        wanted = expected(output.logits, labels, labels == labels)
    assert torch.allclose(output.loss, wanted, atol=1e-12)
    nothing = torch.full_like(labels, -100) if not labels.is_floating_point() else torch.full_like(labels, torch.nan)
    model.train()
    empty = model(**to_batch(examples), labels=nothing).loss
    empty.backward()
    assert empty == 0 and all(p.grad is not None and not p.grad.any() for p in model.parameters())
    assert (output.block_logits is not None) == (pooling == "block_sum")
    if pooling == "block_sum":
        assert torch.allclose(output.block_logits.sum(1), output.logits)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_scores_of_complexes_do_not_change_with_rotation_or_batch(pooling, examples):
    model = build(AtomicaForSequenceClassification, num_labels=1, pooling=pooling)
    batch = to_batch(examples)
    with torch.no_grad():
        found = model(**batch).logits
        turned = model(**{**batch, "positions": batch["positions"] @ random_rotation(1).T + 3.0}).logits
        alone = torch.cat([model(**to_batch([example])).logits for example in examples])
    assert torch.allclose(found, turned, atol=1e-8) and torch.allclose(found, alone, atol=1e-10)
    assert (found[1] - found[5]).abs().max() > 1e-4
    if pooling in REPRESENTATION_POOLINGS:
        vectors = model.get_representations(["z_graph"], pooling, **batch)["z_graph"]
        assert torch.allclose(model.classifier(model.projection(vectors)), found, atol=1e-12)


def test_losses_of_blocks(examples):
    batch = to_batch(examples)
    shape = batch["input_ids"].shape
    rng = np.random.default_rng(0)
    model = build(AtomicaForTokenClassification, num_labels=3)
    labels = torch.tensor(rng.integers(0, 3, shape))
    labels[:, 0] = -100
    output = model(**batch, labels=labels)
    inside = batch["attention_mask"].bool()
    wanted = F.cross_entropy(output.logits[inside], labels[inside])
    assert output.logits.shape == (*shape, 3) and torch.allclose(output.loss, wanted, atol=1e-12)
    assert not output.logits[~inside].any()
    number = build(AtomicaForTokenClassification, num_labels=1)
    values = torch.tensor(rng.normal(size=shape))
    values[:, 0] = torch.nan
    output, present = number(**batch, labels=values), inside & ~values.isnan()
    assert torch.allclose(output.loss, F.mse_loss(output.logits[..., 0][present], values[present]), atol=1e-12)


@pytest.mark.parametrize(
    "cls, changes, labels, words",
    [
        (AtomicaForSequenceClassification, {"num_labels": 2}, torch.zeros(6, 3), "(6, 3), expected (6, 2)"),
        (AtomicaForSequenceClassification, {"num_labels": 3}, torch.zeros(6, 3, dtype=torch.long), "expected one class each"),
        (AtomicaForSequenceClassification, {"num_labels": 1, "problem_type": "single_label_classification"},
         torch.zeros(6, dtype=torch.long), "num_labels"),
        (AtomicaForTokenClassification, {"num_labels": 2}, torch.zeros(6, dtype=torch.long), "one per block"),
        (AtomicaForTokenClassification, {"num_labels": 1}, torch.zeros(6, 9, dtype=torch.long), "multi_label_classification"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_are_named(cls, changes, labels, words, examples):
    batch = to_batch(examples)
    if labels.shape == (6, 9):
        labels = torch.zeros_like(batch["input_ids"])
    with pytest.raises(ValueError, match="(?s).*") as error:
        build(cls, **changes)(**batch, labels=labels)
    assert words in str(error.value)


def test_every_head_opens_from_a_pretraining_checkpoint_in_a_fresh_offline_process(tmp_path, processor):
    build(AtomicaForPreTraining, dtype=torch.float32).save_pretrained(tmp_path / "pretrained")
    processor.save_pretrained(tmp_path / "pretrained")
    for cls in CLASSES:
        build(cls, dtype=torch.float32, num_labels=2, pooling="mean_std_global").save_pretrained(tmp_path / cls.__name__)
    code = """
import sys, torch, transformers
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from pathlib import Path
folder = Path(sys.argv[1])
autos = {"AtomicaForMaskedLM": "AutoModelForMaskedLM", "AtomicaForTokenClassification": "AutoModelForTokenClassification",
         "AtomicaForSequenceClassification": "AutoModelForSequenceClassification"}
processor = transformers.AutoProcessor.from_pretrained(folder / "pretrained", trust_remote_code=True)
batch = processor([("CCO", "O"), "c1ccccc1"], return_tensors="pt")
for name, auto in autos.items():
    auto = getattr(transformers, auto)
    model = auto.from_pretrained(folder / name, trust_remote_code=True)
    assert type(model).__name__ == name
    fresh, info = auto.from_pretrained(folder / "pretrained", trust_remote_code=True, num_labels=5, output_loading_info=True)
    missing = [key for key in info["missing_keys"] if not key.startswith("classifier.")]
    assert not missing and all(p.isfinite().all() for p in fresh.parameters()), missing
    assert name == "AtomicaForMaskedLM" or fresh(**batch).logits.shape[-1] == 5
    other = auto.from_pretrained(folder / name, trust_remote_code=True, num_labels=7, ignore_mismatched_sizes=True)
contrast = get_class_from_dynamic_module("modeling_atomica.AtomicaForInterfaceContrast", str(folder / "pretrained"))
model = contrast.from_encoder(folder / "pretrained")
assert all(torch.equal(a, b) for a, b in zip(model.atomica.parameters(), model.complex_atomica.parameters()))
assert not any(p.requires_grad for p in model.complex_atomica.parameters())
base = transformers.AutoModel.from_pretrained(folder / "AtomicaForInterfaceContrast", trust_remote_code=True)
print(base(**batch).pooler_output.shape)
"""
    done = run("-c", code, tmp_path, HF_HOME=str(tmp_path / "cache"), PYTHONPATH="")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "[2, 8]" in done.stdout


@pytest.mark.parametrize("sizes", [5, [5, 3]])
def test_features_of_another_model(sizes, examples):
    model = everything(block_feature_size=sizes)
    batch = to_batch(examples)
    batch["block_features"] = torch.randn(*batch["input_ids"].shape, 5, dtype=torch.float64)
    h_block = model(**batch).last_hidden_state
    other = batch["block_features"].clone()
    other[1, batch["token_type_ids"][1] == 1, 3:] += 1  # beyond the width of the second segment
    unread = torch.allclose(model(**{**batch, "block_features": other}).last_hidden_state, h_block, atol=1e-12)
    assert unread == (sizes != 5)
    for wrong, words in ((None, "needed"), (batch["block_features"][..., :4], "expected")):
        with pytest.raises(ValueError, match=f"block_features.*{words}"):
            model(**{**batch, "block_features": wrong})
    with pytest.raises(ValueError, match="block_feature_size"):
        everything()(**batch)


def test_collators_carry_features_and_hide_those_of_hidden_blocks(examples):
    rng = np.random.default_rng(0)
    given = [{**e, "block_features": rng.normal(size=(len(e["input_ids"]), 4)).astype(np.float32)} for e in examples]
    batch = AtomicaCollator()(given)
    assert batch["block_features"].shape == (*batch["input_ids"].shape, 4)
    assert not batch["block_features"][~batch["attention_mask"].bool()].any()
    puzzles = AtomicaPreTrainingCollator(task="masking", mask_proportion=0.5)(given)
    hidden = puzzles["labels"] >= 0
    assert hidden.any() and not puzzles["block_features"][hidden].any()
    shown = (puzzles["attention_mask"].bool()) & ~hidden
    assert torch.equal(puzzles["block_features"][shown], batch["block_features"][shown])


def test_collator_makes_labels_of_complexes_and_blocks(examples):
    def labels(values, name="labels"):
        return AtomicaCollator()([{**e, name: v} for e, v in zip(examples, values)])["labels"]

    assert labels([1, 0, 2, 1, 0, 0]).dtype == torch.int64
    numbers = labels([0.5, None, 1, 2.0, 0, 1], "label")
    assert numbers.dtype == torch.float32 and numbers.isnan().tolist() == [False, True, False, False, False, False]
    assert labels([[1, 0.5]] * 6).shape == (6, 2)
    per_block = labels([np.arange(len(e["input_ids"]), dtype=float) for e in examples])
    assert per_block.shape == (6, max(len(e["input_ids"]) for e in examples)) and per_block[4, -1].isnan()
    with pytest.raises(ValueError, match="one row per block"):
        labels([[1], [1, 2], [1], [1], [1], [1]])


def test_representations_do_not_change_with_rotation_batch_or_order(examples):
    model = everything(unknown_as_global=False)
    names = ["h_atom", "h_block", "h_graph", "z_atom", "z_block", "z_graph"]
    batch = to_batch(examples)
    for pooling in ("mean_std_global", "mean_component_normalized"):
        found = model.get_representations(names, pooling, **batch)
        turned = {**batch, "positions": batch["positions"] @ random_rotation() + torch.tensor([3.0, -1.0, 2.0])}
        again = model.get_representations(names, pooling, **turned)
        widths = model.representation_widths(pooling)
        for name in names:
            assert (found[name] - again[name]).abs().max() < 1e-9 and found[name].shape[-1] == widths[name], name
        for i, example in enumerate(examples):
            alone = model.get_representations(names, pooling, **to_batch([example]))
            for name in names:
                part = found[name][i, : alone[name].shape[1]] if alone[name].ndim == 3 else found[name][i]
                assert (part - alone[name][0]).abs().max() < 1e-9, name


def test_one_partner_of_a_complex(examples, processor):
    model = everything()
    pairs = [e for e in examples if max(e["token_type_ids"]) == 1]
    batch = to_batch(pairs)
    for segment in (0, 1):
        found = model.get_representations(["h_interface", "z_interface", "z_block"], "mean_std_global", segment, **batch)
        for i, example in enumerate(pairs):
            mine = np.array(example["token_type_ids"]) == segment
            ordinary = mine & (np.array(example["input_ids"]) > 3)
            z_block = found["z_block"][i, : len(mine)].detach().numpy()
            expected = [z_block[ordinary].mean(0), z_block[ordinary].std(0), z_block[0]]
            assert np.abs(found["z_interface"][i].detach().numpy() - np.concatenate(expected)).max() < 1e-10
    with pytest.raises(ValueError, match=r"complexes \[0\]"):
        model.get_representations(["h_interface"], segment=1, **to_batch([examples[0]]))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_invariants_have_finite_gradients_at_any_depth(layers, examples):
    model = everything(num_hidden_layers=layers).train()
    found = model.get_representations(["z_graph", "z_atom"], "mean_std_global", **to_batch(examples))
    (found["z_graph"].square().sum() + found["z_atom"].sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert found["z_atom"].shape[-1] == model.representation_widths()["z_atom"]


@pytest.mark.parametrize(
    "names, arguments, words",
    [
        (["z_graph"], {}, "pooling"),
        (["z_graph"], {"pooling": "mean"}, "mean_std_global"),
        (["h_graph"], {"pooling": "mean_std_global"}, "take none"),
        (["z_interface"], {"pooling": "mean_std_global"}, "segment"),
        (["h_block"], {"segment": 0}, "take none"),
        (["graph_repr"], {}, "h_graph"),
        ([], {}, "h_graph"),
    ],
)
def test_requests_that_make_no_sense_are_named(names, arguments, words, examples):
    with pytest.raises(ValueError, match=words):
        everything().get_representations(names, **arguments, **to_batch(examples))


def test_a_head_learns(examples):
    batch = to_batch(examples, torch.float32)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    for cls, target, changes in (
        (AtomicaForSequenceClassification, labels, {}),
        (AtomicaForSequenceClassification, labels, {"pooling": "mean_std_global"}),
        (AtomicaForTokenClassification, torch.where(batch["attention_mask"] == 1, batch["input_ids"] % 2, -100), {}),
    ):
        torch.manual_seed(0)
        model = cls(tiny_config(num_labels=2, **changes)).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(200):
            optimizer.zero_grad()
            loss = model(**batch, labels=target).loss
            if loss < 0.1:
                break
            loss.backward()
            optimizer.step()
        assert loss < 0.1, cls.__name__


def test_outputs_have_their_fields_in_the_declared_order(examples):
    batch = to_batch(examples)
    model = build(AtomicaForSequenceClassification, num_labels=2, pooling="block_sum")
    output = model(**batch, labels=torch.tensor([0, 1, 0, 1, 0, 1]))
    assert list(output)[:3] == ["loss", "logits", "block_logits"] and output[1].shape == (6, 2)
    assert model(**batch, return_dict=False)[0].shape == (6, 2)
    nothing_hidden = torch.full_like(batch["input_ids"], -100)
    assert list(build(AtomicaForPreTraining)(**batch, labels=nothing_hidden))[0] == "loss"
    output = build(AtomicaForInterfaceContrast)(**batch, **{f"complex_{name}": value for name, value in batch.items()})
    assert list(output)[:4] == ["loss", "side_embeds", "complex_embeds", "logits_per_side"]


def test_the_trainer_gets_logits_and_metrics(tmp_path, examples):
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    keep = ("input_ids", "token_type_ids", "attention_mask", "atom_ids", "atom_to_block", "positions")
    rows = [{**{key: np.asarray(e[key]).tolist() for key in keep}, "label": i % 3} for i, e in enumerate(examples)]
    dataset, seen = Dataset.from_list(rows), []

    def metrics(prediction):
        seen.append(prediction.predictions.shape)
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    model = AtomicaForSequenceClassification(tiny_config(num_labels=3))
    arguments = TrainingArguments(str(tmp_path), max_steps=2, per_device_train_batch_size=3, per_device_eval_batch_size=4,
                                  report_to=[], save_strategy="no", use_cpu=True)  # fmt: skip
    trainer = Trainer(
        model, arguments, train_dataset=dataset, eval_dataset=dataset, data_collator=AtomicaCollator(), compute_metrics=metrics
    )
    trainer.train()
    assert "eval_accuracy" in trainer.evaluate() and seen == [(6, 3)]


def test_missing_classes_among_labels(examples):
    labels = AtomicaCollator()([{**e, "labels": v} for e, v in zip(examples, [None, 1, 2, None, 0, 1])])["labels"]
    model = build(AtomicaForSequenceClassification, num_labels=3)
    output = model(**to_batch(examples), labels=labels)
    present = ~labels.isnan()
    assert torch.allclose(output.loss, F.cross_entropy(output.logits[present], labels[present].long()))


@pytest.mark.parametrize("size", [VOCAB_SIZE + 10, VOCAB_SIZE - 40])
def test_resized_vocabularies_save_and_load(size, tmp_path, examples):
    for cls in (AtomicaForMaskedLM, AtomicaForPreTraining):
        model = build(cls, dtype=torch.float32)
        batch = to_batch(examples[:1], torch.float32)
        batch["input_ids"] = batch["input_ids"].clamp_max(min(size, VOCAB_SIZE) - 1)
        before = model(**batch)
        model.resize_token_embeddings(size)
        model.save_pretrained(tmp_path / cls.__name__)
        again, info = cls.from_pretrained(tmp_path / cls.__name__, output_loading_info=True)
        assert not info["missing_keys"] and again.config.vocab_size == size
        after = again.eval()(**batch)
        name = "logits" if cls is AtomicaForMaskedLM else "prediction_logits"
        assert after[name].shape[-1] == size - (0 if name == "logits" else 4)
        if size > VOCAB_SIZE:
            kept = before[name].shape[-1]
            assert torch.allclose(after[name][..., :kept], before[name], atol=1e-5)
