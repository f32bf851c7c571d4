"""What lies in a corpus's folder and is no clip: counted by kind, in a number of lines that doesn't
grow with the folder."""

from pathlib import Path

from speech.listing import MAX_KINDS, list_files


def test_a_folder_of_a_thousand_extensions_is_told_in_a_few_lines(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number in range(1000):
        (tmp_path / "a" / f"log.{number}").touch()
    left_out = list_files(tmp_path).left_out
    assert len(left_out) == MAX_KINDS + 1
    assert sum(each.number for each in left_out) == 1000
