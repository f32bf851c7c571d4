"""Tests the words that a trained sweep predicts: against the record of its own trial, and with wav
files that are no clips."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from launch import main
from speech import corpora
from speech.config import RuntimeSettings, Trial
from speech.evaluation import build_ensemble
from speech.learner import make_learner
from speech.loading import make_loader, prepare_forms
from speech.prediction import predict, read_wav
from speech.train import fit
from sweeps.tracking.mlflow_runs import TrialDescription
from tests.conftest import tracking_in
from tests.tones import WORDS

RATE = 16_000


def trained(config, folder) -> list[dict]:
    records: list[dict] = []
    prepare_forms(
        config, corpora.prepare_corpus(config.corpus, lambda line: None), lambda line: None
    )
    fit(
        Trial(
            config=config, seed=1, warmup_epochs=0, runtime=RuntimeSettings(), folder=str(folder)
        ),
        records.append,
    )
    return records


def validation_clips(config) -> list[Path]:
    corpus = corpora.prepare_corpus(config.corpus)
    return [corpus.root / clip.path for clip in corpus.split("validation")]


@pytest.fixture(scope="module")
def sweep(tone_trial, tmp_path_factory, empty_database):
    """Returns a sweep of a trained trial of two snapshots and a simulated trial."""
    folder = tmp_path_factory.mktemp("predict")
    tracking = tracking_in(folder, empty_database)
    config = tone_trial(sgdr={"epochs": 6, "cycle_epochs": 3, "lr": 0.02})
    records = trained(config, folder)
    parent = tracking.start_sweep(
        "tones", "name: tones\n", [{"trial_id": "a"}, {"trial_id": "b"}], ""
    )
    add_trial(tracking, parent, folder, "a", records)
    add_trial(
        tracking,
        parent,
        folder,
        "b",
        [{"kind": "setup"}, {"kind": "end", "summary": {"epoch_s": 1.0}}],
    )
    return tracking, config, records


def add_trial(tracking, parent, folder, key, records, keep=2, extra=None) -> str:
    """Stores a trial in the tracker, as relay.py does."""
    run = tracking.start_trial(
        parent, TrialDescription(key, "cycles", repeat=1, seed=1, swept={}, config={}, tags={})
    )
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    taken = [record["file"] for record in records if record["kind"] == "snapshot"][:keep]
    files = (
        {"records.jsonl": folder / "records.jsonl"}
        | {f"snapshots/{name}": folder / name for name in taken}
        | (extra or {})
    )
    tracking.finish_trial(run, "completed", "", records[-1]["summary"], artifacts=files)
    return run


def told(capsys, *arguments) -> tuple[int, str, str]:
    code = main(["predict", *map(str, arguments)])
    return (code, *capsys.readouterr())


def cells(line: str) -> list[str]:
    return [cell for cell in line.split("  ") if cell.strip()]


def test_on_validation_clips_it_predicts_what_the_trial_recorded(sweep, capsys) -> None:
    tracking, config, records = sweep
    clips = validation_clips(config)
    code, out, err = told(capsys, "tones", *clips, "--uri", tracking.uri)
    heading, _, *table = out.splitlines()
    end = records[-1]
    said = [line.split()[:5:2] for line in table[2:]]
    assert (code, err) == (0, "")
    assert [row[0] for row in said] == [str(clip) for clip in clips]
    confusion = [[0, 0], [0, 0]]
    for line in table[2:]:
        path, word, *_ = line.split()
        confusion[list(WORDS).index(Path(path).parent.name)][list(WORDS).index(word)] += 1
    assert confusion == end["confusion"]
    name, _, ensemble = heading.partition(": ")
    assert name == "cycles · repeat 1"
    assert "2 snapshots" in ensemble
    assert f" {100 * end['summary']['ensemble_accuracy']:.1f} %" in ensemble


@pytest.mark.parametrize("form", ["wav", "packed", "on_device", "png"])
def test_probabilities_are_those_of_the_trials_own_loader(tone_trial, tmp_path, form: str) -> None:
    """Compares clips read by the trial's validation loader with clips read from the files alone."""
    config = tone_trial(
        loader={"format": form},
        sgdr={"epochs": 2, "cycle_epochs": 1},
        features={"kinds": ["log_mel", "mfcc"]},
    )
    records = trained(config, tmp_path)
    trial, corpus = (
        Trial(config=config, seed=1, folder=str(tmp_path)),
        corpora.prepare_corpus(config.corpus),
    )
    loader, _ = make_loader(config, corpus, "validation", 1)
    theirs = build_ensemble(make_learner(trial, corpus, "cpu"), tmp_path, 2, loader).mean()
    setup = json.loads(json.dumps(records[0]))
    ours = predict(
        setup, tmp_path, [read_wav(path, config).waveform for path in validation_clips(config)]
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_any_wav_has_a_row_with_the_part_that_was_used(sweep, tmp_path, capsys) -> None:
    """Predicts a second of a tone at another rate and depth, in stereo, amid silence, and for a
    third of a second only."""
    tracking, *_ = sweep
    tone = 0.3 * np.sin(2 * np.pi * WORDS["high"] * np.arange(48_000) / 48_000)
    files = {
        "stereo.wav": (np.stack([tone, tone], axis=1), 48_000, "PCM_24"),
        "long.wav": (np.concatenate([np.zeros(24_000), tone, np.zeros(24_000)]), 48_000, "FLOAT"),
        "short.wav": (tone[:16_000], 48_000, "PCM_16"),
        "silence.wav": (np.zeros(RATE), RATE, "PCM_U8"),
    }
    for name, (wave, rate, depth) in files.items():
        soundfile.write(tmp_path / name, wave, rate, subtype=depth)
    code, out, err = told(
        capsys, "tones", *(tmp_path / name for name in files), "--uri", tracking.uri, "--top", 2
    )
    rows = {Path(line.split()[0]).name: line.split() for line in out.splitlines()[4:]}
    assert (code, err) == (0, "")
    assert [rows[name][1] for name in ("stereo.wav", "long.wav")] == ["high", "high"]
    assert [" ".join(rows[name][5:]) for name in files] == [
        "",
        "0.50 to 1.50 of 2.00 s",
        "0.33 s, padded to 1.00",
        "",
    ]
    assert all(
        float(row[2]) + float(row[4]) == pytest.approx(100, abs=0.11) for row in rows.values()
    )


def test_files_that_are_no_clips_are_named_and_the_others_have_rows(
    sweep, tmp_path, capsys
) -> None:
    tracking, config, _ = sweep
    (tmp_path / "song.wav").write_text("not audio at all")
    (tmp_path / "empty.wav").touch()
    soundfile.write(tmp_path / "hollow.wav", np.zeros(0), RATE)
    soundfile.write(tmp_path / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    (tmp_path / "clip.raw").write_bytes(bytes(4_000))
    bad = [
        tmp_path / name
        for name in ("song.wav", "empty.wav", "hollow.wav", "nan.wav", "gone.wav", "clip.raw")
    ]
    code, out, err = told(capsys, "tones", *bad, validation_clips(config)[0], "--uri", tracking.uri)
    said = [line.split(": ", 1) for line in err.splitlines()]
    assert code == 2
    assert len(out.splitlines()) == 5
    assert [path for path, _ in said] == list(map(str, bad))
    reasons = (
        "read as audio",
        "empty",
        "no samples",
        "not numbers",
        "No such file",
        "raw",
    )
    assert all(reason in line for reason, (_, line) in zip(reasons, said, strict=True)), err
    assert told(capsys, "tones", bad[0], "--uri", tracking.uri)[:2] == (2, "")


def test_the_error_of_a_sweep_without_a_usable_ensemble_has_the_remedy(
    sweep, tmp_path, capsys, empty_database
) -> None:
    tracking, config, records = sweep
    other, clip = tracking_in(tmp_path, empty_database), validation_clips(config)[0]
    folder = Path(tracking.uri.removeprefix("sqlite:///")).parent
    simulated = other.start_sweep("simulated", "", [{"trial_id": "a"}], "")
    add_trial(
        other,
        simulated,
        folder,
        "a",
        [{"kind": "setup"}, {"kind": "end", "summary": {"epoch_s": 1.0}}],
    )
    add_trial(
        other, other.start_sweep("bare", "", [{"trial_id": "a"}], ""), folder, "a", records, keep=1
    )
    old = [{name: value for name, value in records[0].items() if name != "config"}, *records[1:]]
    add_trial(other, other.start_sweep("old", "", [{"trial_id": "a"}], ""), folder, "a", old)
    mends = {
        "simulated": ["no trial", "device: auto"],
        "bare": ["cycles · repeat 1 ", "1 of its 2", "another name", "snapshots: {keep: best}"],
        "old": ["cycles · repeat 1 ", "older version", "another name"],
        "simulatd": ["'simulatd'", "mean simulated?"],
    }
    for name, facts in mends.items():
        code, out, err = told(capsys, name, clip, "--uri", other.uri)
        assert (code, out) == (2, "")
        assert [fact for fact in facts if fact not in err] == [], err
    absent = tmp_path / "absent.db"
    code, out, err = told(capsys, "tones", clip, "--uri", f"sqlite:///{absent}")
    assert (code, out) == (2, "")
    assert str(absent) in err
    assert "no tracking database" in err


def test_an_unreachable_tracker_is_reported_in_one_line(capsys) -> None:
    code, out, err = told(capsys, "tones", "a.wav", "--uri", "http://127.0.0.1:9")
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert "http://127.0.0.1:9 " in line
    assert line.endswith(os.strerror(errno.ECONNREFUSED))


class _Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


@pytest.mark.parametrize("planted", ["trap", "cut", "foreign"])
def test_a_foreign_or_corrupt_snapshot_is_refused_and_runs_no_code(
    sweep, tmp_path, capsys, monkeypatch, empty_database, planted
) -> None:
    monkeypatch.chdir(tmp_path)
    _, config, records = sweep
    other, work = tracking_in(tmp_path, empty_database), tmp_path / "work"
    work.mkdir()
    model = {"trap": _Trap(), "cut": {}, "foreign": {"weight": torch.zeros(1)}}[planted]
    for name in ("snapshot-0.pt", "snapshot-1.pt"):
        torch.save(model, work / name)
        if planted == "cut":
            (work / name).write_bytes((work / name).read_bytes()[:-20])
    add_trial(other, other.start_sweep("tones", "", [{"trial_id": "a"}], ""), work, "a", records)
    code, out, err = told(capsys, "tones", validation_clips(config)[0], "--uri", other.uri)
    assert (code, out) == (2, "")
    assert "snapshots" in err
    assert "cycles · repeat 1 " in err
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    "arguments",
    [["tones"], ["tones", "a.wav", "--top", "0"], ["tones", "a.wav", "--uri", "mlruns"]],
)
def test_wrong_arguments_leave_with_2(arguments, capsys) -> None:
    with pytest.raises(SystemExit) as left:
        main(["predict", *arguments])
    assert left.value.code == 2
