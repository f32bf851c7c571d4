"""Suggestions for misspelt words."""

from speech.spelling import did_you_mean, similar_word


def test_the_most_similar_word_is_suggested() -> None:
    words = {"num_workers": 1, "batch_size": 2, "num_worker_threads": 3}
    assert similar_word("num_worker", words) == "num_workers"
    assert did_you_mean("num_worker", words) == " Did you mean num_workers?"


def test_nothing_is_suggested_for_a_word_that_resembles_none() -> None:
    assert similar_word("xyz", ["num_workers"]) is None
    assert did_you_mean("xyz", []) == ""
