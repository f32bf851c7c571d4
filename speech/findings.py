"""Collects the findings of a corpus's scan: its faults, notes and exclusions, as lines of text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from speech.sources import CorpusError


@dataclass
class Findings:
    """The findings so far; every step of the scan adds its own."""

    faults: list[str] = field(default_factory=list)  # each stops the sweep
    notes: list[str] = field(default_factory=list)  # a user should know them
    exclusions: list[str] = field(default_factory=list)  # files that are not used, by reason
    untestable: str = ""  # why the test split can't be used, and the remedy

    def raise_faults(self, root: Path) -> None:
        """Raises a CorpusError that lists every fault and exclusion, if there is a fault."""
        if not self.faults:
            return
        count = f"{len(self.faults)} fault{'s' * (len(self.faults) > 1)}"
        raise CorpusError(
            "\n".join(
                [
                    f"corpus {root} has {count}:",
                    *(f"  {fault}" for fault in self.faults),
                    *(f"  excluded: {entry}" for entry in self.exclusions),
                ]
            )
        )


def format_list(items: Sequence[str], limit: int = 10) -> str:
    """Returns the first `limit` items, a line per item, and the number of further items."""
    remainder = [f"and {len(items) - limit} more"] if len(items) > limit else []
    return "\n".join(f"    {item}" for item in [*items[:limit], *remainder])
