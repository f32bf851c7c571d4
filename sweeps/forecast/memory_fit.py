"""Memory requirement of an external loader's processes, and whether it fits the available memory.

    training process   its memory before the first sample
    workers            the own memory of every worker, and the memory that it has copied from the
                       training process (speech/calibration/worker_memory.py)
    /dev/shm           the most that batches can take, as pages of a tmpfs are memory too

A worker that ends with its epoch reads its share of the samples. A persistent worker counts as
having read all samples, which it will have done after some epochs of a shuffled order.
"""

from dataclasses import dataclass

from speech.calibration.worker_memory import WorkerMemory


@dataclass(frozen=True)
class MemoryRequirement:
    """Memory, in bytes, that a number of workers requires, and that is available."""

    workers_bytes: int  # sum over all workers
    total_bytes: int  # workers, training process and /dev/shm
    available_bytes: int

    @property
    def fits(self) -> bool:
        """Returns whether the required memory is available."""
        return self.total_bytes <= self.available_bytes


def memory_requirement(
    memory: WorkerMemory, workers: int, persistent: bool, shm_bytes: int, available_bytes: int
) -> MemoryRequirement:
    """Returns the memory that `workers` workers require by the end of an epoch.

    Their batches take up to `shm_bytes`.
    """
    if workers == 0:
        # A cache also grows in the training process
        growth_bytes = round(memory.growth_bytes * memory.samples)
        return MemoryRequirement(0, memory.main_bytes + growth_bytes, available_bytes)
    read = memory.samples if persistent else -(-memory.samples // workers)
    all_workers = workers * memory.worker_bytes(read)
    return MemoryRequirement(
        all_workers, memory.main_bytes + all_workers + shm_bytes, available_bytes
    )
