"""Where a training step's time goes: `python experiments/benchmarks/profile_step.py [THREADS]`.

PyTorch's profiler allocates memory of its own between the steps, and the allocator then takes fresh
pages for the activations, which costs more than the arithmetic. Huge pages keep that out of the
figures; the training itself does not need them.
"""

import os
import sys

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from torch.profiler import ProfilerActivity, profile

from mnist_ray import learn
from mnist_ray.config import Recipe, RunConfig

STEPS = 100


def main(threads: int) -> None:
    learn.prepare_process(threads)
    config = Recipe(train_size=STEPS * 64, holdout=10, epochs=3)
    profiler = profile(activities=[ProfilerActivity.CPU], record_shapes=True)

    def on_epoch(metrics: learn.Metrics, state: learn.State) -> None:
        if metrics["epoch"] == 2:  # the first compiles, the second fills the caches
            profiler.start()

    splits = learn.split(
        learn.load_mnist(config, RunConfig().data_dir), config.holdout, config.train_size
    )
    learn.fit(config, splits, on_epoch=on_epoch)
    profiler.stop()
    events = profiler.key_averages(group_by_input_shape=True)
    total = sum(event.self_cpu_time_total for event in events)
    print(f"{total / STEPS / 1000:.1f} ms a step of 64 images, {threads} threads")
    for event in sorted(events, key=lambda event: -event.self_cpu_time_total)[:25]:
        shapes = [shape for shape in event.input_shapes if shape][:2]
        spent = event.self_cpu_time_total
        print(f"{spent / STEPS / 1000:8.2f} ms  {spent / total:4.0%}  {event.key:36} {shapes}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
