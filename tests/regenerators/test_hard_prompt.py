"""The optimiser against the published loop written the slow way; batches, bans, plateaus, notes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from padded import PaddedTower, prompts
from torch.nn import functional
from transformers import CLIPModel

from harness.models import clip as clips
from harness.regenerators import hard_prompt
from harness.regenerators.hard_prompt import HardPrompt, Nearest, Optimiser, Settings
from tools.shapes import measure

SHORT = Settings(tokens=8, iterations=60)
SPECIAL = [659, 660]
CAPTIONS = (
    "a red star above a blue circle",
    "two green squares",
    "a yellow ring left of a gray triangle",
    "a striped image of a purple moon",
    "a white circle on a black background",
    "a blue star",
    "a red square below a red ring",
    "an orange cross",
)


def optimise(
    clip: clips.Clip,
    targets: torch.Tensor,
    settings: Settings,
    banned: Sequence[int],
    micro_batch: int,
    report: Callable[[int, int], None] | None = None,
) -> list[HardPrompt]:
    return Optimiser(clip, settings, banned, micro_batch)(targets, report)


@pytest.fixture(scope="module")
def clip() -> clips.Clip:
    return clips.load({"source": "package:harness/shapes/weights/clip", "micro_batch": 8})


@pytest.fixture(scope="module")
def targets(clip: clips.Clip) -> torch.Tensor:
    return clip.texts(CAPTIONS)[0]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every step's ids (n, N) and cosines (n,)."""
    steps: list[tuple[torch.Tensor, torch.Tensor]] = []
    keep = hard_prompt._State.keep

    def keep_and_tell(state: Any, ids: torch.Tensor, cosine: torch.Tensor) -> None:
        steps.append((ids.clone(), cosine.clone()))
        keep(state, ids, cosine)

    monkeypatch.setattr(hard_prompt._State, "keep", keep_and_tell)
    return steps


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_the_published_loop_chooses_the_same_prompts(
    clip: clips.Clip, targets: torch.Tensor, seen: list[tuple[torch.Tensor, torch.Tensor]], metric: Any
) -> None:
    double = clips.Clip(
        CLIPModel.from_pretrained(measure.WEIGHTS / "clip", dtype=torch.float64).eval(),
        clip.tokenizer,
        clip.processor,
        micro_batch=2,
    )
    settings = Settings(tokens=6, iterations=50, nearest=metric, dtype="float64")
    directions = targets[:2].double()
    found = optimise(double, directions, settings, SPECIAL, 2)
    allowed = [i for i in range(661) if i not in SPECIAL]
    drawn = torch.randint(len(allowed), (6,), generator=torch.Generator().manual_seed(42))
    start = [allowed[i] for i in drawn.tolist()]
    tower = PaddedTower(double.model, 659, 660)
    changes = 0
    for row, target in enumerate(directions):
        slow = prompts(tower, target, start, allowed, metric, 50)
        assert [ids[row].tolist() for ids, _ in seen] == [ids for ids, _ in slow]
        assert [float(c[row]) for _, c in seen] == pytest.approx([c for _, c in slow], abs=1e-9)
        best = max(range(50), key=lambda step: slow[step][1])
        assert found[row].ids == tuple(slow[best][0])
        assert found[row].seen_cosine == pytest.approx(slow[best][1], abs=1e-9)
        changes += len({tuple(ids) for ids, _ in slow})
    assert changes > 20  # the prompts did move


def test_eight_at_once_are_eight_alone(clip: clips.Clip, targets: torch.Tensor) -> None:
    together = optimise(clip, targets, SHORT, SPECIAL, 8)
    assert together == [optimise(clip, targets[i : i + 1], SHORT, SPECIAL, 8)[0] for i in range(8)]
    assert optimise(clip, targets.flip(0), SHORT, SPECIAL, 8) == together[::-1]
    assert len({found.ids for found in together}) == 8


def test_micro_batches_follow_each_other_cleanly(clip: clips.Clip, targets: torch.Tensor) -> None:
    kept = Optimiser(clip, SHORT, SPECIAL, 3)
    first = kept(targets)
    assert kept(targets) == first
    assert kept(targets[5:6]) == first[5:6]
    assert kept(targets[:0]) == []


def test_it_gets_closer_than_its_start(
    clip: clips.Clip, targets: torch.Tensor, seen: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    found = optimise(clip, targets, dataclasses.replace(SHORT, iterations=200), SPECIAL, 8)
    start = seen[0][1]
    assert torch.equal(seen[0][0][0], seen[0][0][7])  # the same start for every row
    for row, result in enumerate(found):
        assert result.seen_cosine == pytest.approx(max(float(c[row]) for _, c in seen), abs=0)
        assert result.seen_cosine > float(start[row]) + 0.2
        assert result.iterations == 200
    assert sum(result.seen_cosine for result in found) / 8 > 0.85


def test_cosines_are_of_the_text_that_is_returned(clip: clips.Clip, targets: torch.Tensor) -> None:
    found = optimise(clip, targets, SHORT, SPECIAL, 8)
    expected = functional.cosine_similarity(clip.texts([f.text for f in found])[0], targets, dim=1)
    assert [f.cosine for f in found] == pytest.approx(expected.tolist(), abs=1e-6)
    for result in found:
        again = tuple(clip.tokenize([result.text])[0][1:-1])
        assert (again != result.ids) == ("retokenised" in result.notes)
        if again == result.ids:
            assert result.cosine == pytest.approx(result.seen_cosine, abs=1e-5)


def test_a_text_that_reads_otherwise_is_noted(clip: clips.Clip, targets: torch.Tensor) -> None:
    letters = [i for i in range(661) if len(clip.tokenizer.convert_ids_to_tokens(i)) == 1]  # pieces, not words
    banned = sorted(set(range(661)) - set(letters))
    found = optimise(clip, targets[:2], Settings(tokens=8, iterations=5), banned, 2)
    assert all("retokenised" in result.notes for result in found)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_banned_tokens_are_never_chosen(
    clip: clips.Clip, targets: torch.Tensor, seen: list[tuple[torch.Tensor, torch.Tensor]], metric: Any
) -> None:
    free = optimise(clip, targets, dataclasses.replace(SHORT, nearest=metric), SPECIAL, 8)
    banned = sorted({*SPECIAL, *(i for found in free for i in found.ids), *range(0, 661, 3)})
    seen.clear()
    found = optimise(clip, targets, dataclasses.replace(SHORT, nearest=metric), banned, 8)
    assert not set(banned) & {i for ids, _ in seen for i in ids.flatten().tolist()}
    assert not set(banned) & {i for result in found for i in result.ids}


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_nearest_tokens_against_brute_force(metric: str, scale: float) -> None:
    generator = torch.Generator().manual_seed(5)
    table = torch.randn(200, 12, generator=generator, dtype=torch.float64) * torch.rand(200, 1, generator=generator)
    z = torch.randn(4, 7, 12, generator=generator, dtype=torch.float64) * scale
    banned = [0, 3, 199]
    found = Nearest(table, banned, metric, torch.float64)(z)
    if metric == "l2":
        scores = -torch.cdist(z.flatten(0, 1), table)
    else:
        scores = functional.cosine_similarity(z.flatten(0, 1)[:, None], table[None], dim=2)
    scores[:, banned] = -torch.inf
    assert torch.equal(found, scores.argmax(1).view(4, 7))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_blocks_of_the_vocabulary_change_nothing(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = torch.randn(1000, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    z = torch.randn(5, 9, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    whole = Nearest(table, [1], metric, torch.float64)(z)
    for block in (7, 100, 999, 1000):
        monkeypatch.setattr(hard_prompt, "_CPU_BLOCK", block)
        assert torch.equal(Nearest(table, [1], metric, torch.float64)(z), whole)


def test_a_zero_vector_has_a_nearest_token() -> None:
    table = torch.eye(4)
    for metric in ("cosine", "l2"):
        assert int(Nearest(table, [0], metric, torch.float32)(torch.zeros(1, 1, 4))) in (1, 2, 3)


def test_a_plateau_is_each_rows_own(
    clip: clips.Clip, targets: torch.Tensor, seen: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    settings = Settings(tokens=8, iterations=150, plateau=15)
    together = optimise(clip, targets, settings, SPECIAL, 8)
    steps = list(seen)
    assert together == [optimise(clip, targets[i : i + 1], settings, SPECIAL, 8)[0] for i in range(8)]
    assert len({found.iterations for found in together}) > 1
    for row, found in enumerate(together):
        cosines = [float(c[row]) for _, c in steps]
        best, since, ran = -2.0, 0, 0
        for cosine in cosines:  # the rule in words
            ran += 1
            best, since = (cosine, 0) if cosine > best else (best, since + 1)
            if since == 15:
                break
        assert (found.iterations, found.seen_cosine) == (ran, pytest.approx(best, abs=0))
        assert ("plateau" in found.notes) == (ran < 150)
    assert any("plateau" in found.notes for found in together)


def test_a_plateau_ends_the_loop_when_every_row_has_stopped(
    clip: clips.Clip, targets: torch.Tensor, seen: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    optimise(clip, targets, Settings(tokens=4, iterations=5000, plateau=5), SPECIAL, 8)
    assert len(seen) % hard_prompt.CHECK_EVERY == 0
    assert len(seen) < 1000


def test_progress_is_reported_to_the_end(clip: clips.Clip, targets: torch.Tensor) -> None:
    for settings in (SHORT, Settings(tokens=4, iterations=5000, plateau=5)):
        told: list[tuple[int, int]] = []
        optimise(clip, targets[:5], settings, SPECIAL, 2, lambda done, whole, told=told: told.append((done, whole)))
        assert told == sorted(told)
        assert {whole for _, whole in told} == {5 * settings.iterations}
        assert told[-1][0] == 5 * settings.iterations


def test_seeds_and_lengths(clip: clips.Clip, targets: torch.Tensor) -> None:
    one = optimise(clip, targets[:1], Settings(tokens=3, iterations=5), SPECIAL, 1)[0]
    other = optimise(clip, targets[:1], Settings(tokens=3, iterations=5, seed=7), SPECIAL, 1)[0]
    assert len(one.ids) == len(other.ids) == 3
    assert one.ids != other.ids
    scaled = optimise(clip, targets[:1] * 100, Settings(tokens=3, iterations=5), SPECIAL, 1)[0]
    assert scaled.ids == one.ids


def test_bfloat16_finds_prompts_nearly_as_close(clip: clips.Clip, targets: torch.Tensor) -> None:
    plain = optimise(clip, targets[:2], Settings(tokens=4, iterations=40), SPECIAL, 2)
    half = optimise(
        clip, targets[:2], Settings(tokens=4, iterations=40, dtype="bfloat16", search="bfloat16"), SPECIAL, 2
    )
    for one, other in zip(plain, half, strict=True):
        assert other.cosine > one.cosine - 0.15
        assert other.cosine == pytest.approx(other.seen_cosine, abs=0.02) or "retokenised" in other.notes


def test_tensor_float_is_set_for_the_loop_and_restored(
    clip: clips.Clip, targets: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    during: list[str] = []
    keep = hard_prompt._State.keep

    def look(state: Any, ids: torch.Tensor, cosine: torch.Tensor) -> None:
        during.append(torch.get_float32_matmul_precision())
        keep(state, ids, cosine)

    monkeypatch.setattr(hard_prompt._State, "keep", look)
    before = torch.get_float32_matmul_precision()
    for dtype, expected in (("float32", "highest"), ("tf32", "high")):
        during.clear()
        optimise(clip, targets[:1], Settings(tokens=2, iterations=1, dtype=dtype), SPECIAL, 1)  # type: ignore[arg-type]
        assert during == [expected]
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.slow
def test_a_compiled_tower_chooses_the_same_prompts(clip: clips.Clip, targets: torch.Tensor) -> None:
    settings = Settings(tokens=8, iterations=30, dtype="float64")
    plain = optimise(clip, targets[:2], settings, SPECIAL, 2)
    compiled = optimise(clip, targets[:2], dataclasses.replace(settings, compile="inductor"), SPECIAL, 2)
    for one, other in zip(plain, compiled, strict=True):
        assert one.ids == other.ids
        assert one.seen_cosine == pytest.approx(other.seen_cosine, abs=1e-9)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"iterations": 0}, "iterations"),
        ({"plateau": 0}, "plateau"),
        ({"nearest": "l1"}, "cosine, l2"),
        ({"dtype": "int8"}, "bfloat16"),
    ],
)
def test_bad_settings(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings(**change)


def test_what_cannot_be_optimised(clip: clips.Clip, targets: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="do not fit a window of 24"):
        optimise(clip, targets, Settings(tokens=23), SPECIAL, 1)
    with pytest.raises(ValueError, match="banned"):
        optimise(clip, targets, SHORT, range(661), 1)
    with pytest.raises(ValueError, match="micro_batch"):
        optimise(clip, targets, SHORT, SPECIAL, 0)
