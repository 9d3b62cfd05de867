"""Processes and accumulated batches: the same global batch gives the same steps."""

import numpy as np
import pytest
import torch
from pretraining_runs import complete, molecules_file, needs_fork, options, rows
from safetensors.torch import load_file

from prepare_dataset import prepare


STEPS = ["--max_blocks_per_batch", 8, "--logging_steps", 1, "--dtype", "float64", "--learning_rate", 0.01]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, processor):
    """Molecules, a pair, and ions, which have nothing to turn or to shift."""
    folder = tmp_path_factory.mktemp("data")
    prepare([molecules_file(folder)], folder / "prepared", processor, progress=False)
    return folder / "prepared"


def trained(prepared, output, processes, accumulation, *more):
    command = options(prepared, output, *STEPS, "--gradient_accumulation_steps", accumulation, *more)
    text = complete(command, f"{output}.log", processes)
    assert text.count("Saved the model") == 1
    return rows(output), load_file(output / "model.safetensors")


@needs_fork
@pytest.mark.parametrize("task, steps", [("pretrain_torsion_masking", 20), ("pretrain_gaussian", 5)])
def test_two_processes_make_the_steps_of_one(task, steps, prepared, tmp_path):
    """Float64, 20 steps: batches of different sizes, an odd number of them, processes without a torsion or without a batch."""
    more = ["--task", task, "--max_train_steps", steps]
    one, weights = trained(prepared, tmp_path / "one", 1, 2, *more)
    two, others = trained(prepared, tmp_path / "two", 2, 1, *more)
    assert len(one) == len(two) == steps
    for row, other in zip(one, two):
        assert row.keys() == other.keys()
        for name, value in row.items():
            if isinstance(value, float):
                assert np.isclose(value, other[name], rtol=1e-6, atol=1e-9), (row["step"], name)
    assert all(torch.allclose(weights[name], others[name], rtol=1e-6, atol=1e-9) for name in weights)
    assert one[-1]["loss"] != one[0]["loss"] and max(row["epoch"] for row in one) > 0


@needs_fork
def test_four_processes_are_four_accumulated_batches(prepared, tmp_path):
    """With InfoNCE and a teacher too: a process without a batch takes part in the exchange of vectors."""
    more = ["--max_train_steps", 5]
    one, weights = trained(prepared, tmp_path / "one", 1, 4, *more)
    four, others = trained(prepared, tmp_path / "four", 4, 1, *more)
    assert [row["loss"] for row in four] == pytest.approx([row["loss"] for row in one], rel=1e-6)
    assert all(torch.allclose(weights[name], others[name], rtol=1e-6, atol=1e-9) for name in weights)
    more += ["--contrastive_weight", 0.5, "--distillation_weight", 0.5, "--ema_decay", 0.9]
    contrastive, _ = trained(prepared, tmp_path / "contrastive", 4, 1, *more)
    assert all(np.isfinite(row["contrastive_loss"]) and row["distillation_loss"] >= 0 for row in contrastive)


@needs_fork
def test_info_nce_sees_the_complexes_of_all_processes(prepared, tmp_path):
    """Two processes with a batch each, against one process with both batches in one: the same loss and the same step."""
    more = ["--max_train_steps", 1, "--contrastive_weight", 1.0, "--task", "masking", "--validation_split_percentage", 0]
    one, weights = trained(prepared, tmp_path / "one", 1, 1, *more, "--max_blocks_per_batch", 1000)
    two, others = trained(prepared, tmp_path / "two", 2, 1, *more, "--max_blocks_per_batch", 44)
    assert one[0]["contrastive_loss"] == pytest.approx(two[0]["contrastive_loss"], rel=1e-6)
    assert all(torch.allclose(weights[name], others[name], rtol=1e-6, atol=1e-7) for name in weights)
