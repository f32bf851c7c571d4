"""The png form's pictures: written once as 8-bit images of 224 x 224, decoded and normalised by the loader's workers.

It is the form of the article that this project grew from: a picture of the sound, read as an ImageNet network reads photographs.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from speech.config import TrialConfig, cache_dir
from speech.corpora import PreparedCorpus
from speech.features import Picture
from speech.packed import written_once
from speech.shapes import IMAGE_CHANNELS, IMAGE_SIDE, clip_samples

IMAGE_RANGE = 4.0  # a picture's brightness spans +-4 deviations of its row


def image_folder(config: TrialConfig, corpus: PreparedCorpus) -> Path:
    """Where the images of this corpus and these features lie, one a clip: <split>/<index>.png."""
    text = f"{corpus.fingerprint} {config.corpus.seconds} {config.features.model_dump_json()} {IMAGE_SIDE} {IMAGE_RANGE}"
    return cache_dir() / "png" / hashlib.sha256(text.encode()).hexdigest()[:16]


def write_images(config: TrialConfig, corpus: PreparedCorpus, picture: Picture, folder: Path) -> None:
    """All of them or none, whenever the process stops."""
    with written_once(folder) as partial:
        if partial is None:
            return
        for split in ("training", "validation", "testing"):
            (partial / split).mkdir(parents=True)
            for index, clip in enumerate(corpus.split(split)):
                waveform = torch.from_numpy(corpus.read(clip, clip_samples(config)))
                to_image(picture(waveform[None])[0]).save(partial / split / f"{index}.png")


def to_image(picture: torch.Tensor) -> Image.Image:
    """A normalised picture (C, M, T) as RGB, low frequencies at the bottom. Fewer than three channels repeat the first."""
    channels = [picture[min(c, len(picture) - 1)] for c in range(IMAGE_CHANNELS)]
    pixels = (torch.stack(channels, dim=-1).flip(0) / IMAGE_RANGE + 1) * 127.5  # (M, T, 3)
    image = Image.fromarray(pixels.round().clamp(0, 255).byte().numpy())
    return image.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BILINEAR)


def from_image(path: Path) -> torch.Tensor:
    """`from_pixels` of a file."""
    with Image.open(path) as image:
        return from_pixels(image)


def from_pixels(image: Image.Image) -> torch.Tensor:
    """(3, 224, 224) float32, in deviations of a row: the inverse of to_image up to 8 bits and the change of size."""
    pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return (pixels.permute(2, 0, 1).to(torch.float32) / 127.5 - 1) * IMAGE_RANGE
