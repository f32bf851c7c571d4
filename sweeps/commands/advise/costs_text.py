"""Formats what was measured of a loader: its introduction, the costs of a batch, and its memory."""

import textwrap

from speech.calibration.costs import Calibration, LoaderCosts, StepCosts
from speech.calibration.worker_memory import WorkerMemory
from sweeps.commands.advise.figures import WIDTH, format_cores, format_mib, format_ms, format_rate
from sweeps.commands.advise.loader_forecast import MeasuredLoader


def format_introduction(target: str, loader: MeasuredLoader) -> str:
    """Returns the lines that introduce a loader before it is measured."""
    size = f"{'up to ' if loader.varies else ''}{format_mib(loader.batch_bytes)} MiB"
    lines = [
        (
            f"{target}: {loader.dataset} of {loader.clips:,} samples in {loader.batches:,} batches"
            f" of {size}"
        ),
        f"its own settings: num_workers={loader.num_workers}, {loader.fixed_settings}",
        "measuring the cost of a batch: about a minute, longer if a batch takes over a second",
    ]
    return "\n".join(lines)


def format_costs(loader: MeasuredLoader, calibration: Calibration, with_step: bool) -> str:
    """Returns the costs of a batch, and DS-Analyzer's three speeds."""
    costs, clips = calibration.loader, calibration.loader.batch_size
    hand_over_s = [seconds + costs.release_s for _, seconds in costs.receive_s]
    lines = [
        ("c, preparation", _preparation_text(loader, costs)),
        ("reads", _reads_text(loader, costs)),
        (
            "o, hand-over",
            f"{format_ms(min(hand_over_s))} to {format_ms(max(hand_over_s))} of the loop's time a"
            " batch, more if the cores are busier",
        ),
        (
            "worker's start",
            f"{format_ms(costs.fork_s)} of the loop's time, {format_ms(costs.ready_s)} of the"
            f" worker's, {'once' if loader.persistent else 'each epoch'}",
        ),
        ("s, step", _step_text(calibration.step, with_step)),
        ("G, accelerator", format_rate(calibration.accelerator_clips_per_s())),
        (
            "P, preparation",
            f"{format_rate(calibration.preparation_clips_per_s())} on {format_cores(costs.cores)}",
        ),
        ("F, reads", f"{format_rate(calibration.reading_clips_per_s(1))} by one worker"),
        *([("memory", _memory_text(loader.memory))] if loader.memory else []),
    ]
    title = f"Measured in {calibration.took_s:.0f} s, batches of {clips}, one worker at most"
    paragraphs = (
        textwrap.fill(f"  {name:<15} {text}", WIDTH, subsequent_indent=" " * 18)
        for name, text in lines
    )
    return "\n".join([title, *paragraphs])


def _preparation_text(loader: MeasuredLoader, costs: LoaderCosts) -> str:
    """Returns what preparing a sample costs in a worker, and in the training process."""
    inline = (
        "and it works only in workers"
        if loader.only_workers
        else f"{format_ms(costs.inline_s / costs.batch_size)} elapsed without workers"
    )
    return f"{format_ms(costs.prepare_s / costs.batch_size)} of CPU a sample in a worker, {inline}"


def _reads_text(loader: MeasuredLoader, costs: LoaderCosts) -> str:
    """Returns how long a sample waits for reads, and what its first reading took from storage."""
    first = (
        f"; at first {format_mib(loader.first_read_bytes)} MiB a batch came from storage, with a"
        f" wait of {format_ms(loader.first_wait_s)}"
        if loader.first_read_bytes
        else ""
    )
    return f"{format_ms(costs.read_s / costs.batch_size)} of waiting a sample{first}"


def _step_text(step: StepCosts, with_step: bool) -> str:
    """Returns what a training step takes of the accelerator and of the host."""
    if not with_step:
        return "not given, so only loading is forecast: add --step-s 0.025 or --step module:step"
    threads = f"{step.threads} thread{'s' * (step.threads > 1)}"
    host = f", {format_ms(step.cpu_s)} on {threads} of the host" if step.cpu_s else ""
    waits = "; the loop waits for every step" if step.wait_s else ""
    if step.run_ahead:
        waits = f"; the loop gets {step.run_ahead} step{'s' * (step.run_ahead > 1)} ahead of it"
    return f"{format_ms(step.wait_s)} of the accelerator{host}{waits}"


def _memory_text(memory: WorkerMemory) -> str:
    """Returns the memory of the training process and of a worker, and how it was measured."""
    text = (
        f"{format_mib(memory.main_bytes)} MiB in the training process,"
        f" {format_mib(memory.own_bytes)} MiB in each worker"
    )
    if memory.copied:
        text += (
            f", and up to {format_mib(memory.most_copied_bytes)} MiB that each worker copies from"
            " the training process as it reads samples"
        )
    if memory.growth_bytes:
        text += (
            f", and {memory.growth_bytes / 1024:,.1f} KiB more with every sample, as a growing"
            " cache takes"
        )
    method = f"measured over {memory.read_samples:,} samples of {memory.samples:,}"
    rest = ", the rest extrapolated" if memory.copied or memory.growth_bytes else ""
    return f"{text} ({method}{rest})"
