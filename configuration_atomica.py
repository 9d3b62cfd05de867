# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Atomica model configuration."""

from copy import deepcopy
from typing import TYPE_CHECKING

from transformers import PreTrainedConfig


if TYPE_CHECKING:  # never runs: Transformers reads this line, and saves and loads the code of the pipelines with every model
    from .pipelines_atomica import AtomicaPipeline  # noqa: F401


AUTO_MAP = {
    "AutoConfig": "configuration_atomica.AtomicaConfig",
    "AutoTokenizer": ["tokenization_atomica.AtomicaTokenizer", None],
    "AutoProcessor": "processing_atomica.AtomicaProcessor",
    "AutoModel": "modeling_atomica.AtomicaModel",
    "AutoModelForPreTraining": "modeling_atomica.AtomicaForPreTraining",
    "AutoModelForMaskedLM": "modeling_atomica.AtomicaForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_atomica.AtomicaForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_atomica.AtomicaForTokenClassification",
}

CUSTOM_PIPELINES = {  # task: class, and the Auto class that opens its model
    "atomica-fill-mask": {
        "impl": "pipelines_atomica.AtomicaFillMaskPipeline", "pt": ["AutoModelForMaskedLM"], "type": "multimodal",
    },
    "atomica-feature-extraction": {
        "impl": "pipelines_atomica.AtomicaFeatureExtractionPipeline", "pt": ["AutoModel"], "type": "multimodal",
    },
}  # fmt: skip

ACTIVATIONS = ("relu", "gelu", "elu")
REPRESENTATION_POOLINGS = ("mean_std_global", "mean_component_normalized")
POOLINGS = ("graph", "block_sum", "pair_energy", *REPRESENTATION_POOLINGS)
ENERGY_UNITS = {"kcal/mol": 1.0, "kJ/mol": 4.184, "eV": 0.0433641, "hartree": 0.001593601}  # one kcal/mol
REGRESSION_LOSSES = ("mse", "mae", "huber")
CONVOLUTIONS = ("auto", "torch", "triton")
NUM_SPECIAL_BLOCKS = 4  # <pad> <mask> <unk> <global>: never predicted, so class = token id - 4


class AtomicaConfig(PreTrainedConfig):
    r"""
    Hyper-parameters of Atomica. Lengths are in angstrom.

    Args:
        vocab_size (`int`): number of block tokens; the masked-block head predicts all but the first four.
        atom_vocab_size (`int`): `<pad>`, `<mask>`, `<global>` and the elements 1-118.
        hidden_size (`int`): channels of a block; must be even and divisible by `num_attention_heads`.
        atom_hidden_size (`int`): channels of an atom; must be even.
        edge_size (`int`): Gaussians of a distance, and width of the distance and edge-type embeddings.
        num_hidden_layers (`int`): layers of the atom encoder and of the block encoder.
        num_neighbors (`int`): nearest neighbours a node receives from in its own segment, and again in the others.
        num_attention_heads (`int`): heads of the atom-to-block attention and of the pooling.
        num_pooling_layers (`int`): self-attention layers over the blocks of a complex.
        atom_cutoff, block_cutoff (`float`): last Gaussian centre for distances of atoms and of blocks.
        block_long_range_cutoff (`float`, *optional*): last centre of a second set of Gaussians for distances of blocks, which
            starts at `block_cutoff`; its perceptron is added to the first one's, times a learned gate.
        rigid_cutoff (`float`): last Gaussian centre for the distance of an atom to the centre of its segment.
        torsion_cutoff (`float`): radius around the middle of a bond, and last Gaussian centre there.
        hidden_dropout_prob (`float`): dropout inside every multi-layer perceptron.
        global_message_passing (`bool`): whether global blocks exchange messages with their segment.
        atom_global_message_passing (`bool`): the same for global atoms.
        num_modalities (`int`): rows of the modality embedding added to global blocks, 0 for none.
        block_feature_size (`int` or `list[int]`): width of the `block_features` of another model, 0 for none; a list has one
            width per segment, and each segment then has layers of its own.
        block_feature_layers (`int`): layers of the perceptrons that project them and mix them into the blocks, at least 2.
        block_feature_hidden_size (`int`): width inside the projecting perceptron.
        block_feature_dropout (`float`): dropout in these perceptrons.
        block_feature_activation (`str`): `"relu"`, `"gelu"` or `"elu"`.
        block_feature_after (`bool`): mix them in after the block encoder too, not only before.
        use_element_descriptors (`bool`): atoms begin with the group, period and electronegativity of their element, and with
            what is learnt of each beyond; elements that a training lacks are then related to others.
        use_atom_charges (`bool`): embed the formal charges of atoms, and the net charge of their segment (`atom_charges`).
        cross_segment_edges (`bool`): whether atoms and blocks receive from other segments; without, the encoder sees each
            segment as if it were alone.
        direction_softening (`float`): length below which the direction of an edge fades; 0 in published weights.
        attend_to_padding (`bool`): let attention see padding as published ATOMICA does; a vector then depends on its batch.
        unknown_as_global (`bool`): treat `<unk>` blocks and their atoms as globals in the graph, as published ATOMICA does.
        use_atom_noise, use_torsion_noise, use_translation_noise, use_rotation_noise, use_masking, use_composition (`bool`):
            the puzzles `AtomicaForPreTraining` has a head for; the last one, which ATOMICA has not, tells from the vector of
            the complex what share of its blocks each token has.
        atom_loss_weight, torsion_loss_weight, translation_loss_weight, rotation_loss_weight, mask_loss_weight,
            composition_loss_weight (`float`): their weights in the loss.
        pooling (`str`): what `AtomicaForSequenceClassification` reads: `"graph"`, the vector of the complex; `"block_sum"`, the
            sum of the outputs of its blocks (global ones only with global message passing); `"mean_std_global"` or
            `"mean_component_normalized"`, the invariants of all channels pooled like this (`z_graph` of
            `get_representations`); or `"pair_energy"`, the interaction energy of its segments as a sum over pairs of atoms
            (one label, a regression).
        energy_unit (`str`): of the labels with `pooling="pair_energy"`: `"kcal/mol"`, `"kJ/mol"`, `"eV"` or `"hartree"`.
        energy_cutoff (`float`): largest distance of two atoms that interact there.
        regression_loss (`str`): `"mse"`, `"mae"`, or `"huber"` with delta 1 (in the units that the model is trained in).
        classifier_hidden_sizes (`list[int]`, *optional*): hidden layers of the heads that classify and regress; by default
            two as wide as `hidden_size`.
        classifier_activation (`str`): `"relu"`, `"gelu"` or `"elu"`.
        classifier_dropout (`float`, *optional*): dropout in these heads; by default `hidden_dropout_prob`.
        contrast_temperature (`float`): of `AtomicaForInterfaceContrast`.
        freeze_complex_encoder (`bool`): `AtomicaForInterfaceContrast` does not train its encoder of whole complexes.
        conv_implementation (`str`): how the convolutions are computed, with the same numbers within rounding: `"torch"`;
            `"triton"`, kernels for CUDA devices (`pip install triton`), an error where they cannot run, and not yet run on
            a device; or `"auto"`, for this reason still `"torch"` everywhere.
            As with `attn_implementation`, a saved config does not keep it.
        original (`dict`): what a conversion from ATOMICA must remember to write the same files again.
        pad_token_id, mask_token_id, unk_token_id, global_token_id (`int`): special block tokens.
        atom_pad_token_id, atom_mask_token_id, atom_global_token_id (`int`): special atom tokens.

    Raises:
        `ValueError`: if two values contradict each other.
    """

    model_type = "atomica"
    keys_to_ignore_at_inference = [
        "last_hidden_state", "pooler_output", "atom_hidden_state", "atom_irreps", "block_irreps", "block_logits",
        "energy_terms",
    ]  # fmt: skip

    vocab_size: int = 440
    atom_vocab_size: int = 121
    hidden_size: int = 32
    atom_hidden_size: int = 32
    edge_size: int = 32
    num_hidden_layers: int = 4
    num_neighbors: int = 8
    num_attention_heads: int = 4
    num_pooling_layers: int = 4
    atom_cutoff: float = 5.0
    block_cutoff: float = 5.0
    block_long_range_cutoff: float | None = None
    rigid_cutoff: float = 20.0
    torsion_cutoff: float = 5.0
    hidden_dropout_prob: float = 0.0
    global_message_passing: bool = True
    atom_global_message_passing: bool = False
    num_modalities: int = 0
    block_feature_size: int | list[int] = 0
    block_feature_layers: int = 3
    block_feature_hidden_size: int = 32
    block_feature_dropout: float = 0.0
    block_feature_activation: str = "relu"
    block_feature_after: bool = True
    use_element_descriptors: bool = False
    use_atom_charges: bool = False
    cross_segment_edges: bool = True
    direction_softening: float = 0.1
    attend_to_padding: bool = False
    unknown_as_global: bool = False

    use_atom_noise: bool = False
    use_torsion_noise: bool = True
    use_translation_noise: bool = True
    use_rotation_noise: bool = True
    use_masking: bool = True
    use_composition: bool = False
    atom_loss_weight: float = 1.0
    torsion_loss_weight: float = 1.0
    translation_loss_weight: float = 1.0
    rotation_loss_weight: float = 0.1
    mask_loss_weight: float = 1.0
    composition_loss_weight: float = 1.0

    pooling: str = "graph"
    energy_unit: str = "kcal/mol"
    energy_cutoff: float = 20.0
    regression_loss: str = "mse"
    classifier_hidden_sizes: list[int] | None = None
    classifier_activation: str = "relu"
    classifier_dropout: float | None = None
    contrast_temperature: float = 0.5
    freeze_complex_encoder: bool = True
    conv_implementation: str = "auto"
    original: dict | None = None

    pad_token_id: int = 0
    mask_token_id: int = 1
    unk_token_id: int = 2
    global_token_id: int = 3
    atom_pad_token_id: int = 0
    atom_mask_token_id: int = 1
    atom_global_token_id: int = 2

    def __post_init__(self, **kwargs):
        # save_pretrained adds only the class that was saved; the full map lets any checkpoint open with any Auto class.
        kwargs["auto_map"] = {**(kwargs.get("auto_map") or {}), **AUTO_MAP}
        kwargs["custom_pipelines"] = {**(kwargs.get("custom_pipelines") or {}), **deepcopy(CUSTOM_PIPELINES)}
        super().__post_init__(**kwargs)
        self.validate_atomica()

    def to_dict(self):
        found = super().to_dict()
        found.pop("conv_implementation", None)  # another machine may have no such device
        # `pipeline` puts classes into this map, which JSON cannot hold
        found["custom_pipelines"] = {**(found.get("custom_pipelines") or {}), **deepcopy(CUSTOM_PIPELINES)}
        return found

    @property
    def block_feature_sizes(self) -> list[int]:
        """Widths of `block_features`, one per set of layers: none, one for all segments, or one per segment."""
        sizes = [self.block_feature_size] if isinstance(self.block_feature_size, int) else list(self.block_feature_size)
        return sizes if any(sizes) else []

    @property
    def optional_inputs(self) -> dict[str, bool]:
        """Inputs that some models need and others do not take -> whether this one does."""
        return {
            "modality_ids": self.num_modalities > 0,
            "block_features": bool(self.block_feature_sizes),
            "atom_charges": self.use_atom_charges,
        }

    def validate_atomica(self):
        """Checks that the values fit together.

        Raises:
            `ValueError`: naming the value, what was found and what was expected.
        """
        problems = []

        def expect(condition, name, expected):
            if not condition:
                problems.append(f"`{name}` is {getattr(self, name)!r}, expected {expected}")

        for name in ("hidden_size", "atom_hidden_size"):
            expect(getattr(self, name) >= 2 and getattr(self, name) % 2 == 0, name, "a positive even number")
        for name in ("edge_size", "num_hidden_layers", "num_neighbors", "num_attention_heads", "num_pooling_layers"):
            least = 2 if name == "edge_size" else 1
            expect(getattr(self, name) >= least, name, f"at least {least}")
        if self.num_attention_heads >= 1:
            expect(
                self.hidden_size % self.num_attention_heads == 0,
                "hidden_size",
                f"a multiple of `num_attention_heads` ({self.num_attention_heads})",
            )
        for name in ("atom_cutoff", "block_cutoff", "rigid_cutoff", "torsion_cutoff", "energy_cutoff"):
            expect(getattr(self, name) > 0, name, "a positive length in angstrom")
        for name in ("direction_softening", "num_modalities") + tuple(n for n in self.to_dict() if n.endswith("_loss_weight")):
            expect(getattr(self, name) >= 0, name, "zero or more")
        for name in ("hidden_dropout_prob", "block_feature_dropout", "classifier_dropout"):
            value = getattr(self, name)
            expect((value is None and name == "classifier_dropout") or 0 <= value < 1, name, "a probability below 1")
        if self.block_long_range_cutoff is not None:
            expected = f"a length beyond `block_cutoff` ({self.block_cutoff}) in angstrom, or None"
            expect(self.block_long_range_cutoff > self.block_cutoff, "block_long_range_cutoff", expected)
        expect(
            all(size > 0 for size in self.block_feature_sizes), "block_feature_size", "0, a positive number, or a list of such"
        )
        expect(self.block_feature_layers >= 2, "block_feature_layers", "at least 2")
        expect(self.block_feature_hidden_size >= 1, "block_feature_hidden_size", "at least 1")
        for name in ("block_feature_activation", "classifier_activation"):
            expect(getattr(self, name) in ACTIVATIONS, name, f"one of {', '.join(ACTIVATIONS)}")
        for name, known in (
            ("pooling", POOLINGS), ("energy_unit", tuple(ENERGY_UNITS)), ("regression_loss", REGRESSION_LOSSES),
        ):  # fmt: skip
            expect(getattr(self, name) in known, name, f"one of {', '.join(known)}")
        sizes = self.classifier_hidden_sizes
        expect(sizes is None or all(size > 0 for size in sizes), "classifier_hidden_sizes", "positive numbers, or None")
        expect(self.conv_implementation in CONVOLUTIONS, "conv_implementation", f"one of {', '.join(CONVOLUTIONS)}")
        expect(self.contrast_temperature > 0, "contrast_temperature", "a positive number")
        expect(self.vocab_size > NUM_SPECIAL_BLOCKS, "vocab_size", f"more than the {NUM_SPECIAL_BLOCKS} special blocks")
        special = (self.pad_token_id, self.mask_token_id, self.unk_token_id, self.global_token_id)
        if special != tuple(range(NUM_SPECIAL_BLOCKS)):
            problems.append(f"the special block tokens <pad> <mask> <unk> <global> are {special}, expected (0, 1, 2, 3)")
        special = (self.atom_pad_token_id, self.atom_mask_token_id, self.atom_global_token_id)
        if special != (0, 1, 2):
            problems.append(f"the special atom tokens <pad> <mask> <global> are {special}, expected (0, 1, 2)")
        if problems:
            raise ValueError("AtomicaConfig: " + "; ".join(problems) + ".")


__all__ = [
    "ACTIVATIONS", "AUTO_MAP", "CONVOLUTIONS", "CUSTOM_PIPELINES", "ENERGY_UNITS", "NUM_SPECIAL_BLOCKS", "POOLINGS",
    "REGRESSION_LOSSES", "AtomicaConfig",
]  # fmt: skip
