import pytest
from huggingface_hub import ModelCard

from model_card import TAGS, front_matter


@pytest.mark.parametrize("base, expected", [("someone/atomica", "someone/atomica"), (None, None), ("../run/model", None)])
def test_the_hub_reads_the_front_matter(base, expected):
    text = front_matter(tags=("molecules", "regression"), base_model=base, metrics=("rmse", "mae"))
    data = ModelCard(f"{text}\n# A model\n").data
    assert (data.library_name, data.license, data.metrics) == ("transformers", "apache-2.0", ["rmse", "mae"])
    assert data.tags == [*TAGS, "regression"] and data.base_model == expected
    assert text.startswith("---\n") and text.endswith("\n---\n")


def test_a_folder_is_no_base_model(tmp_path, monkeypatch):
    (tmp_path / "runs" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "base_model" not in front_matter(base_model="runs/model") and "metrics" not in front_matter()
