# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""`transformers.pipeline("atomica-fill-mask", ...)` and `transformers.pipeline("atomica-feature-extraction", ...)`."""

from collections import deque
from collections.abc import Sized
from dataclasses import replace
from pathlib import Path
from types import GeneratorType

import numpy as np
import torch
from rdkit import Chem
from torch.utils.data import DataLoader, Dataset
from transformers import Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

from .component_atomica import Origin, ReadReport, StructureError
from .configuration_atomica import NUM_SPECIAL_BLOCKS
from .data_collator_atomica import IGNORE_INDEX, MASK_TOKEN_ID, Puzzle
from .modeling_atomica import check_representations
from .processing_atomica import MODEL_INPUTS, pad_examples
from .structure_atomica import (
    AMINO_ACID_NAMES,
    MACROMOLECULE_SUFFIXES,
    MOLECULE_SUFFIXES,
    NUCLEOTIDE_NAMES,
    TABLE_SUFFIXES,
    read_structures,
    suffix_of,
)


READING = ("side_a", "side_b", "ligand_smiles", "interfaces", "model", "assembly")  # of `AtomicaProcessor.read`
ON_ERROR = ("raise", "return")
LETTERS = dict(zip("GLY ALA VAL LEU ILE PHE TRP TYR ASP HIS ASN GLU LYS GLN MET ARG SER THR CYS PRO".split(),
                   "GAVLIFWYDHNEKQMRSTCP"))  # fmt: skip
_ELEMENTS = {Chem.GetPeriodicTable().GetElementSymbol(number) for number in range(1, 119)}


def kind_of_token(token: str) -> str:
    """What a block token stands for: `amino acid`, `nucleotide`, `atom`, `fragment`, or `special`."""
    if token in AMINO_ACID_NAMES:
        return "amino acid"
    if token in NUCLEOTIDE_NAMES:
        return "nucleotide"
    if token in _ELEMENTS:
        return "atom"
    return "special" if token.startswith("<") else "fragment"


def smiles_of_token(token: str):
    """SMILES of a block token: of a residue, the free amino acid or nucleotide; None for special tokens."""
    kind = kind_of_token(token)
    if kind == "amino acid":
        return Chem.MolToSmiles(Chem.MolFromSequence(LETTERS[token]))
    if kind == "nucleotide":
        return Chem.MolToSmiles(Chem.MolFromSequence(token[1], flavor=7 if token[0] == "D" else 3))
    if kind == "atom":
        return token if token in ("B", "C", "N", "O", "P", "S", "F", "Cl", "Br", "I") else f"[{token}]"
    return None if kind == "special" else token


def model_inputs(config):
    """Names of what a model of this configuration reads of an example."""
    return [*MODEL_INPUTS, *(name for name, needed in config.optional_inputs.items() if needed)]


def check_example(example, config):
    """
    Raises:
        `StructureError`: if an example lacks an input of the model, or is nowhere.
    """
    name = example.get("name", "An example")
    missing = [key for key in model_inputs(config) if example.get(key) is None]
    if missing:
        raise StructureError("missing_input", f"{name} has no {', '.join(missing)}, which this model needs.")
    if not np.isfinite(np.asarray(example["positions"], dtype=float)).all():
        raise StructureError("bad_coordinates", f"{name} has coordinates that are not finite.")


def _as_it_is(item):
    return item


class AtomicaPipeline(Pipeline):
    """
    What both pipelines share: one input -> its examples -> batches -> one list of dictionaries.

    An input is a SMILES, a tuple of SMILES or RDKit molecules (a complex), a path, an RDKit molecule, a `Structure`, an example
    of `AtomicaProcessor.encode`, or a dictionary with `inputs` (one of these) and options for it alone, such as `side_a`. A
    list of inputs gives a list of results in its order; a generator or dataset gives an iterator.

    Args:
        side_a, side_b, ligand_smiles, interfaces, model, assembly: as for `AtomicaProcessor`.
        on_error (`str`): `"raise"`, or `"return"`: what cannot be read gives a dictionary of `name`, `error` (a short word)
            and `message` in the result of its input, and the others go on.
        batch_size (`int`): examples that the model sees at once; models that attend to padding see them one by one.

    Raises:
        `StructureError`: naming the input that cannot be read.
        `ValueError`: for a model and a tokenizer with different vocabularies, and unknown options.
    """

    _load_processor = True
    _load_tokenizer = _load_image_processor = _load_video_processor = _load_feature_extractor = False
    options = ()

    def __init__(self, model, processor=None, **kwargs):
        if processor is None:
            raise ValueError(f"{type(self).__name__} needs `processor`, an AtomicaProcessor.")
        if len(processor.tokenizer) != model.config.vocab_size:
            raise ValueError(
                f"The model has {model.config.vocab_size} block tokens, the tokenizer {len(processor.tokenizer)}: they do not "
                "belong together."
            )
        super().__init__(model=model, processor=processor, **kwargs)
        self.model.eval()

    def save_pretrained(self, save_directory, **kwargs):
        """As in Transformers, and the processor, which it forgets."""
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def _sanitize_parameters(self, on_error=None, **given):
        unknown = set(given) - {*READING, *self.options}
        if unknown:
            known = ", ".join((*READING, *self.options, "on_error", "batch_size", "num_workers"))
            raise ValueError(f"{self.task}: unknown options {', '.join(sorted(unknown))}; expected some of {known}.")
        if on_error not in (None, *ON_ERROR):
            raise ValueError(f"`on_error` is {on_error!r}, expected one of {', '.join(ON_ERROR)}.")
        return {**({} if on_error is None else {"on_error": on_error}), **given}, {}, {}

    def __call__(self, inputs, **kwargs):
        if isinstance(inputs, list) and not inputs:
            raise ValueError("No inputs were given.")
        if isinstance(inputs, (list, Dataset, GeneratorType)):
            return super().__call__(inputs, **kwargs)
        return super().__call__([inputs], **kwargs)[0]  # alone, an input would not have its puzzles batched

    def _examples(self, item, report, options):
        """One input -> its examples; what cannot be read goes into the report."""
        if isinstance(item, dict):
            return [item]
        reading = {name: value for name, value in options.items() if name in READING and value is not None}
        known = MACROMOLECULE_SUFFIXES + MOLECULE_SUFFIXES + TABLE_SUFFIXES
        is_file = isinstance(item, Path) or (isinstance(item, str) and suffix_of(item) in known)
        if is_file and not {"side_a", "side_b", "ligand_smiles"} & set(reading):
            found = read_structures(item, report, replace(self.processor.read_options, **reading))
        else:
            found = self.processor.read(item, **reading)
        examples = []
        for structure in found:
            try:
                examples.append(self.processor.encode(structure))
            except ValueError as error:
                self._reject(report, structure.name, error)
        return examples

    @staticmethod
    def _reject(report, name, error):
        # not by class: files that a Hub loader opened one by one have a StructureError each
        if type(error).__name__ != StructureError.__name__:
            raise error
        report.reject(name, error)

    @property
    def model_inputs(self):
        return model_inputs(self.model.config)

    def preprocess(self, item, on_error="raise", **options):
        """One input -> its `units`, dictionaries with `inputs` for the model, and what was `rejected`."""
        if isinstance(item, dict) and "input_ids" not in item:
            if "inputs" not in item:
                raise StructureError("unknown_input", f"A dictionary needs 'inputs' or 'input_ids', got {', '.join(item)}.")
            own = {name: value for name, value in item.items() if name != "inputs"}
            self._sanitize_parameters(**own)
            on_error, options, item = own.pop("on_error", on_error), {**options, **own}, item["inputs"]
        report, units = ReadReport(strict=on_error == "raise"), []
        try:
            examples = self._examples(item, report, options)
        except ValueError as error:
            self._reject(report, item, error)
            examples = []
        for number, example in enumerate(examples):
            try:
                check_example(example, self.model.config)
                units += [{"structure": number, **unit} for unit in self.units(example, options)]
            except ValueError as error:
                self._reject(report, example.get("name", "example"), error)
        return {"units": units, "rejected": report.rejected, "options": options}

    def get_iterator(self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params):
        if batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size}, expected a positive number.")
        dataset = PipelineDataset if isinstance(inputs, Sized) else PipelineIterator
        dataset = dataset(inputs, self.preprocess, preprocess_params)
        loader = DataLoader(dataset, num_workers=num_workers, batch_size=None, collate_fn=_as_it_is)
        return self._results(loader, 1 if self.model.config.attend_to_padding else batch_size)

    def _results(self, loader, batch_size):
        """Batches are filled across inputs; results come in the order of the inputs."""
        prepared, waiting = deque(), []  # inputs with units to be done; units, each with the list its output goes to

        def run_batch():
            units = [unit for unit, _ in waiting[:batch_size]]
            batch = pad_examples([unit["inputs"] for unit in units], self.model_inputs)
            outputs = self.forward({"batch": batch, "units": units})
            for (_, done), output in zip(waiting, outputs):
                done.append(output)
            del waiting[:batch_size]

        def finished():
            while prepared and len(prepared[0][1]) == len(prepared[0][0]["units"]):
                yield self.postprocess(prepared.popleft())

        for item in loader:
            prepared.append((item, []))
            waiting += [(unit, prepared[-1][1]) for unit in item["units"]]
            while len(waiting) >= batch_size:
                run_batch()
            yield from finished()
        while waiting:
            run_batch()
        yield from finished()

    def postprocess(self, done):
        item, outputs = done
        rows = [row for unit, output in zip(item["units"], outputs) for row in self.rows(unit, output, item["options"])]
        return rows + [dict(zip(("name", "error", "message"), rejected)) for rejected in item["rejected"]]


def _no_block(name, wanted, origins):
    """Why there is no block of this origin: what is like it in the example."""
    found = [Origin.from_text(text) for text in dict.fromkeys(filter(None, origins))]
    asked = Origin.from_text(wanted)
    residues = [origin for origin in found if origin.chain]
    if not residues or not asked.chain:
        return f"{name} has no block of {wanted!r}; it has {', '.join(map(str, found))[:500]}."
    text = f"{name} has no block of {wanted!r}: the residue is not in the file, or not among those near the other side"
    chains = sorted({origin.chain for origin in residues})
    if asked.chain not in chains:
        return f"{text}. There are chains {', '.join(chains)}; side_a and side_b say which two sides are meant."
    near = sorted(
        (origin for origin in residues if origin.chain == asked.chain), key=lambda o: abs((o.number or 0) - (asked.number or 0))
    )
    return f"{text} (side_a and side_b say which). Nearest by number are {', '.join(map(str, near[:5]))}."


class AtomicaFillMaskPipeline(AtomicaPipeline):
    """
    Which block would stand where one is hidden.

    ```python
    fill = pipeline("atomica-fill-mask", model=folder, trust_remote_code=True)
    fill("CC(=O)Oc1ccccc1C(=O)O", top_k=3)
    fill("complex.cif", side_a="A", side_b="B", blocks=["A:TYR:42"])
    ```

    Args:
        blocks (`int`, `str`, list of both, or `"all"`): what to hide: indices into `input_ids`, or the origins of blocks. By
            default the blocks of an example that are `<mask>` already, or else all that the model can name.
        together (`bool`): hide all these blocks at once; by default one at a time, the others in sight.
        top_k (`int`): proposals for each block, 5 by default; None for all.

    Returns:
        For each input a list of dictionaries, blocks in their order and the best proposal first: `score` (probability), `rank`
        (from 1), `token`, `token_str`, `smiles` and `kind` of the proposal; `name`, `structure` (number of its structure in the
        input, from 0), `block`, `segment`, `origin`, `chain`, `component`, `number` and `atoms` (names) of the hidden block;
        `true_token`, `true_token_str`, `true_smiles` and `true_score` of what it was, None if unknown.

    Raises:
        `StructureError`: if a block is not there or a global one.
        `ValueError`: for a model that was not trained to name blocks.
    """

    options = ("blocks", "together", "top_k")

    def __init__(self, model, **kwargs):
        super().__init__(model, **kwargs)
        saved, masking = set(model.config.architectures or ()), model.config.use_masking
        if not masking or (saved and not saved & {"AtomicaForPreTraining", "AtomicaForMaskedLM"}):
            raise ValueError(
                f"This model was saved as {', '.join(sorted(saved)) or 'one'} with use_masking={masking}: it has no trained "
                "head for hidden blocks. Expected one pretrained with masking."
            )

    def _sanitize_parameters(self, **given):
        top_k, classes = given.get("top_k"), self.model.config.vocab_size - NUM_SPECIAL_BLOCKS
        if top_k is not None and not 1 <= top_k <= classes:
            raise ValueError(f"`top_k` is {top_k}, expected 1 to {classes}, or None for all.")
        return super()._sanitize_parameters(**given)

    def _chosen(self, example, blocks):
        """Option `blocks` -> indices, in ascending order."""
        ids, name = np.asarray(example["input_ids"]), example.get("name", "example")
        if blocks is None and (ids == MASK_TOKEN_ID).any():
            return np.flatnonzero(ids == MASK_TOKEN_ID).tolist()
        if blocks is None or (isinstance(blocks, str) and blocks == "all"):
            chosen = np.flatnonzero(ids >= NUM_SPECIAL_BLOCKS).tolist()
            if not chosen:
                raise StructureError("no_block", f"{name} has no block that the model could name.")
            return chosen
        chosen, origins = [], example.get("block_origins", [])
        for block in blocks if isinstance(blocks, (list, tuple, set, np.ndarray)) else [blocks]:
            if isinstance(block, str):
                found = [i for i, origin in enumerate(origins) if origin == block]
                if not found or not block:
                    raise StructureError("no_block", _no_block(name, block, origins))
                chosen += found
            elif not 0 <= block < len(ids) or ids[block] in (self.model.config.pad_token_id, self.model.config.global_token_id):
                ordinary = np.flatnonzero((ids != 0) & (ids != self.model.config.global_token_id)).tolist()
                raise StructureError(
                    "no_block", f"{name} has no block {block} that can be hidden, expected one of {str(ordinary)[1:-1][:400]}."
                )
            else:
                chosen.append(int(block))
        return sorted(set(chosen))

    def units(self, example, options):
        chosen = self._chosen(example, options.get("blocks"))
        known = example.get("labels")
        truth = np.where(np.asarray(example["input_ids"]) == MASK_TOKEN_ID, IGNORE_INDEX, example["input_ids"])
        if known is not None and np.shape(known) == truth.shape:
            truth = np.where(truth == IGNORE_INDEX, known, truth)
        units = []
        for blocks in [chosen] if options.get("together") else [[block] for block in chosen]:
            puzzle = Puzzle(example)
            puzzle.hide([block for block in blocks if puzzle.input_ids[block] != MASK_TOKEN_ID])
            inputs = puzzle.to_example()
            if "modality_ids" in self.model_inputs:
                inputs["modality_ids"] = example["modality_ids"]
            units.append({"example": example, "inputs": inputs, "blocks": blocks, "truth": truth})
        return units

    def _forward(self, model_inputs):
        logits = self.model(**model_inputs["batch"]).logits
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
        return [scores[i, unit["blocks"]] for i, unit in enumerate(model_inputs["units"])]

    def rows(self, unit, scores, options):
        example, tokenizer = unit["example"], self.processor.tokenizer
        top_k = options.get("top_k", 5) or scores.shape[1] - NUM_SPECIAL_BLOCKS
        best = scores.topk(top_k)
        for block, probabilities, values, tokens in zip(unit["blocks"], scores, best.values.tolist(), best.indices.tolist()):
            text = example["block_origins"][block] if "block_origins" in example else ""
            origin, true = Origin.from_text(text), int(unit["truth"][block])
            true_text = tokenizer.convert_ids_to_tokens(true) if true >= 0 else None
            atoms = np.flatnonzero(np.asarray(example["atom_to_block"]) == block)
            where = {
                "name": example.get("name"), "structure": unit["structure"],
                "block": block, "segment": int(example["token_type_ids"][block]), "origin": text,
                "chain": origin.chain, "component": origin.name, "number": origin.number,
                "atoms": [example["atom_origins"][atom] for atom in atoms] if "atom_origins" in example else None,
                "true_token": true if true >= 0 else None,
                "true_token_str": true_text, "true_smiles": smiles_of_token(true_text) if true_text else None,
                "true_score": float(probabilities[true]) if true >= NUM_SPECIAL_BLOCKS else None,
            }  # fmt: skip
            for rank, (score, token) in enumerate(zip(values, tokens), 1):
                text = tokenizer.convert_ids_to_tokens(token)
                proposal = {"score": score, "rank": rank, "token": token, "token_str": text}
                yield {**proposal, "smiles": smiles_of_token(text), "kind": kind_of_token(text), **where}


class AtomicaFeatureExtractionPipeline(AtomicaPipeline):
    """
    Vectors of complexes, blocks or atoms.

    ```python
    extract = pipeline("atomica-feature-extraction", model=folder, trust_remote_code=True)
    extract("CCO")[0]["h_graph"]
    extract(["CCO", ("CCO", "O")], representation=["h_block", "z_graph"], pooling="mean_std_global", return_tensors="np")
    ```

    Args:
        representation (`str` or list): names of `get_representations`, `"h_graph"` by default.
        pooling (`str`), segment (`int`): as there, for the names that need them.
        return_tensors (`str`): `"pt"` or `"np"`; by default lists.

    Returns:
        For each input a list with one dictionary per structure (one, unless a file has several): `name`, and for every name
        of a representation its vector `(width,)`, or vectors `(num_blocks, width)` or `(num_atoms, width)`. With vectors of
        blocks or atoms come `tokens`, `block_origins`, `atom_to_block` and `atom_origins`, which say whose they are.
    """

    options = ("representation", "pooling", "segment", "return_tensors")

    def _sanitize_parameters(self, **given):
        if given.get("return_tensors") not in (None, "pt", "np"):
            raise ValueError(f"`return_tensors` is {given['return_tensors']!r}, expected 'pt', 'np' or None.")
        return super()._sanitize_parameters(**given)

    def units(self, example, options):
        names = options.get("representation") or "h_graph"
        names = (names,) if isinstance(names, str) else tuple(names)
        pooling, segment = options.get("pooling"), options.get("segment")
        check_representations(names, pooling, segment)
        segments = int(np.max(example["token_type_ids"])) + 1
        if segment is not None and not 0 <= segment < segments:
            raise StructureError("no_segment", f"{example.get('name')} has {segments} segments, none is number {segment}.")
        return [{"example": example, "inputs": example, "asked": (names, pooling, segment)}]

    def _forward(self, model_inputs):
        units = model_inputs["units"]
        outputs = [None] * len(units)
        if len({unit["asked"] for unit in units}) > 1:  # inputs with options of their own
            for i, unit in enumerate(units):
                batch = pad_examples([unit["inputs"]], self.model_inputs)
                outputs[i] = self._forward({"batch": self.ensure_tensor_on_device(**batch), "units": [unit]})[0]
            return outputs
        vectors = self.model.get_representations(*units[0]["asked"], **model_inputs["batch"])
        for i, unit in enumerate(units):
            sizes = {"block": len(unit["inputs"]["input_ids"]), "atom": len(unit["inputs"]["atom_ids"])}
            outputs[i] = {name: value[i][: sizes.get(name.split("_")[1])] for name, value in vectors.items()}
        return outputs

    def rows(self, unit, vectors, options):
        example, row = unit["example"], {"name": unit["example"].get("name")}
        for name, value in vectors.items():
            kind = options.get("return_tensors")
            if kind == "np":
                value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()  # NumPy has no bfloat16
            row[name] = value if kind else value.tolist()
        if any(name.endswith(("block", "atom")) for name in vectors):
            row["tokens"] = self.processor.tokenizer.convert_ids_to_tokens([int(token) for token in example["input_ids"]])
            row["atom_to_block"] = [int(block) for block in example["atom_to_block"]]
            row |= {name: list(example[name]) for name in ("block_origins", "atom_origins") if name in example}
        return [row]


__all__ = [
    "AtomicaFeatureExtractionPipeline", "AtomicaFillMaskPipeline", "AtomicaPipeline", "check_example", "kind_of_token",
    "model_inputs", "smiles_of_token",
]  # fmt: skip
