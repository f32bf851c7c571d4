"""Runs a trial on several ranks: processes that train together, one for each accelerator.

Rank 0 is the training process itself. It forks the other ranks before it uses torch, since the
threads of tensor operations, and CUDA, do not survive a fork. They wait for its commands: an epoch,
or the end. Every rank has a loader of its own, with all of the configured workers, and trains on
its own part of every step's clips. Validation, snapshots and checkpoints are rank 0's.

    rank 0   fork ── prepare ── "epoch 0" ── train ── collect ── validate ── "epoch 1" ── ...
    rank 1      └─── prepare ── wait ─────── train ── send ───── wait ──────────────── ...

A rank that fails ends the trial with its error. A thread of rank 0 watches for that, because rank 0
itself may be waiting for the other rank inside a library.
"""

import json
import os
import select
import signal
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from speech.error_records import error_record, root_cause

Record = dict[str, Any]
Emit = Callable[[Record], None]
FAILURE_NOTICE_S = 2.0  # from an error of rank 0 to the notice of another rank's end that caused it


@dataclass(frozen=True)
class Member:
    """Holds what a rank needs to work with the others."""

    rank: int
    count: int  # of all ranks
    peers: list[Connection]  # one to each other rank
    meeting_file: Path  # where torch.distributed lets the ranks find each other
    _received: defaultdict[int, deque[float]] = field(default_factory=lambda: defaultdict(deque))

    def send_moment(self, moment_s: float) -> None:
        """Sends a moment of time.perf_counter, which all processes share, to every other rank."""
        self._read(timeout_s=0.0)
        for peer in self.peers:
            peer.send(moment_s)

    def receive_moments(self) -> list[float]:
        """Receives the next moment of every other rank; waits for those not yet sent."""
        while not all(self._received[number] for number in range(len(self.peers))):
            self._read(timeout_s=None)
        return [self._received[number].popleft() for number in range(len(self.peers))]

    def _read(self, timeout_s: float | None) -> None:
        """Reads what all other ranks have sent, whichever of them is waited for.

        Ranks whose messages nobody reads would fill the buffers between them, and wait for each
        other for ever.
        """
        while ready := wait(self.peers, timeout_s):
            for number, peer in enumerate(self.peers):
                if peer in ready:
                    self._received[number].append(peer.recv())
            timeout_s = 0.0


def single_rank() -> Member:
    """Returns the only rank of a trial without others."""
    return Member(0, 1, [], Path())


@dataclass(frozen=True)
class _Follower:
    """Holds what rank 0 knows of another rank."""

    rank: int
    pid: int
    process: int  # descriptor that becomes readable when the process has ended
    commands: Connection
    failure_file: int  # memory in which the rank leaves its error


class Ranks:
    """Starts the other ranks, commands them, and ends with them. Used by rank 0."""

    def __init__(
        self, count: int, folder: Path, follow: Callable[[Member, Iterator[int], Emit], None]
    ):
        """Forks ranks 1 to `count` - 1, each of which runs follow(member, epochs, send).

        `epochs` yields the numbers of the epochs that rank 0 commands, and `send` passes a record
        to it. `folder` exists as long as the trial, for the file where ranks meet.
        """
        meeting_file = folder / "meeting"
        pairs = {(i, j): Pipe() for i in range(count) for j in range(i + 1, count)}
        ends = [
            [pairs[min(i, j), max(i, j)][i > j] for j in range(count) if j != i]
            for i in range(count)
        ]
        members = [Member(rank, count, ends[rank], meeting_file) for rank in range(count)]
        self.member = members[0]
        self._followers: list[_Follower] = []
        self._emit_lock, self._failure_lock = threading.Lock(), threading.Lock()
        self._failed = self._ending = False
        for member in members[1:]:
            own, theirs = Pipe()
            failure_file = os.memfd_create("failure")
            pid = os.fork()
            if pid == 0:
                own.close()
                _close_others(member.rank, ends, [one.commands for one in self._followers])
                _run_follower(member, theirs, failure_file, follow)
            theirs.close()
            follower = _Follower(member.rank, pid, os.pidfd_open(pid), own, failure_file)
            self._followers.append(follower)
        _close_others(0, ends, [])

    def release(self) -> None:
        """Lets the other ranks prepare their training; until then they do nothing."""
        for follower in self._followers:
            follower.commands.send("prepare")

    def watch(self, emit: Emit) -> Emit:
        """Returns `emit` for rank 0, and lets a thread emit the error of a rank that fails.

        The thread then ends this process.
        """

        def emit_one(record: Record) -> None:
            with self._emit_lock:
                emit(record)

        threading.Thread(target=self._watch, args=(emit_one,), daemon=True).start()
        return emit_one

    def start_epoch(self, epoch: int) -> None:
        """Lets all other ranks train an epoch."""
        for follower in self._followers:
            follower.commands.send(epoch)

    def collect(self) -> list[Any]:
        """Returns the record that each other rank has sent of the epoch, by rank."""
        return [follower.commands.recv() for follower in self._followers]

    def end(self) -> None:
        """Ends the other ranks, and waits for them."""
        self._ending = True
        for follower in self._followers:
            follower.commands.send(None)
        for follower in self._followers:
            os.waitpid(follower.pid, 0)

    def emit_failure(self, emit: Emit) -> None:
        """Emits the error of another rank, if one ends within a moment.

        It is then the cause of an error that rank 0 has just met.
        """
        ended = self._wait_for_end(FAILURE_NOTICE_S)
        if ended:
            self._emit_once(ended, emit)

    def _watch(self, emit: Emit) -> None:
        """Waits until a rank ends; unless rank 0 ends the ranks, it has failed."""
        ended = self._wait_for_end(None)
        if ended and not self._ending:
            self._emit_once(ended, emit)
            os._exit(1)

    def _wait_for_end(self, timeout_s: float | None) -> _Follower | None:
        """Returns the first rank whose process has ended; None after the timeout."""
        by_descriptor = {follower.process: follower for follower in self._followers}
        ready = select.select(list(by_descriptor), [], [], timeout_s)[0]
        return by_descriptor[ready[0]] if ready else None

    def _emit_once(self, follower: _Follower, emit: Emit) -> None:
        """Emits the error of a rank that has ended, or waits until that was done."""
        with self._failure_lock:
            if not self._failed:
                emit(_failure_record(follower))
            self._failed = True


def _close_others(rank: int, ends: list[list[Connection]], more: list[Connection]) -> None:
    """Closes the connections that belong to other ranks, so that their end is noticed."""
    for owner, connections in enumerate(ends):
        for connection in connections if owner != rank else []:
            connection.close()
    for connection in more:
        connection.close()


def _run_follower(
    member: Member,
    commands: Connection,
    failure_file: int,
    follow: Callable[[Member, Iterator[int], Emit], None],
) -> None:
    """Runs a rank to its end; never returns. An error is left in `failure_file`."""
    code = 1
    try:
        if commands.recv() is not None:
            follow(member, iter(commands.recv, None), commands.send)
        code = 0
    except BaseException as error:
        os.write(failure_file, json.dumps(error_record(root_cause(error))).encode())
    finally:
        os._exit(code)


def _failure_record(follower: _Follower) -> Record:
    """Returns the error record of a rank that has ended: its own error, or how it was killed."""
    data = os.pread(follower.failure_file, os.fstat(follower.failure_file).st_size, 0)
    if data:
        record = json.loads(data)
        return {"kind": "error", **record, "message": f"{record['message']} (rank {follower.rank})"}
    status = os.waitstatus_to_exitcode(os.waitpid(follower.pid, 0)[1])
    how = (
        f"killed by signal: {signal.strsignal(-status)}"
        if status < 0
        else f"ended with status {status}"
    )
    message = f"rank {follower.rank} was {how}"
    return {"kind": "error", "type": "RankEnded", "message": message, "traceback": ""}
