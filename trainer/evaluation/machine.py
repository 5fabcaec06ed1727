"""A one-line description of this machine, to write beside measured figures."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")


def machine(device: str = "cpu") -> str:
    """Return processor, cores, load, Python and torch in one line; a GPU comes first."""
    import torch  # late: a benchmark that measures the memory of processes without torch imports this module

    model = platform.processor() or platform.machine()
    for line in _CPU_INFO.read_text().splitlines() if _CPU_INFO.exists() else []:
        if line.startswith("model name"):
            model = line.split(":")[1].strip()
            break
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    if device.startswith("cuda"):
        versions += f", CUDA {torch.version.cuda}"
        model = f"{torch.cuda.get_device_name(device)}; {model}"
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before, {versions}"
