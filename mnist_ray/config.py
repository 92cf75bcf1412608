"""What can be set: typed, frozen, bounded, and validated once, before anything runs."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from mnist_ray.errors import UserError
from mnist_ray.fields import Config, shown

TRAIN_IMAGES = 60_000
"""Images in MNIST's training set; `holdout` and `train_size` are taken out of these."""


class Recipe(Config):
    """Everything that decides which weights come out of a training run.

    The defaults are the reference recipe, which ends at 99.41 % of the test set.
    """

    groups: ClassVar = {
        "lr": "recipe (optimisation)",
        "dropout": "recipe (network)",
        "rotation": "recipe (augmentation)",
        "batch_size": "recipe (images and epochs)",
        "precision": "recipe (arithmetic and seed)",
    }
    fixed: ClassVar = ("holdout",)
    """Fields that no study can vary, because its trials are compared on the same images."""

    lr: float = Field(0.01, gt=0, le=10, description="Learning rate; the peak of a one-cycle.")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum.")
    nesterov: bool = Field(False, description="Nesterov momentum; needs momentum above 0.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="L2 penalty on every weight.")
    label_smoothing: float = Field(
        0.0, ge=0, le=0.5, description="Probability spread over the ten classes in the loss."
    )
    schedule: Literal["constant", "one-cycle"] = Field(
        "constant", description="Learning rate over the run; one-cycle rises, then falls to 0."
    )
    dropout: float = Field(
        0.1, ge=0, le=0.9, description="Probability of zeroing an activation; 0 is off."
    )
    batch_norm: bool = Field(True, description="Batch normalisation after each 3x3 convolution.")
    rotation: float = Field(0.0, ge=0, le=45, description="Augment: rotate up to, in degrees.")
    shift: float = Field(0.0, ge=0, le=8, description="Augment: move up to, in pixels.")
    scale: float = Field(0.0, ge=0, le=0.5, description="Augment: resize up to, as a fraction.")
    augment_until: float = Field(
        1.0, ge=0, le=1, description="Share of the run that augments; the rest does not."
    )
    batch_size: int = Field(
        64, ge=1, le=8192, description="Images per step, over all workers together."
    )
    epochs: int = Field(20, ge=1, le=1000, description="Passes over the training images.")
    holdout: int = Field(
        0,
        ge=0,
        le=TRAIN_IMAGES - 10,
        description="Training images held out to validate on; 0 scores the test set instead.",
    )
    train_size: int | None = Field(
        None, ge=1, le=TRAIN_IMAGES, description="Images to train on; none takes all not held out."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Arithmetic of the convolutions; auto is bf16 where it is native."
    )
    seed: int = Field(
        0, ge=0, lt=2**32, description="Seed of weights, shuffling, dropout and augmentation."
    )

    @property
    def images(self) -> int:
        """How many images an epoch trains on."""
        return self.train_size or TRAIN_IMAGES - self.holdout

    @property
    def idle(self) -> set[str]:
        """Names of the fields that change nothing, as the other fields are."""
        augments = self.rotation or self.shift or self.scale
        return set() if augments else {"augment_until"}

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        room = TRAIN_IMAGES - self.holdout
        if (self.train_size or 0) > room:
            raise ValueError(
                f"train_size is {self.train_size}, but a holdout of {self.holdout} leaves {room}"
                f" of {TRAIN_IMAGES} images; lower one of them."
            )
        if self.batch_size > self.images:
            raise ValueError(
                f"batch_size is {self.batch_size}, more than the {self.images} training images;"
                " lower it."
            )
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov is on, but momentum is 0; raise momentum or turn it off.")
        return self


class PerWorker(Config):
    """What each worker runs on, in a training run and in the trials of a study.

    It decides nothing that is learned, but another number of threads or another device ends with
    other bits.
    """

    groups: ClassVar = {"cpus_per_worker": "resources"}

    cpus_per_worker: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Cores a worker computes on; none shares out all there are.",
    )
    use_gpu: bool | None = Field(
        None, description="One GPU per worker; none takes GPUs if there are enough."
    )


class Resources(PerWorker):
    """What a training run, or one trial of a study, runs on."""

    num_workers: int = Field(
        1,
        ge=1,
        le=1024,
        description="Data-parallel training workers; 1:4 takes up to 4, as many as there is room"
        " for, and goes on with fewer when one is lost.",
    )
    min_workers: int | None = Field(
        None, ge=1, le=1024, description="The fewest to go on with; none needs num_workers."
    )

    @model_validator(mode="before")
    @classmethod
    def _read_range(cls, values: Any) -> Any:
        """`num_workers: "1:4"` is short for `min_workers: 1` and `num_workers: 4`."""
        asked = values.get("num_workers") if isinstance(values, dict) else None
        if isinstance(asked, str) and ":" in asked:
            least, _, most = asked.partition(":")
            if values.get("min_workers") is not None and str(values["min_workers"]) != least:
                raise ValueError(
                    f"num_workers is {shown(asked)}, but min_workers is"
                    f" {shown(values['min_workers'])}; give one of the two."
                )
            return {**values, "min_workers": least, "num_workers": most}
        return values

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if (self.min_workers or 0) > self.num_workers:
            raise ValueError(
                f"min_workers is {self.min_workers}, more than num_workers, {self.num_workers};"
                " lower it."
            )
        return self


def check_batch(recipe: Recipe, resources: Resources) -> None:
    """Raise UserError where the workers cannot share the batches of the recipe."""
    batch_size, workers = recipe.batch_size, resources.num_workers
    if batch_size < workers:
        raise UserError(
            f"batch_size is {batch_size}, fewer images than num_workers, {workers}, and each needs"
            " at least one; raise batch_size."
        )
    # A range of workers shares a batch as evenly as it can; its mean stays that of the batch.
    if not resources.min_workers and batch_size % workers:
        raise UserError(
            f"batch_size is {batch_size}, which {workers} workers cannot share equally; make it a"
            " multiple of the number of workers."
        )


Location = Annotated[str, BeforeValidator(lambda at: str(at) if isinstance(at, Path) else at)]


class RunConfig(Config):
    """Where a run's data and results lie, and how much it prints. Decides nothing learned."""

    groups: ClassVar = {"data_dir": "run"}

    data_dir: Path = Field(
        Path("~/.cache/mnist_ray"), description="Folder of MNIST's files; fetched if missing."
    )
    storage: Location = Field(
        "~/mnist_ray_results",
        description="Folder, or a URI like s3://bucket/path, that gets a folder per run.",
    )
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="Name of the run's folder; none makes one from the time.",
    )
    resume: bool = Field(False, description="Go on with the run of this name where it stopped.")
    max_failures: int = Field(
        3,
        ge=0,
        le=1000,
        description="Times a training run, or each trial of a study, is started again from its last"
        " checkpoint after it failed or its machine was lost.",
    )
    verbose: bool = Field(False, description="Ray's own output, and tracebacks.")


STUDY_RECIPE: dict[str, Any] = {
    "schedule": "one-cycle",
    "nesterov": True,
    "weight_decay": 5e-4,
    "batch_size": 128,
    "epochs": 3,
    "holdout": 10_000,
}
"""Where a study's recipe departs from the reference: what wins within a few epochs does not win in
twenty, and a study selects on held-out images."""


def _seconds(value: Any) -> Any:
    """`90`, `90s`, `1.5m` or `2h` in seconds; anything else is left to the field to refuse."""
    unit = {"s": 1, "m": 60, "h": 3600}.get(value[-1:]) if isinstance(value, str) else None
    try:
        return float(value[:-1]) * unit if unit else value
    except ValueError:
        return value


Seconds = Annotated[float, BeforeValidator(_seconds)]


class TuneConfig(Config):
    """A study: which configurations to try, and how long each may train."""

    groups: ClassVar = {"num_trials": "study"}

    num_trials: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Configurations to try, the base recipe among them; none takes 6, or the whole"
        " grid.",
    )
    search: str = Field("random", description="How they are chosen.")
    scheduler: str = Field("one-rung", description="How long each may train.")
    base: bool = Field(
        True, description="Try the base recipe too, first, to say whether anything beats it."
    )
    tries: list[str] = Field(
        [],
        description="A configuration to try beside those that are sampled, like 'lr=0.1"
        " momentum=0.9'; what it does not name is the base recipe's.",
        json_schema_extra={"flag": "--try", "metavar": "'NAME=VALUE …'"},
    )
    keep: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="Configurations that one-rung trains in full; none takes a sixth, at least 2.",
    )
    confirm: int | None = Field(
        None,
        ge=0,
        le=100,
        description="Best trials to repeat with fresh seeds before one wins, which then trains on"
        " all images; 0 is off, none takes 2 if the time budget allows.",
    )
    confirm_seeds: int = Field(2, ge=1, le=100, description="Fresh seeds of each of these.")
    confirm_base: bool = Field(
        False, description="Confirm the base recipe too, however it did in the search."
    )
    time_budget: Seconds | None = Field(
        None,
        gt=0,
        le=10**7,
        description="Begin nothing that would not end within, like 90s, 10m or 2h.",
    )
    space: dict[str, str] = Field(
        {},
        description="What to vary, like lr=loguniform(0.003,0.3); also uniform, randint, choice.",
    )
    workers_per_trial: int = Field(1, ge=1, le=1024, description="Data-parallel workers a trial.")
    max_concurrent: int | None = Field(
        None, ge=1, le=10_000, description="Trials at a time; none runs as many as fit."
    )
    track: str | None = Field(
        None,
        pattern=r"^(mlflow(=.+)?|wandb(=.+)?)$",
        description="Log to mlflow[=URI] or wandb[=PROJECT] too.",
    )
