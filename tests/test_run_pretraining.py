"""The script launched as users launch it. The sizes are tiny; what is checked is what comes out."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, run
from safetensors.torch import load_file

import run_pretraining
from atomica_hf import AtomicaForPreTraining, StructureError
from run_pretraining import SizedBatchSampler, UsageError


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
        "run_pretraining.py", *command(molecules, output, *SIX_STEPS, "--report_to", "tensorboard", "--save_total_limit", 2)
    )
    assert done.returncode == 0, done.stderr
    return output, done


def test_the_launched_script_says_what_it_did(finished):
    output, done = finished
    assert "7 kept, 1 left out" in done.stdout and "open ring" in done.stdout
    assert "torsion" in done.stdout and "predict nothing" in done.stdout
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
    assert "few.csv" in card and "| torsion |" in card and str(output.parent) not in card
    assert list(output.glob("**/events.out.tfevents*"))


def test_the_folder_opens_in_a_fresh_offline_process(finished, tmp_path):
    code = """
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
    done = run("-c", code, finished[0], tmp_path / "again", HF_HOME=str(tmp_path / "cache"), PYTHONPATH="")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "vector 8" in done.stdout


def test_resuming_gives_the_weights_of_the_undisturbed_run(finished, molecules):
    output, _ = finished
    whole = load_file(output / "model.safetensors")
    (output / "checkpoint-6").rename(output.parent / "aside")
    options = command(molecules, output, *SIX_STEPS, "--resume_from_checkpoint", "latest", "--dataloader_num_workers", 1)
    done = run("run_pretraining.py", *options)
    assert done.returncode == 0, done.stderr
    assert "step 4, epoch 1, batch 1" in done.stdout  # in the middle of an epoch
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
    options = ["--train_file", str(molecules), "--output_dir", str(tmp_path / "x"), "--model_name_or_path", str(ROOT)]
    with pytest.raises(UsageError, match="no weights of Atomica"):
        run_pretraining.main(options)


def test_damaged_checkpoints_and_json_files_are_named(finished, molecules, tmp_path):
    output, _ = finished
    for file in ("model.safetensors", "trainer_state.json", "optimizer.bin"):
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
    done = run(
        "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", 1, "run_pretraining.py", *options
    )
    assert done.returncode == 0, done.stderr[-2000:]
    options = command(molecules, tmp_path / "b", "--max_train_steps", 3, "--task", "pretrain_gaussian")
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", 29517, "run_pretraining.py"]
    done = run(*launch, *options)
    assert done.returncode == 0, done.stderr[-2000:]
    card = (tmp_path / "b" / "README.md").read_text()
    assert "2 process(es)" in card and done.stdout.count("Saved the model") == 1
    assert AtomicaForPreTraining.from_pretrained(tmp_path / "b").config.use_atom_noise


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
        (["--model_name_or_path", "nowhere"], UsageError, ["nowhere"]),
        (["--resume_from_checkpoint", "latest"], UsageError, ["no complete checkpoint"]),
        (["--validation_split_percentage", "100"], UsageError, ["validation_split_percentage", "100"]),
        (["--eval_steps", "1"], UsageError, ["--eval_steps", "--validation_file"]),
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


def test_batches_hold_every_example_once_and_split_evenly():
    sizes = np.random.default_rng(0).integers(2, 90, size=301)
    for processes in (1, 2, 4):
        for epoch in (0, 1):
            parts = []
            for rank in range(processes):
                sampler = SizedBatchSampler(sizes, 200, 7, True, processes, rank)
                sampler.epoch = epoch
                parts.append(list(sampler))
                assert len(parts[-1]) == len(sampler)
            assert len({len(part) for part in parts}) == 1
            seen = [index for part in parts for batch in part for e, index in batch if e == epoch]
            assert sorted(seen) == list(range(301))
            for part in parts:
                assert all(len(batch) * max(sizes[i] for _, i in batch) <= 200 for batch in part)
    sampler = SizedBatchSampler(sizes, 200, 7)
    first = list(sampler)
    sampler.first_batch = 5
    assert list(sampler) == first[5:]
    sampler.first_batch, sampler.epoch = 0, 1
    assert list(sampler) != first
    with pytest.raises(UsageError, match="3 examples cannot be shared among 4"):
        SizedBatchSampler([2, 2, 2], 10, 0, num_processes=4)


def test_what_is_pushed_to_the_hub(finished, molecules, tmp_path, monkeypatch):
    """Against a stand-in for the client: which repository, and which files."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    calls = {}

    class Client:
        def create_repo(self, name, **options):
            calls["repository"] = (name, options)
            return type("Url", (), {"repo_id": f"someone/{name}"})

        def upload_folder(self, **options):
            calls["upload"] = options

    monkeypatch.setattr(huggingface_hub, "HfApi", Client)
    output = tmp_path / "to-share"
    run_pretraining.main(command(molecules, output, "--max_train_steps", 1, "--push_to_hub", "--hub_private_repo"))
    assert calls["repository"] == ("to-share", {"private": True, "exist_ok": True})
    assert calls["upload"]["repo_id"] == "someone/to-share"
    files = [path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()]
    pushed = set(filter_repo_objects(files, ignore_patterns=calls["upload"]["ignore_patterns"]))
    assert {"model.safetensors", "config.json", "vocab.json", "modeling_atomica.py", "README.md"} <= pushed
    assert any(name.startswith("checkpoint-") for name in files)
    assert not any(name.startswith(("checkpoint-", "data/")) for name in pushed)
