"""Settings of a process that make training in it fast: threads, memory, how it waits."""

import ctypes
import os

import numba
import torch
import torch.distributed as dist
from torch import Tensor, nn


def prepare(threads: int) -> None:
    """Set the threads that PyTorch and Numba compute on, and let this process keep freed memory.

    A step allocates and frees the same 100 MB of activations. Where glibc hands those pages back to
    the kernel each time, the page faults that follow cost a fifth to a third of the step.
    """
    cores: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    numba.set_num_threads(min(threads, cores))
    torch.set_num_threads(threads)  # after Numba's first call, which sets PyTorch's to all cores
    mmap_threshold, trim_threshold = -3, -1  # from malloc.h
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 32 << 20)  # the largest value that glibc takes
        libc.mallopt(trim_threshold, 512 << 20)
    except (OSError, AttributeError):
        pass  # another C library: nothing to set


def has_gpu() -> bool:
    """Return whether PyTorch can compute on a GPU of this machine."""
    return torch.cuda.is_available()


def wait_awake(parallel: nn.Module) -> nn.Module:
    """Return `parallel`, which now waits for averaged gradients without going to sleep if it is a
    DistributedDataParallel on CPUs.

    An average takes half a millisecond, and a step ten. A core that sleeps meanwhile is woken up
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
        work.wait()  # raises if another worker is gone
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(gradients)
        return done

    on_cpu = next(parallel.parameters()).device.type == "cpu"
    if on_cpu and isinstance(parallel, nn.parallel.DistributedDataParallel):
        parallel.register_comm_hook(None, average)
    return parallel
