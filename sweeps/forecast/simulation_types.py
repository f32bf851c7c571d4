"""Defines a simulated epoch: the costs and settings that go in, and the times that come out.

Costs are measured by a calibration (speech/calibration/costs.py). sweeps/forecast/simulation.py
computes the times.
"""

from dataclasses import dataclass

Table = tuple[tuple[int, float], ...]  # (number of processes, value measured beside them), sorted

# An accelerator idle for longer than this between two steps has stalled, as in speech.timing
STALL_S = 1e-3


@dataclass(frozen=True)
class Epoch:
    """Costs and settings of an epoch, known before it runs.

    CPU seconds are those of a process that has a core to itself.
    """

    batches: int
    workers: int
    prefetch: int
    cores: float  # of all ranks together; under a quota, CPU seconds per second
    cpus: int | None = None  # cores that can be used until a quota is used up; None: no quota
    period_s: float = 0.1  # period of the quota
    ranks: int = 1  # loops like this one, each with its own workers, on the same cores
    inline_s: float = 0.0  # CPU per batch that the training process prepares itself (0 workers)
    prepare_s: float = 0.0  # CPU per batch in a worker, including the copy into /dev/shm
    read_s: float = 0.0  # time per batch spent waiting for reads, which occupies no core
    # Number of other busy workers -> seconds from the end of a batch until the loop can take it;
    # neither the batch's worker nor the loop spends this time
    deliver_s: Table = ()
    # Number of other busy workers -> seconds of the training process to take a batch that is ready.
    # It occupies a core for as long as it takes without them
    receive_s: Table = ()
    # Number of busy workers -> seconds by which the loop wakes late after the accelerator's share
    wake_s: Table = ()
    release_s: float = 0.0  # CPU to release the batch after the step
    step_cpu_s: float = 0.0  # CPU of one thread of a training step
    step_threads: int = 1
    step_wait_s: float = 0.0  # the accelerator's share of a step
    run_ahead: int = 0  # steps that may be queued or running on it when the loop goes on
    launch_overlaps: bool = False  # it begins a step while the loop launches it, not afterwards
    # CPU with which a thread of the training process copies a batch to pinned memory; None: there
    # is no such thread, and the loop takes batches from /dev/shm
    pin_s: float | None = None
    # Time until the loop can request its first batch; persistent workers spend it only once
    start_s: float = 0.0
    ready_s: float = 0.0  # CPU of one worker, or of the training process, before its first batch
    # The tables below hold slowdown factors; CPU is relative to an even share of the cores
    shared: Table = ()  # by the number of processes that compute at once
    read_slower: Table = ()  # of each read, by the number of processes that read at once
    step_beside: Table = ()  # of a multi-threaded step, by the number of processes beside it
    beside_step: Table = ()  # of these processes


@dataclass(frozen=True)
class SimulatedEpoch:
    """Result of a simulated epoch.

    The host's seconds sum to epoch_s, as in a trial. The `release_s` of all steps adds up to
    other_s.
    """

    start_s: float
    first_batch_s: float
    data_wait_s: float
    step_s: float
    other_s: float
    stalled_steps: int  # steps before which the accelerator was idle for longer than STALL_S
    max_gap_s: float  # the accelerator's longest idle gap
    # Largest number of batches in /dev/shm at once, including the one that the loop holds;
    # 0 without workers
    peak_batches: int
    # Number of workers that prepare while a batch is prepared, mean over the batches' CPU time
    preparing: float = 0.0

    @property
    def epoch_s(self) -> float:
        """Duration of the epoch."""
        return self.start_s + self.first_batch_s + self.data_wait_s + self.step_s + self.other_s

    @property
    def wait_fraction(self) -> float:
        """Fraction of the epoch that the loop spends waiting for batches, the first included."""
        return (self.first_batch_s + self.data_wait_s) / self.epoch_s if self.epoch_s else 0.0
