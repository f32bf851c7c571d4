"""Checks figures of a calibration that must agree, since they are the cost of the same work.

Undisturbed values may still be wrong, for example if a neighbour of a virtual machine held the
cores, which no counter of this machine shows. Such costs would be wrong in every forecast.
"""

from speech.calibration.costs import LoaderCosts

MAX_RATIO = 2.0  # between two measurements of the same preparation
NEGLIGIBLE_S = 0.002  # differences below are no reason for a complaint
BYTES_PER_S = 0.5e9  # slower than any memory that a batch is copied to and read from


class Disagreement(RuntimeError):
    """Reports that two figures of a calibration contradict each other."""


def find_disagreement(costs: LoaderCosts) -> str | None:
    """Returns a sentence on two figures that contradict each other, or None.

    A batch takes the same time on one thread of the training process, in a plain process and in a
    worker, whose only further work is to copy it to /dev/shm. A batch that is ready there is
    received in the time of a message, or of reading its bytes at most.
    """
    plain_s = (1 - costs.sending) * costs.prepare_s
    copy_s = NEGLIGIBLE_S + costs.batch_bytes / BYTES_PER_S
    larger_s, smaller_s = max(costs.inline_s, plain_s), min(costs.inline_s, plain_s)
    # Waits for reads were subtracted from both, and vary
    if larger_s > MAX_RATIO * smaller_s + NEGLIGIBLE_S + costs.read_s:
        return (
            f"preparing a batch took {_ms(costs.inline_s)} in the training process and"
            f" {_ms(plain_s)} in another process, for the same work on one thread"
        )
    if costs.prepare_s > MAX_RATIO * plain_s + copy_s + costs.read_s:
        return (
            f"preparing a batch took {_ms(costs.prepare_s)} in a worker and {_ms(plain_s)} in a"
            f" plain process; the copy of {costs.batch_bytes:,} bytes to /dev/shm explains"
            f" {_ms(copy_s)} at most"
        )
    receive_s = dict(costs.receive_s).get(0, 0.0)
    if receive_s > copy_s and costs.cpus is None:  # a quota may hold the loop back meanwhile
        return (
            f"receiving a batch that was ready took {_ms(receive_s)}; its {costs.batch_bytes:,}"
            f" bytes explain {_ms(copy_s)} at most"
        )
    return None


def _ms(seconds: float) -> str:
    """Returns a duration for people."""
    return f"{1000 * seconds:.1f} ms"
