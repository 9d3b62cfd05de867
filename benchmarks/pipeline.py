# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Whether one core makes batches as fast as one core learns from them: examples a second of the collator of pretraining
(noise, rotation, torsion, masking, padding), without and with neighbour lists, and of the training step. Prints a table.

    python benchmarks/pipeline.py --data DIR [--systems dimers molecules]

DIR as in `speed.py`. Times are those of the processor (one thread), the median of some repetitions, in turns.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).resolve().parent))

from speed import BLOCKS_PER_COMPLEX, FOLDERS, ROOT, available, make_step, number, print_row  # noqa: E402

from atomica_hf import (  # noqa: E402
    AtomicaConfig,
    AtomicaForPreTraining,
    AtomicaPreTrainingCollator,
    AtomicaProcessor,
)


HEADER = ("system", "examples", "collator", "with neighbours", "training step", "collator / step", "with neighbours / step")


def seconds(function, argument):
    start = time.process_time()
    function(argument)
    return time.process_time() - start


def measure(examples, vocab_size, repeats):
    """Examples a second of the two collators and of the step."""
    model = AtomicaForPreTraining(AtomicaConfig(vocab_size=vocab_size))
    step = make_step(model, "train")
    plain, finding = (AtomicaPreTrainingCollator(max_blocks=BLOCKS_PER_COMPLEX, config=c) for c in (None, model.config))
    times = {"plain": [], "finding": [], "step": []}
    for repeat in range(repeats + 1):
        numbered = [{**example, "example_index": i, "epoch": repeat} for i, example in enumerate(examples)]
        taken = {"plain": seconds(plain, numbered), "finding": seconds(finding, numbered)}
        taken["step"] = seconds(step, finding(numbered))
        if repeat:  # the first turn warms up
            for name, value in taken.items():
                times[name].append(value)
    return [len(examples) / statistics.median(times[name]) for name in ("plain", "finding", "step")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="Folder with dimers/, smiles/ and complexes/.")
    systems = ("dimers", "examples", "molecules", *FOLDERS)
    parser.add_argument("--systems", nargs="+", default=systems, choices=systems, help="Rows of the table.")
    parser.add_argument("--repeats", type=int, default=5, help="The median of so many turns counts.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    processor = AtomicaProcessor.from_pretrained(ROOT)
    print(f"torch {torch.__version__}, one thread, processor time, examples a second\n")
    print_row(HEADER)
    print_row(["---"] * len(HEADER))
    for system, examples in available(arguments.systems, Path(arguments.data), processor):
        plain, finding, step = measure(examples, len(processor.tokenizer), arguments.repeats)
        print_row([system, len(examples), *map(number, (plain, finding, step, plain / step, finding / step))])


if __name__ == "__main__":
    main()
