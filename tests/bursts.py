"""A loader simulated in whole microseconds, and its epochs written down as a trial's records are.

W servers with a queue each: batch i goes to worker i mod W as soon as the loop has received batch i
- P * W, and the loop receives the batches in order. All times follow from the durations alone. Slow
workers all finish at about the same time, so batches come in bursts.
"""

from collections.abc import Callable
from typing import Any

SHM_LIMIT = 1 << 28
BATCH = 19_300_352  # bytes, whole pages
TRANSFER_US = 40  # until the loop has a batch that is ready


def uneven(step: int) -> int:
    """0.40 to 0.42 s in preparation."""
    return 400_000 + 7_919 * step % 20_011


def records(epochs: int = 2, workers: int = 8, **durations: Any) -> list[dict[str, Any]]:
    """setup, `epochs` epochs of which the first is warm-up, end and exit; `durations` as of
    `epoch`."""
    found: list[dict[str, Any]] = [
        {
            "kind": "setup",
            "device": "simulated",
            "device_name": "simulated accelerator: 25 ms a step",
            "batch_bytes": BATCH,
        }
    ]
    began_s = 0.25
    for number in range(epochs):
        found.append(epoch(number, began_s, workers, **durations))
        began_s = round(began_s + found[-1]["metrics"]["time/epoch_s"] + 0.01, 6)
    return [
        *found,
        {"kind": "end", "summary": {}},
        {"kind": "exit", "status": 0, "shm_limit_bytes": SHM_LIMIT},
    ]


def epoch(
    number: int,
    began_s: float,
    workers: int,
    *,
    steps: int = 48,
    prefetch: int = 2,
    fetch_us: Callable[[int], int] = uneven,
    step_us: int = 25_000,
    other_us: int = 300,
    worker_start_us: int = 5_000,
) -> dict[str, Any]:
    """One epoch's record. `fetch_us`: how long a batch is in preparation, by step."""
    servers, window = max(workers, 1), prefetch * workers
    # since when each one idles
    free = [worker_start_us * (1 + server) for server in range(workers)] or [0]
    asked: list[int] = []
    began: list[int] = []
    ended: list[int] = []
    received: list[int] = []
    done: list[int] = []
    now = start = worker_start_us * workers
    for step in range(steps):
        asked.append(now)
        sent = now if not workers else received[step - window] if step >= window else 0
        began.append(max(sent, free[step % servers]))
        ended.append(began[-1] + fetch_us(step))
        free[step % servers] = ended[-1]
        received.append(max(now, ended[-1]) + TRANSFER_US)
        done.append(received[-1] + step_us)
        now = done[-1] + other_us

    def in_use(time: int) -> int:
        return (
            BATCH * sum(end <= time < freed for end, freed in zip(ended, done, strict=True))
            if workers
            else 0
        )

    waits = [got - ask for ask, got in zip(asked, received, strict=True)]
    gaps = [got - before for before, got in zip(done, received[1:], strict=False)]
    return {
        "kind": "epoch",
        "epoch": number,
        "warmup": number == 0,
        "began_s": began_s,
        "metrics": {
            "time/epoch_s": now / 1e6,
            "time/start_s": start / 1e6,
            "time/first_batch_s": waits[0] / 1e6,
            "time/data_wait_s": sum(waits[1:]) / 1e6,
            "time/step_s": steps * step_us / 1e6,
            "time/other_s": steps * other_us / 1e6,
            "accelerator/busy_fraction": steps * step_us / now,
            "stall/steps": sum(gap > 1000 for gap in gaps),
            "stall/max_gap_s": max(gaps, default=0) / 1e6,
        },
        "steps": {
            "request_s": _seconds(asked),
            "data_wait_s": _seconds(waits),
            "step_s": [step_us / 1e6] * steps,
            "other_s": [other_us / 1e6] * steps,
            "shm_bytes": [in_use(time) for time in received],
        },
        "busy": {"begin_s": _seconds(received), "end_s": _seconds(done)},
        "fetches": {
            "step": list(range(steps)),
            "worker": [step % servers for step in range(steps)] if workers else [-1] * steps,
            "begin_s": _seconds(began),
            "end_s": _seconds(ended),
            "cpu_s": [fetch_us(step) / 4e6 for step in range(steps)],
            "read_bytes": [0] * steps,
            "shm_bytes": [in_use(time) for time in ended],
        },
    }


def _seconds(times_us: list[int]) -> list[float]:
    return [time / 1e6 for time in times_us]
