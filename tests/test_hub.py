"""Uploading and opening by id, against a stand-in of the Hub."""

import pytest
from conftest import run
from hub_stand_in import TOKEN, USER, hub_stand_in


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
