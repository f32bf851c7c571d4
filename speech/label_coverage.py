"""Checks that every label has clips in every split."""

from collections.abc import Iterable, Sequence

from speech.corpus_config import Corpus
from speech.findings import Findings, format_list
from speech.split_lists import LISTS, SplitLists
from speech.splits import SPLITS


def check_label_coverage(
    filled: set[tuple[str, str]],
    labels: Sequence[str],
    speakers: Iterable[str],
    lists: SplitLists,
    config: Corpus,
    findings: Findings,
) -> None:
    """Adds a fault if a label has no clip in training or validation.

    Without a clip in testing, the test split can't be used, and `findings.untestable` is set.
    `filled` holds every (label, split) with a clip.
    """
    missing = {
        split: [label for label in labels if (label, split) not in filled] for split in SPLITS
    }
    remedy = _format_remedy(set(speakers), lists, config)
    label_lines = [
        f"{label!r} in {' and '.join(splits)}"
        for label in labels
        if (splits := [split for split in SPLITS[:2] if label in missing[split]])
    ]
    if label_lines and not lists.faults:
        findings.faults.append(
            f"{len(label_lines)} labels have no usable clip:\n{format_list(label_lines)}\n"
            f"    {remedy}."
        )
    if missing["testing"]:
        findings.untestable = _describe_untestable(missing["testing"], remedy, lists, config)


def _format_remedy(speakers: set[str], lists: SplitLists, config: Corpus) -> str:
    """Returns how to give every split a clip of every label."""
    remedy = (
        "Add clips of other speakers, decide the splits by"
        f" {' and '.join(LISTS.values())}, remove the label"
    )
    if len(speakers) == 1:
        remedy = f"corpus.speaker matches only one speaker, {next(iter(speakers))!r}. {remedy}"
    if not lists.splits and (config.split is None or config.split.by == "speaker"):
        remedy += (
            ", or write corpus.split: {by: clip}, which deals single clips: accuracy is then"
            " optimistic"
        )
    return remedy


def _describe_untestable(
    missing_labels: list[str], remedy: str, lists: SplitLists, config: Corpus
) -> str:
    """Returns the reason why the test split can't be used, and what to do."""
    if config.split is not None and not config.split.testing and not lists.splits:
        return "corpus.split.testing is 0"
    if lists.splits and "testing" not in lists.splits:
        return f"there is no {LISTS['testing']}. Add one"
    return f"it has no clip of {', '.join(missing_labels[:5])}. {remedy}"
