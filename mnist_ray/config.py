"""The settings of runs and studies: typed, bounded, and validated before anything runs."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from mnist_ray.errors import UserError
from mnist_ray.fields import Config, shown
from mnist_ray.storage import Place, place

TRAIN_IMAGES = 60_000
"""Images in MNIST's training set; `holdout` and `train_size` are parts of it."""

RECIPES = {path.stem: path for path in sorted(Path(__file__).parent.glob("learn/recipes/*.yaml"))}
"""The recipe files that come with the package, by the names that `--config` takes."""


class Recipe(Config):
    """Everything that decides the weights of a training run.

    The defaults are the reference recipe, which classifies 99.41 % of the test set correctly.
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

    lr: float = Field(0.01, gt=0, le=10, description="Learning rate; its peak with one-cycle.")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum.")
    nesterov: bool = Field(False, description="Nesterov momentum; needs momentum above 0.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="L2 penalty on every weight.")
    label_smoothing: float = Field(
        0.0, ge=0, le=0.5, description="Probability spread over the ten classes in the loss."
    )
    schedule: Literal["constant", "one-cycle"] = Field(
        "constant", description="Learning rate over the run; one-cycle rises, then falls to 0."
    )
    dropout: float = Field(0.1, ge=0, le=0.9, description="Probability of zeroing an activation.")
    batch_norm: bool = Field(True, description="Batch normalisation after each 3x3 convolution.")
    rotation: float = Field(0.0, ge=0, le=45, description="Augment: largest rotation, in degrees.")
    shift: float = Field(0.0, ge=0, le=8, description="Augment: largest shift, in pixels.")
    scale: float = Field(0.0, ge=0, le=0.5, description="Augment: largest change of size.")
    augment_until: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Augment: until this fraction of the run; 1 augments all of it.",
    )
    batch_size: int = Field(64, ge=1, le=8192, description="Images per step, over all workers.")
    epochs: int = Field(20, ge=1, le=1000, description="Passes over the training images.")
    holdout: int = Field(
        0,
        ge=0,
        le=TRAIN_IMAGES - 10,
        description="Training images held out to validate on; 0 scores the test set instead.",
    )
    train_size: int | None = Field(
        None, ge=1, le=TRAIN_IMAGES, description="Images to train on; none takes all others."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Arithmetic of the convolutions; auto is bf16 where it is native."
    )
    seed: int = Field(
        0, ge=0, lt=2**32, description="Seed of weights, shuffling, dropout and augmentation."
    )

    @property
    def images(self) -> int:
        """The number of images in an epoch."""
        return self.train_size or TRAIN_IMAGES - self.holdout

    @property
    def idle(self) -> set[str]:
        """Names of the fields that change nothing, given the values of the other fields."""
        augments = self.rotation or self.shift or self.scale
        return set() if augments else {"augment_until"}

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        available = TRAIN_IMAGES - self.holdout
        if self.images > available:
            raise ValueError(
                f"train_size is {self.train_size}, but a holdout of {self.holdout} leaves"
                f" {available} of {TRAIN_IMAGES} images; lower one of them."
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
    """What each worker of a training run or of a trial computes on.

    It changes rounding alone: with another number of threads, or on another device, the weights
    have other bits.
    """

    groups: ClassVar = {"cpus_per_worker": "resources"}

    cpus_per_worker: int | None = Field(
        None, ge=1, le=1024, description="Cores per worker; none divides all among the workers."
    )
    use_gpu: bool | None = Field(
        None, description="One GPU per worker; none uses GPUs if there are enough."
    )


class Resources(PerWorker):
    """What a training run or one trial of a study runs on."""

    num_workers: int = Field(
        1,
        ge=1,
        le=1024,
        description="Data-parallel workers; 1:4 uses up to 4, as many as fit, and goes on with"
        " fewer when one is lost.",
    )
    min_workers: int | None = Field(
        None, ge=1, le=1024, description="Fewest workers to go on with; none is num_workers."
    )

    @model_validator(mode="before")
    @classmethod
    def _read_range(cls, values: Any) -> Any:
        """Read `num_workers: "1:4"` as `min_workers: 1` and `num_workers: 4`."""
        text = values.get("num_workers") if isinstance(values, dict) else None
        if isinstance(text, str) and ":" in text:
            least, _, most = text.partition(":")
            if values.get("min_workers") is not None and str(values["min_workers"]) != least:
                raise ValueError(
                    f"num_workers is {shown(text)}, but min_workers is"
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
    """Raise UserError where the workers cannot share the recipe's batches."""
    batch_size, workers = recipe.batch_size, resources.num_workers
    if batch_size < workers:
        raise UserError(
            f"batch_size is {batch_size}, fewer images than num_workers, {workers}, and each needs"
            " at least one; raise batch_size."
        )
    # A range of workers may divide a batch unevenly: the gradient stays the batch's mean.
    if not resources.min_workers and batch_size % workers:
        raise UserError(
            f"batch_size is {batch_size}, which {workers} workers cannot share equally; make it a"
            " multiple of the number of workers."
        )


def config_file(text: str) -> Place:
    """Return the file that `--config` names: a file's path or URI, or else one of RECIPES. Raises
    UserError where there is neither."""
    file = place("config", text)
    if not isinstance(file, Path):
        return file
    try:
        if text in RECIPES and not file.is_file():
            return RECIPES[text]
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"config {text} is neither a file nor one of the recipes {', '.join(RECIPES)}."
        ) from None
    except OSError:
        pass  # whoever reads the file says why it cannot be read
    return file


Location = Annotated[str, BeforeValidator(lambda at: str(at) if isinstance(at, Path) else at)]


class RunConfig(Config):
    """Where a run's data and results lie, and how much it prints. It changes no result."""

    groups: ClassVar = {"data_dir": "run"}

    data_dir: Path = Field(
        Path("~/.cache/mnist_ray"), description="Folder of MNIST's files; fetched if missing."
    )
    storage: Location = Field(
        "~/mnist_ray_results",
        description="Folder, or a URI like s3://bucket/path, in which each run has a folder.",
    )
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="Name of the run's folder; none makes one from the time.",
    )
    resume: bool = Field(False, description="Go on with the run `name` where it stopped.")
    max_failures: int = Field(
        3,
        ge=0,
        le=1000,
        description="How many times a training run, or a trial of a study, restarts from its"
        " last checkpoint after it failed or its machine was lost.",
    )
    verbose: bool = Field(False, description="Ray's own output, and tracebacks.")


Track = Annotated[
    str | None,
    Field(
        pattern=r"^(mlflow(=.+)?|wandb(=.+)?)$",
        description="Log to mlflow[=URI] or wandb[=PROJECT] too.",
    ),
]


class TrainRunConfig(RunConfig):
    """Where a training run's data and results lie, how it is launched, and where it is logged."""

    in_process: bool | None = Field(
        None,
        description="Train in the command's own process, which starts at once, but is not replaced"
        " if it dies, as Ray's workers are; none does so with one worker where there is no Ray"
        " cluster to join.",
    )
    track: Track = None


STUDY_RECIPE: dict[str, Any] = {
    "schedule": "one-cycle",
    "nesterov": True,
    "weight_decay": 5e-4,
    "batch_size": 128,
    "epochs": 3,
    "holdout": 10_000,
}
"""The fields in which a study's base recipe differs from the reference recipe. A study trains for 3
epochs, for which other settings are best than for 20, and it selects by held-out images."""


def _seconds(value: Any) -> Any:
    """Return `90s`, `1.5m` or `2h` in seconds, and any other value as it is."""
    unit = {"s": 1, "m": 60, "h": 3600}.get(value[-1:]) if isinstance(value, str) else None
    try:
        return float(value[:-1]) * unit if unit else value
    except ValueError:
        return value


Seconds = Annotated[float, BeforeValidator(_seconds)]


class TuneConfig(Config):
    """The settings of a study: which configurations it tries, and how long each one trains."""

    groups: ClassVar = {
        "num_trials": "study (configurations)",
        "keep": "study (phases and time)",
        "space": "study (space and trials)",
    }

    num_trials: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Configurations to try, the base recipe among them; none takes 6, or the whole"
        " grid.",
    )
    search: str = Field("random", description="How configurations are chosen.")
    scheduler: str = Field("one-rung", description="How long each configuration trains.")
    base: bool = Field(
        True, description="Try the base recipe first, to compare it with the others."
    )
    tries: list[str] = Field(
        [],
        description="A configuration to try before the sampled ones, like 'lr=0.1 momentum=0.9';"
        " fields that it does not name are the base recipe's.",
        json_schema_extra={"flag": "--try", "metavar": "'NAME=VALUE …'"},
    )
    start_from: str | None = Field(
        None,
        description="Study whose best 3 configurations to try before the sampled ones: a folder, a"
        " URI, or a name in the storage. A sampler that learns also learns from its other trials"
        " that lie in the space.",
        json_schema_extra={"metavar": "RUN"},
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
        description="Best trials to repeat with fresh seeds; the best mean wins, and trains on all"
        " images. 0 is off, none takes 2 if the time budget allows.",
    )
    confirm_seeds: int = Field(2, ge=1, le=100, description="Fresh seeds per confirmed trial.")
    confirm_base: bool = Field(
        False, description="Confirm the base recipe too, whatever its place in the search."
    )
    time_budget: Seconds | None = Field(
        None,
        gt=0,
        le=10**7,
        description="Start no trial that would not end within this time, like 90s, 10m or 2h.",
    )
    space: dict[str, str] = Field(
        {},
        description="What to vary, like lr=loguniform(0.003,0.3): uniform(a,b) and loguniform(a,b)"
        " are real numbers, randint(a,b) and lograndint(a,b) whole ones, each from a to b, both"
        " included; uniform and randint take a step too, like uniform(0,0.5,0.1); choice(a,b,…) is"
        " one of its values.",
    )
    workers_per_trial: int = Field(1, ge=1, le=1024, description="Data-parallel workers per trial.")
    max_concurrent: int | None = Field(
        None, ge=1, le=10_000, description="Trials at a time; none runs as many as fit."
    )
    trials_per_gpu: int | None = Field(
        None,
        ge=1,
        le=100,
        description="Trials that share a GPU; none is as many as its memory and the cores allow.",
    )
    track: Track = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if (self.trials_per_gpu or 1) > 1 and self.workers_per_trial > 1:
            raise ValueError(
                f"trials_per_gpu is {self.trials_per_gpu}, but workers_per_trial is"
                f" {self.workers_per_trial}, and each of these workers needs a whole GPU; lower one"
                " of them."
            )
        return self
