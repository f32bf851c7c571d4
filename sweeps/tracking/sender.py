"""Sends a trial's outbox in a thread of the process that relays the trial.

The relay continues to read the trial's pipe meanwhile. While the trial runs, sending takes at most
0.5 % of the trial's time. After every operation the thread pauses for 200 times the CPU time that
the operation took. With very short epochs, some operations are therefore sent after the trial's
end. An unavailable tracker is retried after 1, 2, 4 ... 30 s.

The relay calls `flush` before the trial starts and after it has ended, never while it runs. `flush`
sends without pauses, and waits until everything is sent or an attempt has failed.
"""

import threading
import time
from types import TracebackType
from typing import Any

from sweeps.tracking.mlflow_runs import RunLogger
from sweeps.tracking.outbox import Outbox
from sweeps.tracking.tracker_errors import is_unavailable

LONGEST_WAIT_S = 30.0
CPU_SHARE = 0.005  # of a core that the trial may need as well


class Sender:
    """Owns an outbox and the thread that sends it.

    Leaving the context ends the thread; unsent operations stay in the outbox.
    """

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.tracking: RunLogger | None = None  # set once the tracker has been reached
        self._changed = threading.Condition()
        # Numbers of the latest send attempts that have begun, have ended and have failed
        self._begun = self._ended = self._failed = 0
        self._flushing = self._closing = self._rejected = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Sender":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        stack: TracebackType | None,
    ) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self.outbox.close()

    def put(self, call: str, **arguments: Any) -> None:
        """Adds an operation to the outbox, which is in its file when this returns."""
        self.outbox.put(call, **arguments)
        with self._changed:
            self._changed.notify_all()

    def flush(self) -> bool:
        """Waits until everything is sent or a send attempt fails.

        Returns whether everything is sent.
        """
        with self._changed:
            last_ended = self._ended  # an attempt in progress counts as a new one
            self._flushing = True
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: not self.outbox.pending_count or self._failed > last_ended or self._rejected
            )
            self._flushing = False
            return not self.outbox.pending_count

    def _run(self) -> None:
        """Sends operations until the context closes or the tracker rejects one."""
        wait_s = 1.0
        while self._wait_for_operation():
            self._begun += 1
            computed_s = -time.thread_time()
            try:
                self.tracking = self.tracking or RunLogger(
                    self.outbox.head["uri"], self.outbox.head["experiment"]
                )
                self.outbox.send_next(self.tracking)
            except Exception as error:
                # After any error the trial continues, and its records stay in the outbox
                self._record_attempt(failed=True, rejected=not is_unavailable(error))
                self._pause(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            else:
                self._record_attempt()
                wait_s = 1.0
                self._pause((computed_s + time.thread_time()) / CPU_SHARE)

    def _wait_for_operation(self) -> bool:
        """Waits for an operation to send; returns False once no more operations are to be sent."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self.outbox.pending_count)
            return not (self._closing or self._rejected)

    def _record_attempt(self, failed: bool = False, rejected: bool = False) -> None:
        """Records the result of the latest send attempt, and notifies waiting threads."""
        with self._changed:
            self._ended = self._begun
            if failed:
                self._failed, self._flushing = self._begun, False
            self._rejected = rejected
            self._changed.notify_all()

    def _pause(self, seconds: float) -> None:
        """Waits for a time, or until a flush, a rejection or the context's end interrupts it."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closing or self._flushing or self._rejected, seconds
            )
