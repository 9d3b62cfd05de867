# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""What a model must beat: the mean of the labels, and trees on fingerprints or descriptors of molecules.

Shapes of labels and predictions are those of `metrics_atomica.py`. Several tasks are several models, each on the rows whose
label it knows.
"""

import warnings

import numpy as np
from rdkit import Chem
from rdkit.Chem import Descriptors, rdFingerprintGenerator
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from threadpoolctl import threadpool_limits

from metrics_atomica import CLASSES, REGRESSION


BASELINES = ("mean", "ecfp4_random_forest", "descriptors_gradient_boosting")
_LARGEST = 1e6  # of a descriptor; some explode on odd molecules


def fingerprints(smiles, radius=2, size=2048):
    """SMILES -> ECFP4 bits `(n, size)`; a row of zeros for what RDKit cannot read."""
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=size)
    found = np.zeros((len(smiles), size), dtype=np.float32)
    for row, text in zip(found, smiles):
        mol = None if text is None else Chem.MolFromSmiles(text)
        if mol is not None:
            row[:] = generator.GetFingerprintAsNumPy(mol)
    return found


def descriptors(smiles):
    """SMILES -> RDKit's descriptors `(n, about 210)`; NaN for what is not defined."""
    names = [name for name, _ in Descriptors.descList]
    found = np.full((len(smiles), len(names)), np.nan)
    for row, text in zip(found, smiles):
        mol = None if text is None else Chem.MolFromSmiles(text)
        if mol is not None:
            values = Descriptors.CalcMolDescriptors(mol, missingVal=np.nan)
            row[:] = [values[name] for name in names]
    return np.clip(found, -_LARGEST, _LARGEST)


def fit_predict(classifier, regressor, problem, features, labels, others, num_classes=None):
    """Trains on `features` `(n, width)` and `labels`, predicts for `others`: a new model for each task, made by calling
    `classifier` or `regressor`. Where all labels are alike, or none is there, the prediction is constant.

    Returns:
        Predictions as `metrics_atomica.py` wants them; of classes, probabilities `(n, num_classes)`.
    """
    if problem == CLASSES:
        return _probabilities(classifier, features, labels, others, num_classes)
    columns = []
    for label in labels.T:
        if problem == REGRESSION:
            there = ~np.isnan(label)
            enough = there.sum() > 1 and np.ptp(label[there]) > 0
            constant = np.full(len(others), label[there].mean() if there.any() else 0.0)
            columns.append(regressor().fit(features[there], label[there]).predict(others) if enough else constant)
        else:
            columns.append(_probabilities(classifier, features, label, others, 2)[:, 1])
    return np.stack(columns, axis=1)


def _probabilities(classifier, features, labels, others, num_classes):
    there = ~np.isnan(labels)
    classes = labels[there].astype(np.int64)
    found = np.zeros((len(others), num_classes))
    present = np.unique(classes)
    if len(present) < 2:
        found[:] = 1 / num_classes if not len(present) else np.eye(num_classes)[present[0]]
        return found
    model = classifier().fit(features[there], classes)
    found[:, model.classes_] = model.predict_proba(others)
    return found


def mean_prediction(problem, labels, num_rows, num_classes=None):
    """Mean of each task, or frequency of each class, for every row."""
    there = ~np.isnan(labels)
    if problem == CLASSES:
        counts = np.bincount(labels[there].astype(np.int64), minlength=num_classes)
        return np.tile(counts / max(1, counts.sum()), (num_rows, 1))
    means = np.where(there, labels, 0).sum(0) / np.maximum(1, there.sum(0))
    return np.tile(means, (num_rows, 1))


def predict_baseline(name, problem, smiles, labels, others, num_classes=None, seed=0, num_jobs=1):
    """Trains a baseline on SMILES with labels, predicts for other SMILES.

    Args:
        name (`str`): one of `BASELINES`.
        problem (`str`): a problem of `metrics_atomica.py`.
        smiles, others (`list[str]`): to train on and to predict for; None is a row without a molecule.
        labels (`array`): of `smiles`.
        num_classes (`int`): of `single_label_classification`.
        seed, num_jobs (`int`): of the trees.

    Raises:
        `ValueError`: for an unknown name.
    """
    if name not in BASELINES:
        raise ValueError(f"The baseline is {name!r}, expected one of {', '.join(BASELINES)}.")
    if name == "mean":
        return mean_prediction(problem, labels, len(others), num_classes)
    with warnings.catch_warnings(), threadpool_limits(num_jobs):
        warnings.simplefilter("ignore")  # of single descriptors
        if name == "ecfp4_random_forest":
            features, options = fingerprints, {"n_estimators": 500, "random_state": seed, "n_jobs": num_jobs}
            models = RandomForestClassifier, RandomForestRegressor
        else:
            features, options = descriptors, {"random_state": seed}
            models = HistGradientBoostingClassifier, HistGradientBoostingRegressor
        classifier, regressor = (lambda model=model: model(**options) for model in models)
        return fit_predict(classifier, regressor, problem, features(smiles), labels, features(others), num_classes)
