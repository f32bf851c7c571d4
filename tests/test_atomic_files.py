"""Files that appear complete or not at all."""

import errno
import os

import pytest
import torch

from speech.atomic_files import name_file_in_errors, replace_file, save_atomically


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "weights.pt"
    save_atomically({"a": torch.ones(3)}, path)

    def fail(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        save_atomically({"a": torch.zeros(3)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_with_the_file(tmp_path) -> None:
    file = tmp_path / "full.pt"
    kernels = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    torchs = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
    for error in (kernels, torchs):
        with pytest.raises(OSError, match=r"full\.pt"), name_file_in_errors(file):
            raise error


def test_a_file_is_replaced_when_it_is_written_and_not_before(tmp_path) -> None:
    path = tmp_path / "folder" / "a.json"
    for text in ("first", "second"):
        with replace_file(path) as partial:
            partial.write_text(text)
            assert path.exists() == (text == "second")
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]
