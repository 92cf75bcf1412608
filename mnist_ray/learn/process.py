"""What a process does so that training in it is fast: threads, memory, and how it waits."""

import ctypes
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mnist_ray.learn import kernels


def prepare(threads: int) -> None:
    """Set this process's threads, and let it keep memory it freed.

    A step allocates and frees the same 100 MB of activations. Where glibc hands those pages back to
    the kernel each time, faulting them in again costs a fifth to a third of the step.
    """
    kernels.use_threads(threads)
    mmap_threshold, trim_threshold = -3, -1  # from malloc.h
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 32 << 20)  # the largest it takes
        libc.mallopt(trim_threshold, 512 << 20)
    except (OSError, AttributeError):
        pass  # not glibc: nothing to tune


def wait_awake(parallel: nn.Module) -> nn.Module:
    """Let DistributedDataParallel on CPUs average gradients without going to sleep; returns it.

    The average takes half a millisecond, and a step ten. A core that sleeps meanwhile is woken up
    to five milliseconds late, four times in ten on a virtual machine.
    """

    def average(
        _: object,
        bucket: dist.GradBucket,  # type: ignore[name-defined]
    ) -> torch.futures.Future[Tensor]:
        gradients = bucket.buffer()
        gradients /= dist.get_world_size()
        work = dist.all_reduce(gradients, async_op=True)
        while not work.is_completed():
            os.sched_yield()  # to the thread that talks to the other workers
        work.wait()  # raises where one of them is gone
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(gradients)
        return done

    on_cpu = next(parallel.parameters()).device.type == "cpu"
    if on_cpu and isinstance(parallel, nn.parallel.DistributedDataParallel):
        parallel.register_comm_hook(None, average)
    return parallel
