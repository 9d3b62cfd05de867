"""Uploading and opening by id, against a stand-in of the Hub."""

import json

import pytest
from conftest import run
from hub_stand_in import TOKEN, USER, hub_stand_in

import prepare_dataset


MOLECULES = "smiles\nCC(=O)Oc1ccccc1C(=O)O\nCCO\nOc1ccccc1\nCC(N)C(=O)O\n"
TINY = ("--max_train_steps", 2, "--hidden_size", 8, "--atom_hidden_size", 8, "--edge_size", 8, "--num_hidden_layers", 1)
OPEN = """
import sys
from transformers import AutoModel, AutoModelForPreTraining, AutoProcessor, AutoTokenizer
name = sys.argv[1]
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
model = AutoModel.from_pretrained(name, trust_remote_code=True)
AutoModelForPreTraining.from_pretrained(name, trust_remote_code=True)
tokens = AutoTokenizer.from_pretrained(name, trust_remote_code=True)("CCO")
print("vector", model(**processor("CCO", return_tensors="pt")).pooler_output.tolist())
"""


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """A pretraining run that ends with an upload: hub, environment, output folder, what was printed."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "few.csv").write_text(MOLECULES, encoding="utf-8")
    with hub_stand_in(max_failures=1) as (hub, environment):
        environment |= {"HF_HOME": str(folder / "home"), "HF_MODULES_CACHE": str(folder / "modules")}
        done = run(
            "run_pretraining.py", "--train_file", folder / "few.csv", "--output_dir", folder / "out", *TINY,
            "--push_to_hub", "--hub_model_id", f"{USER}/small", "--hub_private_repo", **environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        yield hub, environment, folder, done


def test_the_folder_is_uploaded_without_checkpoints_and_data(pushed):
    hub, _, folder, done = pushed
    repository = hub.repositories[f"{USER}/small"]
    assert repository["private"] and f"{USER}/small" in done.stdout
    files = repository["files"]
    expected = {"config.json", "model.safetensors", "README.md", "modeling_atomica.py", "vocab.json", "processor_config.json"}
    assert expected <= set(files)
    assert not [path for path in files if "/" in path or path.endswith((".tmp", ".jsonl", ".lock"))]
    assert list((folder / "out").glob("checkpoint-*"))  # there were some
    assert all(content == (folder / "out" / path).read_bytes() for path, content in files.items())


def test_the_token_is_sent_but_never_written(pushed):
    hub, _, folder, done = pushed
    assert all(token == TOKEN for method, path, token in hub.requests if method == "POST")
    assert TOKEN not in done.stdout + done.stderr
    for path in (folder / "out").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    assert not [path for path, content in hub.repositories[f"{USER}/small"]["files"].items() if TOKEN.encode() in content]


def test_it_opens_by_id_and_then_from_the_cache_offline(pushed):
    hub, environment, folder, _ = pushed
    local = run("-c", OPEN, folder / "out", **environment, PYTHONPATH="")
    online = run("-c", OPEN, f"{USER}/small", **environment, PYTHONPATH="")
    assert online.returncode == 0, online.stderr[-3000:]
    before = len(hub.requests)
    offline = run("-c", OPEN, f"{USER}/small", **{**environment, "HF_HUB_OFFLINE": "1"}, PYTHONPATH="")
    assert offline.returncode == 0, offline.stderr[-3000:]
    assert len(hub.requests) == before
    assert local.stdout == online.stdout == offline.stdout and "vector" in offline.stdout


def test_a_wrong_token_is_an_error_and_the_model_is_kept(pushed):
    _, environment, folder, _ = pushed
    done = run(
        "run_pretraining.py", "--train_file", folder / "few.csv", "--output_dir", folder / "again", *TINY,
        "--push_to_hub", "--hub_model_id", f"{USER}/other", **{**environment, "HF_TOKEN": "hf_wrong"},
    )  # fmt: skip
    assert done.returncode != 0 and (folder / "again" / "model.safetensors").exists()
    assert "401" in done.stderr and "Traceback" not in done.stderr
    again = ("run_pretraining.py", "--train_file", folder / "few.csv", "--output_dir", folder / "again", *TINY)
    pushed_later = run(*again, "--resume_from_checkpoint", "latest", "--push_to_hub", **environment)
    assert pushed_later.returncode == 0, pushed_later.stderr[-3000:]
    files = pushed[0].repositories[f"{USER}/again"]["files"]
    assert files["model.safetensors"] == (folder / "again" / "model.safetensors").read_bytes()


def test_a_dataset_of_the_hub_is_read_shard_by_shard(tmp_path):
    """Each shard comes by itself and once, of the revision found first; the log is that of the folder itself."""
    (tmp_path / "few.csv").write_text(MOLECULES, encoding="utf-8")
    prepared = tmp_path / "prepared"
    prepare_dataset.main([str(tmp_path / "few.csv"), "--output_dir", str(prepared), "--shard_size", "1"])
    with hub_stand_in() as (hub, environment):
        hub.repositories[f"{USER}/few"] = {"private": True, "files": {p.name: p.read_bytes() for p in prepared.iterdir()}}
        environment |= {"HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
        logs = []
        for source in (f"hf://datasets/{USER}/few", prepared):
            done = run(
                "run_pretraining.py", "--train_file", source, "--streaming", "--output_dir", tmp_path / f"out{len(logs)}",
                *TINY, "--max_blocks_per_batch", 8, "--logging_steps", 1, **environment,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[-3000:]
            lines = (tmp_path / f"out{len(logs)}" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            logs.append([json.loads(line).get("loss") for line in lines])
        asked = [path for method, path, _ in hub.requests if method == "GET" and path.endswith(".parquet")]
        missing = run(
            "run_pretraining.py", "--train_file", f"hf://datasets/{USER}/nowhere", "--streaming",
            "--output_dir", tmp_path / "none", *TINY, **environment,
        )  # fmt: skip
    assert logs[0] == logs[1] and len(logs[0]) >= 2
    assert len(asked) == len(set(asked)) and set(asked) <= {
        f"/{USER}/few/resolve/{'1' * 40}/data-{i:05d}.parquet" for i in range(4)
    }
    assert missing.returncode and f"hf://datasets/{USER}/nowhere: no such dataset" in missing.stderr
