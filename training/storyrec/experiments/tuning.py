"""Learning rate, L2, epochs and initial scale of every method, searched with one budget on a marketplace of its own.

Each trial trains on the training part and is judged by the best per-user AUC on the validation part; the
held-out days are never looked at. The winners stand in tuned.toml, which the experiments read.
Paper: Sec. IV-B.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import tomli_w
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from storyrec.config import Config, update_config
from storyrec.device import training_device
from storyrec.errors import ModelError
from storyrec.experiments.fit import slug, train_method
from storyrec.experiments.methods import METHODS, Method, Settings
from storyrec.storage import write_file

TUNED = Path(__file__).with_name("tuned.toml")

LEARNING_RATES = (3e-4, 3e-2)
WEIGHT_DECAYS = tuple(10.0**power for power in range(-7, 1))  # the paper's range
EPOCHS = (4, 8)
INITIAL_SCALES = (1.0, 4.0, 16.0)


def tuned(method: Method, *, file: Path = TUNED) -> Settings:
    """The tuned settings of a method; empty before it was tuned."""
    values: dict[str, Settings] = tomllib.loads(file.read_text(encoding="utf-8"))
    return values.get(method.tuned_as or method.name, {})


def tune(name: str, *, root: Path, config: Config, dataset: Path, num_trials: int) -> None:
    """Search a method's settings; a search that was cut off goes on.

    The first trial is the method's present tuned values, or the defaults, so a search never ends below them.

    Args:
        name: of the method, a key of `METHODS`; where it starts from pre-trained extractors, those of seed 0
            must be in `root`.
        root: folder of the search.
        config: everything else.
        dataset: folder that `build_dataset` wrote.
        num_trials: trainings in all.
    """
    method, folder = METHODS[name], search_folder(root, name)
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=method.name,
        storage=JournalStorage(JournalFileBackend(str(folder / "journal.log"))),
        direction="maximize",
        load_if_exists=True,
    )
    done = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    if not study.get_trials(states=(*done, optuna.trial.TrialState.WAITING)):
        present = update_config(config, tuned(method))
        study.enqueue_trial(
            {
                "aden.learning_rate": present.aden.learning_rate,
                "aden.weight_decay": present.aden.weight_decay,
                "aden.max_epochs": present.aden.max_epochs,
                "model.initial_scale": present.model.initial_scale,
            }
        )

    def judge(trial: optuna.Trial) -> float:
        trial.suggest_float("aden.learning_rate", *LEARNING_RATES, log=True)
        trial.suggest_categorical("aden.weight_decay", WEIGHT_DECAYS)
        trial.suggest_categorical("aden.max_epochs", EPOCHS)
        if not method.pretraining:
            trial.suggest_categorical("model.initial_scale", INITIAL_SCALES)
        settings = update_config(config, _by_section(trial.params))
        return _validation_auc(method, root=root, config=settings, dataset=dataset)

    for number in range(len(study.get_trials(states=done)), num_trials):
        # a generator for each trial, so that a search that was cut off goes on as it would have
        study.sampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=4)
        study.optimize(judge, n_trials=1)
    trials = [{"value": trial.value, **trial.params} for trial in study.get_trials(states=done)]
    write_file(folder / f"{num_trials}-trials.json", json.dumps(trials, indent=1).encode())


def search_folder(root: Path, name: str) -> Path:
    """Where the search of a method is kept."""
    return root / "tuning" / slug(name)


def write_tuned(methods: Sequence[Method], *, root: Path, out: Path) -> None:
    """Write the winners of finished searches as TOML.

    Methods that were not searched, or of which every training diverged, keep their present values.
    """
    values = dict(tomllib.loads(TUNED.read_text(encoding="utf-8")))
    for method in methods:
        journal = search_folder(root, method.name) / "journal.log"
        if journal.exists():
            study = optuna.load_study(
                study_name=method.name,
                storage=JournalStorage(JournalFileBackend(str(journal))),
            )
            if study.get_trials(states=[optuna.trial.TrialState.COMPLETE]):
                values[method.name] = _by_section(study.best_params)
    write_file(out, tomli_w.dumps(values).encode())


def _by_section(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings named `section.name` as settings by section."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = value
    return sections


def _validation_auc(method: Method, *, root: Path, config: Config, dataset: Path) -> float:
    """The best per-user AUC of a training on the validation part; a training that diverged is pruned."""
    with training_device() as device:
        try:
            trained, _ = train_method(method, root=root, config=config, dataset=dataset, seed=0, device=device)
        except ModelError as error:
            raise optuna.TrialPruned(error.found) from error
    return trained.best_value
