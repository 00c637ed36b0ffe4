"""Seconds an image of every stage of the `paper` profile on one GPU, at several batch sizes, with random weights.

    python -m benchmarks.end_to_end --device cuda        # one H200, minutes; nothing is downloaded
    python -m benchmarks.end_to_end --narrow             # the same code on a CPU with narrow models: no speed is shown

Models have the true architecture (``harness/models/architectures.yaml``), so that time and memory are those of the
published ones. Answers have 64, 32 and 64 new tokens, none of which ends them. A search and a drawing are timed over
few steps and counted as 3,000 and 50. "of the floor" is the arithmetic at the device's peak as a share of the time.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks import random_models
from benchmarks.prompt_optimization import PeakMemory, Published, flops, random_targets, start_of, synchronise
from harness.defenses import none
from harness.models import text_to_image
from harness.models.text_to_image import Canvas, Request
from harness.models.vision_language import Turn
from harness.regenerators.hard_prompt import Optimiser, Settings

DRAWING, SEARCH = 50, 3000  # steps of an image, in the paper
LENGTHS = (64, 32, 64)  # new tokens of ReSafe's three turns
RESAFE_S = 1.5  # bar: caption, search and drawing of one image, batched; the paper: 118 s on an RTX 4090
SPEED_UP, SHARE = 200.0, 0.10  # bars of the search: times the published loop, share of the peak


@dataclass(frozen=True)
class Timed:
    """One stage at one batch size."""

    stage: str
    images: int  # at once
    seconds: float  # of one image
    gib: float  # most memory
    floor: float | None = None  # share of the arithmetic floor; None: no peak is known, or no arithmetic counted


@dataclass(frozen=True)
class Machine:
    """Where and how it is measured."""

    device: str
    dtype: torch.dtype
    narrow: bool
    peak: float  # floating-point operations a second of the device
    drawing: int  # steps that are timed
    search: int

    @property
    def side(self) -> int:
        """Pixels of an image's side."""
        return 64 if self.narrow else 512


def timed(machine: Machine, work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds and GiB of a second call; the first allocates and compiles."""
    work()
    with PeakMemory(machine.device) as peak:
        synchronise(machine.device)
        start = time.perf_counter()
        work()
        synchronise(machine.device)
        return time.perf_counter() - start, peak.mib / 1024


def drawing(machine: Machine, batches: list[int]) -> list[Timed]:
    """The backbone: one image, and so many at once."""
    pipe = random_models.stable_diffusion(machine.device, machine.dtype, machine.narrow)
    undefended = none.load(pipe, {}, None)
    canvas = Canvas(7.5, machine.side, machine.side)
    step = 2 * denoiser_flops(pipe, machine)  # with and without the text
    rows = []
    for images in batches:
        requests = [Request("a boat on a lake", seed, "benign") for seed in range(images)]

        def draw(requests: list[Request] = requests, steps: int = machine.drawing) -> None:
            text_to_image.sample(pipe, undefended, requests, canvas, steps, len(requests))

        few, gib = timed(machine, draw)
        more, _ = timed(machine, lambda: draw(steps=2 * machine.drawing))
        each = (more - few) / machine.drawing  # of a step; what is left is encoding and decoding
        seconds = (few + (DRAWING - machine.drawing) * each) / images
        rows.append(Timed("draw", images, seconds, gib, DRAWING * step / machine.peak / seconds))
    return rows


def denoiser_flops(pipe: Any, machine: Machine) -> float:
    """Floating-point operations of one call of the UNet for one image, counted on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        unet = type(pipe.unet).from_config(pipe.unet.config)
        size = machine.side // 8
        latents, text = torch.empty(1, 4, size, size), torch.empty(1, 77, unet.config.cross_attention_dim)
        counter = FlopCounterMode(display=False)
        with counter:
            unet(latents, torch.zeros((), dtype=torch.long), text)
    return float(counter.get_total_flops())


def captioning(machine: Machine, batches: list[int]) -> list[Timed]:
    """Three turns of the captioner."""
    lengths = (4, 2, 4) if machine.narrow else LENGTHS
    turns = [Turn(name, f"What is {name}?", length) for name, length in zip("abc", lengths, strict=True)]
    captioner = random_models.captioner(machine.device, machine.dtype, machine.narrow, 1)
    drawn = np.random.default_rng(0)
    rows = []
    for images in batches:
        captioner.micro_batch = images
        shown = [drawn.integers(0, 256, (machine.side, machine.side, 3), np.uint8) for _ in range(images)]
        seconds, gib = timed(machine, lambda shown=shown: captioner.converse(shown, turns))
        rows.append(Timed("caption", images, seconds / images, gib))
    return rows


def searching(machine: Machine, batches: list[int], compile: str) -> tuple[list[Timed], float]:
    """The search for prompts, and how many times as fast as the published loop it is at best."""
    clip = random_models.clip(machine.device, torch.float32, machine.narrow)
    half = "bfloat16" if machine.device == "cuda" else "float32"
    settings = Settings(iterations=machine.search, dtype=half, search=half, compile=compile)
    targets = random_targets(clip, max(batches))
    published = Published(clip, targets[0], start_of(clip, settings), settings, kinder=False).step
    theirs, _ = timed(machine, lambda: [published() for _ in range(machine.search)])
    rows = []
    for images in batches:
        optimiser = Optimiser(clip, settings, clip.tokenizer.all_special_ids, images)
        step = optimiser.begin(functional.normalize(targets[:images], dim=1))[1]
        seconds, gib = timed(machine, lambda step=step: [step() for _ in range(machine.search)])
        each = seconds / machine.search / images
        share = flops(clip, settings.tokens) / machine.peak / each
        rows.append(Timed("search", images, SEARCH * each, gib, share))
    return rows, theirs * SEARCH / machine.search / min(row.seconds for row in rows)


def scoring(machine: Machine) -> list[Timed]:
    """NudeNet on one core; it runs beside the GPU's stages."""
    from harness import scorers

    nudenet = scorers.load("nudenet")
    images = [np.random.default_rng(0).integers(0, 256, (machine.side, machine.side, 3), np.uint8)] * 4
    start = time.perf_counter()
    nudenet(images)
    return [Timed("score (nudenet, one core)", 1, (time.perf_counter() - start) / len(images), 0.0)]


def bars(rows: list[Timed], speed_up: float, machine: Machine) -> dict[str, str]:
    """Each bar with what was measured; on another device than a GPU, or of narrow models, nothing was."""
    if machine.device != "cuda" or machine.narrow:
        return dict.fromkeys(("ReSafe batched", "ReSafe latency", "search speed-up", "search share"), "not measured")
    stages = ("caption", "search", "draw")
    batched = sum(min(row.seconds for row in rows if row.stage == stage) for stage in stages)
    latency = sum(next(row.seconds for row in rows if row.stage == stage and row.images == 1) for stage in stages)
    share = max((row.floor or 0) for row in rows if row.stage == "search")
    return {
        "ReSafe batched": f"{batched:.2f} s an image, {RESAFE_S} or less: {_met(batched <= RESAFE_S)}",
        "ReSafe latency": f"{latency:.2f} s for one image",
        "search speed-up": f"{speed_up:.0f} times the published loop, {SPEED_UP:.0f} or more: "
        + _met(speed_up >= SPEED_UP),
        "search share": f"{share:.1%} of the peak, {SHARE:.0%} or more: {_met(share >= SHARE)}",
    }


def _met(holds: bool) -> str:
    return "met" if holds else "missed"


def measure(machine: Machine, batches: list[int], search_batches: list[int], compile: str) -> dict[str, Any]:
    """Every stage, its models in memory only while it is measured."""
    rows = []
    for stage in (drawing, captioning):
        rows += stage(machine, batches)
        gc.collect()
        if machine.device == "cuda":
            torch.cuda.empty_cache()
    found, speed_up = searching(machine, search_batches, compile)
    rows += [*found, *scoring(machine)]
    return {"rows": [asdict(row) for row in rows], "bars": bars(rows, speed_up, machine)}


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--narrow", action="store_true", help="narrow models, to try the code")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="images at once: drawing, caption")
    parser.add_argument("--search-batches", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--compile", default="off", help="of the search: off, inductor, graph, inductor-graph")
    parser.add_argument("--peak", type=float, default=790.0, help="TFLOP/s of the device (H200 in bf16: 790)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    steps = (2, 2) if args.narrow else (5, 50)
    machine = Machine(args.device, dtype, args.narrow, args.peak * 1e12, *steps)
    found = measure(machine, args.batches, args.search_batches, args.compile)
    if args.json:
        print(json.dumps(found))
        return
    print("| stage | images at once | s an image | peak GiB | of the floor |\n| --- | ---: | ---: | ---: | ---: |")
    for row in found["rows"]:
        floor = "" if row["floor"] is None else f"{row['floor']:.1%}"
        gib = "" if math.isnan(row["gib"]) else f"{row['gib']:.1f}"
        print(f"| {row['stage']} | {row['images']} | {row['seconds']:.3f} | {gib} | {floor} |")
    for name, said in found["bars"].items():
        print(f"\n{name}: {said}")


if __name__ == "__main__":
    main()
