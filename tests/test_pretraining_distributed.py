"""Processes and accumulated batches: the same global batch gives the same steps."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pretraining_runs import begin, complete, end, molecules_file, needs_fork, options, rows
from safetensors.torch import load_file

import run_pretraining
from dataset_shards import prepare
from pretraining_arguments import UsageError
from pretraining_checkpoints import checkpoints


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


def sharded():
    """What `accelerate launch` with docs/accelerate/fsdp.yaml sets."""
    os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")


@needs_fork
@pytest.mark.slow
def test_a_model_that_is_shared_out_makes_the_steps_of_ddp(prepared, tmp_path):
    """Two processes, float64; its checkpoint is whole, and from it either way of training goes on."""
    output, log = tmp_path / "fsdp", tmp_path / "log"

    def patch():
        sharded()
        monitored = run_pretraining.shard
        run_pretraining.shard = lambda model: print("shared out") or monitored(model)

    more = [
        "--max_train_steps",
        10,
        "--validation_split_percentage",
        30,
        "--checkpointing_steps",
        4,
        "--hidden_dropout_prob",
        0.1,
    ]
    command = options(prepared, output, *STEPS, *more)
    text = complete(command, log, 2, patch)
    assert text.count("shared out") == 2
    ddp = options(prepared, tmp_path / "ddp", *STEPS, *more)
    complete(ddp, f"{log}-ddp", 2)
    weights, others = (load_file(tmp_path / name / "model.safetensors") for name in ("fsdp", "ddp"))
    assert {n: v.shape for n, v in weights.items()} == {n: v.shape for n, v in others.items()}
    assert all(torch.allclose(weights[name], others[name], rtol=1e-6, atol=1e-9) for name in weights)
    config, expected = ((tmp_path / name / "config.json").read_text() for name in ("fsdp", "ddp"))
    assert config == expected and {p.name for p in output.iterdir()} == {p.name for p in (tmp_path / "ddp").iterdir()}
    for split in ("train", "validation"):
        for row, other in zip(rows(output, split), rows(tmp_path / "ddp", split), strict=True):
            for name, value in row.items():
                if isinstance(value, float):
                    assert np.isclose(value, other[name], rtol=1e-6, atol=1e-9), (row["step"], name)
    for folder in checkpoints(output):
        other = tmp_path / "ddp" / folder.name
        for file in ("model.safetensors", "optimizer.safetensors"):
            found, expected = load_file(folder / file), load_file(other / file)
            assert all(torch.allclose(found[name], value, rtol=1e-6, atol=1e-9) for name, value in expected.items())
    for name, resume in (("again", patch), ("otherwise", None)):
        shutil.copytree(output, tmp_path / name)
        (tmp_path / name / "all_results.json").unlink()
        for folder in checkpoints(tmp_path / name)[1:]:
            shutil.rmtree(folder)
        text = complete(
            [*options(prepared, tmp_path / name, *STEPS, *more), "--resume_from_checkpoint", "latest"],
            f"{log}-{name}",
            2,
            resume,
        )
        assert "checkpoint-4: step 4" in text and text.count("shared out") == (2 if resume else 0)
        resumed = load_file(tmp_path / name / "model.safetensors")
        equal = torch.equal if resume else lambda a, b: torch.allclose(a, b, rtol=1e-6, atol=1e-9)
        assert all(equal(weights[key], resumed[key]) for key in weights)
    assert end(begin([*command, "--ema_decay", "0.9", "--overwrite_output_dir"], f"{log}-ema", 2, patch)) == [1, 1]
    assert "--ema_decay needs the whole model on every device (DDP), not FSDP" in Path(f"{log}-ema.0").read_text()


def test_fsdp_of_the_first_version_is_refused(prepared, tmp_path, monkeypatch):
    sharded_at_first = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}
    for name, value in sharded_at_first.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="FSDP1; expected fsdp_version: 2"):
        run_pretraining.main(options(prepared, tmp_path / "out", *STEPS))
