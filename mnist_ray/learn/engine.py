"""The one training loop. Plain PyTorch: it does not know who launched it.

`fit` trains in this process alone, or as one of several data-parallel workers where the launcher
passes its rank, the number of workers and a `wrap` that synchronises gradients.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_ray.config import Recipe
from mnist_ray.learn import data, model
from mnist_ray.learn import recipe as defaults
from mnist_ray.learn.data import Part, Splits

CHECK_EVERY = 50
"""Steps between two looks at whether the loss is finite; a GPU would be waited for at each."""

Metrics = dict[str, Any]
State = dict[str, Any]


class Score(NamedTuple):
    """The score of a whole part, however many workers shared it. `loss` is the mean negative
    log-likelihood in nats, `accuracy` the share that is right, 0 to 1.

    Each field is a metric of every epoch, and a column of the tables in tables/schema.py.
    """

    loss: float
    accuracy: float


@contextmanager
def _reproducible() -> Iterator[None]:
    """Set cuDNN's flags for a block, so that a GPU computes the same bits again."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic
    cudnn.allow_tf32 = False  # or fp32 would not be what it says,
    cudnn.deterministic = True  # and a resumed run would end with other bits
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
    augment: Callable[[Recipe, Tensor, torch.Generator], Tensor] = defaults.augment,
    device: torch.device | None = None,
    rank: int = 0,
    world_size: int = 1,
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    on_step: Callable[[int, int, int], None] = lambda epoch, step, steps: None,
    on_epoch: Callable[[Metrics, State], None] = lambda metrics, state: None,
    start: State | None = None,
) -> nn.Module:
    """Train, and after each epoch score and report. Returns the trained network.

    `network`, `loss`, `optimizer`, `schedule` and `augment` are what the recipe says, unless others
    are handed in; recipe.py and model.py have their signatures and what each must return. A network
    takes float32 images (b, 1, 28, 28) and returns log-probabilities (b, 10).

    `on_epoch` gets the epoch's metrics and the state to resume from: pass that as `start`, and the
    run ends with the same bits as one that was never interrupted. Stops early, after reporting,
    when the loss is no longer finite.
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
    circumstances = computed_with(recipe, device, world_size)
    arithmetic = circumstances["arithmetic"]
    splits = splits.to(device)
    n = len(splits.train.indices)
    steps = data.steps_per_epoch(n, recipe.batch_size, world_size)
    total_steps = recipe.epochs * steps

    for epoch in range(start["epoch"] + 1 if start else 1, recipe.epochs + 1):
        # Train. Randomness is a function of (seed, epoch, rank): nothing to save, or to restore.
        began = time.perf_counter()
        torch.manual_seed(data.derive_seed(recipe.seed, epoch, rank, 0))
        rng = data.generator(recipe.seed, epoch, rank, 1)
        totals = torch.zeros(3, dtype=torch.float64, device=device)  # loss, right, count
        parallel.train()
        for step, (positions, global_size) in enumerate(
            data.batches(
                n,
                recipe.batch_size,
                seed=recipe.seed,
                epoch=epoch,
                rank=rank,
                world_size=world_size,
                device=device,
            )
        ):
            now = (epoch - 1) * steps + step
            images, labels = splits.train.take(positions)
            if now < recipe.augment_until * total_steps:
                images = augment(recipe, images, rng)
            # Weights and batch norm stay float32; autocast only computes with less.
            with torch.autocast(device.type, torch.bfloat16, enabled=arithmetic == "bf16"):
                log_probs = parallel(images)
            summed = loss(recipe, log_probs, labels)
            for group in opt.param_groups:
                group["lr"] = schedule(recipe, now, total_steps)
            opt.zero_grad(set_to_none=True)
            # The workers' gradients are averaged. Their shares of a batch may differ by an image,
            # so each loss is a sum, divided by what makes that average the batch's mean.
            (summed * (world_size / global_size)).backward()  # type: ignore[no-untyped-call]
            opt.step()
            with torch.no_grad():
                right = (log_probs.argmax(1) == labels).sum()
                totals += torch.stack([summed.detach(), right, right.new_tensor(len(labels))])
            on_step(epoch, step + 1, steps)
            # Workers would have to agree on stopping, so more than one go on to the epoch's end.
            if world_size == 1 and step % CHECK_EVERY == 0 and not totals[0].isfinite():
                break
        loss_sum, right_sum, count = _sum_over_workers(totals, world_size).tolist()
        _average_buffers(net, world_size)
        train_seconds = time.perf_counter() - began

        # Score.
        score = evaluate(net, splits.score, rank=rank, world_size=world_size)
        score_seconds = time.perf_counter() - began - train_seconds

        # Report.
        finite = math.isfinite(loss_sum) and math.isfinite(score.loss)
        metrics = {
            "epoch": epoch,
            "lr": opt.param_groups[0]["lr"],
            "train_loss": loss_sum / count,
            "train_accuracy": right_sum / count,
            "scored_on": splits.scored_on,
            **score._asdict(),
            "train_seconds": train_seconds,
            "score_seconds": score_seconds,
            "images_per_second": count / train_seconds,
            **circumstances,
            "last": epoch == recipe.epochs or not finite,
        }
        on_epoch(
            metrics, {"model": net.state_dict(), "optimizer": opt.state_dict(), "epoch": epoch}
        )
        if metrics["last"]:
            break
    return net


def evaluate(model: nn.Module, part: Part, *, rank: int = 0, world_size: int = 1) -> Score:
    """Score every image of `part` exactly once, each worker its share; ends in eval mode."""
    device = part.images.device
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    for log_probs, labels in _predictions(model, part, rank, world_size):
        loss = F.nll_loss(log_probs, labels, reduction="sum")
        right = (log_probs.argmax(1) == labels).sum()
        totals += torch.stack([loss, right, right.new_tensor(len(labels))])
    loss_sum, right_sum, count = _sum_over_workers(totals, world_size).tolist()
    return Score(loss_sum / count, right_sum / count)


def computed_with(recipe: Recipe, device: torch.device, world_size: int = 1) -> Metrics:
    """Return what decides the bits of a run in this process besides its recipe."""
    return {
        "arithmetic": resolve_precision(recipe.precision, device),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "workers": world_size,
    }


def predict(model: nn.Module, part: Part) -> Tensor:
    """Log-probabilities (n, 10) float32 of every image of `part`, in order, on the CPU."""
    return torch.cat([log_probs.cpu() for log_probs, _ in _predictions(model, part)])


def resolve_precision(precision: str, device: torch.device) -> str:
    """`fp32` or `bf16`; `auto` is bf16 where the processor or GPU computes it natively."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        # Not every version of PyTorch can say.
        able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        native = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return "bf16" if native else "fp32"


def _predictions(
    model: nn.Module, part: Part, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    model.eval()
    mine = torch.arange(rank, len(part.indices), world_size, device=part.images.device)
    with torch.inference_mode():
        for positions in torch.split(mine, 250):
            images, labels = part.take(positions)
            yield model(images), labels


def _sum_over_workers(totals: Tensor, world_size: int) -> Tensor:
    if world_size > 1:
        dist.all_reduce(totals)
    return totals


def _average_buffers(model: nn.Module, world_size: int) -> None:
    """Each worker's batch norm saw its own share of the images: keep the mean over all of them."""
    if world_size > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= world_size
