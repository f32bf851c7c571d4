"""A network that learns: one optimisation step, and predictions.

Mixed precision (bfloat16, or float16 with a loss scaler) and channels_last come pinned from the sweep. On a GPU copies do not block and
nothing here synchronises; every step leaves a pair of CUDA events, from which `busy` reads the accelerator's own axis after the epoch.
The CUDA lines are complete but have run on no GPU yet.
"""

from collections.abc import Iterable

import torch
from torch.nn import functional

from speech.config import Pinned, TrialConfig
from speech.model import build

Interval = tuple[float, float]  # (begin, end) in seconds of one clock


class Learner:
    """ResNet34, SGD and the precision they run in, on one device ('cpu' or 'cuda')."""

    def __init__(self, config: TrialConfig, pinned: Pinned, device: str, labels: int, channels: int):
        self.device, self.labels = torch.device(device), labels
        self.format = torch.channels_last if pinned.channels_last else torch.contiguous_format
        self.dtype = getattr(torch, pinned.precision)
        self.model = build(labels, channels, config.model.weights).to(self.device).to(memory_format=self.format)
        keys = config.optimizer
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=config.sgdr.lr,
            momentum=keys.momentum,
            weight_decay=keys.weight_decay,
            nesterov=keys.momentum > 0,
            fused=True,  # one pass over 21 million weights instead of six
        )
        self.label_smoothing = keys.label_smoothing
        self.scaler = torch.amp.GradScaler(device, enabled=self.dtype == torch.float16)
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def _to_device(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures.to(self.device, non_blocking=True, memory_format=self.format)

    def learn(self, pictures: torch.Tensor, labels: torch.Tensor, lr: float, mixup: float) -> torch.Tensor:
        """One step on (B, C, M, T) and (B,); returns the loss as a scalar on the device, so that nobody waits for it.

        `mixup` is the weight of a clip against its neighbour in the batch (1: unmixed); the order of a batch is random already.
        """
        begin = self._record_event()
        pictures, labels = self._to_device(pictures), labels.to(self.device, non_blocking=True)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            logits = self.model(torch.lerp(pictures.roll(1, 0), pictures, mixup) if mixup < 1 else pictures)
            loss = self._loss(logits, labels, mixup)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        end = self._record_event()
        if begin and end:
            self.events.append((begin, end))
        return loss.detach()

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor, mixup: float) -> torch.Tensor:
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        if mixup == 1:
            return loss
        partner = functional.cross_entropy(logits.float(), labels.roll(1, 0), label_smoothing=self.label_smoothing)
        return mixup * loss + (1 - mixup) * partner

    def _record_event(self) -> "torch.cuda.Event | None":
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def take_busy(self) -> list[Interval] | None:
        """The GPU's busy intervals since the last call, in seconds from its first step; None on a CPU. Call after `synchronise`."""
        if self.device.type != "cuda":
            return None
        events, self.events = self.events, []
        first = events[0][0]
        return [(first.elapsed_time(begin) / 1000, first.elapsed_time(end) / 1000) for begin, end in events]

    @torch.inference_mode()
    def predict(self, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Softmax probabilities (N, K) and labels (N,) of a whole split, on the CPU, and the mean cross-entropy."""
        self.model.eval()
        logits, labels = [], []
        for pictures, truth in batches:
            with self._autocast():
                logits.append(self.model(self._to_device(pictures)).float().cpu())
            labels.append(truth.clone())  # the original lies in /dev/shm
            del pictures, truth
        self.model.train()
        scores, truth = torch.cat(logits), torch.cat(labels)
        return scores.softmax(dim=1), truth, functional.cross_entropy(scores, truth).item()
