"""The one training loop, in plain PyTorch, whoever launches it.

`fit` trains in this process alone, or as one of several data-parallel workers if the launcher
passes a rank, a world size and a `wrap` that averages gradients over the workers.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mnist_ray.config import Recipe
from mnist_ray.learn import data, model
from mnist_ray.learn import recipe as defaults
from mnist_ray.learn.capture import Captured, Graphs
from mnist_ray.learn.data import Mnist, Splits
from mnist_ray.learn.evaluation import evaluate, score_of, totals_of
from mnist_ray.learn.process import prepare

CHECK_EVERY = 50
"""Steps between two checks that the loss is finite. Each check waits for a GPU to finish."""

Metrics = dict[str, Any]
"""What `fit` reports of an epoch, by column name."""

State = dict[str, Any]
"""What `fit` resumes from after an epoch: model, optimizer and the epoch's number, from 1."""


@contextmanager
def _reproducible() -> Iterator[None]:
    """Set cuDNN's flags for a block, so that a GPU computes the same bits in every run."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic
    cudnn.allow_tf32 = False  # TF32 would round what the recipe calls fp32
    cudnn.deterministic = True
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.deterministic = before


@_reproducible()
def fit(
    recipe: Recipe,
    splits: Splits,
    *,
    network: Callable[[Recipe], nn.Module] = model.build,
    loss: Callable[[Recipe, Tensor, Tensor], Tensor] = defaults.loss,
    optimizer: Callable[..., torch.optim.Optimizer] = defaults.optimizer,
    schedule: Callable[[Recipe, int, int], float] = defaults.learning_rate,
    augment: Callable[[Recipe, Tensor, Tensor], Tensor] = defaults.augment,
    device: torch.device | None = None,
    rank: int = 0,
    world_size: int = 1,
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    on_step: Callable[[int, int, int], None] = lambda epoch, step, steps: None,
    on_epoch: Callable[[Metrics, State], None] = lambda metrics, state: None,
    start: State | None = None,
    captured: bool | None = None,
) -> nn.Module:
    """Train a network, scoring and reporting it after each epoch, and return it.

    `network`, `loss`, `optimizer`, `schedule` and `augment` replace what the recipe says; recipe.py
    and model.py document what each takes and returns. A network takes float32 images
    (b, 1, 28, 28) and returns log-probabilities (b, 10).

    `on_epoch` gets the epoch's metrics and the state to resume from. A run that gets this state as
    `start` ends with the same bits as a run without interruption. Training stops early, after a
    last report, when the loss is no longer finite.

    With `captured`, which needs CUDA and one worker, the steps are replayed as a CUDA graph, with
    the same bits. Python then launches one graph a step instead of each of its kernels. A graph
    repeats whatever Python decided when it was captured. So None captures where it can only if
    `network`, `loss`, `optimizer` and `augment` are the recipe's own.
    """
    # Set up: the same first weights on every worker.
    device = device or torch.device("cpu")
    torch.manual_seed(data.derive_seed(recipe.seed))
    net = network(recipe)
    if start:
        net.load_state_dict(start["model"])
    net = net.to(device)
    parallel = wrap(net)
    opt = optimizer(recipe, net.parameters())
    if start:
        opt.load_state_dict(start["optimizer"])
    computed = computed_with(recipe, device, world_size)
    bf16 = computed["arithmetic"] == "bf16"
    splits = splits.to(device)
    n = len(splits.train.indices)
    steps = data.steps_per_epoch(n, recipe.batch_size, world_size)
    total_steps = recipe.epochs * steps
    totals = torch.zeros(3, dtype=torch.float64, device=device)

    # A step launches work and reads no result, so that a GPU never waits for Python.
    def train(positions: Tensor, global_size: int, numbers: Tensor | None, lr: Any) -> None:
        images, labels = splits.train.take(positions)
        if numbers is not None:
            images = augment(recipe, images, numbers)
        # Weights and batch norm stay float32: autocast converts what convolutions compute with.
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            log_probs = parallel(images)
        batch_loss = loss(recipe, log_probs, labels)
        for group in opt.param_groups:
            group["lr"] = lr
        opt.zero_grad(set_to_none=True)
        # Workers may hold unequal parts of a batch. Each loss is a sum, scaled so that the average
        # of the workers' gradients is the gradient of the global batch's mean loss.
        (batch_loss * (world_size / global_size)).backward()  # type: ignore[no-untyped-call]
        opt.step()
        totals.add_(totals_of(batch_loss.detach(), log_probs, labels))

    if captured is None:
        captured = _can_capture(device, world_size, (network, loss, optimizer, augment))
    if captured and world_size > 1:
        raise ValueError(f"a step of {world_size} workers cannot be captured.")
    if captured:
        train = Captured(train, recipe.batch_size, Graphs(device))

    for epoch in range(start["epoch"] + 1 if start else 1, recipe.epochs + 1):
        # Train. Randomness is a function of (seed, epoch, rank), so a checkpoint holds none of it.
        began = time.perf_counter()
        torch.manual_seed(data.derive_seed(recipe.seed, epoch, rank, 0))
        batches = list(
            data.batches(
                n,
                recipe.batch_size,
                seed=recipe.seed,
                epoch=epoch,
                rank=rank,
                world_size=world_size,
                device=device,
            )
        )
        numbers = _numbers(batches, data.generator(recipe.seed, epoch, rank, 1))
        first = (epoch - 1) * steps
        planned = [schedule(recipe, first + step, total_steps) for step in range(steps)]
        rates = _rates(planned, device, captured)
        totals.zero_()
        parallel.train()
        for step, (positions, global_size) in enumerate(batches):
            augmented = first + step < recipe.augment_until * total_steps
            train(positions, global_size, numbers[step] if augmented else None, rates[step])
            on_step(epoch, step + 1, steps)
            # Several workers would have to agree to stop, so they train to the epoch's end.
            if world_size == 1 and step % CHECK_EVERY == 0 and not totals[0].isfinite():
                break
        for group in opt.param_groups:
            group["lr"] = planned[step]  # a checkpoint holds a number, not a captured step's tensor
        trained, images_trained = score_of(totals, world_size)
        _average_buffers(net, world_size)
        train_seconds = time.perf_counter() - began

        # Score.
        score = evaluate(net, splits.score, rank=rank, world_size=world_size)
        score_seconds = time.perf_counter() - began - train_seconds

        # Report.
        finite = math.isfinite(trained.loss) and math.isfinite(score.loss)
        metrics = {
            "epoch": epoch,
            "lr": planned[step],
            "train_loss": trained.loss,
            "train_accuracy": trained.accuracy,
            "scored_on": splits.scored_on,
            **score._asdict(),
            "train_seconds": train_seconds,
            "score_seconds": score_seconds,
            "images_per_second": images_trained / train_seconds,
            **computed,
            "last": epoch == recipe.epochs or not finite,
        }
        on_epoch(
            metrics, {"model": net.state_dict(), "optimizer": opt.state_dict(), "epoch": epoch}
        )
        if metrics["last"]:
            break
    return net


def seconds_per_image(recipe: Recipe, mnist: Mnist, threads: int) -> float:
    """Measure how many seconds training by `recipe` takes per image on `threads` CPU threads: the
    median of ten steps, after two that are not counted. Afterwards, restore this process's number
    of threads and its random state."""
    before = torch.get_num_threads()
    prepare(threads)
    size = min(12 * recipe.batch_size, recipe.images)
    few = recipe.replace(train_size=size, epochs=1)
    train = data.split(mnist, few.holdout, size).train
    score = train._replace(indices=train.indices[:1])
    ends = [time.perf_counter()]
    with torch.random.fork_rng():
        fit(
            few,
            Splits(train, score, "holdout", ""),
            on_step=lambda *_: ends.append(time.perf_counter()),
        )
    prepare(before)
    steps = [end - start for start, end in itertools.pairwise(ends)]
    return median(steps[2:] or steps) / recipe.batch_size


def computed_with(recipe: Recipe, device: torch.device, world_size: int = 1) -> Metrics:
    """Return the columns that, with the recipe, decide the bits of a run in this process."""
    return {
        "arithmetic": resolve_precision(recipe.precision, device),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "workers": world_size,
    }


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return `fp32` or `bf16`; `auto` is bf16 if `device` computes it natively, else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        # Not every version of PyTorch has this function.
        has: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        native = bool(has.get("avx512_bf16") or has.get("amx_bf16"))
    return "bf16" if native else "fp32"


def _can_capture(
    device: torch.device, world_size: int, parts: tuple[Callable[..., Any], ...]
) -> bool:
    """Return whether a step made of `parts` can be captured without a look into them."""
    own = (model.build, defaults.loss, defaults.optimizer, defaults.augment)
    return device.type == "cuda" and world_size == 1 and parts == own


def _numbers(batches: list[tuple[Tensor, int]], rng: torch.Generator) -> list[Tensor]:
    """Return what the augmentation of each batch gets: uniform random numbers, float32 (4, b)."""
    sizes = [defaults.NUMBERS * len(positions) for positions, _ in batches]
    drawn = torch.rand(sum(sizes), generator=rng).to(batches[0][0].device)
    return [numbers.view(defaults.NUMBERS, -1) for numbers in torch.split(drawn, sizes)]


def _rates(planned: list[float], device: torch.device, captured: bool) -> Tensor | list[float]:
    """Return the learning rate of each step as it is given to the optimizer. On CUDA it is float32
    with and without a capture, because the optimizer's kernel reads tensors as float32."""
    rates = torch.tensor(planned, dtype=torch.float32 if device.type == "cuda" else torch.float64)
    return rates.to(device) if captured else rates.tolist()


def _average_buffers(model: nn.Module, world_size: int) -> None:
    """Average batch norm's running statistics, because each worker's are of its own images only."""
    if world_size > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= world_size
