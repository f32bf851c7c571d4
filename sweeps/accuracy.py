"""Describes the context of a displayed accuracy: largest label, and speakers shared between splits.

A classifier that always predicts the largest label scores that label's share. An accuracy near this
share therefore shows no learning. If clips were assigned to the splits one by one, the accuracy is
that on voices known from training. Runs older than these figures show neither.
"""

from collections.abc import Mapping

SHARED_SPEAKERS = "speakers shared between splits: optimistic"


def accuracy_context(figures: Mapping[str, float], prefix: str = "") -> str:
    """Returns the context of an accuracy, such as ' (largest label 33.3 %)', or ''.

    `figures` are those of a trial's summary. `prefix` is 'test_' for figures of the test split.
    """
    remarks = []
    if (share := figures.get(f"{prefix}largest_label_fraction")) is not None and share == share:
        remarks.append(f"largest label {100 * share:.1f} %")
    if figures.get("shared_speakers") == 1:
        remarks.append(SHARED_SPEAKERS)
    return f" ({', '.join(remarks)})" if remarks else ""
