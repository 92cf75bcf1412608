"""The columns of the results tables: each has a name, a type and a meaning.

Every run writes the same columns in the same types, so any tool can read two runs together.
"""

import types
import typing
from typing import Any, NamedTuple

import pyarrow as pa
from pydantic import BaseModel

from mnist_ray.config import Recipe, Resources

Row = dict[str, Any]
Epochs = dict[int, list[Row]]
"""Rows of the epochs table, by the number of the trial."""

TRIALS, EPOCHS, PREDICTIONS = "trials.parquet", "epochs.parquet", "predictions.parquet"


class Column(NamedTuple):
    """The type and the meaning of a column. A row may leave any column empty."""

    type: pa.DataType
    meaning: str
    share: bool = False
    """Whether it is a share of images, 0 to 1, and more is better: shown in percent, and sorted
    from the highest."""


FLAG, WHOLE, REAL, TEXT = pa.bool_(), pa.int64(), pa.float64(), pa.string()
TIME, BYTES = pa.timestamp("us", tz="UTC"), pa.binary()

TRIAL_COLUMNS = {
    "run": Column(TEXT, "name of the study or training run"),
    "trial": Column(WHOLE, "number of the trial, from 0 in the order in which they were sampled"),
    "phase": Column(
        TEXT,
        "phase of the study: screen (a short schedule for every configuration), search, confirm"
        " (the best again, with fresh seeds) or final (the winner, trained on all images); empty"
        " for a training run",
    ),
    "repeats": Column(
        WHOLE, "number of the trial whose configuration is trained again; empty for a new one"
    ),
    "origin": Column(
        TEXT,
        "where the configuration comes from: base (the base recipe), try (named by --try),"
        " trial N of RUN (taken from the study that --start-from names) or sampled; empty for a"
        " training run",
    ),
    "winner": Column(
        FLAG,
        "true for the best trial of a study, so far or at its end, false for its other trials;"
        " empty for a training run",
    ),
    "status": Column(
        TEXT,
        "ok (trained all its epochs), stopped (by the scheduler), diverged (its loss was not"
        " finite), failed, or running (a training run that has not ended, or was killed)",
    ),
    "scored_on": Column(
        TEXT,
        "images that best_ and final_ are measured on, after every epoch: holdout, or test if none"
        " was held out",
    ),
    "best_accuracy": Column(
        REAL,
        "highest accuracy after any epoch, 0 to 1; in phase final, after the last epoch",
        share=True,
    ),
    "best_epoch": Column(
        WHOLE, "epoch of best_accuracy, from 1; the later of two epochs with the same accuracy"
    ),
    "best_loss": Column(REAL, "mean negative log-likelihood at best_epoch, nats"),
    "final_accuracy": Column(REAL, "accuracy after the last epoch trained, 0 to 1", share=True),
    "final_loss": Column(REAL, "mean negative log-likelihood after the last epoch trained, nats"),
    "test_accuracy": Column(
        REAL,
        "accuracy on the 10,000 test images, 0 to 1; empty if they were not scored",
        share=True,
    ),
    "test_loss": Column(REAL, "mean negative log-likelihood on the test images, nats"),
    "epochs_trained": Column(WHOLE, "number of epochs trained before the trial ended"),
    "rung": Column(
        WHOLE, "epoch after which the scheduler stopped the trial; empty if it was not stopped"
    ),
    "train_seconds": Column(REAL, "seconds spent training, without scoring"),
    "total_seconds": Column(REAL, "seconds from the start to the end of the trial"),
    "images_per_second": Column(REAL, "training images per second, over all workers of the trial"),
    "checkpoint": Column(
        TEXT,
        "folder of the checkpoint within the run's folder: of best_epoch, or of the last epoch in"
        " phase final",
    ),
    "error": Column(TEXT, "why a failed trial failed, in one line"),
    "split_hash": Column(TEXT, "hash of which images were held out and which were trained on"),
    "arithmetic": Column(TEXT, "arithmetic of the convolutions in training: fp32 or bf16"),
    "device": Column(TEXT, "device that trained: cpu or cuda"),
    "hardware": Column(TEXT, "processor and cores of the machine that launched the run"),
    "python": Column(TEXT, "version of Python"),
    "torch": Column(TEXT, "version of torch"),
    "ray": Column(TEXT, "version of Ray"),
    "mnist_ray": Column(TEXT, "version of mnist_ray"),
    "commit": Column(
        TEXT,
        "commit of mnist_ray's own checkout, followed by + if tracked files of its source were"
        " changed; empty if mnist_ray runs from anywhere else",
    ),
    "started": Column(TIME, "UTC time at which the run began; whole seconds in the CSV"),
    "ended": Column(TIME, "UTC time at which the trial ended; whole seconds in the CSV"),
}
"""The columns of the trials table that are not fields of the trial's recipe or resources."""

EPOCH_COLUMNS = {
    "run": Column(TEXT, "name of the study or training run"),
    "trial": Column(WHOLE, "number of the trial, as in the trials table"),
    "epoch": Column(WHOLE, "number of the epoch, from 1"),
    "lr": Column(REAL, "learning rate at the epoch's last step"),
    "train_loss": Column(
        REAL, "mean loss over the epoch's training images, as trained (dropout on), nats"
    ),
    "train_accuracy": Column(
        REAL, "accuracy over the epoch's training images, as trained, 0 to 1", share=True
    ),
    "scored_on": Column(
        TEXT, "images that loss and accuracy are measured on: holdout, or test if none was held out"
    ),
    "loss": Column(REAL, "mean negative log-likelihood on these images, nats"),
    "accuracy": Column(REAL, "accuracy on these images, 0 to 1", share=True),
    "train_seconds": Column(REAL, "seconds spent training"),
    "score_seconds": Column(REAL, "seconds spent scoring"),
    "images_per_second": Column(REAL, "training images per second"),
    "arithmetic": Column(TEXT, "arithmetic of the convolutions in training: fp32 or bf16"),
    "device": Column(TEXT, "device that trained: cpu or cuda"),
    "threads": Column(WHOLE, "CPU threads that each worker computed with"),
    "workers": Column(WHOLE, "number of workers that trained the epoch, data-parallel"),
    "checkpoint": Column(
        TEXT,
        "folder of the checkpoint within the run's folder; only the best and last epoch keep it",
    ),
}

MEASURES = tuple(name for name, column in EPOCH_COLUMNS.items() if column.type == REAL)
"""The columns of the epochs table that hold measured values and rates, to be drawn as curves."""

PREDICTION_COLUMNS = {
    "index": Column(WHOLE, "index of the image in MNIST's test set, from 0"),
    "label": Column(WHOLE, "digit in the image"),
    "guess": Column(WHOLE, "digit that the winner takes it for"),
    "probability": Column(REAL, "probability that the winner gives its guess, 0 to 1"),
    "image": Column(
        BYTES, "the image's 28 x 28 pixels, row by row, a byte each; empty if the guess is right"
    ),
}


def config_columns(config: type[BaseModel]) -> dict[str, Column]:
    """Return a column for each field of a config class: the type is that of its annotation, the
    meaning its description. Raises ValueError if a field is named like a column of the trials
    table, and TypeError if no column type fits its annotation."""
    if taken := sorted(set(config.model_fields) & set(TRIAL_COLUMNS)):
        raise ValueError(
            f"{config.__name__}.{taken[0]} is named like a column of the trials table; rename one"
            " of them."
        )
    return {
        name: Column(_arrow_type(name, field.annotation), field.description or "")
        for name, field in config.model_fields.items()
    }


ARROW_TYPES = {bool: FLAG, int: WHOLE, float: REAL, str: TEXT}


def _arrow_type(name: str, annotation: Any) -> pa.DataType:
    kinds = _python_types(annotation) - {types.NoneType}
    if len(kinds) != 1 or not kinds <= set(ARROW_TYPES):
        raise TypeError(f"{name} is a {annotation}, for which the trials table has no column type.")
    return ARROW_TYPES[kinds.pop()]


def _python_types(annotation: Any) -> set[Any]:
    """Return the Python types of the values that `annotation` allows."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _python_types(inside[0])
    if origin is typing.Literal:
        return {type(value) for value in inside}
    if origin in (typing.Union, types.UnionType):
        return set().union(*map(_python_types, inside))
    return {annotation}


COLUMNS: dict[str, dict[str, Column]] = {
    TRIALS: {**TRIAL_COLUMNS, **config_columns(Recipe), **config_columns(Resources)},
    EPOCHS: EPOCH_COLUMNS,
    PREDICTIONS: PREDICTION_COLUMNS,
}
"""Every column of every table, with its type and its meaning."""

SHARES = frozenset(
    name for columns in COLUMNS.values() for name, column in columns.items() if column.share
)

SCHEMAS = {
    table: pa.schema([(name, column.type) for name, column in columns.items()])
    for table, columns in COLUMNS.items()
}

CONTROL_METRICS = frozenset({"last"})
"""Metrics that the engine reports to steer a run, and that no table keeps."""
