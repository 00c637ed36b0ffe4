"""A new kind of step is one file beside the stages, and a section of a regenerator's card: nothing else knows of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

import harness
from harness.errors import UserError
from harness.pipeline import stage_kinds, stages
from harness.pipeline.request import Places

BLUR = '''
"""The blur step: every image under a Gaussian kernel."""

from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageFilter

from harness.cards.base import Amount, Model
from harness.pipeline.stages.images import decode, drawn, put
from harness.store.schema import INHERITED, LINEAGE, REGENERATION

PLACE = 75
READS_IMAGES = True
LIBRARIES = ("pillow",)
STEP = True


class Settings(Model):
    radius: Amount  # pixels


def load(worker: Any, context: Any, previous: Any) -> "Blur":
    return Blur(Settings.model_validate(worker["settings"]), worker["variant"])


class Blur:
    def __init__(self, settings: Settings, variant: str) -> None:
        self.radius, self.variant = settings.radius, variant

    def __call__(self, rows: pa.Table) -> pa.Table:
        entries = self._entries(rows)
        for entry, data in zip(entries, drawn(rows), strict=True):
            if data is not None:
                image = Image.fromarray(decode(data)).filter(ImageFilter.GaussianBlur(self.radius))
                put(entry, np.asarray(image))
        return pa.Table.from_pylist(entries, schema=REGENERATION)

    def failed(self, rows: pa.Table, code: str) -> pa.Table:
        return pa.Table.from_pylist([e | {"error": e["error"] or code} for e in self._entries(rows)], REGENERATION)

    def _entries(self, rows: pa.Table) -> list[dict[str, Any]]:
        own = dict.fromkeys((*LINEAGE.names, "image", "image_sha256", "degenerate")) | {"variant": self.variant}
        return [r | own | {"error": r["error"] and f"{INHERITED}{r['error']}"} for r in rows.to_pylist()]
'''
CARD = """
summary: a Gaussian blur of each image
paper: none
steps:
  {step}: {{{settings}}}
"""


@pytest.fixture
def more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is searched for modules of the package after the package's own; the step's file lies in it."""
    folder = tmp_path / "more" / "pipeline" / "stages"
    folder.mkdir(parents=True)
    (folder / "blur.py").write_text(BLUR)
    assert harness.__spec__ is not None
    monkeypatch.setattr(harness.__spec__, "submodule_search_locations", [*harness.__path__, str(tmp_path / "more")])
    monkeypatch.setattr(stages, "__path__", [*stages.__path__, str(folder)])
    for cache in (stage_kinds._constants, stage_kinds.declared):
        cache.cache_clear()
    yield tmp_path
    for cache in (stage_kinds._constants, stage_kinds.declared):
        cache.cache_clear()


def evaluated(folder: Path, step: str, settings: str) -> harness.Run:
    cards = folder / "cards"
    (cards / "pipelines" / "regenerators").mkdir(parents=True)
    (cards / "pipelines" / "regenerators" / "soft.yaml").write_text(CARD.format(step=step, settings=settings))
    return harness.evaluate(
        defense="none", bench="ring-a-bell-k77", profile="shapes", executor="inline", regens=("soft",), limit=2,
        places=Places(store=folder / "store", out=folder / "runs", data=folder / "data", cards=cards),
    )  # fmt: skip


def test_a_step_of_one_file_runs_from_its_section_of_a_card(more: Path) -> None:
    run = evaluated(more, "blur", "radius: 2")
    base, blurred = (list(run.images(variant=name)) for name in ("base", "soft"))
    assert len(base) == len(blurred) == 2
    for before, after in zip(base, blurred, strict=True):
        expected = Image.fromarray(np.asarray(before.image)).filter(ImageFilter.GaussianBlur(2))
        assert np.array_equal(np.asarray(after.image), np.asarray(expected))
        assert not np.array_equal(np.asarray(after.image), np.asarray(before.image))
    cells = [cell for cell in run.cell_list() if cell.variant == "soft" and cell.main]
    assert {cell.metric for cell in cells} >= {"asr"}
    assert cells[0].method == {"blur radius": 2}
    assert any(name.startswith("blur-soft:") for name in cells[0].fingerprints)


@pytest.mark.parametrize(
    ("step", "settings", "said"),
    [
        ("blurr", "radius: 2", "no kind of step 'blurr'; did you mean 'blur'?"),
        ("caption", "", "no kind of step 'caption'"),
        ("blur", "radios: 2", "steps.blur: no setting 'radios'; did you mean 'radius'?"),
        ("blur", "radius: -2", "steps.blur.radius: should be"),
        ("blur", "", "steps.blur.radius: "),
    ],
)
def test_what_a_step_does_not_take_is_refused_before_anything_runs(
    more: Path, step: str, settings: str, said: str
) -> None:
    with pytest.raises(UserError) as error:
        evaluated(more, step, settings)
    assert said in str(error.value)
    assert not (more / "runs").exists()


def test_no_stage_of_ours_is_a_step_without_its_own_wiring() -> None:
    assert [kind for kind in stage_kinds.names() if stage_kinds.declared(kind).is_step] == []
