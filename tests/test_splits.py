"""The speaker of a clip, by its path."""

from speech.splits import speaker_of


def test_a_pattern_with_a_slash_finds_the_folder() -> None:
    assert speaker_of("yes/alice/01.wav", "^(.+?)/") == "alice"
    assert speaker_of("yes/alice/01.wav", "^(.+?)_nohash_") == "alice/01"
