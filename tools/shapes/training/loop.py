"""One training loop for all models of the shapes world: seeded per step, resumable, one thread-count.

Step ``i`` draws its data from ``random.Random(f"{name}-{i}")``, so a run that was stopped and
resumed sees the same data as one that was not.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

Step = Callable[[int, random.Random], Tensor]  # (step, rng) -> scalar loss


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how fast to train. ``lr`` is the peak; it warms up, holds, then decays to 0."""

    name: str
    steps: int
    lr: float
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    hold: float = 0.3  # share of the steps at peak rate before the cosine decay begins
    warmup: int = 100  # steps
    clip_norm: float = 1.0
    ema: float = 0.0  # decay of the averaged weights; 0: none
    save_every: int = 200  # steps


def rate(plan: Plan, step: int) -> float:
    """Learning-rate factor in (0, 1] at ``step``."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    start = plan.warmup + plan.hold * (plan.steps - plan.warmup)
    if step < start:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - start) / max(1.0, plan.steps - start)))


def train(plan: Plan, model: nn.Module, groups: Iterable[dict[str, Any]], step_fn: Step, work: Path) -> nn.Module:
    """Run (or resume from ``work/<name>.pt``) the plan; returns the model (averaged, if ``ema``)."""
    torch.manual_seed(0)
    parameters = [dict(g) for g in groups]  # the optimizer writes into them
    optimizer = torch.optim.AdamW(parameters, lr=plan.lr, weight_decay=plan.weight_decay, betas=plan.betas)
    base_rates = [float(g["lr"]) for g in optimizer.param_groups]
    checkpoint = work / f"{plan.name}.pt"
    average = {k: v.detach().clone() for k, v in model.state_dict().items()} if plan.ema else None
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        average, first = saved["average"], saved["step"]
    model.train()
    started, mean = time.time(), 0.0
    for step in range(first, plan.steps):
        for group, base in zip(optimizer.param_groups, base_rates, strict=True):
            group["lr"] = base * rate(plan, step)
        torch.manual_seed(step)
        loss = step_fn(step, random.Random(f"{plan.name}-{step}"))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], plan.clip_norm)
        optimizer.step()
        if average is not None:
            decay = min(plan.ema, (step + 1) / (step + 10))
            with torch.no_grad():
                for key, value in model.state_dict().items():
                    if value.is_floating_point():
                        average[key].lerp_(value, 1 - decay)
        mean = loss.item() if mean == 0.0 else 0.98 * mean + 0.02 * loss.item()
        if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
            _save(checkpoint, model, optimizer, average, step + 1)
            pace = (step + 1 - first) / (time.time() - started)
            left = (plan.steps - step - 1) / pace / 60
            print(
                f"{plan.name} {step + 1}/{plan.steps} loss {mean:.4f}  {pace:.2f} steps/s  {left:.1f} min left",
                flush=True,
            )
    if average is not None:
        model.load_state_dict(average)
    return model.eval()


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: object, step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average, "step": step}, part
    )
    part.replace(path)


def pixels(images: list[Image.Image]) -> Tensor:
    """Images as a float tensor (B, 3, H, W) in [-1, 1]."""
    array = np.stack([np.asarray(i, dtype=np.float32) for i in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous() / 127.5 - 1
