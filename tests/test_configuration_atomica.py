import json

import pytest

from atomica_hf import AtomicaConfig
from atomica_hf.configuration_atomica import AUTO_MAP, CUSTOM_PIPELINES


def test_round_trip_keeps_every_value_and_the_full_map(tmp_path):
    config = AtomicaConfig(hidden_size=16, direction_softening=0.0, rotation_loss_weight=0.3)
    config.save_pretrained(tmp_path)
    again = AtomicaConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["auto_map"] == AUTO_MAP and written["custom_pipelines"] == CUSTOM_PIPELINES


def test_pipelines_of_others_are_kept_and_classes_never_written(tmp_path):
    other = {"impl": "other.OtherPipeline", "pt": ["AutoModel"]}
    config = AtomicaConfig(custom_pipelines={"other": other, "atomica-fill-mask": {"impl": "old.Old"}})
    config.custom_pipelines["atomica-fill-mask"]["pt"] = (AtomicaConfig,)  # as `transformers.pipeline` does
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())["custom_pipelines"]
    assert written == {"other": other, **CUSTOM_PIPELINES}
    assert CUSTOM_PIPELINES["atomica-fill-mask"]["pt"] == ["AutoModelForMaskedLM"]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"hidden_size": 18}, ["hidden_size", "18", "num_attention_heads"]),
        ({"atom_hidden_size": 7}, ["atom_hidden_size", "7", "even"]),
        ({"edge_size": 1}, ["edge_size", "at least 2"]),
        ({"num_neighbors": 0}, ["num_neighbors", "at least 1"]),
        ({"atom_cutoff": 0.0}, ["atom_cutoff", "positive"]),
        ({"hidden_dropout_prob": 1.0}, ["hidden_dropout_prob", "below 1"]),
        ({"global_token_id": 2}, ["special block tokens"]),
        ({"atom_mask_token_id": 3}, ["special atom tokens"]),
    ],
)
def test_contradictions_are_named(changes, words):
    with pytest.raises(ValueError) as error:
        AtomicaConfig(**changes)
    assert all(word in str(error.value) for word in words)
