"""What there is to compute with: this machine's GPUs and cores, or those of a Ray cluster.

The one place that asks. This machine's GPUs are asked of the driver's own library (NVML), without importing torch; a
cluster's of Ray, and their memory of NVML on their nodes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """GPUs and cores of a machine or a cluster."""

    gpus: int = 0
    gpu_memory_gb: float | None = None  # of the smallest GPU; None: not known, or there is none
    cores: int = 1


def ask(address: str | None = None) -> Hardware:
    """What this machine has, or the Ray cluster at ``address``.

    Raises:
        UserError: the cluster cannot be reached.
    """
    if address is None:
        return local()
    from harness.pipeline import ray_session

    return total(
        [
            Hardware(gpus=node.gpus, gpu_memory_gb=node.gpu_bytes and node.gpu_bytes / 1e9, cores=node.cores)
            for node in ray_session.nodes(address)
        ]
    )


def total(nodes: Sequence[Hardware]) -> Hardware:
    """Several machines as one: the sums, and the memory of the smallest GPU."""
    memories = [n.gpu_memory_gb for n in nodes if n.gpus]
    known = [m for m in memories if m is not None]
    return Hardware(
        gpus=sum(n.gpus for n in nodes),
        gpu_memory_gb=min(known) if known and len(known) == len(memories) else None,
        cores=sum(n.cores for n in nodes),
    )


def local() -> Hardware:
    """What this process may use of its own machine."""
    memories = visible(_devices(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    return Hardware(
        gpus=len(memories),
        gpu_memory_gb=(min(memories, default=0) / 1e9) or None,
        cores=len(os.sched_getaffinity(0)),
    )


def visible(devices: Sequence[tuple[str, int]], chosen: str | None) -> list[int]:
    """Bytes of memory of the devices that ``CUDA_VISIBLE_DEVICES`` leaves.

    Args:
        devices: UUID and bytes of each, in the driver's order.
        chosen: the variable: indices or beginnings of UUIDs, comma separated; None: not set. As CUDA has it, what
            follows the first word that names no device is not seen, nor is anything where one is named twice.
    """
    if chosen is None:
        return [memory for _, memory in devices]
    seen: list[int] = []
    for word in chosen.split(","):
        place = _place(word.strip(), [uuid for uuid, _ in devices])
        if place is None:
            break
        if place in seen:
            return []
        seen.append(place)
    return [devices[place][1] for place in seen]


def _place(word: str, uuids: Sequence[str]) -> int | None:
    """The device that a word of ``CUDA_VISIBLE_DEVICES`` means."""
    if word.isascii() and word.isdecimal():
        return int(word) if int(word) < len(uuids) else None
    matching = [i for i, uuid in enumerate(uuids) if word and uuid.startswith(word)]
    return matching[0] if len(matching) == 1 else None


def _devices() -> list[tuple[str, int]]:
    """UUID and bytes (0: not known) of every GPU of this machine; none where there is no driver."""
    with _nvml() as nvml:
        if nvml is None:
            return []
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        return [(str(nvml.nvmlDeviceGetUUID(h)), _bytes(nvml, h)) for h in handles]


def _bytes(nvml: Any, handle: Any) -> int:
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError:  # a GPU without memory of its own
        return 0


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    """NVIDIA's library at work; None where it is not there, or finds no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def require_gpus(number: int) -> None:
    """Refuse more GPUs than this machine has, or any where torch can use none.

    Raises:
        UserError: what was asked for, and what is there.
    """
    if not number:
        return
    from importlib import metadata

    there = local().gpus
    if there < number:  # what the driver's library does not list, torch may still see
        import torch

        there = torch.cuda.device_count()
    if there < number:
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
        narrowed = "" if chosen is None else f" (CUDA_VISIBLE_DEVICES is {chosen!r})"
        raise UserError(f"--num-gpus {number}: {there} here{narrowed}; without the option all of them are used")
    if metadata.version("torch").endswith("+cpu"):
        raise UserError(f"{number} GPUs to use, but torch is built for the CPU only: install another, or --num-gpus 0")
