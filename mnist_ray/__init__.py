"""mnist_ray: train a small CNN on MNIST with Ray Train, tune it with Ray Tune.

    import mnist_ray

    study = mnist_ray.run_study(space={"lr": "loguniform(0.01, 0.3)"}, num_trials=8)
    study.trials                        # a row per trial, as a DataFrame
    model = study.best_model()
    digits, probabilities = model.predict(images)  # uint8 (n, 28, 28)

`run_training` trains once, and `open_run` opens the folder of a run. All of them raise UserError
for bad input, and RunFailed if a run fails. `python -m mnist_ray` lists the commands.
"""

from typing import TYPE_CHECKING, Any

from mnist_ray.errors import RunFailed, UserError

if TYPE_CHECKING:
    from mnist_ray.api import Run, open_run, run_study, run_training
    from mnist_ray.config import Recipe

__version__ = "0.2.0"

__all__ = [
    "Recipe",
    "Run",
    "RunFailed",
    "UserError",
    "__version__",
    "open_run",
    "run_study",
    "run_training",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for, so that `import mnist_ray`, and with it each command, is fast."""
    if name == "Recipe":
        from mnist_ray.config import Recipe

        return Recipe
    if name in __all__:
        from mnist_ray import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__} has no attribute {name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
