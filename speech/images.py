"""Writes and reads the pictures of the png format: 8-bit images of 224 x 224 pixels.

They are written once; the loader's workers decode and normalise them. This is the format of the
article that this project grew from: an ImageNet network reads a picture of the sound as it reads
photographs.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from speech.atomic_files import name_file_in_errors, write_once
from speech.audio import BadClip
from speech.cache_folder import cache_dir
from speech.config import TrialConfig
from speech.features import Picture
from speech.prepared_corpus import PreparedCorpus
from speech.shapes import IMAGE_CHANNELS, IMAGE_SIDE, clip_samples

IMAGE_RANGE = 4.0  # a picture's brightness spans +-4 deviations of its row


def image_folder(config: TrialConfig, corpus: PreparedCorpus) -> Path:
    """Returns the folder of the corpus's images: <split>/<index>.png per clip.

    It depends on the corpus and its features.
    """
    text = (
        f"{corpus.fingerprint} {config.corpus.seconds} {config.features.model_dump_json()}"
        f" {IMAGE_SIDE} {IMAGE_RANGE}"
    )
    return cache_dir() / "png" / hashlib.sha256(text.encode()).hexdigest()[:16]


def write_images(
    config: TrialConfig, corpus: PreparedCorpus, picture: Picture, folder: Path
) -> None:
    """Writes an image per clip to `folder`, unless it exists.

    The folder appears complete or not at all, whenever the process stops.
    """
    with write_once(folder) as partial:
        if partial is None:
            return
        for split in ("training", "validation", "testing"):
            (partial / split).mkdir(parents=True)
            for index, clip in enumerate(corpus.split(split)):
                waveform = torch.from_numpy(corpus.read(clip, clip_samples(config)))
                with name_file_in_errors(folder):
                    picture_to_image(picture(waveform[None])[0]).save(
                        partial / split / f"{index}.png"
                    )


def picture_to_image(picture: torch.Tensor) -> Image.Image:
    """Converts a normalised picture (C, M, T) to RGB, with low frequencies at the bottom.

    Of fewer than three channels the last one is repeated.
    """
    channels = [picture[min(c, len(picture) - 1)] for c in range(IMAGE_CHANNELS)]
    pixels = (torch.stack(channels, dim=-1).flip(0) / IMAGE_RANGE + 1) * 127.5  # (M, T, 3)
    image = Image.fromarray(pixels.round().clamp(0, 255).byte().numpy())
    return image.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BILINEAR)


def read_image(path: Path) -> torch.Tensor:
    """Reads a file and converts it with `image_to_picture`.

    Raises BadClip where the file is missing, cut off or no image.
    """
    try:
        with Image.open(path) as image:
            return image_to_picture(image)
    except (OSError, SyntaxError, ValueError) as error:  # PIL raises SyntaxError for a broken PNG
        mend = f"Delete the folder {path.parent.parent}; the next launch writes it anew."
        raise BadClip(f"{path}: the picture can't be read ({error}). {mend}") from None


def image_to_picture(image: Image.Image) -> torch.Tensor:
    """Converts an image to (3, 224, 224) float32, in deviations of a row.

    It is the inverse of picture_to_image, except for rounding to 8 bits and the change of size.
    """
    pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return (pixels.permute(2, 0, 1).to(torch.float32) / 127.5 - 1) * IMAGE_RANGE
