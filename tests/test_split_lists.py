"""The lists of a corpus: in every form in which they are saved, and with entries that can't be."""

from pathlib import Path

import pytest

from speech.sources import CorpusError
from speech.split_lists import read_lists

FILES = ["oui/a.wav", "oui/b.wav", "e\u0301/a.wav", "e\u0301/b.wav"]  # in the form of macOS


@pytest.mark.parametrize(
    "content",
    [
        "oui/a.wav\né/a.wav\n".encode("utf-8-sig"),
        "oui/a.wav\r\né/a.wav\r\n".encode("utf-16"),
        b"# held out\n.\\oui\\a.wav  \r\n./e\xcc\x81/a.wav\n",
        "clips/oui/a.wav\n/data/clips/é/a.wav".encode(),
    ],
    ids=["byte order mark", "UTF-16", "backslashes, comments, spaces", "folders above"],
)
def test_a_list_is_read_however_it_was_saved(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "validation_list.txt").write_bytes(content)
    (tmp_path / "testing_list.txt").write_text("oui/b.wav\noui/gone.wav\n")
    lists = read_lists(tmp_path, FILES)
    assert lists.listed == {
        "oui/a.wav": "validation",
        "e\u0301/a.wav": "validation",
        "oui/b.wav": "testing",
    }
    assert [note[:4] for note in lists.notes] == ["1 of"]
    assert lists.faults == []


def test_what_a_list_can_not_say_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "validation_list.txt").write_text("oui/a.wav\noui/b.wav\n")
    (tmp_path / "testing_list.txt").write_text("oui/b.wav\n")
    assert len(read_lists(tmp_path, FILES).faults) == 1
    (tmp_path / "testing_list.txt").write_text("non/b.wav\n")
    assert len(read_lists(tmp_path, FILES).faults) == 1
    (tmp_path / "testing_list.txt").write_bytes("oui/b.wav\né/b.wav".encode("latin-1"))
    with pytest.raises(CorpusError, match=r"testing_list.txt, line 2"):
        read_lists(tmp_path, FILES)
