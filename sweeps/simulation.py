"""One epoch of a DataLoader, simulated: what it will take, from what a single batch costs. Pure Python, some milliseconds an epoch.

The one idea is to play the loader's own rules on shared cores. Batch i belongs to worker i mod W, which prepares its batches in order:
it waits for reads, then computes. At most P * W batches are on their way, and one more is asked for whenever the loop takes one. The
loop receives batches as they are finished, takes them in order, works, and lets go. Everything that computes shares C cores evenly, a
worker like a thread of the training step (processor sharing), slowed down further by what was measured where several processes, or a
step and processes, computed at once.

    took = simulate(Epoch(batches=48, workers=2, prefetch=2, cores=2, prepare_s=0.059, step_wait_s=0.025))
    took.epoch_s, took.fill_s, took.peak_batches

The rules are those of torch/utils/data/dataloader.py, _MultiProcessingDataLoaderIter.
"""

import heapq
import itertools
import math
from dataclasses import dataclass

Table = tuple[tuple[int, float], ...]  # (processes, what was measured beside so many), by processes

ROUNDING_S = 1e-12  # of sums of seconds
STALL_S = 1e-3  # an accelerator idle for longer than this between two steps has stalled, as speech.timing has it


@dataclass(frozen=True)
class Epoch:
    """What is known of an epoch before it runs. Seconds are those of a process that has a core to itself."""

    batches: int
    workers: int
    prefetch: int
    cores: int
    inline_s: float = 0.0  # CPU a batch where the training process prepares it itself: 0 workers
    prepare_s: float = 0.0  # CPU a batch in a worker, putting it into /dev/shm included
    read_s: float = 0.0  # waiting for the reads of a batch, which takes no core
    deliver_s: Table = ()  # other workers at work -> seconds from a batch's end until it can be taken; none of its worker's or the loop's
    receive_s: Table = ()  # other workers at work -> seconds of the training process to take a batch that is ready
    wake_s: Table = ()  # workers at work -> seconds by which it wakes late after the accelerator's share
    release_s: float = 0.0  # CPU to let it go after the step
    step_cpu_s: float = 0.0  # CPU of each thread of a training step
    step_threads: int = 1
    step_wait_s: float = 0.0  # the accelerator's share of a step, for which the host waits
    start_s: float = 0.0  # until the loop can ask for its first batch; workers that persist have it once
    ready_s: float = 0.0  # CPU of each worker, or of the training process, before its first batch
    # the rest: how many times slower than an even share of the cores
    shared: Table = ()  # processes that compute at once
    read_slower: Table = ()  # processes that read at once: how many times as long each waits
    step_beside: Table = ()  # a step of several threads, by processes that compute beside it
    beside_step: Table = ()  # these processes


def value_at(table: Table, processes: int, empty: float) -> float:
    """Linear between what was measured, and level beyond it; `empty` where nothing was."""
    if not table:
        return empty
    if processes <= table[0][0]:
        return table[0][1]
    for (below, low), (above, high) in itertools.pairwise(table):
        if processes <= above:
            return low + (high - low) * (processes - below) / (above - below)
    return table[-1][1]


@dataclass(frozen=True)
class Simulated:
    """How it went. The host's seconds sum to epoch_s, as a trial's do; `release_s` of all steps is its other_s."""

    start_s: float
    fill_s: float
    wait_s: float
    step_s: float
    other_s: float
    stalled_steps: int  # steps the accelerator came to late
    max_gap_s: float  # its longest pause
    peak_batches: int  # most batches that lay in /dev/shm at once, the one in the loop's hands included; 0 without workers

    @property
    def epoch_s(self) -> float:
        return self.start_s + self.fill_s + self.wait_s + self.step_s + self.other_s

    @property
    def wait_fraction(self) -> float:
        return (self.fill_s + self.wait_s) / self.epoch_s if self.epoch_s else 0.0


def simulate(epoch: Epoch) -> Simulated:
    """Plays the epoch from its start to the end of its last step."""
    return _Loop(epoch).play() if epoch.workers else _alone(epoch)


def _alone(epoch: Epoch) -> Simulated:
    """The training process prepares each batch itself, and nothing happens beside anything."""
    prepare_s = epoch.inline_s + epoch.read_s
    step_s = epoch.step_cpu_s * max(1, epoch.step_threads / epoch.cores) + epoch.step_wait_s
    if epoch.step_wait_s:
        step_s += value_at(epoch.wake_s, 0, 0.0)
    busy_s = epoch.step_wait_s or step_s
    gap_s = prepare_s + epoch.release_s + step_s - busy_s
    late = epoch.batches - 1
    return Simulated(
        start_s=0.0,
        fill_s=epoch.ready_s + prepare_s,
        wait_s=prepare_s * late,
        step_s=step_s * epoch.batches,
        other_s=epoch.release_s * epoch.batches,
        stalled_steps=late if gap_s > STALL_S else 0,
        max_gap_s=gap_s if late else 0.0,
        peak_batches=0,
    )


class _Loop:
    """The state of a simulated epoch. Work is measured in `shares`: CPU seconds that every worker at work has been given so far."""

    def __init__(self, epoch: Epoch):
        self.epoch = epoch
        self.now = epoch.start_s
        self.shares = 0.0
        self.computing: list[tuple[float, int]] = []  # heap: (shares at which it is done, worker)
        self.reading: list[tuple[float, int]] = []  # heap: (moment at which it is done, worker)
        self.working = [False] * epoch.workers
        self.up = [not epoch.ready_s] * epoch.workers  # whether the worker has got itself ready
        self.turn = list(range(epoch.workers))  # worker -> the batch it has or will have next
        self.issued = min(epoch.batches, epoch.prefetch * epoch.workers)
        self.ready = [False] * epoch.batches
        self.received = [False] * epoch.batches
        self.delivered: list[tuple[float, int, int]] = []  # heap: (moment from which it can be taken, sequence, batch), until received
        self.sequence = itertools.count()
        self.lying = self.peak = 0
        cores, threads, counts = epoch.cores, epoch.step_threads, range(epoch.workers + 1)
        # by the number of workers at work: how fast each is, how fast the loop is
        self.alone = [(min(1.0, cores / max(n, 1)) / value_at(epoch.shared, n, 1.0), 0.0) for n in counts]
        even = [min(1.0, cores / (n + 1)) / value_at(epoch.shared, n + 1, 1.0) for n in counts]
        self.sharing = [(rate, rate) for rate in even]
        self.stepping = self.sharing
        if threads > 1 or epoch.step_beside:
            fair = [min(1.0, cores / (n + threads)) for n in counts]
            workers = [fair[n] / value_at(epoch.beside_step, n, 1.0) for n in counts]
            loop = [fair[0]] + [fair[n] / value_at(epoch.step_beside, n, 1.0) for n in counts[1:]]
            self.stepping = list(zip(workers, loop, strict=True))

    def play(self) -> Simulated:
        epoch = self.epoch
        spans = {"fill_s": 0.0, "wait_s": 0.0, "step_s": 0.0, "other_s": 0.0}
        busy: list[tuple[float, float]] = []
        for worker in range(epoch.workers):
            self._begin(worker)
        for batch in range(epoch.batches):
            asked = self.now
            self._receive(batch)
            if self.issued < epoch.batches:
                self.issued += 1
                self._begin((self.issued - 1) % epoch.workers)
            began = self.now
            spans["wait_s" if batch else "fill_s"] += began - asked
            self._compute(epoch.step_cpu_s, self.stepping)
            launched = self.now
            if epoch.step_wait_s:
                self._wait(epoch.step_wait_s + value_at(epoch.wake_s, len(self.computing), 0.0))
            ended = self.now
            busy.append((launched, launched + epoch.step_wait_s) if epoch.step_wait_s else (began, ended))
            spans["step_s"] += ended - began
            self._compute(epoch.release_s, self.sharing)
            self.lying -= 1
            spans["other_s"] += self.now - ended
        gaps = [begin - end for (_, end), (begin, _) in itertools.pairwise(busy)]
        late = sum(gap > STALL_S for gap in gaps)
        return Simulated(epoch.start_s, **spans, stalled_steps=late, max_gap_s=max(gaps, default=0.0), peak_batches=self.peak)

    def _begin(self, worker: int) -> None:
        """The worker starts on its next batch, where it is idle and one was asked for; before its first it gets itself ready."""
        if self.working[worker] or self.turn[worker] >= self.issued:
            return
        self.working[worker] = True
        if not self.up[worker]:
            heapq.heappush(self.computing, (self.shares + self.epoch.ready_s, worker))
        elif self.epoch.read_s:
            read_s = self.epoch.read_s * value_at(self.epoch.read_slower, len(self.reading) + 1, 1.0)
            heapq.heappush(self.reading, (self.now + read_s, worker))
        else:
            heapq.heappush(self.computing, (self.shares + self.epoch.prepare_s, worker))

    def _receive(self, batch: int) -> None:
        """The loop takes what workers have finished, first come first served, until the batch whose turn it is has come."""
        while not self.received[batch]:
            while not self.delivered or self.delivered[0][0] > self.now:
                self._go_on(self.alone, until=self.delivered[0][0] if self.delivered else math.inf)
            taken = heapq.heappop(self.delivered)[-1]
            self._wait(value_at(self.epoch.receive_s, self._others(taken % self.epoch.workers), 0.0))
            self.received[taken] = True

    def _others(self, worker: int) -> int:
        """Workers that compute beside this one."""
        return sum(other != worker for _, other in self.computing)

    def _wait(self, seconds: float) -> None:
        """The loop waits, and takes no core."""
        until = self.now + seconds
        while self.now < until:
            self._go_on(self.alone, until=until)

    def _compute(self, cpu_s: float, rates: list[tuple[float, float]]) -> None:
        """The loop computes until it has been given `cpu_s`."""
        while cpu_s > ROUNDING_S:
            cpu_s -= self._go_on(rates, cpu_s)

    def _go_on(self, rates: list[tuple[float, float]], cpu_s: float = 0.0, until: float = math.inf) -> float:
        """To whatever comes first: a worker has read or prepared, the loop has been given `cpu_s`, or it is `until`.

        Returns what the loop has been given.
        """
        rate, own_rate = rates[len(self.computing)]
        own = self.now + cpu_s / own_rate if cpu_s else math.inf
        prepared = self.now + (self.computing[0][0] - self.shares) / rate if self.computing else math.inf
        at = min(until, own, prepared, self.reading[0][0] if self.reading else math.inf)
        # what ends now has all it asked for: a remainder below the clock's last digit would never be worked off
        given = cpu_s if at == own else (at - self.now) * own_rate
        self.shares = self.computing[0][0] if at == prepared else self.shares + (at - self.now) * rate
        self.now = at
        while self.reading and self.reading[0][0] <= at:
            worker = heapq.heappop(self.reading)[1]
            heapq.heappush(self.computing, (self.shares + self.epoch.prepare_s, worker))
        done, crowded = [], len(self.computing) > self.epoch.cores
        while self.computing and self.computing[0][0] <= self.shares + ROUNDING_S:
            done.append(heapq.heappop(self.computing)[1])
        if crowded:  # in which order those end that shared cores is chance: the batch whose turn it is comes neither first nor last
            done = done[len(done) // 2 :] + done[: len(done) // 2]
        for worker in done:
            self._end(worker)
        return given

    def _end(self, worker: int) -> None:
        """The worker has prepared its batch, or got itself ready, and goes on."""
        self.working[worker] = False
        if not self.up[worker]:
            self.up[worker] = True
            self._begin(worker)
            return
        made = self.turn[worker]
        self.ready[made] = True
        self.lying += 1
        self.peak = max(self.peak, self.lying)
        self.turn[worker] += self.epoch.workers
        self._begin(worker)
        late_s = value_at(self.epoch.deliver_s, self._others(worker), 0.0)
        heapq.heappush(self.delivered, (self.now + late_s, next(self.sequence), made))
