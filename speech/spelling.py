"""Suggests the known word that a misspelt one probably stands for."""

import difflib
from collections.abc import Iterable


def similar_word(word: str, known: Iterable[str]) -> str | None:
    """Returns the known word that is most similar to `word`, or None if none is similar."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns ' Did you mean X?' with the most similar known word, or '' if none is similar.

    The text begins with a space, to follow a sentence.
    """
    similar = similar_word(word, known)
    return f" Did you mean {similar}?" if similar else ""
