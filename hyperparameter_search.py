# Copyright 2026 The Atomica authors. Licensed under the Apache License, Version 2.0.
"""Hyper-parameters of a fine-tuning by trials, with the Trainer's own search and Optuna; every trial is kept on disk."""

import json
from pathlib import Path

from atomic_files import write_text
from atomica_hf import StructureError


STUDY_FILE = "hyperparameters.sqlite"
TRIALS_FILE = "hyperparameters.json"


def load_optuna():
    """The package. Raises `StructureError` where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise StructureError("usage", "--hyperparameter_search needs the package optuna: pip install optuna") from error
    return optuna


def space_around(arguments):
    """Training arguments -> the function that draws values for a trial: learning rate from a tenth to ten times the given one
    (on a logarithmic scale), half, the same or double the batch size, and three weight decays."""
    rate, batch = arguments.learning_rate, arguments.per_device_train_batch_size

    def space(trial):
        return {
            "learning_rate": trial.suggest_float("learning_rate", rate / 10, rate * 10, log=True),
            "per_device_train_batch_size": trial.suggest_categorical(
                "per_device_train_batch_size", sorted({max(1, batch // 2), batch, 2 * batch})
            ),
            "weight_decay": trial.suggest_categorical("weight_decay", [0.0, 0.01, 0.1]),
        }

    return space


def search(trainer, num_trials, folder, seed, trained=False):
    """Runs trials until `num_trials` are finished, those of an earlier call counted.

    Args:
        trainer (`Trainer`): made with a `model_init`; its metric for the best model is what is searched for. The score of a
            trial is that of its best validation so far, and Optuna's median pruner stops what is worse than half.
        num_trials (`int`): how many.
        folder (`Path`): for the study (SQLite), and the trials as JSON.
        seed (`int`): of the values that are drawn.
        trained (`bool`): whether a training with the best values has begun, so that no trial may be added.

    Returns:
        Name -> best value.

    Raises:
        `StructureError`: if no trial ends with a number, or a search is continued that had other options.
    """
    optuna = load_optuna()
    name, greater = f"eval_{trainer.args.metric_for_best_model}", trainer.args.greater_is_better
    direction, better = ("maximize", max) if greater else ("minimize", min)
    states = optuna.trial.TrialState
    Path(folder).mkdir(parents=True, exist_ok=True)
    storage = f"sqlite:///{(Path(folder) / STUDY_FILE).resolve().as_posix()}"
    options = {"study_name": "atomica", "storage": storage, "load_if_exists": True, "direction": direction}
    study = optuna.create_study(**options)
    given = {"metric": name, **{key: getattr(trainer.args, key) for key in ("learning_rate", "per_device_train_batch_size")}}
    for key, value in given.items():
        if study.user_attrs.get(key, value) != value:
            raise StructureError(
                "other_run", f"{folder}: the search that is continued had {key} {study.user_attrs[key]}, expected {value}."
            )
        study.set_user_attr(key, value)
    finished = len(study.get_trials(states=(states.COMPLETE, states.PRUNED, states.FAIL)))

    def objective(metrics):
        before = trainer.state.best_metric
        return metrics[name] if before is None else better(metrics[name], before)

    if finished < num_trials and trained:
        raise StructureError(
            "other_run", f"{folder}: its model was trained after {finished} trials; {num_trials} of them need another folder."
        )
    if finished < num_trials:
        options.pop("direction")
        trainer.hyperparameter_search(
            space_around(trainer.args), objective, num_trials - finished, direction, "optuna",
            sampler=optuna.samplers.TPESampler(seed=seed + finished), catch=(ValueError,), **options,
        )  # fmt: skip
    trials = study.get_trials()
    rows = [
        {"number": t.number, "state": t.state.name.lower(), name: t.value if t.state == states.COMPLETE else None, **t.params}
        for t in trials
    ]
    if not any(t.state == states.COMPLETE for t in trials):
        raise StructureError("diverged", f"{folder}: none of {len(trials)} trials ended with a number; try a smaller rate.")
    write_text(Path(folder) / TRIALS_FILE, json.dumps({"best": study.best_trial.number, "trials": rows}, indent=1))
    return study.best_params
