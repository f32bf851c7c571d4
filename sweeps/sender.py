"""Sends a trial's outbox while the trial runs, in a thread of the process that relays it: the trial's pipe is read on meanwhile.

While the trial runs, sending takes at most 0.5 % of the time from it: after each operation the thread rests for 200 times what it has
computed, so that of very short epochs some are sent after the trial's end. A tracker that is away is tried again after 1, 2, 4 ... 30 s.
`flush` is how the relay waits, before the trial starts and after it has ended, never while it runs: until all is sent, as fast as it goes,
or the tracker is known to be away.
"""

import threading
import time
from types import TracebackType
from typing import Any

from sweeps.away import is_away
from sweeps.outbox import Outbox
from sweeps.tracking import Tracking

LONGEST_WAIT_S = 30.0
SHARE = 0.005  # of the time of a core that a trial may want too


class Sender:
    """An outbox and the thread that sends it. Leaving the context ends the thread; what is not sent then stays in the outbox."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.tracking: Tracking | None = None  # once it has been reached
        self._changed = threading.Condition()
        self._begun = self._ended = self._failed = 0  # attempts at sending an operation; of the failed ones the latest
        self._urged = self._closing = self._refused = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Sender":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self.outbox.close()

    def put(self, call: str, **arguments: Any) -> None:
        """Adds an operation to the outbox; it is on disk when this returns."""
        self.outbox.put(call, **arguments)
        with self._changed:
            self._changed.notify_all()

    def flush(self) -> bool:
        """Waits until everything is sent, or until an attempt at it has failed; returns whether it is."""
        with self._changed:
            before = self._ended  # an attempt that is under way counts
            self._urged = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self.outbox.waiting or self._failed > before or self._refused)
            self._urged = False
            return not self.outbox.waiting

    def _run(self) -> None:
        wait_s = 1.0
        while self._is_wanted():
            self._begun += 1
            computed_s = -time.thread_time()
            try:
                self.tracking = self.tracking or Tracking(self.outbox.head["uri"], self.outbox.head["experiment"])
                self.outbox.send_next(self.tracking)
            except Exception as error:  # whatever it is, the trial goes on, and what it records stays in the outbox
                self._done(failed=True, refused=not is_away(error))
                self._rest(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            else:
                self._done()
                wait_s = 1.0
                self._rest((computed_s + time.thread_time()) / SHARE)

    def _is_wanted(self) -> bool:
        """Waits for something to send; False once there is nothing to wait for."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self.outbox.waiting)
            return not (self._closing or self._refused)

    def _done(self, failed: bool = False, refused: bool = False) -> None:
        with self._changed:
            self._ended = self._begun
            if failed:
                self._failed, self._urged = self._begun, False
            self._refused = refused
            self._changed.notify_all()

    def _rest(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._urged or self._refused, seconds)
