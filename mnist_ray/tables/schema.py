"""The columns of the results tables: a name, a type and a meaning each, whatever the rows, so that
any tool reads two runs together.
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
    """The type and the meaning of a column. Any column may be empty in a row."""

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
        "of a study: screen (a short schedule for every configuration), search, confirm (the best"
        " again, with fresh seeds), final (the winner on all images); empty for a training run",
    ),
    "repeats": Column(
        WHOLE, "number of the trial whose configuration this one has, where it is not a new one"
    ),
    "origin": Column(
        TEXT,
        "of a study: where the configuration comes from: base (the base recipe), try (one that"
        " --try names) or sampled; empty for a training run",
    ),
    "winner": Column(
        FLAG,
        "true for the trial that its study takes for the best, so far or at its end; false for the"
        " study's other trials; empty for a training run",
    ),
    "status": Column(
        TEXT,
        "ok (all its epochs), stopped (by the scheduler), diverged (loss not finite), failed;"
        " running, of a training run that has not ended, or was killed",
    ),
    "scored_on": Column(
        TEXT,
        "the images behind best_ and final_, scored after every epoch: holdout, or test where"
        " nothing was held out",
    ),
    "best_accuracy": Column(
        REAL,
        "highest accuracy after any epoch, 0 to 1, the later of two equal ones; in phase final that"
        " after the last epoch",
        share=True,
    ),
    "best_epoch": Column(WHOLE, "the epoch of best_accuracy, from 1"),
    "best_loss": Column(REAL, "mean negative log-likelihood at best_epoch, nats"),
    "final_accuracy": Column(REAL, "accuracy after the last epoch trained, 0 to 1", share=True),
    "final_loss": Column(REAL, "mean negative log-likelihood after the last epoch trained, nats"),
    "test_accuracy": Column(
        REAL,
        "accuracy on the 10,000 test images, 0 to 1; empty where they were not scored",
        share=True,
    ),
    "test_loss": Column(REAL, "mean negative log-likelihood on the test images, nats"),
    "epochs_trained": Column(WHOLE, "epochs trained before the trial ended"),
    "rung": Column(
        WHOLE, "epochs after which the scheduler stopped the trial; empty where it did not"
    ),
    "train_seconds": Column(REAL, "seconds spent training, without scoring"),
    "total_seconds": Column(REAL, "seconds from the start to the end of the trial"),
    "images_per_second": Column(REAL, "training images per second, over all its workers"),
    "checkpoint": Column(
        TEXT,
        "folder of the checkpoint of best_epoch, within the run's folder; of the last epoch, where"
        " the phase is final",
    ),
    "error": Column(TEXT, "one line, where status is failed"),
    "split_hash": Column(TEXT, "hash of which images were held out and which trained on"),
    "arithmetic": Column(TEXT, "of the convolutions in training: fp32 or bf16"),
    "device": Column(TEXT, "cpu or cuda"),
    "hardware": Column(TEXT, "processor and cores of the machine that launched the run"),
    "python": Column(TEXT, "version"),
    "torch": Column(TEXT, "version"),
    "ray": Column(TEXT, "version"),
    "mnist_ray": Column(TEXT, "version"),
    "commit": Column(
        TEXT,
        "of mnist_ray's own checkout, with + where tracked files of its source were changed; empty"
        " where it runs from anywhere else",
    ),
    "started": Column(TIME, "UTC time at which the run began; whole seconds in the CSV"),
    "ended": Column(TIME, "UTC time at which the trial ended; whole seconds in the CSV"),
}
"""The columns of the trials table that are not fields of the trial's recipe or resources."""

EPOCH_COLUMNS = {
    "run": Column(TEXT, "name of the study or training run"),
    "trial": Column(WHOLE, "number of the trial, as in the trials table"),
    "epoch": Column(WHOLE, "from 1"),
    "lr": Column(REAL, "learning rate at the epoch's last step"),
    "train_loss": Column(
        REAL, "mean loss over the epoch's training images, as trained (dropout on), nats"
    ),
    "train_accuracy": Column(
        REAL, "accuracy over the epoch's training images, as trained, 0 to 1", share=True
    ),
    "scored_on": Column(
        TEXT, "the images behind loss and accuracy: holdout, or test where nothing was held out"
    ),
    "loss": Column(REAL, "mean negative log-likelihood on these images, nats"),
    "accuracy": Column(REAL, "accuracy on these images, 0 to 1", share=True),
    "train_seconds": Column(REAL, "seconds spent training"),
    "score_seconds": Column(REAL, "seconds spent scoring"),
    "images_per_second": Column(REAL, "training images per second"),
    "arithmetic": Column(TEXT, "of the convolutions in training: fp32 or bf16"),
    "device": Column(TEXT, "cpu or cuda"),
    "threads": Column(WHOLE, "threads that each worker computed with on the cpu"),
    "workers": Column(WHOLE, "that trained it, data-parallel"),
    "checkpoint": Column(
        TEXT, "folder of its checkpoint in the run's; only the best and the last are kept"
    ),
}

PREDICTION_COLUMNS = {
    "index": Column(WHOLE, "of the image in MNIST's test set, from 0"),
    "label": Column(WHOLE, "digit that it is"),
    "guess": Column(WHOLE, "digit that the winner takes it for"),
    "probability": Column(REAL, "that the winner gives its guess, 0 to 1"),
    "image": Column(
        BYTES,
        "the 784 pixels of one taken for another digit, row by row, a byte each; else empty",
    ),
}


def config_columns(config: type[BaseModel]) -> dict[str, Column]:
    """A column for each field of a config class: the type from its annotation, the meaning from its
    description. Raises ValueError for a field that is named like a column of the trials table."""
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
        raise TypeError(f"{name} is a {annotation}, for which the trials table has no type.")
    return ARROW_TYPES[kinds.pop()]


def _python_types(annotation: Any) -> set[Any]:
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
"""What the engine reports of an epoch to those that run it, and no table keeps."""
