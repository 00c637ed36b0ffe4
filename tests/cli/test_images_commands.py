"""``harness score``: what can be asked for is checked before anything is written; no model is loaded here."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.cli.images import _unscored
from harness.errors import UserError
from harness.pipeline.evaluate import Places, prepare
from harness.pipeline.request import Request


@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        ("ssim@same/bse", "no reference 'same/bse'; did you mean 'same/base'?"),
        ("shapes_oracle,ssim@base", "no reference 'base'"),
        ("ssim@", "no reference ''"),
        ("ssin@same/base", "unknown scorer 'ssin'; did you mean 'ssim'?"),
        ("ssim@none/base", "have no none/base to compare with"),
    ],
)
def test_a_scorer_that_cannot_be_is_refused_before_anything_is_written(tmp_path: Path, scorer: str, said: str) -> None:
    (tmp_path / "images").mkdir()
    words = ["score", "--images", str(tmp_path / "images"), "--profile", "shapes", "--scorer", scorer]
    places = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "runs")]
    done = CliRunner().invoke(app, [*words, *places])
    assert isinstance(done.exception, UserError)
    assert said in str(done.exception)
    assert [p.name for p in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize(
    ("defenses", "regens", "unscored"),
    [
        (("none",), ("none",), ["ssim@same/base", "ssim@none/base"]),
        (("none",), ("resafe",), []),
        (("none", "sd-np"), ("none",), ["ssim@same/base"]),
    ],
)
def test_a_reference_that_no_image_has_is_told(
    tmp_path: Path, defenses: tuple[str, ...], regens: tuple[str, ...], unscored: list[str]
) -> None:
    wanted = ("shapes_oracle", "ssim@same/base", "ssim@none/base")
    request = Request(
        defenses=defenses, benches=("direct",), profile="shapes", regens=regens, limit=1, extra_scorers=wanted
    )
    places = Places(store=tmp_path / "store", out=tmp_path / "runs", data=tmp_path / "data")
    assert _unscored(prepare(request, places), wanted) == unscored
