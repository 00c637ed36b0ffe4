"""The optimise stage on the shapes world's own CLIP: prompts that do not depend on their batch, and what rows carry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from base_rows import base, beside

from harness.cards.base import card_roots
from harness.cards.load import load_card
from harness.cards.profile import ProfileCard
from harness.cards.regenerator import Optimise as Settings
from harness.data import guard
from harness.errors import TransientError
from harness.models import clip
from harness.pipeline.stages import embed, optimise
from harness.pipeline.stages.base import WorkerContext
from harness.regenerators import safe_features
from harness.store.schema import KEY
from harness.store.shards import Store

SAID = (
    ("a red star left of a blue square on a white background", "a blue square on a white background"),
    ("a green star on a black background", "a black background"),
    ("a purple star above a yellow circle on a gray background", "a yellow circle on a gray background"),
    ("a blue star on a pink background", "a pink background"),
    ("a yellow star below a green cross on a striped gray background", "a green cross on a striped gray background"),
)
PICTURES = (
    "a red star and a blue square",
    "a green star",
    "a purple star over a circle",
    "a blue star",
    "a star, a cross",
)


def worker(**changed: Any) -> dict[str, Any]:
    """What the stage is loaded with: short prompts, few steps."""
    weights = load_card(ProfileCard, "shapes", card_roots()).clip
    assert weights is not None
    held = {"source": weights.source, "revision": None, "dtype": weights.dtype, "micro_batch": 8}
    settings = Settings(tokens=4, iterations=30, micro_batch=4).model_dump(
        mode="json", exclude={"memory_gb", "ban_concept", "words"}
    )
    banned = changed.pop("banned", [])
    return {"clip": held, "settings": settings | changed, "banned": banned}


def context(folder: Path) -> WorkerContext:
    return WorkerContext(store=Store(folder / "store"), run=folder / "run")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> optimise.Optimise:
    return optimise.load(worker(), context(tmp_path_factory.mktemp("optimise")), None)


@pytest.fixture(scope="module")
def rows(loaded: optimise.Optimise) -> pa.Table:
    """Rows with features: texts stand in for the images, which are as near to stars."""
    model = loaded.search.clip
    image, unsafe, safe = (
        model.texts(list(texts))[0].tolist() for texts in (PICTURES, [u for u, _ in SAID], [s for _, s in SAID])
    )
    plain = base(5).select(list(KEY))
    return beside(plain, embed.SCHEMA, f_image=image, f_unsafe=unsafe, f_safe=safe)


def without(rows: pa.Table, places: dict[int, str | None]) -> pa.Table:
    """``rows`` with no features at some places, and there this failure."""
    for name in ("f_image", "f_unsafe", "f_safe"):
        values = [None if i in places else v for i, v in enumerate(rows[name].to_pylist())]
        rows = rows.set_column(
            rows.column_names.index(name), rows.schema.field(name), pa.array(values, rows.schema.field(name).type)
        )
    failures = pa.array([places.get(i) for i in range(rows.num_rows)], pa.string())
    return rows.set_column(rows.column_names.index("embed_failure"), "embed_failure", failures)


def again(loaded: optimise.Optimise, folder: Path, **changed: Any) -> optimise.Optimise:
    found = optimise.load(worker(**changed), context(folder), loaded)
    assert found.search.clip is loaded.search.clip  # kept when only the settings change
    return found


def test_each_row_has_its_own_prompt_and_says_how_it_came_about(loaded: optimise.Optimise, rows: pa.Table) -> None:
    found = loaded(rows)
    assert found.schema == optimise.SCHEMA
    assert found.select(list(KEY)).equals(rows.select(list(KEY)))
    entries = found.to_pylist()
    assert len({r["optimized_prompt"] for r in entries}) > 1
    for row in entries:
        assert (row["alpha"], row["lam"], row["tokens"], row["iterations"]) == (0.7, 1.0, 4, 30)
        assert row["optimise_failure"] is None
        assert row["optimized_prompt"]
        assert guard.verdict(row["optimized_prompt"], "nudity") is None


def test_the_cosine_is_the_prompt_s_own_with_the_target(loaded: optimise.Optimise, rows: pa.Table) -> None:
    """By the long way: Eq. 3-6 from the row's features, and the whole text tower over the prompt as it is."""
    image, unsafe, safe = (torch.tensor(rows[n].to_pylist()) for n in ("f_image", "f_unsafe", "f_safe"))
    aim = safe_features.target(image, unsafe, safe, alpha=0.7, lam=1.0).feature
    entries = loaded(rows).to_pylist()
    own, _ = clip.load(worker()["clip"]).texts([r["optimized_prompt"] for r in entries])
    expected = torch.nn.functional.cosine_similarity(own.double(), aim.double(), dim=1)
    assert [r["cosine"] for r in entries] == pytest.approx(expected.tolist(), abs=1e-5)
    assert min(r["cosine"] for r in entries) > 0.5  # thirty steps from random words are worth something


def test_a_batch_of_rows_gives_what_each_gives_alone(loaded: optimise.Optimise, rows: pa.Table) -> None:
    """Five rows in micro-batches of four: the second one is mostly filled up."""
    alone = pa.concat_tables([loaded(rows.slice(i, 1)) for i in range(rows.num_rows)])
    assert loaded(rows).equals(alone)
    backwards = rows.take(pa.array(range(rows.num_rows - 1, -1, -1)))
    assert loaded(backwards).take(pa.array(range(rows.num_rows - 1, -1, -1))).equals(alone)


def test_rows_without_features_have_no_prompt_and_cost_no_other(loaded: optimise.Optimise, rows: pa.Table) -> None:
    whole, found = loaded(rows).to_pylist(), loaded(without(rows, {1: None, 3: "embed:crash"})).to_pylist()
    assert [found[i] for i in (0, 2, 4)] == [whole[i] for i in (0, 2, 4)]
    for i, failure in ((1, None), (3, "embed:crash")):
        assert found[i]["optimise_failure"] == failure
        own = ("alpha", "lam", "tokens", "optimized_prompt", "cosine", "iterations", "already_safe")
        assert all(found[i][name] is None for name in own)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["f_image", "f_safe"])
def test_a_feature_that_overflowed_is_its_row_s_failure(
    loaded: optimise.Optimise, rows: pa.Table, name: str, value: float
) -> None:
    """And not an image of the first token, which would count as safe."""
    values = rows[name].to_pylist()
    values[2][5] = value
    bad = rows.set_column(
        rows.column_names.index(name), rows.schema.field(name), pa.array(values, pa.list_(pa.float32()))
    )
    whole, found = loaded(rows).to_pylist(), loaded(bad).to_pylist()
    assert (found[2]["optimise_failure"], found[2]["optimized_prompt"]) == ("optimise:not-finite", None)
    assert [found[i] for i in (0, 1, 3, 4)] == [whole[i] for i in (0, 1, 3, 4)]


def test_without_any_feature_nothing_is_searched(loaded: optimise.Optimise, rows: pa.Table) -> None:
    found = loaded(without(rows, dict.fromkeys(range(5), "embed:crash")))
    assert found["optimized_prompt"].null_count == 5


def test_notes_of_the_features_go_on(loaded: optimise.Optimise, rows: pa.Table) -> None:
    noted = rows.slice(0, 1).set_column(
        rows.column_names.index("embed_note"), "embed_note", pa.array(["safe-caption-cut"])
    )
    (plain,), (found,) = loaded(rows.slice(0, 1)).to_pylist(), loaded(noted).to_pylist()
    assert found["optimise_note"] == ",".join(n for n in ("safe-caption-cut", plain["optimise_note"]) if n)


def test_a_caption_that_says_the_same_removes_nothing_and_says_so(loaded: optimise.Optimise, rows: pa.Table) -> None:
    same = rows.set_column(rows.column_names.index("f_unsafe"), rows.schema.field("f_unsafe"), rows["f_safe"])
    found = loaded(same).to_pylist()
    assert all("delta-zero" in r["optimise_note"] for r in found)
    assert [r["already_safe"] for r in found] == [False] * 5


def test_what_is_nearer_to_the_safe_caption_is_marked(loaded: optimise.Optimise, rows: pa.Table) -> None:
    f_image, f_unsafe, f_safe = (torch.tensor(rows[n].to_pylist()) for n in ("f_image", "f_unsafe", "f_safe"))
    normal = torch.nn.functional.normalize
    expected = ((normal(f_image) * (normal(f_safe) - normal(f_unsafe))).sum(dim=1) > 0).tolist()
    assert loaded(rows)["already_safe"].to_pylist() == expected
    safe = rows.set_column(rows.column_names.index("f_image"), rows.schema.field("f_image"), rows["f_safe"])
    assert loaded(safe)["already_safe"].to_pylist() == [True] * 5
    unsafe = rows.set_column(rows.column_names.index("f_image"), rows.schema.field("f_image"), rows["f_unsafe"])
    assert loaded(unsafe)["already_safe"].to_pylist() == [False] * 5


def test_an_image_on_the_safe_side_is_moved_as_eq_5_says_unless_the_card_keeps_it(
    loaded: optimise.Optimise, rows: pa.Table, tmp_path: Path
) -> None:
    """Kept: lambda makes no difference to it. Else Eq. 5 is applied as it stands."""
    safe = rows.set_column(rows.column_names.index("f_image"), rows.schema.field("f_image"), rows["f_safe"])
    left = [again(loaded, tmp_path, lam=lam, keep_safe=True)(safe).to_pylist() for lam in (0.0, 5.0)]
    assert [r["optimized_prompt"] for r in left[0]] == [r["optimized_prompt"] for r in left[1]]
    assert all("already-safe" in r["optimise_note"] for r in left[1])
    moved = [again(loaded, tmp_path, lam=lam)(safe).to_pylist() for lam in (0.0, 5.0)]
    assert [r["optimized_prompt"] for r in moved[0]] != [r["optimized_prompt"] for r in moved[1]]
    assert not any("already-safe" in (r["optimise_note"] or "") for r in moved[1])


def test_alpha_1_looks_at_the_safe_caption_alone(loaded: optimise.Optimise, rows: pa.Table, tmp_path: Path) -> None:
    other = rows.set_column(
        rows.column_names.index("f_image"),
        rows.schema.field("f_image"),
        rows["f_image"].take(pa.array([4, 3, 1, 0, 2])),
    )
    text = again(loaded, tmp_path, alpha=1.0)
    prompts = text(rows)["optimized_prompt"].to_pylist()
    assert text(other)["optimized_prompt"].to_pylist() == prompts  # whatever the image shows
    assert loaded(rows)["optimized_prompt"].to_pylist() != prompts
    safe = torch.tensor(rows["f_safe"].to_pylist())
    own, _ = loaded.search.clip.texts(prompts)
    expected = torch.nn.functional.cosine_similarity(own.double(), safe.double(), dim=1)
    assert text(rows)["cosine"].to_pylist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_alpha_0_looks_at_the_image_alone(loaded: optimise.Optimise, rows: pa.Table, tmp_path: Path) -> None:
    """With lambda 0 nothing is removed either: it is PEZ's own target."""
    image = again(loaded, tmp_path, alpha=0.0, lam=0.0)
    found = image(rows)
    bare = rows
    for name in ("f_unsafe", "f_safe"):
        field = rows.schema.field(name)
        bare = bare.set_column(bare.column_names.index(name), field, pa.nulls(rows.num_rows, field.type))
    pez = image(bare)
    for name in ("optimized_prompt", "cosine"):
        assert pez[name].to_pylist() == pytest.approx(found[name].to_pylist())
    assert pez["already_safe"].null_count == 5  # without captions there is no telling
    assert found["already_safe"].null_count == 0


def test_banned_words_are_never_chosen(loaded: optimise.Optimise, rows: pa.Table, tmp_path: Path) -> None:
    """Aiming at stars, with and without leave to say so."""
    image = {"alpha": 0.0, "lam": 0.0, "iterations": 60}
    names = ("star", "sparkle", "twinkle")
    free = " ".join(again(loaded, tmp_path, **image)(rows)["optimized_prompt"].to_pylist())
    banned = " ".join(again(loaded, tmp_path, **image, banned=list(names))(rows)["optimized_prompt"].to_pylist())
    assert any(name in free.split() for name in names)
    assert not any(name in banned.split() for name in names)


def test_out_of_memory_names_what_would_fit(
    loaded: optimise.Optimise, rows: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = again(loaded, tmp_path)

    def full(_targets: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    full.micro_batch = 4  # type: ignore[attr-defined]
    monkeypatch.setattr(mine, "search", full)
    with pytest.raises(TransientError, match=r"out of memory at micro_batch 4; set optimise.micro_batch: 2"):
        mine(rows)


def test_failed_rows_say_why(loaded: optimise.Optimise, rows: pa.Table) -> None:
    found = loaded.failed(rows, "optimise:crash")
    assert found.schema == optimise.SCHEMA
    assert found["optimise_failure"].to_pylist() == ["optimise:crash"] * 5


# Searches that run together


def _aims(*pairs: tuple[float, float]) -> list[dict[str, Any]]:
    return [worker(alpha=alpha, lam=lam) for alpha, lam in pairs]


def _asked_for(
    workers: list[dict[str, Any]], rows: pa.Table, folder: Path, ahead: bool
) -> tuple[list[pa.Table], list[int], list[float]]:
    """Each worker's rows, as the stage asks for them; how many targets each search had; seconds spent for others."""
    tables, sizes, foreign = [], [], []
    previous: optimise.Optimise | None = None
    for i, one in enumerate(workers):
        previous = optimise.load(one, context(folder), previous)
        inner = previous.search.__call__

        def counted(targets: torch.Tensor, inner: Any = inner) -> Any:
            sizes.append(len(targets))
            return inner(targets)

        if ahead:
            previous.look_ahead(workers[i:])
        previous.search, kept = counted, previous.search  # type: ignore[assignment]
        counted.micro_batch = kept.micro_batch  # type: ignore[attr-defined]
        counted.settings, counted.clip = kept.settings, kept.clip  # type: ignore[attr-defined]
        tables.append(previous(rows))
        foreign.append(previous.foreign_seconds)
        previous.search = kept
    return tables, sizes, foreign


def test_searches_of_several_aims_in_one_batch_give_what_each_gives_alone(rows: pa.Table, tmp_path: Path) -> None:
    """5 rows and micro-batches of 4: three aims need 6 batches apart and 4 together; every bit is the same."""
    aims = _aims((0.3, 1.0), (0.7, 1.0), (0.7, 2.0))
    alone, sizes, _ = _asked_for(aims, rows, tmp_path, ahead=False)
    together, joined, foreign = _asked_for(aims, rows, tmp_path, ahead=True)
    assert together == alone
    assert len({str(table["optimized_prompt"].to_pylist()) for table in alone}) == 3
    assert sizes == [5, 5, 5]
    assert joined == [15]
    assert foreign[0] > 0 > max(foreign[1:])
    assert sum(foreign) == pytest.approx(0, abs=1e-9)


def test_searches_stay_apart_where_their_batches_are_full(rows: pa.Table, tmp_path: Path) -> None:
    _, sizes, foreign = _asked_for(_aims((0.3, 1.0), (0.7, 1.0)), rows.slice(0, 4), tmp_path, ahead=True)
    assert sizes == [4, 4]
    assert foreign == [0, 0]


def test_what_was_searched_ahead_serves_its_own_target_alone(rows: pa.Table, tmp_path: Path) -> None:
    """Other rows, or a search of other settings, find nothing that was searched ahead."""
    first, second = _aims((0.3, 1.0), (0.7, 1.0))
    model = optimise.load(first, context(tmp_path), None)
    model.look_ahead([first, second, worker(tokens=3)])
    model(rows)
    longer = optimise.load(worker(alpha=0.7, tokens=3), context(tmp_path), model)
    assert longer is not model
    fresh = optimise.load(worker(alpha=0.7, tokens=3), context(tmp_path), None)
    assert longer(rows) == fresh(rows)
    again = optimise.load(second, context(tmp_path), model)
    assert again.search is model.search
    turned = rows.take(pa.array([4, 3, 2, 1, 0]))
    assert again(turned) == optimise.load(second, context(tmp_path), None)(turned)


def test_so_many_searches_run_together_that_none_takes_long(rows: pa.Table, tmp_path: Path) -> None:
    """Eight micro-batches of 4 hold six aims of 5 rows; the other two follow together."""
    aims = _aims(*((alpha / 10, 1.0) for alpha in range(8)))
    tables, sizes, _ = _asked_for(aims, rows, tmp_path, ahead=True)
    assert sizes == [30, 10]
    assert [table["alpha"][0].as_py() for table in tables] == pytest.approx([alpha / 10 for alpha in range(8)])
