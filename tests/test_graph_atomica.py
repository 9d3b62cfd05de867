"""Indices and neighbours that the data loader finds: the same numbers, and a step without waiting for the device."""

from contextlib import nullcontext

import pytest
import torch
from accelerate.utils import send_to_device
from conftest import tiny_config, tiny_model
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from atomica_hf import AtomicaCollator, AtomicaForPreTraining, AtomicaForSequenceClassification, AtomicaPreTrainingCollator
from atomica_hf.configuration_atomica import POOLINGS
from atomica_hf.data_collator_atomica import task_flags
from atomica_hf.graph_atomica import batch_graph


SETTINGS = (
    {},
    {"global_message_passing": False, "num_neighbors": 3},
    {"atom_global_message_passing": False},
    {"unknown_as_global": True},
)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("task", ["pretrain_torsion_masking", "pretrain_gaussian"])
def test_a_graph_from_the_collator_changes_no_bit(examples, settings, task):
    model = tiny_model(dtype=torch.float32, **settings, **task_flags(task))
    batch = AtomicaPreTrainingCollator(task, config=model.config)(examples)
    assert len(batch["graph"]["atom_neighbors"]) == 2
    found, gradients = [], []
    for inputs in (batch, {name: value for name, value in batch.items() if name != "graph"}):
        model.zero_grad()
        output = model(**inputs)
        output.loss.backward()
        found.append(output)
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert list(found[0]) == list(found[1]) and all(torch.equal(a, b) for a, b in zip(found[0].values(), found[1].values()))
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_step_never_waits_for_a_number_of_the_device(examples, settings, monkeypatch):
    """Tensors on "meta" have shapes only, so whatever would ask the device for a value or a count fails."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # it does not know this device
    model = AtomicaForPreTraining(tiny_config(**settings)).train().to("meta")
    batch = AtomicaPreTrainingCollator(config=model.config)(examples)
    model(**send_to_device(batch, "meta")).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    del batch["graph"]
    with pytest.raises(NotImplementedError, match="nonzero"):
        model(**send_to_device(batch, "meta"))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_step_of_fine_tuning_never_waits_either(pooling, examples, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    model = AtomicaForSequenceClassification(tiny_config(num_labels=1, pooling=pooling)).train().to("meta")
    batch = AtomicaCollator(config=model.config)([{**example, "labels": [0.5]} for example in examples])
    model(**send_to_device(batch, "meta")).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_graph_of_something_else_is_an_error(examples):
    model = tiny_model(dtype=torch.float32)
    collate = AtomicaCollator(model.config)
    batch, other = collate(examples[:3]), collate(examples[1:5])
    with pytest.raises(ValueError, match=r"`graph` was made for another batch or model: shape is \[4, "):
        model(**{**batch, "graph": other["graph"]})
    graph = batch_graph(tiny_config(num_neighbors=3), batch)
    with pytest.raises(ValueError, match="num_neighbors is 3, expected 8"):
        model(**{**batch, "graph": graph})


def test_loaders_and_the_trainer_take_it_along(examples, tmp_path):
    torch.manual_seed(0)
    model = AtomicaForSequenceClassification(tiny_config(num_labels=2))
    labelled = [{**example, "label": i % 2} for i, example in enumerate(examples)]
    collate = AtomicaCollator(model.config)
    (batch,) = DataLoader(labelled, batch_size=6, collate_fn=collate, num_workers=1)
    expected = collate(labelled)["graph"]["block_neighbors"]
    for found, wanted in zip(batch["graph"]["block_neighbors"], expected):
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    before = model.classifier.layers[0].weight.detach().clone()
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=3, remove_unused_columns=False, report_to=[], use_cpu=True,
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=labelled, data_collator=collate).train()
    assert not torch.equal(before, model.classifier.layers[0].weight)
