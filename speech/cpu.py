"""What the processor is called."""

import functools
import platform
from pathlib import Path


@functools.cache
def cpu_model() -> str:
    """Its model name as the kernel tells it, else the architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
