"""Prints how far the gradients of two ranks are from those of one process with both batches.

It runs in a process of its own, since ranks are forked before torch's threads are used.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from speech.config import RuntimeSettings, TrialConfig
from speech.learner import Learner
from speech.ranks import Member, Ranks
from speech.shapes import picture_shape

RANKS, BATCH = 2, 4


def make_learner(config: TrialConfig) -> Learner:
    """Returns a learner whose BatchNorm is frozen, with the same weights in every process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    learner = Learner(config, RuntimeSettings(threads=1), "cpu", labels=3, channels=1)
    learner.model.eval()
    return learner


def make_batch(config: TrialConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the clips of all ranks."""
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randn(RANKS * BATCH, *picture_shape(config), generator=generator)
    return pictures, torch.arange(RANKS * BATCH) % 3


def learn(learner: Learner, config: TrialConfig, first: int, clips: int) -> None:
    """Runs a step on some of the clips."""
    pictures, labels = make_batch(config)
    learner.learn((pictures[first : first + clips], labels[first : first + clips]), 0.01, 1.0)


def follow(member: Member, epochs: Iterator[int], send: Any) -> None:
    learner = make_learner(CONFIG)
    learner.join_ranks(member)
    for _ in epochs:
        learn(learner, CONFIG, member.rank * BATCH, BATCH)
        send(None)


CONFIG = TrialConfig.model_validate(json.loads(sys.argv[1]))

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        ranks = Ranks(RANKS, Path(folder), follow)
        ranks.release()
        together = make_learner(CONFIG)
        together.join_ranks(ranks.member)
        ranks.start_epoch(0)
        learn(together, CONFIG, 0, BATCH)
        ranks.collect()
        alone = make_learner(CONFIG)
        learn(alone, CONFIG, 0, RANKS * BATCH)
        pairs = zip(together.model.parameters(), alone.model.parameters(), strict=True)
        differences = [
            float((ours.grad - theirs.grad).abs().max() / theirs.grad.abs().max())
            for ours, theirs in pairs
        ]
        ranks.end()
    print(json.dumps({"largest": max(differences), "tensors": len(differences)}))
    sys.stdout.flush()
    os._exit(0)  # gloo waits for peers that have ended
