"""Where a forward's time goes, by kernel, and how often a call launches one, by torch's profiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

# What a host calls to start work on a GPU: one of them for a whole graph.
_LAUNCHES = (
    "cudaLaunchKernel",
    "cudaLaunchKernelExC",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "cudaGraphLaunch",
)


@dataclass(frozen=True)
class Kernel:
    """One kernel of a device, or one operator of a CPU, without what it calls."""

    name: str
    ms: float  # per forward
    count: float  # per forward
    share: float  # of the call's time in kernels


@dataclass(frozen=True)
class KernelTable:
    """What a call spends its time in, the costliest first."""

    device: str
    forwards: int  # of a call
    launches: int  # per call: by the host on CUDA, a graph counts once; operators on a CPU
    kernels: tuple[Kernel, ...]

    def lines(self, most: int = 12) -> list[str]:
        """A table in Markdown; kernels past `most` share its last row."""
        shown, rest = self.kernels[:most], self.kernels[most:]
        if rest:
            total = Kernel(
                f"{len(rest)} others",
                *(sum(getattr(k, name) for k in rest) for name in ("ms", "count", "share")),
            )
            shown = (*shown, total)
        head = ["| kernel | ms a forward | times a forward | share |", "|---|---|---|---|"]
        rows = [f"| {k.name} | {k.ms:.3f} | {k.count:.1f} | {100 * k.share:.1f} % |" for k in shown]
        unit = "launches" if self.device == "cuda" else "operators"
        return [*head, *rows, "", f"{self.launches} {unit} a call of {self.forwards} forwards"]


def kernel_table(
    device: torch.device, forwards: int, call: Callable[[], object], calls: int = 1
) -> KernelTable:
    """Profiles `calls` calls that do the same; they should be warm, or what happens once is counted too."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    # Lanes are threads of their own.
    everywhere = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with profile(activities=activities, experimental_config=everywhere) as recorded:
        for _ in range(calls):
            call()
        if cuda:
            torch.cuda.synchronize()
    spent: dict[str, tuple[float, int]] = {}
    host: dict[str, int] = {}
    for event in recorded.key_averages():
        on_device = event.device_type == torch.autograd.DeviceType.CUDA
        if not on_device:
            host[event.key] = host.get(event.key, 0) + event.count
        if on_device == cuda:
            us, count = spent.get(event.key, (0.0, 0))
            own = event.self_device_time_total if cuda else event.self_cpu_time_total
            spent[event.key] = (us + own, count + event.count)
    return _table(device.type, forwards, calls, spent, host)


def _table(
    device: str, forwards: int, calls: int, spent: Mapping[str, tuple[float, int]], host: Mapping[str, int]
) -> KernelTable:
    """Of microseconds and counts over all calls."""
    total = sum(us for us, _ in spent.values())
    kernels = (
        Kernel(name, us / 1e3 / calls / forwards, count / calls / forwards, us / total)
        for name, (us, count) in spent.items()
    )
    launched = sum(host.get(name, 0) for name in _LAUNCHES) if device == "cuda" else sum(host.values())
    return KernelTable(device, forwards, round(launched / calls), tuple(sorted(kernels, key=lambda k: -k.ms)))
