"""A training step captured as a CUDA graph, and replayed.

A step of this network launches some 150 small kernels, and to launch them one by one from Python
takes ten times as long as to compute them. A graph launches them all at once. Whatever Python
decided while the graph was captured is fixed in it, so all that differs from step to step lies in
tensors that the graph reads, and the step reads no value of a tensor on the CPU.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Step = Callable[[Tensor, int, Tensor | None, Any], None]
"""Trains on one batch. Takes its positions in the training part, int64 (b,), the size of the global
batch, the random numbers of its augmentation, float32 (4, b), or None to leave images as they are,
and the learning rate: a float, or a tensor without dimensions if the step is captured."""

WARM_UP = 3
"""Batches that train without a graph before one is captured. They make what the graph only uses,
like the optimizer's momentum, and let cuDNN load its kernels, which a capture must not do."""


class Captured:
    """A step that has the effect of `step`, bit for bit. It replays a graph for each batch of
    `batch_size` images, after WARM_UP batches that train without one, and calls `step` for a
    smaller batch. `graphs` runs and captures the steps.

    PyTorch's random state moves on as without a graph, and is read at each replay, so that
    `torch.manual_seed` before a replay works and dropout draws new masks.
    """

    def __init__(self, step: Step, batch_size: int, graphs: "Graphs") -> None:
        self.step, self.batch_size, self.graphs = step, batch_size, graphs
        self.augmented, self.calls = False, 0
        self.inputs: list[Tensor] = []
        self.replay: Callable[[], None] | None = None

    def __call__(
        self, positions: Tensor, global_size: int, numbers: Tensor | None, lr: Tensor
    ) -> None:
        if len(positions) < self.batch_size:
            self.graphs.run(lambda: self.step(positions, global_size, numbers, lr))
            return
        augmented = numbers is not None
        if augmented != self.augmented:  # another step, which needs another graph
            self.augmented, self.calls, self.replay = augmented, 0, None
        self.calls += 1
        if self.calls <= WARM_UP:
            self.graphs.run(lambda: self.step(positions, global_size, numbers, lr))
            return
        given = [positions, lr] if numbers is None else [positions, lr, numbers]
        if self.replay is None:
            self.inputs = [tensor.clone() for tensor in given]
            where, rate, *rest = self.inputs
            self.replay = self.graphs.capture(
                lambda: self.step(where, global_size, rest[0] if rest else None, rate)
            )
        for fixed, tensor in zip(self.inputs, given, strict=True):
            fixed.copy_(tensor)
        self.replay()


class Graphs:
    """Runs and captures functions on a CUDA stream of its own. The default stream cannot be
    captured, and PyTorch requires that a function runs on a stream before it is captured there."""

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ValueError(f"a step can be captured on CUDA, not on {device.type}.")
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, function: Callable[[], None]) -> None:
        """Call `function` on the stream, after what was launched before and before what follows."""
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            function()
        current.wait_stream(self.stream)

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Return a function that launches what `function` launches. `function` is called once, to
        record its graph; this computes nothing."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            function()
        return graph.replay
