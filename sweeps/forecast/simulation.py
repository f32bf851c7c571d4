"""Simulation of one DataLoader epoch from the measured costs of a single batch.

The module is pure Python and takes some milliseconds an epoch. The simulation applies the loader's
own rules to shared cores:

- Batch i belongs to worker i mod W. A worker prepares its batches in order: it waits for reads,
  then computes.
- At most P * W batches are in progress. The loop requests one more whenever it takes one.
- The loop receives batches as they are finished, takes them in order, runs the step, and releases
  the batch.
- All computing processes and threads share C cores evenly (processor sharing); a worker counts
  like a thread of the training step. Measured slowdowns apply on top, where several processes, or
  a step and processes, computed at once.
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
from sweeps.forecast.simulation_types import STALL_S, Epoch, SimulatedEpoch

ROUNDING_S = 1e-12  # rounding error of sums of seconds


def simulate(epoch: Epoch) -> SimulatedEpoch:
    """Simulates the epoch from its start until the last batch has been released."""
    if epoch.workers:
        return _Loop(epoch).run()
    return _simulate_inline_under_quota(epoch) if epoch.cpus else _simulate_inline(epoch)


class _Quota:
    """Remaining CPU seconds of the current period. Every period starts with the full quota."""

    def __init__(self, epoch: Epoch):
        self.per_period_s, self.period_s = epoch.cores * epoch.period_s, epoch.period_s
        self.period_began, self.remaining_s = 0.0, self.per_period_s

    def next_change(self, now: float, used_cores: float) -> float:
        """Returns when `used_cores` busy cores use up the quota, or when the period ends if sooner.

        Starts a new period first if `now` lies beyond the current one.
        """
        passed = math.floor((now - self.period_began) / self.period_s + 1e-9)
        if passed > 0:
            self.period_began += passed * self.period_s
            self.remaining_s = self.per_period_s
        period_end = self.period_began + self.period_s
        if used_cores and self.remaining_s:
            return min(period_end, now + self.remaining_s / used_cores)
        return period_end

    def use(self, seconds: float, until_change: bool) -> None:
        """Subtracts used CPU seconds.

        `until_change` means that they were used until `next_change`. A remainder below the clock's
        last digit is then dropped.
        """
        self.remaining_s = max(self.remaining_s - seconds, 0.0)
        if until_change and self.remaining_s < 1e-9 * self.per_period_s:
            self.remaining_s = 0.0


def _simulate_inline_under_quota(epoch: Epoch) -> SimulatedEpoch:
    """Simulates the same as `_simulate_inline`, but computes only while the quota lasts."""
    quota, now = _Quota(epoch), 0.0
    cpus = epoch.cpus or 1
    spans = {"first_batch_s": 0.0, "data_wait_s": 0.0, "step_s": 0.0, "other_s": 0.0}
    busy: list[tuple[float, float]] = []

    def compute(cpu_s: float, threads: int = 1) -> None:
        nonlocal now
        remaining_s, used_cores, cpu_s = cpu_s * max(1.0, threads / cpus), min(threads, cpus), 0.0
        while remaining_s > ROUNDING_S:
            change = quota.next_change(now, used_cores)
            if not quota.remaining_s:
                now = change
                continue
            span_s = min(remaining_s, change - now)
            quota.use(span_s * used_cores, span_s < remaining_s)
            now, remaining_s = (
                (change if span_s < remaining_s else now + span_s),
                remaining_s - span_s,
            )

    for batch in range(epoch.batches):
        wait_began = now
        compute((0.0 if batch else epoch.ready_s) + epoch.inline_s)
        now += epoch.read_s
        began = now
        compute(epoch.step_cpu_s, epoch.step_threads)
        launched = now
        now += epoch.step_wait_s + (interpolate(epoch.wake_s, 0, 0.0) if epoch.step_wait_s else 0.0)
        ended = now
        busy.append(
            (launched, launched + epoch.step_wait_s) if epoch.step_wait_s else (began, ended)
        )
        compute(epoch.release_s)
        spans["data_wait_s" if batch else "first_batch_s"] += began - wait_began
        spans["step_s"] += ended - began
        spans["other_s"] += now - ended
    stalled, longest_s = _accelerator_gaps(busy)
    return SimulatedEpoch(0.0, **spans, stalled_steps=stalled, max_gap_s=longest_s, peak_batches=0)


def _accelerator_gaps(busy: list[tuple[float, float]]) -> tuple[int, float]:
    """Returns the number of steps that began after a stall, and the longest gap in seconds.

    `busy` lists the begin and end of the accelerator's work, a step each.
    """
    gaps = [begin - end for (_, end), (begin, _) in itertools.pairwise(busy)]
    return sum(gap > STALL_S for gap in gaps), max(gaps, default=0.0)


def _simulate_inline(epoch: Epoch) -> SimulatedEpoch:
    """Simulates an epoch without workers: the training process prepares and trains in turn."""
    prepare_s = epoch.inline_s + epoch.read_s
    step_s = epoch.step_cpu_s * max(1, epoch.step_threads / epoch.cores) + epoch.step_wait_s
    if epoch.step_wait_s:
        step_s += interpolate(epoch.wake_s, 0, 0.0)
    busy_s = epoch.step_wait_s or step_s
    gap_s = prepare_s + epoch.release_s + step_s - busy_s
    later_batches = epoch.batches - 1
    return SimulatedEpoch(
        start_s=0.0,
        first_batch_s=epoch.ready_s + prepare_s,
        data_wait_s=prepare_s * later_batches,
        step_s=step_s * epoch.batches,
        other_s=epoch.release_s * epoch.batches,
        stalled_steps=later_batches if gap_s > STALL_S else 0,
        max_gap_s=gap_s if later_batches else 0.0,
        peak_batches=0,
    )


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
        self.quota = _Quota(epoch) if epoch.cpus else None
        cores, threads, counts = (
            epoch.cpus or epoch.cores,
            epoch.step_threads,
            range(epoch.workers + 1),
        )
        # By number of busy workers: rate of a worker, rate of the loop, number of busy cores
        self.waiting_rates = [
            (min(1.0, cores / max(n, 1)) / interpolate(epoch.shared, n, 1.0), 0.0, min(n, cores))
            for n in counts
        ]
        even = [min(1.0, cores / (n + 1)) / interpolate(epoch.shared, n + 1, 1.0) for n in counts]
        self.shared_rates = [(rate, rate, min(n + 1, cores)) for n, rate in enumerate(even)]
        self.step_rates = self.shared_rates
        if threads > 1 or epoch.step_beside:
            fair = [min(1.0, cores / (n + threads)) for n in counts]
            workers = [fair[n] / interpolate(epoch.beside_step, n, 1.0) for n in counts]
            loop = [fair[0]] + [
                fair[n] / interpolate(epoch.step_beside, n, 1.0) for n in counts[1:]
            ]
            self.step_rates = list(
                zip(workers, loop, [min(n + threads, cores) for n in counts], strict=True)
            )

    def run(self) -> SimulatedEpoch:
        """Runs the epoch to its end and returns its times."""
        epoch = self.epoch
        spans = {"first_batch_s": 0.0, "data_wait_s": 0.0, "step_s": 0.0, "other_s": 0.0}
        busy: list[tuple[float, float]] = []
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
            launched = self.now
            if epoch.step_wait_s:
                self._wait(epoch.step_wait_s + interpolate(epoch.wake_s, len(self.computing), 0.0))
            ended = self.now
            busy.append(
                (launched, launched + epoch.step_wait_s) if epoch.step_wait_s else (began, ended)
            )
            spans["step_s"] += ended - began
            self._compute(epoch.release_s, self.shared_rates)
            self.in_shm -= 1
            spans["other_s"] += self.now - ended
        stalled, longest_s = _accelerator_gaps(busy)
        return SimulatedEpoch(
            epoch.start_s,
            **spans,
            stalled_steps=stalled,
            max_gap_s=longest_s,
            peak_batches=self.peak,
            preparing=self.shared_preparation_s / max(self.preparation_s, ROUNDING_S),
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
            read_s = self.epoch.read_s * interpolate(
                self.epoch.read_slower, len(self.reading) + 1, 1.0
            )
            heapq.heappush(self.reading, (self.now + read_s, worker))
        else:
            heapq.heappush(self.computing, (self.shares + self.epoch.prepare_s, worker))

    def _receive(self, batch: int) -> None:
        """Takes finished batches in the order of their delivery until `batch` is among them."""
        while not self.received[batch]:
            while not self.delivered or self.delivered[0][0] > self.now:
                self._advance(
                    self.waiting_rates, until=self.delivered[0][0] if self.delivered else math.inf
                )
            taken = heapq.heappop(self.delivered)[-1]
            self._wait(
                interpolate(self.epoch.receive_s, self._others(taken % self.epoch.workers), 0.0)
            )
            self.received[taken] = True

    def _others(self, worker: int) -> int:
        """Returns how many workers compute beside this one."""
        return sum(other != worker for _, other in self.computing)

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
        self.preparation_s += busy * (at - self.now)
        self.shared_preparation_s += busy * busy * (at - self.now)
        self.now = at
        while self.reading and self.reading[0][0] <= at:
            worker = heapq.heappop(self.reading)[1]
            heapq.heappush(self.computing, (self.shares + self.epoch.prepare_s, worker))
        finished, crowded = [], len(self.computing) > self.epoch.cores
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
        """Ends a worker's batch, or its initialisation, and starts its next batch."""
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
