"""Simulation of one DataLoader epoch from the measured costs of a single batch.

The module is pure Python and takes some milliseconds an epoch. The simulation applies the loader's
own rules to shared cores:

- Batch i belongs to worker i mod W. A worker prepares its batches in order: it waits for reads,
  then computes.
- At most P * W batches are in progress. The loop requests one more whenever it takes one.
- The loop receives batches as they are finished, takes them in order, launches the step, and
  releases the batch. With pinned memory, a thread of the training process receives them instead,
  and copies each to pinned memory.
- An accelerator runs the launched steps one after the other. The loop goes on while at most
  `run_ahead` of them have not ended; the epoch ends when the last step does.
- All computing processes and threads share C cores evenly (processor sharing); a worker counts
  like a thread of the training step. Measured slowdowns apply on top, where several processes, or
  a step and processes, computed at once.
- Several ranks are loops like this one on the same cores. They run in step: each of this loop's
  processes has its like in every other rank, which computes when it does.
- A CPU quota grants all of them together a number of CPU seconds in every period. When these are
  used up, nothing computes until the period ends. Unused CPU seconds are lost, as in the kernel's
  CFS bandwidth control.

    simulated = simulate(
        Epoch(batches=48, workers=2, prefetch=2, cores=2, prepare_s=0.059, step_wait_s=0.025)
    )
    simulated.epoch_s, simulated.first_batch_s, simulated.peak_batches

The rules are those of torch/utils/data/dataloader.py, _MultiProcessingDataLoaderIter.
"""

import heapq
import itertools
import math

from speech.calibration.costs import interpolate
from sweeps.forecast.simulation_resources import ROUNDING_S, AcceleratorQueue, Quota
from sweeps.forecast.simulation_types import Epoch, SimulatedEpoch


def simulate(epoch: Epoch) -> SimulatedEpoch:
    """Simulates the epoch from its start until the last batch has been released."""
    return _Loop(epoch).run() if epoch.workers else _simulate_inline(epoch)


def _simulate_inline(epoch: Epoch) -> SimulatedEpoch:
    """Simulates an epoch without workers: the training process prepares every batch itself."""
    accelerator, now = AcceleratorQueue(epoch), 0.0
    quota, cpus = Quota(epoch) if epoch.cpus else None, epoch.cpus or epoch.cores
    spans = {"first_batch_s": 0.0, "data_wait_s": 0.0, "step_s": 0.0, "other_s": 0.0}
    wake_s = interpolate(epoch.wake_s, 0, 0.0)
    crowding = interpolate(epoch.shared, epoch.ranks, 1.0) if epoch.ranks > 1 else 1.0
    read_s = epoch.read_s * interpolate(epoch.read_slower, epoch.ranks, 1.0)

    def compute(cpu_s: float, threads: int = 1) -> None:
        nonlocal now
        computing = epoch.ranks * threads
        took_s = cpu_s * max(1.0, computing / cpus) * crowding
        now = quota.compute(now, took_s, min(computing, cpus)) if quota else now + took_s

    def wait_for(moment: float) -> None:
        nonlocal now
        if moment > now:
            now = moment + wake_s

    for batch in range(epoch.batches):
        wait_began = now
        compute((0.0 if batch else epoch.ready_s) + epoch.inline_s + (epoch.pin_s or 0.0))
        now += read_s
        began = now
        compute(epoch.step_cpu_s, epoch.step_threads)
        wait_for(accelerator.queue(began, now))
        ended = now
        compute(epoch.release_s)
        spans["data_wait_s" if batch else "first_batch_s"] += began - wait_began
        spans["step_s"] += ended - began
        spans["other_s"] += now - ended
    ended = now
    wait_for(accelerator.last_end)
    spans["step_s"] += now - ended
    stalled, longest_s = accelerator.gaps()
    return SimulatedEpoch(0.0, **spans, stalled_steps=stalled, max_gap_s=longest_s, peak_batches=0)


class _Loop:
    """State of a simulated epoch with workers.

    Work is measured in `shares`: the CPU seconds that every busy worker has received so far.
    """

    def __init__(self, epoch: Epoch):
        self.epoch = epoch
        self.now = epoch.start_s
        self.shares = 0.0
        self.computing: list[tuple[float, int]] = []  # heap: (shares at which it ends, worker)
        self.reading: list[tuple[float, int]] = []  # heap: (time at which it ends, worker)
        # The thread that pins batches is in both heaps under this number
        self.pin_thread = epoch.workers
        self.pinning: int | None = None  # batch that it receives or copies
        self.pinned: list[tuple[float, int, int]] = []  # as `delivered`, after it
        # Without other processes the loop and the batch's worker exchange messages all the time,
        # one after the other. What receiving takes longer beside others is waiting for a core
        self.receive_cpu_s = interpolate(epoch.receive_s, 0, 0.0)
        self.pin_cpu_s = self.receive_cpu_s + (epoch.pin_s or 0.0) + epoch.release_s
        self.working = [False] * epoch.workers
        self.initialised = [not epoch.ready_s] * epoch.workers  # per worker
        self.turn = list(range(epoch.workers))  # worker -> its current batch, or its next one
        self.requested = min(epoch.batches, epoch.prefetch * epoch.workers)
        self.ready = [False] * epoch.batches
        self.received = [False] * epoch.batches
        # Heap of batches not received yet: (time from which it can be taken, sequence, batch)
        self.delivered: list[tuple[float, int, int]] = []
        self.sequence = itertools.count()
        self.in_shm = self.peak = 0  # batches in /dev/shm now, and at most
        # Seconds of preparation, and the same weighted by the number of workers that prepared
        self.preparation_s = self.shared_preparation_s = 0.0
        self.quota = Quota(epoch) if epoch.cpus else None
        cores, threads, ranks = epoch.cpus or epoch.cores, epoch.step_threads, epoch.ranks
        counts = range(epoch.workers + (1 if epoch.pin_s is None else 2))
        # Every process of this loop has its like in every other rank, which computes when it does

        def share(processes: int) -> float:
            """Returns the share of a core of each of so many processes a rank."""
            return min(1.0, cores / max(ranks * processes, 1))

        def busy_cores(processes: int) -> float:
            return min(ranks * processes, cores)

        # By number of busy workers, with the thread that pins: rate of a worker, rate of the loop,
        # number of busy cores
        self.waiting_rates = [
            (share(n) / interpolate(epoch.shared, ranks * n, 1.0), 0.0, busy_cores(n))
            for n in counts
        ]
        even = [share(n + 1) / interpolate(epoch.shared, ranks * (n + 1), 1.0) for n in counts]
        self.shared_rates = [(rate, rate, busy_cores(n + 1)) for n, rate in enumerate(even)]
        self.step_rates = self.shared_rates
        if threads > 1 or epoch.step_beside:
            fair = [share(n + threads) for n in counts]
            workers = [fair[n] / interpolate(epoch.beside_step, ranks * n, 1.0) for n in counts]
            loop = [fair[0]] + [
                fair[n] / interpolate(epoch.step_beside, ranks * n, 1.0) for n in counts[1:]
            ]
            self.step_rates = list(
                zip(workers, loop, [busy_cores(n + threads) for n in counts], strict=True)
            )

    def run(self) -> SimulatedEpoch:
        """Runs the epoch to its end and returns its times."""
        epoch = self.epoch
        spans = {"first_batch_s": 0.0, "data_wait_s": 0.0, "step_s": 0.0, "other_s": 0.0}
        accelerator = AcceleratorQueue(epoch)
        for worker in range(epoch.workers):
            self._start_next(worker)
        for batch in range(epoch.batches):
            wait_began = self.now
            self._receive(batch)
            if self.requested < epoch.batches:
                self.requested += 1
                self._start_next((self.requested - 1) % epoch.workers)
            began = self.now
            spans["data_wait_s" if batch else "first_batch_s"] += began - wait_began
            self._compute(epoch.step_cpu_s, self.step_rates)
            self._wait_for(accelerator.queue(began, self.now))
            ended = self.now
            spans["step_s"] += ended - began
            if epoch.pin_s is None:
                self._compute(epoch.release_s, self.shared_rates)
                self.in_shm -= 1
            spans["other_s"] += self.now - ended
        ended = self.now
        self._wait_for(accelerator.last_end)
        spans["step_s"] += self.now - ended
        stalled, longest_s = accelerator.gaps()
        return SimulatedEpoch(
            epoch.start_s,
            **spans,
            stalled_steps=stalled,
            max_gap_s=longest_s,
            peak_batches=self.peak,
            preparing=epoch.ranks * self.shared_preparation_s / max(self.preparation_s, ROUNDING_S),
        )

    def _start_next(self, worker: int) -> None:
        """Starts the worker's next batch if the worker is idle and the batch was requested.

        A worker that has not been initialised spends its `ready_s` first.
        """
        if self.working[worker] or self.turn[worker] >= self.requested:
            return
        self.working[worker] = True
        if not self.initialised[worker]:
            heapq.heappush(self.computing, (self.shares + self.epoch.ready_s, worker))
        elif self.epoch.read_s:
            readers = 1 + sum(other != self.pin_thread for _, other in self.reading)
            slower = interpolate(self.epoch.read_slower, self.epoch.ranks * readers, 1.0)
            read_s = self.epoch.read_s * slower
            heapq.heappush(self.reading, (self.now + read_s, worker))
        else:
            heapq.heappush(self.computing, (self.shares + self.epoch.prepare_s, worker))

    def _receive(self, batch: int) -> None:
        """Takes finished batches in the order of their delivery until `batch` is among them."""
        pins = self.epoch.pin_s is not None
        queue = self.pinned if pins else self.delivered
        while not self.received[batch]:
            while not queue or queue[0][0] > self.now:
                self._advance(self.waiting_rates, until=queue[0][0] if queue else math.inf)
            taken = heapq.heappop(queue)[-1]
            if not pins:
                received = self.now + self._receive_s(taken)
                self._compute(self.receive_cpu_s, self.shared_rates)
                self._wait(received - self.now)
            self.received[taken] = True

    def _receive_s(self, batch: int) -> float:
        """Returns the seconds that the training process needs to receive a batch now."""
        return interpolate(self.epoch.receive_s, self._others(batch % self.epoch.workers), 0.0)

    def _pin_next(self) -> None:
        """Lets the thread that pins batches receive the next one, if there is one and it is
        idle.
        """
        if self.epoch.pin_s is None or self.pinning is not None or not self.delivered:
            return
        ready, _, self.pinning = heapq.heappop(self.delivered)
        waited = max(ready, self.now) + self._receive_s(self.pinning) - self.receive_cpu_s
        heapq.heappush(self.reading, (max(waited, self.now), self.pin_thread))

    def _finish_pinning(self, batch: int) -> None:
        """Passes a pinned batch to the loop; its space in /dev/shm is free."""
        self.in_shm -= 1
        heapq.heappush(self.pinned, (self.now, next(self.sequence), batch))
        self.pinning = None
        self._pin_next()

    def _others(self, worker: int) -> int:
        """Returns how many processes of all ranks compute beside this worker."""
        like_it = self.epoch.ranks - 1
        return like_it + self.epoch.ranks * sum(other != worker for _, other in self.computing)

    def _wait_for(self, moment: float) -> None:
        """Lets the loop wait until the accelerator reaches `moment`; it wakes up late."""
        if moment > self.now:
            computing = self.epoch.ranks * len(self.computing)
            wake_s = interpolate(self.epoch.wake_s, computing, 0.0)
            self._wait(moment - self.now + wake_s)

    def _wait(self, seconds: float) -> None:
        """Lets the loop wait for this time, in which it occupies no core."""
        until = self.now + seconds
        while self.now < until:
            self._advance(self.waiting_rates, until=until)

    def _compute(self, cpu_s: float, rates: list[tuple[float, float, float]]) -> None:
        """Lets the loop compute until it has received `cpu_s` CPU seconds."""
        while cpu_s > ROUNDING_S:
            cpu_s -= self._advance(rates, cpu_s)

    def _advance(
        self, rates: list[tuple[float, float, float]], cpu_s: float = 0.0, until: float = math.inf
    ) -> float:
        """Advances the clock to the next event, and returns the CPU seconds that the loop received.

        An event is: a worker has read or prepared a batch, the loop has received `cpu_s`, the quota
        changes, or the clock reaches `until`.
        """
        rate, own_rate, used_cores = rates[len(self.computing)]
        change = self.quota.next_change(self.now, used_cores) if self.quota else math.inf
        throttled = self.quota is not None and not self.quota.remaining_s
        own = self.now + cpu_s / own_rate if cpu_s and not throttled else math.inf
        prepared = (
            self.now + (self.computing[0][0] - self.shares) / rate
            if self.computing and not throttled
            else math.inf
        )
        at = min(until, own, prepared, change, self.reading[0][0] if self.reading else math.inf)
        if throttled:
            rate = own_rate = 0.0
        elif self.quota:
            self.quota.use(used_cores * (at - self.now), at == change)
        # What ends now has received its whole amount: a remainder below the clock's last digit
        # would never be worked off.
        own_cpu_s = cpu_s if at == own else (at - self.now) * own_rate
        self.shares = (
            self.computing[0][0] if at == prepared else self.shares + (at - self.now) * rate
        )
        busy = len(self.computing)
        if self.pinning is not None:
            busy = sum(worker != self.pin_thread for _, worker in self.computing)
        self.preparation_s += busy * (at - self.now)
        self.shared_preparation_s += busy * busy * (at - self.now)
        self.now = at
        while self.reading and self.reading[0][0] <= at:
            worker = heapq.heappop(self.reading)[1]
            cpu_s = self.pin_cpu_s if worker == self.pin_thread else self.epoch.prepare_s
            heapq.heappush(self.computing, (self.shares + cpu_s, worker))
        finished = []
        crowded = self.epoch.ranks * len(self.computing) > self.epoch.cores
        while self.computing and self.computing[0][0] <= self.shares + ROUNDING_S:
            finished.append(heapq.heappop(self.computing)[1])
        if crowded:
            # Workers that shared cores end in random order: the batch that the loop needs next
            # comes neither first nor last
            finished = finished[len(finished) // 2 :] + finished[: len(finished) // 2]
        for worker in finished:
            self._finish(worker)
        return own_cpu_s

    def _finish(self, worker: int) -> None:
        """Ends a worker's batch, or its initialisation, and starts its next batch.

        Ends the batch of the thread that pins likewise.
        """
        if worker == self.pin_thread and self.pinning is not None:
            self._finish_pinning(self.pinning)
            return
        self.working[worker] = False
        if not self.initialised[worker]:
            self.initialised[worker] = True
            self._start_next(worker)
            return
        batch = self.turn[worker]
        self.ready[batch] = True
        self.in_shm += 1
        self.peak = max(self.peak, self.in_shm)
        self.turn[worker] += self.epoch.workers
        self._start_next(worker)
        late_s = interpolate(self.epoch.deliver_s, self._others(worker), 0.0)
        heapq.heappush(self.delivered, (self.now + late_s, next(self.sequence), batch))
        self._pin_next()
