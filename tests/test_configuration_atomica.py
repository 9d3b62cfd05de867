import json

import pytest

from atomica_hf import AtomicaConfig
from atomica_hf.configuration_atomica import AUTO_MAP


def test_round_trip_keeps_every_value_and_the_full_map(tmp_path):
    config = AtomicaConfig(hidden_size=16, direction_softening=0.0, rotation_loss_weight=0.3)
    config.save_pretrained(tmp_path)
    again = AtomicaConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP


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
