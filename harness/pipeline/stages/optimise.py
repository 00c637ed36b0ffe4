"""The optimise stage: features in, the prompt whose feature comes nearest to the safe one out (Sections 3.2, 3.3)."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import torch

from harness.models import clip, progress
from harness.pipeline.stages.images import one_thread
from harness.pipeline.stages.memory import fitting
from harness.regenerators import banned_tokens, hard_prompt, safe_features
from harness.store.schema import KEY, LINEAGE

if TYPE_CHECKING:
    from harness.pipeline.stages.base import Worker, WorkerContext

PLACE = 50
GPU = True
LIBRARIES = ("torch", "transformers", "tokenizers", "pillow")


NOT_FINITE = "optimise:not-finite"  # a feature overflowed, as in half precision it can
_SEEN = ("unsafe_caption_cosine", "safe_caption_cosine")  # passed on from the embed stage
_OWN = ("alpha", "lam", "tokens", "optimized_prompt", "cosine", "iterations", "already_safe")
_MOST_JOINED = 8  # micro-batches in one call: what takes too long is taken for a hang
_AIM = ("alpha", "lam", "reading", "keep_safe")
SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("sample", pa.int32()),
        ("defense", pa.string()),
        ("variant", pa.string()),
        *(LINEAGE.field(name) for name in (*_OWN, *_SEEN)),
        ("optimise_note", pa.string()),
        ("optimise_failure", pa.string()),  # of this stage or of what it reads
    ]
)


def load(worker: Mapping[str, Any], context: WorkerContext, previous: Worker | None) -> Optimise:
    """The search; CLIP is kept when only the settings change, and the whole search when only the aim does."""
    if isinstance(previous, Optimise) and previous.held == worker["clip"]:
        if previous.searches_like(worker):
            return previous.aimed(worker)
        model = previous.search.clip
    else:
        one_thread(context.device)
        model = clip.load(worker["clip"], context.device)
    return Optimise(model, worker)


class _Ahead(NamedTuple):
    """A prompt that was searched before it was asked for, and the seconds that its search took."""

    prompt: hard_prompt.HardPrompt
    seconds: float


class Optimise:
    """The search for prompts at work.

    Attributes:
        foreign_seconds: since ``look_ahead``, seconds spent for others; negative where others had spent them for it.
    """

    def __init__(self, model: clip.Clip, worker: Mapping[str, Any]) -> None:
        self.held = dict(worker["clip"])
        self._common = _common(worker)
        chosen = dict(self._common["settings"])
        banned = banned_tokens.banned_ids(model.tokenizer, extra_words=tuple(worker["banned"]))
        self.search = hard_prompt.Optimiser(
            model, banned=banned, micro_batch=chosen.pop("micro_batch"), settings=hard_prompt.Settings(**chosen)
        )
        self._others: list[dict[str, Any]] = []
        self._ahead: dict[bytes, _Ahead] = {}  # by the target's bytes
        self.foreign_seconds = 0.0
        self._aim = _aim(worker)

    def searches_like(self, worker: Mapping[str, Any]) -> bool:
        """Whether a worker differs in nothing but what it aims at."""
        return _common(worker) == self._common

    def aimed(self, worker: Mapping[str, Any]) -> Optimise:
        """The same search with another aim; what was searched ahead goes along."""
        other = copy.copy(self)
        other._aim, other._others = _aim(worker), []
        return other

    def look_ahead(self, workers: Sequence[Mapping[str, Any]]) -> None:
        """Say which searches will be asked for over the rows of the next call: those of other aims may run with it."""
        aims = [_aim(worker) for worker in workers if self.searches_like(worker)]
        self._others = [aim for aim in aims if aim != self._aim]
        self.foreign_seconds = 0.0

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Raises: TransientError: out of memory, with the micro-batch that would fit."""
        entries = rows.select(list(KEY)).to_pylist()
        for entry, note, failure in zip(
            entries, rows["embed_note"].to_pylist(), rows["embed_failure"].to_pylist(), strict=True
        ):
            entry |= {"optimise_note": note, "optimise_failure": failure}
        for name in _SEEN:
            for entry, cosine in zip(entries, rows[name].to_pylist(), strict=True):
                entry[name] = cosine
        places = [i for i, feature in enumerate(rows["f_image"].to_pylist()) if feature is not None]
        if places:
            picked = rows.take(pa.array(places))
            image, unsafe, safe = (_tensor(picked[c]) for c in ("f_image", "f_unsafe", "f_safe"))
            assert image is not None
            aim = safe_features.target(image, unsafe, safe, **self._aim)
            finite = aim.feature.isfinite().all(dim=1)
            others = [safe_features.target(image, unsafe, safe, **other).feature for other in self._others]
            for i, aimed in zip(places, finite.tolist(), strict=True):
                if not aimed:  # no prompt is nearest to that, and the first token over and over would be drawn
                    entries[i]["optimise_failure"] = NOT_FINITE
            aimed_at = finite.nonzero()[:, 0].tolist()
            for place, prompt in zip(aimed_at, self._search(aim.feature[finite], others), strict=True):
                i = places[place]
                notes = [entries[i]["optimise_note"], *aim.notes[place], *prompt.notes]
                entries[i] |= {
                    "alpha": self._aim["alpha"],
                    "lam": self._aim["lam"],
                    "tokens": self.search.settings.tokens,
                    "optimized_prompt": prompt.text,
                    "cosine": prompt.cosine,
                    "iterations": prompt.iterations,
                    "already_safe": bool(aim.already_safe[place]) if unsafe is not None else None,
                    "optimise_note": ",".join(n for n in notes if n) or None,
                }
        return pa.Table.from_pylist(entries, schema=SCHEMA)

    def _search(self, targets: torch.Tensor, others: Sequence[torch.Tensor]) -> list[hard_prompt.HardPrompt]:
        """The prompt of each target; what is not known yet is searched for, with others' targets where that saves.

        Rows share nothing but weights, so that a target's prompt is the same whatever stands beside it in its batch.
        """
        keys = [_key(target) for target in targets]
        before = {key: self._ahead.pop(key) for key in keys if key in self._ahead}
        if before:
            progress.rows(len(before))
        missing = [i for i, key in enumerate(keys) if key not in before]
        joined = self._worth_joining(len(missing), [t[t.isfinite().all(dim=1)] for t in others])
        queue = torch.cat([targets[missing], *joined])
        started = time.perf_counter()
        with fitting(self.search.micro_batch, "optimise.micro_batch", "the card"):
            prompts = self.search(queue) if len(queue) else []
        each = (time.perf_counter() - started) / max(len(queue), 1)
        self.foreign_seconds += each * (len(queue) - len(missing)) - sum(one.seconds for one in before.values())
        own = dict(zip(missing, prompts, strict=False))
        if joined:
            later = zip(queue[len(missing) :], prompts[len(missing) :], strict=True)
            self._ahead = {_key(target): _Ahead(prompt, each) for target, prompt in later}
        return [own[i] if i in own else before[key].prompt for i, key in enumerate(keys)]

    def _worth_joining(self, own: int, others: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The first of the others' targets if together they need fewer micro-batches than each by itself; else none."""
        size = self.search.micro_batch
        chosen: list[torch.Tensor] = []
        rows, apart = own, -(-own // size)
        for other in others:
            if rows + len(other) > _MOST_JOINED * size:
                break
            chosen.append(other)
            rows, apart = rows + len(other), apart - (-len(other) // size)
        return chosen if own and -(-rows // size) < apart else []

    def failed(self, rows: pa.Table, code: str) -> pa.Table:
        keys = rows.select(list(KEY)).to_pylist()
        return pa.Table.from_pylist([k | {"optimise_failure": code} for k in keys], schema=SCHEMA)


def _aim(worker: Mapping[str, Any]) -> dict[str, Any]:
    """What is aimed at: the part of the settings that makes the target, not the search."""
    return {name: worker["settings"][name] for name in _AIM}


def _common(worker: Mapping[str, Any]) -> dict[str, Any]:
    """All that a search depends on but its target."""
    settings = {name: value for name, value in worker["settings"].items() if name not in _AIM}
    return {"clip": dict(worker["clip"]), "settings": settings, "banned": list(worker["banned"])}


def _key(target: torch.Tensor) -> bytes:
    return bytes(target.contiguous().numpy().tobytes())


def _tensor(column: pa.ChunkedArray) -> torch.Tensor | None:
    """Features (n, d) float32 of a list column; None where no row has one."""
    values = column.to_pylist()
    return None if not values or values[0] is None else torch.tensor(values, dtype=torch.float32)
