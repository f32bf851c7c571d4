import numpy as np
import pytest
import torch

from speech.augment import (
    MAX_SAMPLE,
    apply_masks,
    augment_waveform,
    change_speed,
    draw_masks,
    mix,
    mixup_weight,
    random_stream,
    shift,
)
from speech.features_config import Augment


def test_shift_moves_and_fills_with_silence() -> None:
    waveform = np.arange(1, 6, dtype=np.float32)
    assert shift(waveform, 2).tolist() == [0, 0, 1, 2, 3]
    assert shift(waveform, -2).tolist() == [3, 4, 5, 0, 0]
    assert shift(waveform, 9).tolist() == [0] * 5


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 20.0])
def test_mix_reaches_the_ratio_it_promises(snr_db: float) -> None:
    rng = np.random.default_rng(0)
    waveform = rng.standard_normal(8000).astype(np.float32)
    noise = 0.01 * rng.standard_normal(8000).astype(np.float32)
    added = mix(waveform, noise, snr_db) - waveform
    assert 10 * np.log10(np.mean(waveform**2) / np.mean(added**2)) == pytest.approx(
        snr_db, abs=0.01
    )


def test_mix_with_silence_changes_nothing() -> None:
    silence, sound = np.zeros(4, np.float32), np.ones(4, np.float32)
    assert mix(sound, silence, 0.0).tolist() == [1] * 4
    assert mix(silence, sound, 0.0).tolist() == [0] * 4


def test_speed_moves_a_tone_by_its_factor_and_keeps_the_middle() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    fast = change_speed(tone, 1.25)
    assert len(fast) == 16_000
    middle = fast[4000:12_000]
    assert np.abs(np.fft.rfft(middle)).argmax() * 16_000 / len(middle) == pytest.approx(1250, abs=3)
    assert fast[0] == fast[-1] == 0, "what the faster clip no longer fills is silence"


def test_masks_blank_bands_and_frames_no_wider_than_asked() -> None:
    augment = Augment(freq_mask=5, time_mask=7)
    widths = set()
    for clip in range(200):
        masks = draw_masks(augment, 40, 60, random_stream(0, 0, clip))
        picture = apply_masks(torch.ones(1, 2, 40, 60), masks[None])[0]
        rows, frames = (picture[0].sum(1) == 0).sum().item(), (picture[0].sum(0) == 0).sum().item()
        assert torch.equal(picture[0], picture[1]), "all channels are blanked alike"
        assert rows <= 2 * 5
        assert frames <= 2 * 7
        widths.add((rows, frames))
    assert len(widths) > 50


def test_masks_of_a_batch_are_each_clips_own() -> None:
    masks = torch.tensor(
        [[[[0, 2], [0, 0]], [[5, 1], [0, 0]]], [[[0, 0], [3, 1]], [[0, 0], [6, 2]]]]
    )
    pictures = apply_masks(torch.ones(2, 1, 6, 8), masks)
    assert (pictures[0, 0].sum(1) == 0).tolist() == [True, True, False, False, False, True]
    assert (pictures[1, 0].sum(0) == 0).tolist() == [
        False,
        False,
        False,
        True,
        False,
        False,
        True,
        True,
    ]
    assert pictures.sum() == 3 * 8 + 6 * 5


def test_the_draws_of_a_clip_depend_on_seed_epoch_and_clip_alone() -> None:
    values = {
        key: random_stream(*key).random() for key in [(1, 0, 5), (2, 0, 5), (1, 1, 5), (1, 0, 6)]
    }
    assert len(set(values.values())) == 4
    np.random.seed(0)
    assert random_stream(1, 0, 5).random() == values[1, 0, 5]


def test_noise_is_drawn_at_its_probability_and_within_its_range() -> None:
    augment = Augment(noise=0.25, noise_snr_db=(10.0, 20.0))
    # far from being clipped
    waveform = np.float32(0.1) * np.random.default_rng(0).standard_normal(1000).astype(np.float32)

    def changed(clip: int) -> float | None:
        noisy = augment_waveform(
            waveform,
            augment,
            random_stream(0, 0, clip),
            lambda rng, n: rng.standard_normal(n).astype(np.float32),
        )
        added = np.mean((noisy - waveform) ** 2)
        return 10 * np.log10(np.mean(waveform**2) / added) if added else None

    ratios = [ratio for clip in range(400) if (ratio := changed(clip)) is not None]
    assert 70 <= len(ratios) <= 130
    assert min(ratios) > 9.99
    assert max(ratios) < 20.01


def test_a_mix_that_is_too_loud_is_clipped_where_16_bits_end() -> None:
    waveform, noise = np.float32([0.5, -0.5, 0.5, 0.25]), np.float32([1, -1, -1, 0])
    noisy = augment_waveform(
        waveform,
        Augment(noise=1.0, noise_snr_db=(-20.0, -20.0)),
        random_stream(0, 0, 0),
        lambda rng, n: noise,
    )
    assert noisy.tolist() == [32767 / 32768, -1, -1, 0.25]
    assert (noisy.dtype, MAX_SAMPLE) == (np.float32, 32767 / 32768)


def test_everything_off_returns_the_clip_itself() -> None:
    waveform = np.ones(10, np.float32)
    assert (
        augment_waveform(waveform, Augment(), random_stream(0, 0, 0), lambda rng, n: np.zeros(n))
        is waveform
    )


def test_mixup_weights_follow_the_folded_beta_distribution() -> None:
    weights = [mixup_weight(1.0, random_stream(0, 0, step)) for step in range(2000)]
    assert min(weights) >= 0.5
    # Beta(1, 1) is even on [0, 1]; folded, even on [1/2, 1]
    assert np.mean(weights) == pytest.approx(0.75, abs=0.01)
