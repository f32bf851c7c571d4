"""A network that learns: one optimisation step, and predictions.

Mixed precision (bfloat16, or float16 with a loss scaler) and channels_last come pinned from the sweep. On a GPU copies do not block and
nothing here synchronises; every step leaves a pair of CUDA events, from which `take_busy` reads the accelerator's own axis after the
epoch. A step spans all that it has queued, so the copies of its batch and the gaps between its kernels are time of the step.
The CUDA lines are complete but have run on no GPU yet.
"""

from collections.abc import Iterable, Sequence

import torch
from torch.nn import functional

from speech.augment import lay_masks
from speech.clips import picture_of
from speech.config import Pinned, Trial, TrialConfig
from speech.corpora import PreparedCorpus
from speech.features import Picture
from speech.model import build
from speech.shapes import picture_shape

Interval = tuple[float, float]  # (begin, end) in seconds of one clock


class Learner:
    """ResNet34, SGD and the precision they run in, on one device ('cpu' or 'cuda')."""

    def __init__(self, config: TrialConfig, pinned: Pinned, device: str, labels: int, channels: int, picture: Picture | None = None):
        """`picture`: makes pictures of what batches hold, in the device form; None: they hold pictures."""
        self.device, self.labels = torch.device(device), labels
        self.picture = picture.to(self.device) if picture else None
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

    def _taken(self, batch: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch of the loader's (see speech.loading.make_loader) -> pictures (B, C, M, T) and labels (B,), on the device."""
        inputs, labels, *masks = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        if self.picture:
            with torch.no_grad():
                inputs = self.picture(inputs)
                if masks:
                    lay_masks(inputs, *masks)
        return inputs.to(memory_format=self.format), labels

    def learn(self, batch: Sequence[torch.Tensor], lr: float, mixup: float) -> torch.Tensor:
        """One step on a batch; returns the loss as a scalar on the device, so that nobody waits for it.

        `mixup` is the weight of a clip against its neighbour in the batch (1: unmixed); the order of a batch is random already.
        """
        begin = self._record_event()
        pictures, labels = self._taken(batch)
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
        """When the GPU was within a step since the last call, in seconds from its first step; None on a CPU. Call after `synchronise`."""
        if self.device.type != "cuda":
            return None
        events, self.events = self.events, []
        first = events[0][0]
        return [(first.elapsed_time(begin) / 1000, first.elapsed_time(end) / 1000) for begin, end in events]

    @torch.inference_mode()
    def predict(self, batches: Iterable[Sequence[torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Softmax probabilities (N, K) and labels (N,) of a whole split, on the CPU, and the mean cross-entropy."""
        self.model.eval()
        logits, labels = [], []
        for batch in batches:
            pictures, truth = self._taken(batch)
            with self._autocast():
                logits.append(self.model(pictures).float().cpu())
            labels.append(truth.to("cpu", copy=True))  # the original lies in /dev/shm
            del batch, pictures, truth
        self.model.train()
        scores, truth = torch.cat(logits), torch.cat(labels)
        return scores.softmax(dim=1), truth, functional.cross_entropy(scores, truth).item()


def make_learner(trial: Trial, corpus: PreparedCorpus, device: str) -> Learner:
    """The learner of a trial's batches: in the device form it makes their pictures itself."""
    config = trial.config
    picture = picture_of(config, corpus) if config.loader.form == "device" else None
    return Learner(config, trial.pinned, device, len(corpus.labels), picture_shape(config)[0], picture)
