"""What a batch costs on this machine, as measured by a calibration: the numbers that a forecast is made of.

Free of torch, so that a plan of a thousand trials is forecast in seconds. Seconds are those of a process that has a core to itself.
DS-Analyzer's three speeds (Mohan et al., VLDB 2021, section 3) follow from them: G is the accelerator's, P that of preparation on
all cores, F that of reading.
"""

from pydantic import BaseModel, ConfigDict, Field

from speech.config import Device


class LoaderCosts(BaseModel):
    """Of a loader: one data set, one form, one batch size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cores: int = Field(description="cores that the processes shared")
    batch_size: int = Field(description="clips a batch")
    batch_bytes: int = Field(description="of /dev/shm that a batch takes, each tensor in whole pages")
    inline_s: float = Field(description="CPU seconds a batch where the training process prepares it")
    prepare_s: float = Field(description="CPU seconds a batch in a worker, putting it into /dev/shm included")
    sending: float = Field(0.0, description="share of prepare_s that puts the batch into /dev/shm, which only a worker does")
    read_s: float = Field(0.0, description="seconds a batch that preparing waits for reads and takes no core")
    read_slower: list[tuple[int, float]] = Field([], description="processes that read at once, how many times as long reads take then")
    receive_s: list[tuple[int, float]] = Field(
        description="processes at work beside the worker that sends; seconds of the training process to take a batch that is ready. Both "
        "go back and forth for it, and wait for a core each time"
    )
    deliver_s: list[tuple[int, float]] = Field(
        description="processes at work beside its worker; seconds from a batch's end until it lies ready for the training process"
    )
    wake_s: list[tuple[int, float]] = Field(description="processes at work; seconds by which a process that waited for a moment wakes late")
    release_s: float = Field(description="seconds of the training process to let a batch go")
    fork_s: float = Field(description="seconds of the training process to start one worker")
    ready_s: float = Field(description="CPU seconds of a new worker before its first batch")
    cold_s: float = Field(0.0, description="CPU seconds that the first batch of an epoch takes longer where nothing was started for it")
    shared: list[tuple[int, float]] = Field(description="processes at work at once, how much slower than an even share of the cores")
    spread: float = Field(description="relative half-range of what was measured in turn, round by round")


class StepCosts(BaseModel):
    """Of a training step on one batch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu_s: float = Field(0.0, description="CPU seconds of each of the host's threads")
    threads: int = Field(1, description="that compute at once on the host")
    wait_s: float = Field(0.0, description="seconds that the accelerator works and the host waits")
    beside: list[tuple[int, float]] = Field(
        [], description="processes that prepare beside the step, how much slower than an even share of the cores it is then"
    )
    prepare_beside: list[tuple[int, float]] = Field([], description="the same processes, how much slower than an even share they are")
    spread: float = Field(0.0, description="as LoaderCosts.spread")


def paced_step(keys: Device) -> StepCosts:
    """Of the modelled accelerator: what its configuration says."""
    return StepCosts(cpu_s=keys.host_s, wait_s=keys.step_s)


class Calibration(BaseModel):
    """Both, as kept in the cache and in the tracker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loader: LoaderCosts
    step: StepCosts
    modelled: bool = Field(False, description="the accelerator is a model: the step stands in each trial's configuration")
    took_s: float = Field(description="what measuring it took")

    def accelerator_clips_per_s(self) -> float:
        """DS-Analyzer's G: batches that are there already."""
        step_s = self.step.wait_s + self.step.cpu_s * max(1.0, self.step.threads / self.loader.cores)
        return self.loader.batch_size / step_s if step_s else float("inf")

    def preparation_clips_per_s(self) -> float:
        """DS-Analyzer's P: every core prepares, nothing is waited for."""
        slower = dict(self.loader.shared).get(self.loader.cores, 1.0)
        return self.loader.cores * self.loader.batch_size / (self.loader.prepare_s * slower)

    def reading_clips_per_s(self, workers: int) -> float:
        """DS-Analyzer's F, for so many workers that read at once."""
        return max(workers, 1) * self.loader.batch_size / self.loader.read_s if self.loader.read_s else float("inf")
