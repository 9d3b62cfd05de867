# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Interaction scores: how fast they are, and whether they find the blocks that touch the partner.

python benchmarks/interaction_scores.py --input_file complexes.csv
python benchmarks/interaction_scores.py --input_file complexes.csv --model_name_or_path my-atomica --speed False

Speed: processor seconds for one hidden block, in one run and on the same blocks: hidden one at a time; as copies in one batch;
and as `interaction_scores` does it, which computes what the copies share once. Contacts: for each side the AUROC with which
minus the cosine ranks blocks within 4 angstrom of the partner above the others, of the model and of random ones of its shape.
"""

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from transformers.hf_argparser import HfArg


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from atomica_hf import ROOT, AtomicaConfig, AtomicaModel, AtomicaProcessor, StructureError  # noqa: E402
from atomica_hf.configuration_atomica import NUM_SPECIAL_BLOCKS  # noqa: E402
from atomica_hf.interpretation_atomica import mask_each_block  # noqa: E402
from atomica_hf.pipelines_atomica import model_inputs  # noqa: E402
from atomica_hf.processing_atomica import pad_examples  # noqa: E402
from dataset_shards import load_examples  # noqa: E402
from model_loading import load_model  # noqa: E402
from prepared_datasets import for_model  # noqa: E402
from run_interaction_scores import scores_of  # noqa: E402
from script_arguments import ScriptParser  # noqa: E402
from structure_page import contact_distances  # noqa: E402


@dataclass
class BenchmarkArguments:
    input_file: str = HfArg(help="Complexes: an index CSV, structure files, a prepared dataset.")
    model_name_or_path: str | None = HfArg(default=None, help="Folder of a model; without it a random one of config.json.")
    speed: bool = HfArg(default=True, help="Whether times are measured.")
    contacts: bool = HfArg(default=True, help="Whether contacts are looked for.")
    blocks: int = HfArg(default=8, help="Blocks of each complex that are hidden for the times.")
    contact: float = HfArg(default=4.0, help="Blocks nearer to the partner than this touch it, in angstrom.")
    seeds: int = HfArg(default=1, help="Random models beside the given one.")
    max_blocks: int = HfArg(default=10_000, help="Larger complexes are left out.")
    threads: int = HfArg(default=1, help="Threads of the processor.")


def random_model(config, seed):
    torch.manual_seed(seed)
    return AtomicaModel(config).eval()


@torch.no_grad()
def times(model, example, number):
    """Processor seconds for one hidden block of segment 0: one at a time, in one batch, sharing; and the largest difference
    between the scores of the first way and the last."""
    batch = pad_examples([example], model_inputs(model.config))
    can_be_hidden = (batch["token_type_ids"][0] == 0) & (batch["input_ids"][0] >= NUM_SPECIAL_BLOCKS)
    candidates = can_be_hidden.nonzero().squeeze(1)
    blocks = candidates[torch.linspace(0, len(candidates) - 1, min(number, len(candidates))).long()]

    def vectors(some):
        copies = mask_each_block(batch, some, model.config)
        return model.get_representations("z_interface", "mean_component_normalized", 1, **copies)["z_interface"]

    def measured(function):
        start = time.process_time()
        return function(), time.process_time() - start

    before = vectors(blocks.new_tensor([-1]))  # and whatever is built once
    alone, first = measured(lambda: torch.cat([vectors(blocks[i : i + 1]) for i in range(len(blocks))]))
    _, second = measured(lambda: vectors(blocks))
    scores, third = measured(lambda: torch.as_tensor(scores_of(model, example, [0])))
    expected = torch.cosine_similarity(before.double(), alone.double(), dim=-1)
    difference = float((scores[blocks] - expected).abs().max())
    return first / len(blocks), second / len(blocks), third / len(candidates), difference


def aurocs(model, example, contact):
    """AUROC of minus the scores for the blocks of each segment within `contact` of the others; NaN where all or none are."""
    scores, near = scores_of(model, example), contact_distances(example) < contact
    found = []
    for segment in range(max(example["token_type_ids"]) + 1):
        rows = (np.asarray(example["token_type_ids"]) == segment) & ~np.isnan(scores)
        both = rows.any() and near[rows].any() and not near[rows].all()
        found.append(roc_auc_score(near[rows], -scores[rows]) if both else np.nan)
    return found


def main(argv=None):
    (arguments,) = ScriptParser(BenchmarkArguments, description=__doc__).parse_args_into_dataclasses(argv)
    torch.set_num_threads(arguments.threads)
    if arguments.model_name_or_path is None:
        model, processor = random_model(AtomicaConfig.from_pretrained(ROOT), 0), AtomicaProcessor.from_pretrained(ROOT)
    else:
        model, processor = load_model(arguments.model_name_or_path)
    beside = [random_model(model.config, seed + 1) for seed in range(arguments.seeds)]
    with tempfile.TemporaryDirectory() as cache:
        examples = for_model(load_examples(arguments.input_file, processor, cache)[0], model.config, arguments.input_file)
        examples = [e for e in examples if len(e["input_ids"]) <= arguments.max_blocks and max(e["token_type_ids"]) > 0]
    if not examples:
        raise StructureError("no_complex", f"{arguments.input_file}: no complex of at most {arguments.max_blocks} blocks.")
    if arguments.speed:
        print("complex | blocks | atoms | s alone | s in a batch | s shared | times faster | largest difference", flush=True)
        for e in examples:
            first, second, third, difference = times(model, e, arguments.blocks)
            print(
                f"{e['name']} | {len(e['input_ids'])} | {len(e['atom_ids'])} | {first:.3f} | {second:.3f} | {third:.3f} | "
                f"{first / third:.1f} | {difference:.1e}",
                flush=True,
            )
    if arguments.contacts:
        print(f"complex | segment | AUROC of contacts within {arguments.contact} A | of random models", flush=True)
        total = []
        for e in examples:
            rows = zip(aurocs(model, e, arguments.contact), *(aurocs(other, e, arguments.contact) for other in beside))
            for segment, (own, *others) in enumerate(rows):
                if not np.isnan(own):
                    total.append((own, *others))
                    print(f"{e['name']} | {segment} | {own:.3f} | {' '.join(f'{o:.3f}' for o in others)}", flush=True)
        if total:
            means = np.mean(total, axis=0)
            print(f"mean of {len(total)} | | {means[0]:.3f} | {' '.join(f'{o:.3f}' for o in means[1:])}")


if __name__ == "__main__":
    try:
        main()
    except (StructureError, OSError) as error:
        sys.exit(f"interaction_scores.py: error: {error}")
