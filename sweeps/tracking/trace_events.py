"""Makes the events of a trace in Chrome's Trace Event format: spans, counters and names of lanes.

A lane is a thread of the viewer. Its id says which rank and which part of it the lane shows.
"""

from collections.abc import Iterator, Sequence
from typing import Any

Event = dict[str, Any]

# One process id for all events. Perfetto unfolds a process only if it is the only one, and shows
# its threads by id and its counters below
TRIAL = 1
# Thread ids; the third is that of worker 0, and 0 would be the idle task
TRAINING, ACCELERATOR, FIRST_WORKER = 1, 2, 10
RANK_THREADS = 2000  # thread ids of a rank; it has at most 1,024 workers


def name_lanes(events: Sequence[Event]) -> Iterator[Event]:
    """Yields the names of all lanes, and their order."""
    yield {"ph": "M", "pid": TRIAL, "name": "process_name", "args": {"name": "trial"}}
    threads = sorted({event["tid"] for event in events if "tid" in event})
    has_ranks = any(thread >= RANK_THREADS for thread in threads)
    for thread in threads:
        rank, lane = divmod(thread, RANK_THREADS)
        worker = lane - FIRST_WORKER
        loader = f"worker {worker}" if worker >= 0 else "loader, in the training process"
        name = {TRAINING: "training process", ACCELERATOR: "accelerator"}.get(lane, loader)
        name = f"rank {rank}: {name}" if has_ranks else name
        yield {
            "ph": "M",
            "pid": TRIAL,
            "tid": thread,
            "name": "thread_name",
            "args": {"name": name},
        }
        yield {
            "ph": "M",
            "pid": TRIAL,
            "tid": thread,
            "name": "thread_sort_index",
            "args": {"sort_index": thread},
        }


def make_span(thread: int, name: str, begin: int, end: int, **args: Any) -> Event:
    """Returns a span of a thread; `begin` and `end` in microseconds."""
    return {
        "ph": "X",
        "pid": TRIAL,
        "tid": thread,
        "name": name,
        "ts": begin,
        "dur": end - begin,
    } | ({"args": args} if args else {})


def make_counter(counter: tuple[str, str], time: int, value: float) -> Event:
    """Returns a sample of a counter; `time` in microseconds."""
    name, series = counter
    return {"ph": "C", "pid": TRIAL, "name": name, "ts": time, "args": {series: value}}
