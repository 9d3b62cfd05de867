"""The script launched as users launch it. The sizes are tiny; what is checked is what comes out."""

import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from conftest import ROOT, run
from safetensors.torch import load_file

import run_pretraining
from atomica_hf import AtomicaForPreTraining, AtomicaPreTrainingCollator, AtomicaProcessor, StructureError
from dataset_shards import prepare
from prepared_datasets import load_prepared
from pretraining_arguments import UsageError


TINY = ["--hidden_size", 8, "--atom_hidden_size", 8, "--edge_size", 8, "--num_hidden_layers", 2, "--max_blocks_per_batch", 12]
SIX_STEPS = ["--max_train_steps", 6, "--checkpointing_steps", 2, "--validation_split_percentage", 25, "--logging_steps", 1]


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "few.csv"
    rows = ["name,smiles", "aspirin,CC(=O)Oc1ccccc1C(=O)O", "open ring,c1ccccc", "phenol + water,Oc1ccccc1.O", "ethanol,CCO"]
    rows += ["alanine,CC(N)C(=O)O", "glycerol,OCC(O)CO", "toluene,Cc1ccccc1", "caffeine,Cn1cnc2c1c(=O)n(C)c(=O)n2C"]
    path.write_text("\n".join(rows) + "\n")
    return path


def command(molecules, output, *more):
    return [str(x) for x in ("--train_file", molecules, "--output_dir", output, *TINY, *more)]


@pytest.fixture(scope="module")
def finished(molecules, tmp_path_factory):
    """One launched run: six steps, a checkpoint every two."""
    output = tmp_path_factory.mktemp("run") / "model"
    done = run(
        "run_pretraining.py",
        *command(molecules, output, *SIX_STEPS, "--report_to", "tensorboard", "--save_total_limit", 2, "--hub_dry_run"),
    )
    assert done.returncode == 0, done.stderr
    return output, done


def test_the_launched_script_says_what_it_did(finished):
    output, done = finished
    assert "7 kept, 1 left out" in done.stdout and "open ring" in done.stdout
    assert "mask loss" in done.stdout and "predict nothing" in done.stdout
    assert sorted(p.name for p in output.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    expected = {
        "config.json", "model.safetensors", "tokenizer_config.json", "vocab.json", "processor_config.json", "README.md",
        "metrics.jsonl", "losses.png", "all_results.json", "modeling_atomica.py", "geometry_atomica.py",
        "configuration_atomica.py", "tokenization_atomica.py", "processing_atomica.py", "structure_atomica.py",
    }  # fmt: skip
    assert expected <= {p.name for p in output.iterdir()}
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["split"] == "train"]
    assert [row["step"] for row in train] == [1, 2, 3, 4, 5, 6]
    for name in ("torsion", "translation", "rotation", "mask"):
        assert all(np.isfinite(row[f"{name}_loss"]) and row[f"{name}_baseline"] >= 0 for row in train)
    assert any(row["split"] == "validation" for row in rows)
    card = (output / "README.md").read_text()
    assert "few.csv" in card and "| mask |" in card and str(output.parent) not in card
    assert list(output.glob("**/events.out.tfevents*"))


def test_what_would_be_uploaded_is_all_that_a_user_needs(finished, tmp_path):
    """The files listed by the dry run, copied alone: they open in a process without a network, and nothing else is listed."""
    output, done = finished
    listed = re.findall(r"^ +([\d,]+)  (\S+)$", done.stdout, re.MULTILINE)
    total = sum(int(size.replace(",", "")) for size, _ in listed)
    assert f"would upload {len(listed)} files, {total:,} bytes, to {output.name}:" in done.stdout
    for size, name in listed:
        assert (output / name).stat().st_size == int(size.replace(",", ""))
        shutil.copy(output / name, tmp_path / name)
    names = {name for _, name in listed}
    code = {path.name for path in ROOT.glob("*_atomica.py")}
    others = {"config.json", "model.safetensors", "processor_config.json", "tokenizer_config.json", "vocab.json", "README.md",
              "losses.png", "all_results.json"}  # fmt: skip
    assert others <= names and names - others <= code and len(names - others) > 5
    opened = run("-c", OPEN, tmp_path, tmp_path / "again", HF_HOME=str(tmp_path / "cache"), PYTHONPATH="")
    assert opened.returncode == 0 and "vector 8" in opened.stdout, opened.stderr[-3000:]


OPEN = """
import sys
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoProcessor, AutoTokenizer
folder, again = sys.argv[1:]
parts = {a: a.from_pretrained(folder, trust_remote_code=True) for a in
         (AutoConfig, AutoTokenizer, AutoProcessor, AutoModel, AutoModelForPreTraining)}
inputs = parts[AutoProcessor]("CC(=O)Oc1ccccc1C(=O)O", return_tensors="pt")
one, two = parts[AutoModel](**inputs).pooler_output, parts[AutoModelForPreTraining](**inputs).pooler_output
parts[AutoModelForPreTraining].save_pretrained(again), parts[AutoProcessor].save_pretrained(again)
three = AutoModel.from_pretrained(again, trust_remote_code=True)(**inputs).pooler_output
tokens = AutoTokenizer.from_pretrained(again, trust_remote_code=True)("CCO")
assert (one == two).all() and (one == three).all() and tokens == parts[AutoTokenizer]("CCO")
assert "atomica_hf" not in sys.modules
print("vector", one.shape[1], inputs["input_ids"].shape)
"""


def test_the_folder_opens_in_a_fresh_offline_process(finished, tmp_path):
    done = run("-c", OPEN, finished[0], tmp_path / "again", HF_HOME=str(tmp_path / "cache"), PYTHONPATH="")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "vector 8" in done.stdout


def test_resuming_gives_the_weights_of_the_undisturbed_run(finished, molecules):
    output, _ = finished
    whole = load_file(output / "model.safetensors")
    (output / "checkpoint-6").rename(output.parent / "aside")
    options = command(molecules, output, *SIX_STEPS, "--resume_from_checkpoint", "latest", "--dataloader_num_workers", 1)
    done = run("run_pretraining.py", *options)
    assert done.returncode == 0, done.stderr
    assert "step 4, epoch 1, position 1" in done.stdout  # in the middle of an epoch
    resumed = load_file(output / "model.safetensors")
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [json.loads(x)["step"] for x in (output / "metrics.jsonl").read_text().splitlines() if '"train"' in x] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]


def test_a_finished_run_and_a_used_folder_are_left_as_they_are(finished, molecules, tmp_path):
    output, _ = finished
    before = {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}
    run_pretraining.main(command(molecules, output, *SIX_STEPS, "--resume_from_checkpoint", "latest"))
    with pytest.raises(UsageError, match="checkpoints of an earlier run.*--overwrite_output_dir"):
        run_pretraining.main(command(molecules, output, *SIX_STEPS))
    assert before == {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}


def test_a_run_killed_just_before_its_end_is_finished_on_resuming(finished, molecules):
    output, _ = finished
    before, card = (output / "model.safetensors").read_bytes(), (output / "README.md").read_text()
    for name in ("all_results.json", "model.safetensors", "README.md"):
        (output / name).unlink()
    run_pretraining.main(command(molecules, output, *SIX_STEPS, "--resume_from_checkpoint", "latest"))
    assert (output / "model.safetensors").read_bytes() == before and (output / "all_results.json").exists()
    assert [x for x in (output / "README.md").read_text().splitlines() if x.startswith("| ")] == [
        x for x in card.splitlines() if x.startswith("| ")
    ]


def test_a_configuration_without_weights_is_no_model_to_start_from(molecules, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "vocab.json", "tokenizer_config.json", "processor_config.json"):
        shutil.copy(ROOT / name, bare)
    options = ["--train_file", str(molecules), "--output_dir", str(tmp_path / "x"), "--model_name_or_path", str(bare)]
    with pytest.raises(UsageError, match="no weights of Atomica"):
        run_pretraining.main(options)


def test_damaged_checkpoints_and_json_files_are_named(finished, molecules, tmp_path):
    output, _ = finished
    for file in ("model.safetensors", "trainer_state.json", "optimizer.safetensors", "sha256.json"):
        copy = tmp_path / file / "checkpoint-6"
        shutil.copytree(sorted(output.glob("checkpoint-*"))[-1], copy)
        (copy / file).write_bytes((copy / file).read_bytes()[:100])
        with pytest.raises(UsageError, match="cannot be read"):
            run_pretraining.main(command(molecules, tmp_path / "x", *SIX_STEPS, "--resume_from_checkpoint", copy))
    for text in ("[1, 2]", "{", None):
        if text is not None:
            (tmp_path / "o.json").write_text(text)
        with pytest.raises(UsageError, match="o.json|gone.json"):
            run_pretraining.main([str(tmp_path / ("gone.json" if text is None else "o.json"))])


def test_accelerate_and_torchrun(molecules, tmp_path):
    options = command(molecules, tmp_path / "a", "--max_train_steps", 2, "--task", "masking")
    launch = ["-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", ROOT / "docs" / "accelerate" / "cpu.yaml"]
    done = run(*launch, "run_pretraining.py", *options)
    assert done.returncode == 0, done.stderr[-2000:]
    options = command(molecules, tmp_path / "b", "--max_train_steps", 3, "--task", "pretrain_gaussian")
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", 29517, "run_pretraining.py"]
    done = run(*launch, *options)
    assert done.returncode == 0, done.stderr[-2000:]
    card = (tmp_path / "b" / "README.md").read_text()
    assert "2 process(es)" in card and done.stdout.count("Saved the model") == 1
    assert AtomicaForPreTraining.from_pretrained(tmp_path / "b").config.use_atom_noise


def test_the_shipped_configurations_are_ones_of_accelerate():
    found = {path.stem: load_config_from_file(str(path)) for path in (ROOT / "docs" / "accelerate").glob("*.yaml")}
    assert {name: (one.num_machines, one.num_processes, one.use_cpu) for name, one in found.items()} == {
        "cpu": (1, 1, True), "one_gpu": (1, 1, False), "eight_gpus": (1, 8, False), "four_nodes": (4, 32, False),
        "fsdp": (1, 8, False),
    }  # fmt: skip
    assert found["fsdp"].fsdp_config == {"fsdp_version": 2}


def test_atomicas_command_line_is_understood(molecules, tmp_path):
    original = (
        f"--train_set {molecules} --task pretrain_torsion_masking --atom_hidden_size 8 --n_layers 2 --torsion_noise 0.3 "
        f"--mask_proportion 0.15 --lr 0.0001 --max_epoch 1 --save_dir {tmp_path / 'd'} --run_name tutorial "
        f"--valid_set {molecules} --block_hidden_size 8 --edge_size 8 --k_neighbors 4 --translation_noise 1 "
        "--rotation_noise 0.25 --max_rotation 0.5 --atom_noise 1"
    )
    run_pretraining.main(original.split())
    config = AtomicaForPreTraining.from_pretrained(tmp_path / "d").config
    assert (config.atom_hidden_size, config.hidden_size, config.num_hidden_layers, config.num_neighbors) == (8, 8, 2, 4)
    assert "# tutorial" in (tmp_path / "d" / "README.md").read_text()


def test_options_from_a_json_file_and_a_model_to_start_from(finished, molecules, tmp_path):
    options = {
        "train_file": [str(molecules)],
        "output_dir": str(tmp_path / "j"),
        "max_train_steps": 1,
        "lr_scheduler_type": "linear",
        "model_name_or_path": str(finished[0]),
        "task": "masking",
        "gradient_accumulation_steps": 2,
    }
    (tmp_path / "options.json").write_text(json.dumps(options))
    run_pretraining.main([str(tmp_path / "options.json")])
    config = AtomicaForPreTraining.from_pretrained(tmp_path / "j").config
    assert config.hidden_size == 8 and config.use_masking and not config.use_torsion_noise


@pytest.mark.parametrize(
    "change, error, words",
    [
        (["--train_file", "gone.csv"], StructureError, ["gone.csv", "no such file"]),
        (["--max_blocks_per_batch", "0"], UsageError, ["max_blocks_per_batch", "0", "positive"]),
        (["--mask_proportion", "3"], UsageError, ["mask_proportion", "3"]),
        (["--hidden_size", "9"], UsageError, ["hidden_size", "9"]),
        (["--model_name_or_path", "nowhere"], StructureError, ["nowhere"]),
        (["--resume_from_checkpoint", "latest"], UsageError, ["no complete checkpoint"]),
        (["--validation_split_percentage", "100"], UsageError, ["validation_split_percentage", "100"]),
        (["--eval_steps", "1"], UsageError, ["--eval_steps", "--validation_file"]),
        (["--ema_decay", "1"], UsageError, ["--ema_decay", "1.0", "between 0 and 1"]),
        (["--save_ema"], UsageError, ["--save_ema", "--ema_decay"]),
        (["--cycle_steps", "5", "--lr_scheduler_type", "linear"], UsageError, ["--cycle_steps", "cosine_with_restarts"]),
        (["--spike_factor", "0.5"], UsageError, ["--spike_factor", "0.5"]),
        (["--max_atoms_per_batch", "0"], UsageError, ["--max_atoms_per_batch", "0"]),
        (["--streaming"], UsageError, ["few.csv", "prepare_dataset.py"]),
        (["--streaming", "--balance_modalities"], UsageError, ["--balance_modalities", "--streaming"]),
        (["--balance_modalities"], UsageError, ["--balance_modalities", "modality_ids"]),
        (["--seed", "-1"], UsageError, ["--seed", "-1"]),
        (["--report_to", "nonsense"], UsageError, ["nonsense"]),
        (["--max_blocks_per_example", "8", "--train_file", "many.smi"], UsageError, ["5 segments", "max_blocks_per_example"]),
    ],
)
def test_bad_options_are_named(change, error, words, molecules, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "many.smi").write_text("[Na+].[Cl-].[K+].[Br-].O\n")
    with pytest.raises(error) as caught:
        run_pretraining.main(command(molecules, tmp_path / "x", "--max_train_steps", 1, *change))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not (tmp_path / "x" / "model.safetensors").exists()


def test_checkpoints_of_other_models_and_other_runs(finished, molecules, tmp_path):
    output, _ = finished
    other = tmp_path / "bert"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 5}))
    options = ["--processor_name_or_path", str(ROOT), "--max_train_steps", 7]
    with pytest.raises(UsageError, match="'bert', expected 'atomica'"):
        run_pretraining.main(command(molecules, tmp_path / "x", "--model_name_or_path", other, *options))
    with pytest.raises(UsageError, match="cannot be changed.*edge_size"):
        run_pretraining.main(
            [*command(molecules, tmp_path / "x", "--model_name_or_path", output, *options), "--edge_size", "10"]
        )
    checkpoint = sorted(output.glob("checkpoint-*"))[-1]
    with pytest.raises(UsageError, match="another run.*task was 'pretrain_torsion_masking', is 'masking'"):
        run_pretraining.main(command(molecules, tmp_path / "x", "--resume_from_checkpoint", checkpoint, "--task", "masking"))


def test_exit_codes_and_messages_of_the_script(tmp_path):
    (tmp_path / "bad.smi").write_text("c1ccc x\nC(C)(C)(C)(C)C y\n")
    for arguments, words in (
        (["--train_file", tmp_path / "gone.csv", "--output_dir", tmp_path / "o"], "error: " + str(tmp_path / "gone.csv")),
        (["--train_file", tmp_path / "bad.smi", "--output_dir", tmp_path / "o", "--task", "guess"], "invalid choice: 'guess'"),
        (["--train_file", tmp_path / "bad.smi", "--output_dir", tmp_path / "o"], "no usable example"),
    ):
        done = run("run_pretraining.py", *arguments)
        assert done.returncode != 0 and words in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.fixture(scope="module")
def prepared(molecules, tmp_path_factory, processor):
    folder = tmp_path_factory.mktemp("prepared")
    prepare([molecules], folder / "set", processor, progress=False)
    return folder / "set"


def last_row(output, split="train"):
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == split][-1]


def test_a_poisoned_example_is_skipped_and_named(prepared, tmp_path, monkeypatch, capsys):
    """One complex has positions that are not finite; everything else trains on."""
    puzzle = AtomicaPreTrainingCollator.puzzle

    def poisoned(self, example, rng):
        found = puzzle(self, example, rng)
        return {**found, "positions": found["positions"] * np.nan} if example["name"] == "glycerol" else found

    monkeypatch.setattr(AtomicaPreTrainingCollator, "puzzle", poisoned)
    output = tmp_path / "x"
    options = command(prepared, output, "--num_train_epochs", 3, "--logging_steps", 1, "--learning_rate", 0.01)
    run_pretraining.main(options)
    skipped = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines() if '"skipped"' in line]
    skipped = [row for row in skipped if row["split"] == "skipped"]
    assert len(skipped) == 3 and {row["epoch"] for row in skipped} == {0, 1, 2}
    assert all(row["examples"] == ["glycerol"] and row["reason"] == "not finite" for row in skipped)
    assert "was skipped" in capsys.readouterr().out and last_row(output)["skipped"] == 3
    assert all(weight.isfinite().all() for weight in load_file(output / "model.safetensors").values())
    assert all(np.isfinite(json.loads(line)["loss"]) for line in (output / "metrics.jsonl").read_text().splitlines()
               if '"train"' in line)  # fmt: skip
    assert "(3 skipped)" in (output / "README.md").read_text()
    with pytest.raises(UsageError, match="1 steps in a row were skipped until step .*glycerol"):
        run_pretraining.main(command(prepared, tmp_path / "y", "--num_train_epochs", 3, "--max_skipped_steps", 1))


def test_the_running_mean_of_the_weights_is_saved_on_request(prepared, tmp_path, monkeypatch):
    """Recomputed from the weights after every step."""
    weights = []
    step = run_pretraining.Pretraining.make_step

    def and_keep(self, *arguments):
        norm = step(self, *arguments)
        weights.append({name: value.clone() for name, value in self.plain_model.state_dict().items()})
        return norm

    monkeypatch.setattr(run_pretraining.Pretraining, "make_step", and_keep)
    options = ["--max_train_steps", 5, "--ema_decay", 0.8, "--save_ema", "--learning_rate", 0.01, "--validation_file", prepared]
    run_pretraining.main(command(prepared, tmp_path / "x", *options))
    saved = load_file(tmp_path / "x" / "model.safetensors")
    for name, value in saved.items():
        mean = weights[0][name]
        for later in weights[1:]:
            mean = 0.8 * mean + 0.2 * later[name]
        assert torch.allclose(value, mean, atol=1e-7), name
    assert any(not torch.allclose(saved[name], weights[-1][name]) for name in saved)
    model = AtomicaForPreTraining.from_pretrained(tmp_path / "x")  # validated with the same weights
    assert last_row(tmp_path / "x", "validation")["loss"] == pytest.approx(validation_loss(model, prepared), rel=1e-5)


def validation_loss(model, prepared):
    """Of all examples in one batch, with the puzzles of validation."""
    dataset = load_prepared(prepared, AtomicaProcessor.from_pretrained(ROOT).tokenizer)
    collator = AtomicaPreTrainingCollator(seed=1)
    with torch.no_grad():
        return float(model.eval()(**collator([{**row, "epoch": 0, "example_index": i} for i, row in enumerate(dataset)])).loss)


def test_all_atoms_and_their_charges(molecules, prepared, tmp_path):
    options = ["--keep_hydrogens", "--use_atom_charges", "--max_train_steps", 2, "--validation_split_percentage", 25]
    with pytest.raises(StructureError, match="prepared without hydrogens, which are kept here"):
        run_pretraining.main(command(prepared, tmp_path / "z", "--keep_hydrogens"))
    with pytest.raises(StructureError, match="prepared without hydrogens, which are kept here"):
        run_pretraining.main(command(prepared, tmp_path / "z", "--keep_hydrogens", "--streaming", "--max_train_steps", 2))
    run_pretraining.main(command(molecules, tmp_path / "x", *options))
    assert np.isfinite(last_row(tmp_path / "x", "validation")["loss"])
    processor = AtomicaProcessor.from_pretrained(tmp_path / "x")
    inputs = processor("CCO", return_tensors="pt")
    assert (inputs["atom_ids"] == 3).sum() == 6
    model = AtomicaForPreTraining.from_pretrained(tmp_path / "x").eval()
    assert model.config.use_atom_charges and model(**inputs).last_hidden_state.isfinite().all()
    with pytest.raises(UsageError, match="sizes of a checkpoint cannot be changed: use_atom_charges"):
        plain = command(molecules, tmp_path / "y", "--use_atom_charges", "--model_name_or_path", ROOT)
        run_pretraining.main(plain[:4] + plain[-3:])


def test_two_views_and_a_teacher_draw_views_of_a_complex_together(prepared, tmp_path):
    """Each objective is lower in a training with it than in one where its weight is next to nothing."""
    found = {}
    for weights in ((1e-9, 1e-9), (1.0, 1e-9), (1e-9, 1.0)):
        options = ["--contrastive_weight", weights[0], "--distillation_weight", weights[1], "--ema_decay", 0.9]
        options += ["--max_train_steps", 16, "--learning_rate", 0.01, "--max_blocks_per_batch", 1000, "--logging_steps", 16]
        run_pretraining.main(command(prepared, tmp_path / str(weights), *options))
        found[weights] = last_row(tmp_path / str(weights))
    without, contrastive, distilled = found.values()
    assert contrastive["contrastive_loss"] < 0.97 * without["contrastive_loss"]
    assert distilled["distillation_loss"] < 0.9 * without["distillation_loss"]


def test_kinds_of_complexes_are_told_apart_and_balanced(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "kinds")
    table = pq.read_table(tmp_path / "kinds" / "data-00000.parquet")
    kinds = pa.array([0, None, 1, 0, 0, 0, 0])  # PP, none, PL
    table = table.set_column(table.column_names.index("modality_ids"), "modality_ids", kinds)
    pq.write_table(table, tmp_path / "kinds" / "data-00000.parquet")
    report = json.loads((prepared / "read_report.json").read_text())
    (tmp_path / "kinds" / "read_report.json").write_text(json.dumps({**report, "columns": ["modality_ids"]}))
    found = {}
    for name, more in (("plain", []), ("balanced", ["--balance_modalities"])):
        options = command(tmp_path / "kinds", tmp_path / name, "--num_train_epochs", 4, "--logging_steps", 1000, *more)
        run_pretraining.main([*options, "--validation_file", str(tmp_path / "kinds")])
        row = last_row(tmp_path / name)
        assert all(np.isfinite(row[f"mask_loss/{kind}"]) for kind in ("PP", "PL", "none"))
        found[name] = row
    held_out = last_row(tmp_path / "plain", "validation")
    mean = np.average([held_out[f"mask_loss/{kind}"] for kind in ("PP", "PL", "none")], weights=[5, 1, 1])
    assert mean == pytest.approx(held_out["mask_loss"])  # each of these molecules has one masked block
    balanced = np.mean([found["balanced"][f"mask_loss/{kind}"] for kind in ("PP", "PL", "none")])
    assert balanced == pytest.approx(found["balanced"]["mask_loss"], rel=0.2)


def test_a_mix_a_stream_and_what_is_watched(molecules, prepared, tmp_path):
    output = tmp_path / "mix"
    weighted = ["--train_file", f"{molecules}:3", f"{prepared}:1", "--output_dir", output, *TINY, "--logging_steps", 4]
    run_pretraining.main([str(x) for x in (*weighted, "--max_train_steps", 8, "--max_atoms_per_batch", 60)])
    row = last_row(output)
    assert row["complexes_per_second"] > 0 and row["atoms_per_second"] > row["complexes_per_second"]
    assert 0 <= row["waiting"] <= 1 and row["memory_gib"] > 0.05 and row["eta_seconds"] == 0 and row["gradient_norm"] > 0
    assert row["mask_perplexity"] == pytest.approx(np.exp(row["mask_loss"]))
    assert 0 <= row["mask_top1"] <= row["mask_top5"] <= 1 and 0 < row["torsion_error_baseline"] < 90
    output = tmp_path / "stream"
    streamed = ["--train_file", prepared, "--output_dir", output, *TINY, "--streaming", "--max_train_steps", 9]
    run_pretraining.main(
        [str(x) for x in (*streamed, "--validation_file", molecules, "--lr_scheduler_type", "warmup_stable_decay")]
    )
    assert last_row(output)["epoch"] > 0 and last_row(output, "validation")["loss"] > 0
    results = json.loads((output / "all_results.json").read_text())
    assert results["steps"] == 9 and results["skipped_steps"] == 0


def test_what_is_pushed_to_the_hub(finished, molecules, tmp_path, monkeypatch):
    """Against a stand-in for the client: which repository, and which files."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    from run_pretraining import files_to_upload

    calls = {}

    class Client:
        def create_repo(self, name, **options):
            calls["repository"] = (name, options)
            return type("Url", (), {"repo_id": f"someone/{name}"})

        def upload_folder(self, **options):
            calls["upload"] = options

    monkeypatch.setattr(huggingface_hub, "HfApi", Client)
    output = tmp_path / "to-share"
    trained = command(molecules, output, "--max_train_steps", 1, "--report_to", "tensorboard", "--hub_private_repo")
    run_pretraining.main([*trained, "--hub_dry_run"])
    assert not calls
    (output / "optimizer.safetensors").write_bytes(b"a stray file")
    (output / "my_notes.py").write_text("another one")
    run_pretraining.main([*trained, "--resume_from_checkpoint", "latest", "--push_to_hub"])  # of a finished run
    assert calls["repository"] == ("to-share", {"private": True, "exist_ok": True})
    assert calls["upload"]["repo_id"] == "someone/to-share"
    files = [path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()]
    pushed = set(filter_repo_objects(files, allow_patterns=calls["upload"]["allow_patterns"]))
    assert pushed == set(files_to_upload(output))
    assert {"model.safetensors", "config.json", "vocab.json", "modeling_atomica.py", "README.md"} <= pushed
    assert any(name.startswith("checkpoint-") for name in files) and any("tfevents" in name for name in files)
    assert not [
        name for name in pushed if "/" in name or name.endswith((".jsonl", ".lock", "optimizer.safetensors", "notes.py"))
    ]
