"""Hard prompts: tokens whose CLIP text feature points where a target does (Eq. 1 and 2; PEZ, Wen et al. 2023).

Each step projects a continuous prompt z onto the nearest tokens, scores those, and lets AdamW move z by the gradient at
the projection (straight-through); the best prompt seen is kept. Published code optimises one image at a time, over 77
positions, with a second forward to score; here a whole batch of images advances together, over N + 2 positions, and one
forward serves gradient and score. Rows share nothing but the weights, so each has the prompt it would have alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn import functional

from harness.models import progress
from harness.models.clip import full_batches
from harness.regenerators.text_tower import TextTower

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models.clip import Clip

_CPU_BLOCK = 4096  # tokens
CHECK_EVERY = 50  # steps between two looks at what rows have stopped, the loop's only transfers from the device
RETOKENISED = "retokenised"  # the text's own tokens are not those that were found
CUT = "text-cut"  # the text's own tokens do not fit the window
PLATEAU = "plateau"  # stopped early, a deviation from the paper


@dataclass(frozen=True)
class Settings:
    """How prompts are optimised; defaults are the paper's (A.1) and the released code's.

    Attributes:
        tokens: N.
        nearest: ``cosine`` (released code) or ``l2`` (Eq. 1).
        seed: of the start, the same for every row.
        plateau: a row stops after so many steps without a better prompt; None never stops, as published.
        dtype: of the text tower: ``float32``, ``tf32`` (float32 with TensorFloat-32 products), ``bfloat16``,
            ``float64`` (everything, for tests).
        search: of the nearest-token product: ``float32`` or ``bfloat16``; float64 where ``dtype`` is.
        compile: ``off``; ``inductor`` (torch.compile of the tower); ``graph`` (a step as one CUDA graph);
            ``inductor-graph`` (both).
    """

    tokens: int = 16
    iterations: int = 3000
    lr: float = 0.5
    weight_decay: float = 0.1
    nearest: Literal["cosine", "l2"] = "cosine"
    seed: int = 42
    plateau: int | None = None
    dtype: Literal["float32", "tf32", "bfloat16", "float64"] = "float32"
    search: Literal["float32", "bfloat16"] = "float32"
    compile: Literal["off", "inductor", "graph", "inductor-graph"] = "off"

    def __post_init__(self) -> None:
        for name in ("tokens", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, not 1 or more")
        if self.plateau is not None and self.plateau < 1:
            raise ValueError(f"plateau is {self.plateau}, not 1 or more (or None)")
        for name in ("nearest", "dtype", "search", "compile"):
            allowed = _CHOICES[name]
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, none of {', '.join(allowed)}")


_CHOICES = {
    "nearest": ("cosine", "l2"),
    "dtype": ("float32", "tf32", "bfloat16", "float64"),
    "search": ("float32", "bfloat16"),
    "compile": ("off", "inductor", "graph", "inductor-graph"),
}


@dataclass(frozen=True)
class HardPrompt:
    """The optimised prompt of one image.

    Attributes:
        text: the best prompt seen, decoded.
        ids: its tokens, without begin and end.
        cosine: of the text's feature, tokenised again and computed by the whole model, with the target.
        seen_cosine: the highest cosine with the target seen during optimisation, before decoding.
        iterations: how many steps were run.
        notes: ``retokenised``, ``text-cut``, ``plateau``.
    """

    text: str
    ids: tuple[int, ...]
    cosine: float
    seen_cosine: float
    iterations: int
    notes: tuple[str, ...]


class Optimiser:
    """Optimises prompts for any number of targets, ``micro_batch`` of them at once; worth keeping between calls.

    Args:
        clip: gives the text tower, the tokenizer and the final score.
        banned: token ids that are never chosen, see ``harness.regenerators.banned_tokens``.
        micro_batch: rows that advance together; partial ones are filled, so that a row's prompt does not depend on
            how many there are.

    Raises:
        ValueError: all tokens are banned, or N does not fit the window.
    """

    def __init__(self, clip: Clip, settings: Settings, banned: Sequence[int], micro_batch: int) -> None:
        if settings.tokens > clip.window - 2:
            raise ValueError(f"{settings.tokens} tokens do not fit a window of {clip.window}, begin and end included")
        if micro_batch < 1:
            raise ValueError(f"micro_batch is {micro_batch}, not 1 or more")
        self.clip, self.settings, self.micro_batch = clip, settings, micro_batch
        tokenizer = clip.tokenizer
        exact = settings.dtype == "float64"
        dtype = {"float64": torch.float64, "bfloat16": torch.bfloat16}.get(settings.dtype, torch.float32)
        self._wide = torch.float64 if exact else torch.float32  # of z, its moments and cosines
        tower = TextTower(clip.model, begin=tokenizer.bos_token_id, end=tokenizer.eos_token_id, dtype=dtype)
        self._embeddings = tower.embeddings.to(self._wide)
        self._nearest = Nearest(
            self._embeddings, banned, settings.nearest, torch.bfloat16 if settings.search == "bfloat16" else self._wide
        )
        self._tower: Callable[[Tensor], Tensor] = (
            torch.compile(tower.__call__, dynamic=False) if "inductor" in settings.compile else tower
        )
        self._state: _State | None = None
        self._replay: Callable[[], None] | None = None

    def __call__(self, targets: Tensor, report: Callable[[int, int], None] | None = None) -> list[HardPrompt]:
        """The prompt of each target (n, d) of any length.

        Args:
            report: called now and then with steps times rows done, and all there are.
        """
        directions = functional.normalize(targets.to(self._embeddings.device, self._wide), dim=1)
        seen: list[tuple[tuple[int, ...], float, int]] = []
        whole = len(targets) * self.settings.iterations
        with _tensor_float(self.settings.dtype == "tf32"):
            for batch, count in full_batches(list(directions), self.micro_batch):
                done = len(seen) * self.settings.iterations

                def tell(steps: int, done: int = done, count: int = count) -> None:
                    if report is not None:
                        report(done + steps * count, whole)

                seen += self._run(torch.stack(batch), tell)[:count]
                progress.rows(count)
        return self._scored(directions, seen)

    def _run(self, targets: Tensor, tell: Callable[[int], None]) -> list[tuple[tuple[int, ...], float, int]]:
        """Ids, cosine and steps run of each row of one full micro-batch."""
        settings = self.settings
        state, advance = self.begin(targets)
        for step in range(1, settings.iterations + 1):
            advance()
            if step % CHECK_EVERY == 0 or step == settings.iterations:
                if settings.plateau is not None and not bool(state.active.any()):
                    tell(settings.iterations)
                    break
                tell(step)
                progress.steps(step, settings.iterations)
        ids, cosines, ran = state.best_ids.tolist(), state.best.tolist(), state.ran.tolist()
        return [(tuple(row), cosine, steps) for row, cosine, steps in zip(ids, cosines, ran, strict=True)]

    def begin(self, targets: Tensor) -> tuple[_State, Callable[[], None]]:
        """Start the optimisation of a full micro-batch of unit-length targets.

        Returns:
            The state, and a function that advances it by one step (in Python, or by replaying a CUDA graph). There is
            only one state: the next ``begin`` overwrites it.
        """
        start = self._embeddings[self._nearest.start(self.settings.tokens, self.settings.seed)]
        if self._state is None:
            self._state = _State(start, targets, self.settings)
        state = self._state
        state.reset(start, targets)

        def step() -> None:
            self._step(state)

        if "graph" not in self.settings.compile or state.z.device.type != "cuda":
            return state, step
        if self._replay is None:
            self._replay = _captured(step)
            state.reset(start, targets)  # the steps before a capture count for nothing
        return state, self._replay

    def _step(self, state: _State) -> None:
        """Project, score, keep the best, and move z by the gradient at the projection."""
        with torch.no_grad():
            ids = self._nearest(state.z)
            slots = self._embeddings[ids]
        slots.requires_grad_()
        cosine = functional.cosine_similarity(self._tower(slots).to(self._wide), state.targets, dim=1)
        # The loss is 1 - cosine, row by row; a sum over rows gives each its own gradient.
        (gradient,) = torch.autograd.grad(-cosine.sum(), slots)
        state.keep(ids, cosine.detach())
        state.move(gradient)

    def _scored(self, directions: Tensor, seen: Sequence[tuple[tuple[int, ...], float, int]]) -> list[HardPrompt]:
        decode = self.clip.tokenizer.decode
        texts = [decode(list(ids), skip_special_tokens=True).strip() for ids, _, _ in seen]
        features, cut = self.clip.texts(texts)
        cosines = functional.cosine_similarity(features.double(), directions.double(), dim=1).tolist()
        results = []
        for i, (text, again) in enumerate(zip(texts, self.clip.tokenize(texts), strict=True)):
            ids, best, ran = seen[i]
            notes = (
                *((RETOKENISED,) if tuple(again[1:-1]) != ids else ()),
                *((CUT,) if cut[i] else ()),
                *((PLATEAU,) if ran < self.settings.iterations else ()),
            )
            results.append(HardPrompt(text, ids, cosines[i], best, ran, notes))
        return results


class Nearest:
    """The nearest allowed token of each row, by one matrix product with the whole vocabulary.

    Args:
        embeddings: (vocabulary, d).
        banned: ids that are never chosen.
        metric: ``cosine``, or ``l2``: argmin |z - t|^2 = argmax <z, t> - |t|^2 / 2.
        dtype: of the product.
    """

    def __init__(self, embeddings: Tensor, banned: Sequence[int], metric: str, dtype: torch.dtype) -> None:
        allowed = torch.ones(len(embeddings), dtype=torch.bool)
        allowed[list(banned)] = False
        if not allowed.any():
            raise ValueError(f"all {len(embeddings)} tokens are banned")
        self.allowed = allowed.nonzero()[:, 0].to(embeddings.device)
        table = embeddings[self.allowed]
        bias = None if metric == "cosine" else (-table.square().sum(dim=1) / 2).to(dtype)
        table = (functional.normalize(table, dim=1) if metric == "cosine" else table).to(dtype)
        # On a CPU the product goes in blocks whose scores stay in its cache (measured: a third faster).
        size = _CPU_BLOCK if table.device.type == "cpu" else len(table)
        self._blocks = [
            (i, table[i : i + size], None if bias is None else bias[i : i + size]) for i in range(0, len(table), size)
        ]
        self._cosine, self._dtype = metric == "cosine", dtype

    def __call__(self, z: Tensor) -> Tensor:
        """Ids (n, N) of z (n, N, d); of equally near ones the first."""
        rows = z.flatten(0, 1)
        rows = (functional.normalize(rows, dim=1) if self._cosine else rows).to(self._dtype)
        nearest, indices = functional.linear(rows, *self._blocks[0][1:]).max(dim=1)
        for offset, table, bias in self._blocks[1:]:
            score, index = functional.linear(rows, table, bias).max(dim=1)
            indices = torch.where(score > nearest, index + offset, indices)
            nearest = torch.maximum(score, nearest)
        return self.allowed[indices].view(z.shape[:2])

    def start(self, tokens: int, seed: int) -> Tensor:
        """Ids (N,), uniform over what is allowed, the same on every device."""
        drawn = torch.randint(len(self.allowed), (tokens,), generator=torch.Generator("cpu").manual_seed(seed))
        return self.allowed[drawn.to(self.allowed.device)]


class _State:
    """What a micro-batch of n rows carries from step to step, in tensors that stay where they are (CUDA graphs)."""

    def __init__(self, start: Tensor, targets: Tensor, settings: Settings) -> None:
        n, device = len(targets), targets.device
        self.plateau = settings.plateau
        self.targets = torch.empty_like(targets)
        self.z = torch.empty(n, *start.shape, dtype=targets.dtype, device=device, requires_grad=True)
        self.z.grad = torch.zeros_like(self.z)
        self.best = torch.empty(n, dtype=targets.dtype, device=device)
        self.best_ids = torch.empty(n, len(start), dtype=torch.long, device=device)
        self.stale = torch.empty(n, dtype=torch.long, device=device)
        self.ran = torch.empty(n, dtype=torch.long, device=device)
        self.active = torch.empty(n, dtype=torch.bool, device=device)
        self._adam = torch.optim.AdamW(
            [self.z], lr=settings.lr, weight_decay=settings.weight_decay, capturable=device.type == "cuda"
        )

    @torch.no_grad()
    def reset(self, start: Tensor, targets: Tensor) -> None:
        """Start over: every row at ``start`` (N, d), the optimiser's moments zero."""
        self.z.copy_(start.expand_as(self.z))
        self.targets.copy_(targets)
        self.best.fill_(-torch.inf)
        self.best_ids.zero_()
        self.stale.zero_()
        self.ran.zero_()
        self.active.fill_(True)
        for moment in self._adam.state[self.z].values():
            moment.zero_()

    @torch.no_grad()
    def keep(self, ids: Tensor, cosine: Tensor) -> None:
        """Note each row's prompt if it is strictly better than all before; a row that has stopped notes nothing."""
        self.ran += self.active
        better = (cosine > self.best) & self.active
        self.best.copy_(torch.where(better, cosine, self.best))
        self.best_ids.copy_(torch.where(better[:, None], ids, self.best_ids))
        if self.plateau is not None:
            self.stale.copy_(torch.where(better, 0, self.stale + 1))
            self.active &= self.stale < self.plateau

    def move(self, gradient: Tensor) -> None:
        assert self.z.grad is not None
        self.z.grad.copy_(gradient)
        self._adam.step()


def _captured(step: Callable[[], None]) -> Callable[[], None]:
    """A step as one CUDA graph, after three on a side stream, as PyTorch's notes on CUDA graphs ask for."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


@contextlib.contextmanager
def _tensor_float(on: bool) -> Iterator[None]:
    """TensorFloat-32 products of float32 matrices on a GPU, or full precision, whatever the process had set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if on else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
