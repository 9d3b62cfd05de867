# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""What the three settings that keep ATOMICA's numbers change in the vectors of a converted model.

python benchmarks/atomica_settings.py --model_name_or_path atomica --input_file example_inputs.csv
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from atomica_hf import AtomicaModel, AtomicaProcessor  # noqa: E402
from atomica_hf.processing_atomica import MODEL_INPUTS, pad_examples  # noqa: E402
from dataset_shards import load_examples  # noqa: E402


SETTINGS = {  # what is compared with the model as converted
    "as converted, one batch": {},
    "attend_to_padding=False": {"attend_to_padding": False},
    "attend_to_padding=False, one batch": {"attend_to_padding": False},
    "unknown_as_global=False": {"unknown_as_global": False},
    "direction_softening=0.1": {"direction_softening": 0.1},
}


@torch.no_grad()
def vectors(folder, examples, together, **settings):
    """h_graph and the mean of h_block of every example, as rows, and the seconds it took."""
    model = AtomicaModel.from_pretrained(folder, dtype=torch.float64, **settings).eval()
    groups = [examples] if together else [[example] for example in examples]
    graphs, blocks, start = [], [], time.perf_counter()
    for group in groups:
        batch = pad_examples(group, MODEL_INPUTS)
        output = model(**{**batch, "positions": batch["positions"].double()})
        graphs += list(output.pooler_output)
        mask = batch["attention_mask"].unsqueeze(-1)
        blocks += list((output.last_hidden_state * mask).sum(1) / mask.sum(1))
    return torch.stack(graphs), torch.stack(blocks), time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_name_or_path", required=True, help="Folder that convert_original_checkpoint.py wrote.")
    parser.add_argument("--input_file", required=True, help="Complexes to embed, for example an index CSV.")
    arguments = parser.parse_args()
    processor = AtomicaProcessor.from_pretrained(arguments.model_name_or_path)
    with tempfile.TemporaryDirectory() as cache:
        dataset, report = load_examples(arguments.input_file, processor, cache)
        examples = [dataset[i] for i in range(len(dataset))]
    print(report.summary())
    unknown = sum(processor.tokenizer.unk_token_id in example["input_ids"] for example in examples)
    print(f"{unknown} of {len(examples)} complexes have <unk> blocks.\n")
    print("| setting | smallest cosine of h_graph | of mean h_block | seconds |\n|---|---|---|---|")
    graph, block, seconds = vectors(arguments.model_name_or_path, examples, together=False)
    print(f"| as converted, one by one | 1 | 1 | {seconds:.2f} |")
    for name, settings in SETTINGS.items():
        other_graph, other_block, seconds = vectors(
            arguments.model_name_or_path, examples, together="one batch" in name, **settings
        )
        cosines = [torch.cosine_similarity(a, b).min().item() for a, b in ((graph, other_graph), (block, other_block))]
        print(f"| {name} | {cosines[0]:.5f} | {cosines[1]:.5f} | {seconds:.2f} |")


if __name__ == "__main__":
    main()
