"""Images per second of the loop on this machine's GPU, over one epoch each: `python gpu.py`."""

import torch

from mnist_ray import learn
from mnist_ray.config import Recipe, RunConfig


def main() -> None:
    device = torch.device("cuda")
    base = Recipe(lr=0.05, dropout=0.1, rotation=8, holdout=10_000, epochs=1, seed=3)
    splits = learn.split(learn.load_mnist(base, RunConfig().data_dir), base.holdout)
    learn.fit(base, splits, device=device)  # to warm up
    print(torch.cuda.get_device_name(device))
    for precision in ("bf16", "fp32"):
        for batch_size in (64, 512):
            rows: list[learn.Metrics] = []
            config = base.replace(precision=precision, batch_size=batch_size)
            learn.fit(
                config, splits, device=device, on_epoch=lambda row, _, to=rows: to.append(row)
            )
            print(f"{precision}, batch {batch_size}: {rows[0]['images_per_second']:,.0f} images/s")


if __name__ == "__main__":
    main()
