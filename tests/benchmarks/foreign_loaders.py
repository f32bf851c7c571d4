"""Two loaders as other projects write them, for `python launch.py advise`; nothing of this
project has a part in them.

    python launch.py advise tests.benchmarks.foreign_loaders:pictures --step-s 0.05
    CLIPS=folder/of/wavs python launch.py advise tests.benchmarks.foreign_loaders:spectrograms
    --step-s 0.02

`pictures` is torchvision's FakeData behind the usual ImageNet transforms. `spectrograms` reads wav
files as torchaudio's examples do, one folder a word; CLIPS names the folder, by default the corpus
that `make sweep` has spoken.
"""

import os
from pathlib import Path

import soundfile
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchaudio.transforms import AmplitudeToDB, MelSpectrogram
from torchvision import transforms
from torchvision.datasets import FakeData

SPOKEN = (
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "speech-sweeps" / "corpora"
)
RATE = 16_000


def pictures() -> DataLoader:
    """3 x 224 x 224, cropped, mirrored and normalised; the defaults of DataLoader otherwise."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    return DataLoader(
        FakeData(size=960, image_size=(3, 256, 256), transform=transform),
        batch_size=24,
        shuffle=True,
        drop_last=True,
    )


class Words(Dataset):
    """(B, 1, 80, 101) log-mel pictures in decibels, and the index of the word."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.glob("[!_]*/*.wav"))
        self.words = sorted({file.parent.name for file in self.files})
        self.picture = nn.Sequential(
            MelSpectrogram(RATE, n_fft=1024, hop_length=160, n_mels=80), AmplitudeToDB()
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | int]:
        wave, _ = soundfile.read(self.files[index], dtype="float32")
        wave = torch.nn.functional.pad(torch.from_numpy(wave)[:RATE], (0, max(RATE - len(wave), 0)))
        return {
            "input": self.picture(wave[None]),
            "label": self.words.index(self.files[index].parent.name),
        }


def spectrograms() -> DataLoader:
    """Batches of 64, four workers that persist and prefetch 4 each, as its author believed to be
    fast."""
    words = Words(
        Path(
            os.environ.get("CLIPS")
            or max(SPOKEN.glob("synthetic-*/"), key=lambda root: len([*root.glob("*/*.wav")]))
        )
    )
    return DataLoader(
        words,
        batch_size=64,
        shuffle=True,
        num_workers=4,
        prefetch_factor=4,
        persistent_workers=True,
    )
