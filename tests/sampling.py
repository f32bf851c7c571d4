"""Chooses which cases of a long list a run takes: all of them, or a part that changes daily."""

import datetime
import os
from collections.abc import Sequence
from typing import TypeVar

Case = TypeVar("Case")


def sample(cases: Sequence[Case]) -> list[Case]:
    """Returns all cases, or with SAMPLE=n in the environment every n-th, starting by the day."""
    every = int(os.environ.get("SAMPLE", "1"))
    return list(cases[datetime.date.today().toordinal() % every :: every])
