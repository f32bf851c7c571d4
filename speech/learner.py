"""Trains the network step by step, and predicts with it.

The sweep chooses mixed precision (bfloat16, or float16 with a loss scaler) and channels_last. On a
GPU, copies do not block, and only `synchronise` waits for the device. Every step records a pair of
CUDA events. After the epoch, `take_busy_intervals` reads from them when the accelerator was busy. A
step spans everything that it has queued. Its time therefore includes the copies of its batch and
the gaps between its kernels. The CUDA lines are complete but have run on no GPU yet.
"""

import os
import time
from collections.abc import Iterable, Sequence

import torch
from torch.nn import functional

from speech.augment import apply_masks
from speech.config import RuntimeSettings, Trial, TrialConfig
from speech.dataset import build_picture
from speech.feasibility import batch_norm_obstacle
from speech.features import Picture
from speech.model import build_model
from speech.prepared_corpus import PreparedCorpus
from speech.ranks import Member
from speech.shapes import picture_shape
from speech.timing import Interval


class Learner:
    """Holds ResNet34, SGD and the precision they run in, on one device ('cpu' or 'cuda').

    The learners of several ranks average their gradients in every step, and so stay equal.
    """

    def __init__(
        self,
        config: TrialConfig,
        runtime: RuntimeSettings,
        device: str,
        labels: int,
        channels: int,
        picture: Picture | None = None,
    ):
        """Builds the network and its optimizer.

        `picture` converts the waveforms of a batch to pictures, in loader format `on_device`. None
        means that batches hold pictures already.
        """
        self.device, self.labels = torch.device(device), labels
        self.picture = picture.to(self.device) if picture else None
        self.format = torch.channels_last if runtime.channels_last else torch.contiguous_format
        self.dtype = getattr(torch, runtime.precision)
        self.model = (
            build_model(labels, channels, config.model.weights)
            .to(self.device)
            .to(memory_format=self.format)
        )
        optimizer_config = config.optimizer
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=config.sgdr.lr,
            momentum=optimizer_config.momentum,
            weight_decay=optimizer_config.weight_decay,
            nesterov=optimizer_config.momentum > 0,
            fused=True,  # one pass over 21 million weights instead of six
        )
        self.label_smoothing = optimizer_config.label_smoothing
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self._trained: torch.nn.Module = self.model  # what a training step runs
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._first_event = 0.0  # when the first of them was recorded, on time.perf_counter

    def join_ranks(self, member: Member) -> None:
        """Averages the gradients with those of the other ranks from now on.

        Call it in every rank, with the same weights everywhere. Uses NCCL on CUDA and gloo on the
        CPU (Li et al., PyTorch Distributed, VLDB 2020).
        """
        on_cuda = self.device.type == "cuda"
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are on this machine
        torch.distributed.init_process_group(
            "nccl" if on_cuda else "gloo",
            init_method=f"file://{member.meeting_file}",
            rank=member.rank,
            world_size=member.count,
        )
        self._trained = torch.nn.parallel.DistributedDataParallel(
            self.model, device_ids=[self.device] if on_cuda else None
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32
        )

    def _to_device(self, batch: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Converts a batch of the loader to pictures (B, C, M, T) and labels (B,) on the device.

        speech.loading.make_loader describes the batch.
        """
        inputs, labels, *masks = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        if self.picture:
            with torch.no_grad():
                inputs = self.picture(inputs)
                if masks:
                    apply_masks(inputs, *masks)
        return inputs.to(memory_format=self.format), labels

    def learn(self, batch: Sequence[torch.Tensor], lr: float, mixup: float) -> torch.Tensor:
        """Runs one step on a batch; returns the loss as a scalar on the device.

        Nothing waits for the loss. `mixup` is the weight of a clip against its neighbour in the
        batch; 1 means unmixed. The order of a batch is already random.
        """
        if not self.events:
            self._first_event = time.perf_counter()
        begin = self._record_event()
        pictures, labels = self._to_device(batch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            logits = self._trained(
                torch.lerp(pictures.roll(1, 0), pictures, mixup) if mixup < 1 else pictures
            )
            loss = self._loss(logits, labels, mixup)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        end = self._record_event()
        if begin and end:
            self.events.append((begin, end))
        return loss.detach()

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor, mixup: float) -> torch.Tensor:
        """Returns the cross-entropy; mixup weighs a clip's label against its neighbour's."""
        loss = functional.cross_entropy(
            logits.float(), labels, label_smoothing=self.label_smoothing
        )
        if mixup == 1:
            return loss
        partner = functional.cross_entropy(
            logits.float(), labels.roll(1, 0), label_smoothing=self.label_smoothing
        )
        return mixup * loss + (1 - mixup) * partner

    def has_finite_weights(self) -> bool:
        """Returns whether all weights and statistics of the network are finite.

        Waits for the device.
        """
        return all(
            bool(value.isfinite().all())
            for value in self.model.state_dict().values()
            if value.is_floating_point()
        )

    def _record_event(self) -> "torch.cuda.Event | None":
        """Records a CUDA event; returns None on a CPU."""
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def synchronise(self) -> None:
        """Waits until a GPU has completed all queued work; does nothing on a CPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    @property
    def skips_steps(self) -> bool:
        """Returns whether a loss scaler skips the steps whose gradients are not finite."""
        return self.scaler.is_enabled()

    def take_busy_intervals(self) -> list[Interval] | None:
        """Returns the intervals in which the GPU ran a step since the last call; None on a CPU.

        They are on time.perf_counter's clock: the GPU is idle when the first of the events is
        recorded, and reaches it at once. Call `synchronise` before.
        """
        if self.device.type != "cuda":
            return None
        events, self.events = self.events, []
        first = events[0][0]

        def moment(event: torch.cuda.Event) -> float:
            return self._first_event + first.elapsed_time(event) / 1000

        return [(moment(begin), moment(end)) for begin, end in events]

    @torch.inference_mode()
    def predict(
        self, batches: Iterable[Sequence[torch.Tensor]]
    ) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Predicts a whole split.

        Returns softmax probabilities (N, K) and labels (N,), both on the CPU, and the mean
        cross-entropy.
        """
        self.model.eval()
        logits, labels = [], []
        for batch in batches:
            pictures, truth = self._to_device(batch)
            with self._autocast():
                logits.append(self.model(pictures).float().cpu())
            labels.append(truth.to("cpu", copy=True))  # the original is in /dev/shm
            del batch, pictures, truth
        self.model.train()
        scores, truth = torch.cat(logits), torch.cat(labels)
        return scores.softmax(dim=1), truth, functional.cross_entropy(scores, truth).item()


def make_learner(trial: Trial, corpus: PreparedCorpus, device: str) -> Learner:
    """Builds the learner of a trial.

    In loader format `on_device` the learner converts waveforms to pictures itself. Raises
    ValueError if no network can learn from the trial's batches.
    """
    config = trial.config
    if obstacle := batch_norm_obstacle(config):
        raise ValueError(obstacle)
    picture = build_picture(config, corpus) if config.loader.format == "on_device" else None
    return Learner(
        config, trial.runtime, device, len(corpus.labels), picture_shape(config)[0], picture
    )
