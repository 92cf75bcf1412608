"""The loop that mnist_ray is measured against: PyTorch as its tutorials teach it.

A torchvision dataset, a DataLoader, the same network from stock layers, one visible loop. It is
written to be good of its kind, and knows nothing of mnist_ray's engine.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from mnist_ray.learn import torchvision_mnist


def network(dropout: float) -> nn.Sequential:
    def block(in_channels: int, out_channels: int, padding: int = 0) -> list[nn.Module]:
        return [
            nn.Conv2d(in_channels, out_channels, 3, padding=padding, bias=False),
            nn.ReLU(),
            nn.BatchNorm2d(out_channels),
            nn.Dropout(dropout),
        ]

    return nn.Sequential(
        *block(1, 16),
        *block(16, 32),
        nn.Conv2d(32, 10, 1, bias=False),
        nn.MaxPool2d(2),
        *block(10, 16),
        *block(16, 16),
        *block(16, 16),
        *block(16, 16, padding=1),
        nn.AvgPool2d(6),
        nn.Conv2d(16, 10, 1, bias=False),
        nn.Flatten(),
        nn.LogSoftmax(dim=1),
    )


def loader(data_dir: Path, root: Path, batch_size: int) -> DataLoader:
    """The training set through torchvision; `root` gets links to the files in `data_dir`."""
    mnist = torchvision_mnist()
    from torchvision import transforms

    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for path in data_dir.expanduser().glob("*-ubyte"):
        if not (raw / path.name).exists():
            (raw / path.name).symlink_to(path)
    dataset = mnist(
        root,
        train=True,
        transform=transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
        ),
    )
    return DataLoader(dataset, batch_size=batch_size, shuffle=True)


def speeds(batches: DataLoader, dropout: float, steps: int, device: str = "cpu") -> Iterator[float]:
    """Train; yield images per second of every `steps` steps."""
    model = network(dropout).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.train()
    running_loss = 0.0
    began, done = time.perf_counter(), 0
    while True:
        for images, labels in batches:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            loss = F.nll_loss(model(images), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            done += 1
            if done % steps == 0:
                yield steps * len(images) / (time.perf_counter() - began)
                began = time.perf_counter()
