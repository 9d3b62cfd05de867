# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Vectors of an encoder that stays as it is, and a model of scikit-learn on top."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm
from transformers import set_seed

from atomic_files import replacing
from atomica_hf import AtomicaModel
from baselines import fit_predict
from finetuning_data import LabelledExamples, check_model
from finetuning_models import new_config, processor_of
from model_loading import load_model as load_encoder
from run_embedding import batches, embed


VECTORS_FILE = "probe_vectors.parquet"


def vectors_of(model, encoded, pooling=None, progress=True):
    """(rows, vectors `(n, width)`): h_graph, or z_graph with a pooling, each the mean over the examples of a row."""
    dataset = LabelledExamples(encoded, range(len(encoded.items)), model.config)
    sizes = np.array([len(dataset[i]["input_ids"]) for i in range(len(dataset))])
    most = 1 if model.config.attend_to_padding else 2000
    name, found = "z_graph" if pooling else "h_graph", {}
    for batch in tqdm(list(batches(sizes, most)), desc="Embedding", unit="batch", disable=not progress):
        for i, vectors in zip(batch, embed(model, [dataset[i] for i in batch], (name,), pooling)):
            found.setdefault(dataset.items[i][0], {})[i] = vectors[name].astype(np.float64)
    rows = sorted(found)
    means = [np.mean([found[row][i] for i in sorted(found[row])], axis=0) for row in rows]
    return rows, np.stack(means).astype(np.float32)


def probe_models(kind, regularization=1.0, balanced=False, seed=0):
    """(maker of a classifier, maker of a regressor) of scikit-learn."""
    weight = "balanced" if balanced else None
    if kind == "linear_probe":
        classifier = lambda: make_pipeline(
            StandardScaler(), LogisticRegression(C=1 / regularization, class_weight=weight, max_iter=5000)
        )
        return classifier, lambda: make_pipeline(StandardScaler(), Ridge(alpha=regularization))
    options = {"n_estimators": 500, "random_state": seed}
    return lambda: RandomForestClassifier(class_weight=weight, **options), lambda: RandomForestRegressor(**options)


def fit_probe(record, vectors, labels, others):
    """Trains the probe of a record on vectors `(n, width)` and their labels, predicts for others."""
    classifier, regressor = probe_models(record["strategy"], record["regularization"], record["balanced"], record["seed"])
    num_classes = None if record["classes"] is None else len(record["classes"])
    return fit_predict(classifier, regressor, record["problem"], vectors, labels, others, num_classes)


def predict_probe(folder, record, encoded):
    """Row -> prediction of a saved probe, which is trained again on the vectors saved with it."""
    model, _ = load_encoder(str(folder))
    table = pq.read_table(Path(folder) / VECTORS_FILE).to_pydict()
    labels = np.array(table["labels"], dtype=np.float64)
    labels = labels[:, 0] if record["classes"] is not None else labels
    rows, vectors = vectors_of(model, encoded, record["pooling"])
    return dict(zip(rows, fit_probe(record, np.array(table["vector"], dtype=np.float32), labels, vectors)))


def run_probe(options, task, record, folder):
    """Vectors once, of the pretrained model or else of random weights, then scikit-learn. Saves encoder, processor, and the
    vectors of the training set with their labels.

    Returns:
        Predictions by row.
    """
    processor = processor_of(options)
    if options.model.model_name_or_path:
        model, _ = load_encoder(options.model.model_name_or_path)
    else:
        set_seed(options.training.seed)
        model = AtomicaModel(new_config(options.model, len(processor.tokenizer), task.labels)).eval()
    check_model(task.encoded, model.config, task.source.path)
    rows, vectors = vectors_of(model, task.encoded, record["pooling"], options.shows_progress)
    where = {row: i for i, row in enumerate(rows)}
    train = task.rows("train")
    targets, _ = task.targets(train)
    chosen = vectors[[where[row] for row in train]]
    table = {"row": train, "vector": list(chosen), "labels": list(targets.reshape(len(train), -1))}
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    with replacing(folder / VECTORS_FILE) as temporary:
        pq.write_table(pa.table(table), temporary)
    return dict(zip(rows, fit_probe(record, chosen, targets, vectors)))
