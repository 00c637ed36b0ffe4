"""The one training loop of all defenses that learn: seeded step by step, resumable, reporting progress.

Everything random in a step comes from generators seeded from the plan's seed and the step's number, so that a build
that was stopped and taken up again gives the weights of one that was not, bit for bit.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Generator, Tensor, nn

from harness.defenses.base import BuildContext, BuildStep
from harness.errors import UserError

SAVE_S = 120.0  # seconds after which a step is saved that is no multiple of `Training.save_every`

Loss = Callable[[int, Generator], Tensor]  # step from 0 and its generator (on the CPU) to a scalar
MakeOptimiser = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How many steps to train, the random seed, and how often to keep a checkpoint."""

    phase: str  # for progress, and the checkpoint's file name; unique within one build
    steps: int  # 0: nothing changes
    seed: int = 0
    save_every: int = 100  # steps; slow steps are saved more often, see `SAVE_S`
    clip_norm: float | None = None  # of the gradient over all parameters; only where the paper has it


def train(
    plan: Training,
    parameters: Mapping[str, nn.Parameter],
    make_optimiser: MakeOptimiser,
    loss: Loss,
    context: BuildContext,
) -> None:
    """Minimise ``loss`` over ``parameters``, in place; only these are changed.

    A checkpoint lies in ``context.folder`` after every ``plan.save_every`` steps, after every two minutes and after the
    last step, so that a finished phase of a build is not run again.

    Args:
        plan: steps, seed, checkpoints.
        parameters: what is trained, by unique name; the caller decides what else asks for gradients (`only_trainable`).
        make_optimiser: from the parameters, in the mapping's order, to the optimiser.
        loss: draws everything random from the generator that it is given; torch's global generator, which others may
            draw from, is seeded from the step too.
        context: the checkpoints' folder, and the progress callback.

    Raises:
        UserError: the loss is not finite, or a checkpoint is of other parameters.
    """
    optimiser = make_optimiser(list(parameters.values()))
    path = None if context.folder is None else context.folder / f"{plan.phase}.safetensors"
    first = 0 if path is None or not path.exists() else _restore(path, parameters, optimiser)
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng():
        saved = time.monotonic()
        for step in range(first, plan.steps):
            value = _step(plan, step, parameters, optimiser, loss)
            due = (step + 1) % plan.save_every == 0 or step + 1 == plan.steps or time.monotonic() - saved > SAVE_S
            if path is not None and due:
                _save(path, parameters, optimiser, step + 1)
                saved = time.monotonic()
            context.report(BuildStep(plan.phase, step + 1, plan.steps, value))


def _step(
    plan: Training, step: int, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer, loss: Loss
) -> float:
    """One step of the optimiser; returns the loss before it."""
    torch.manual_seed(step_seed(plan.seed, step))
    optimiser.zero_grad(set_to_none=True)
    value = loss(step, step_generator(plan.seed, step))
    number = float(value.detach())
    if not torch.isfinite(value.detach()):
        raise UserError(f"the build diverged: its loss is {number} at step {step + 1} of {plan.steps} ({plan.phase})")
    value.backward()  # type: ignore[no-untyped-call]
    if plan.clip_norm is not None:
        nn.utils.clip_grad_norm_(parameters.values(), plan.clip_norm)
    optimiser.step()
    return number


def step_seed(seed: int, step: int) -> int:
    """One seed for each step of each run, hashed: torch's generator on the CPU reads a seed's lower 32 bits only."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}".encode()).digest()[:8], "big")


def step_generator(seed: int, step: int) -> Generator:
    """The step's generator, on the CPU, so that devices draw alike."""
    return Generator("cpu").manual_seed(step_seed(seed, step))


def student_of(network: nn.Module) -> nn.Module:
    """A float32 copy to be trained, in eval mode (no dropout), on the network's device; the network stays as it is.

    The copy's parameters ask for no gradient yet; see `only_trainable`.
    """
    with torch.inference_mode(False):
        student = copy.deepcopy(network).float().eval()
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    return student


def only_trainable(network: nn.Module, wanted: Callable[[str], bool]) -> dict[str, nn.Parameter]:
    """Ask for gradients of the parameters whose names are ``wanted``, and of no other.

    Returns:
        those parameters by name, in the network's order.

    Raises:
        UserError: no name is wanted.
    """
    chosen: dict[str, nn.Parameter] = {}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(wanted(name))
        if parameter.requires_grad:
            chosen[name] = parameter
    if not chosen:
        raise UserError("this backbone's denoiser has none of the parameters that the defense trains")
    return chosen


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """No parameter of ``network`` asks for gradients inside; afterwards each does as before."""
    asked = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


def delta(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Trained parameters as the tensors of an artefact: detached, float32, on the CPU, apart from the network."""
    return {name: value.detach().to("cpu", torch.float32, copy=True).contiguous() for name, value in parameters.items()}


def cached(context: BuildContext, name: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of a build that are made once: from ``context.folder`` where they lie there, else made and kept.

    Args:
        context: without a folder they are made anew.
        name: unique within one build.
        make: the same tensors each time it is called.
    """
    if context.folder is None:
        return {key: value.contiguous() for key, value in make().items()}  # as a file holds them: sums depend on it
    path = context.folder / f"{name}.safetensors"
    if not path.exists():
        _write(path, make(), {})
    kept: dict[str, Tensor] = safetensors.torch.load_file(path)
    return kept


def _save(
    path: Path, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer, steps_done: int
) -> None:
    """Write parameters and the optimiser's state in one file, without pickling."""
    tensors: dict[str, Tensor] = {f"parameter/{name}": value.detach() for name, value in parameters.items()}
    numbers: dict[str, Any] = {}
    for index, state in optimiser.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"state/{index}/{key}"] = value
            else:
                numbers[f"{index}/{key}"] = value
    _write(path, tensors, {"steps_done": str(steps_done), "numbers": json.dumps(numbers)})


def _restore(path: Path, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> int:
    """Put back what ``_save`` wrote; returns how many steps were done."""
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
        noted: dict[str, str] = file.metadata()
    kept = {key.removeprefix("parameter/"): t for key, t in tensors.items() if key.startswith("parameter/")}
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    if {name: tuple(value.shape) for name, value in kept.items()} != shapes:
        raise UserError(
            f"{path}: this checkpoint is of other parameters than those to train; remove it and build again"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(kept[name])
    state: dict[int, dict[str, Any]] = {}
    entries = [(key.removeprefix("state/"), t) for key, t in tensors.items() if key.startswith("state/")]
    for key, value in [*entries, *json.loads(noted["numbers"]).items()]:
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return int(noted["steps_done"])


def _write(path: Path, tensors: Mapping[str, Tensor], noted: dict[str, str]) -> None:
    """Write a safetensors file whole or not at all; it may be too large to be held in memory twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        safetensors.torch.save_file({key: value.contiguous() for key, value in tensors.items()}, temporary, noted)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def batches(count: int, size: int) -> Iterable[range]:
    """Indices 0..count in consecutive batches of at most ``size``."""
    return (range(start, min(start + size, count)) for start in range(0, count, size))
