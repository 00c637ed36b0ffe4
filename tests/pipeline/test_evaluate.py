"""An evaluation looks at its folders before it writes in any of them; no model is loaded here."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from desk import Desk

from harness import cli
from harness.errors import TransientError, UserError
from harness.pipeline.evaluate import Budget, Places, _disks, evaluate, prepare
from harness.pipeline.executor import Resources
from harness.pipeline.request import Request
from harness.store.schema import VERSION

REQUEST = Request(defenses=("none",), benches=("ten",), profile="small", regens=("none",))


def _places(desk: Desk, out: str = "runs") -> Places:
    return Places(store=desk.store, out=desk.root / out, data=desk.root / "data", cards=desk.cards)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("store.json", json.dumps({"schema": VERSION + 1}), f"has schema {VERSION + 1}"),
        ("store.json", "torn", "cannot be used"),
        ("thesis.tex", "x", "not a store and not empty"),
    ],
)
def test_what_is_no_store_of_ours_is_refused_and_left_as_it_was(desk: Desk, name: str, content: str, said: str) -> None:
    desk.store.mkdir()
    (desk.store / name).write_text(content)
    with pytest.raises(UserError, match=said):
        prepare(REQUEST, _places(desk))
    assert [p.name for p in desk.store.iterdir()] == [name]


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_an_out_that_cannot_be_written_leaves_no_store_behind(desk: Desk, out: str) -> None:
    (desk.root / "file").write_text("x")
    with pytest.raises(UserError, match="--out: .* cannot be written: .*/file is no folder"):
        evaluate(
            REQUEST, _places(desk, out), Resources(executor="inline"), Budget.parse("0"), lambda stages: None, "harness"
        )
    assert not desk.store.exists()


def test_what_all_does_not_mean_is_one_line(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.bench("mild", concept="benign")
    (desk.root / "file").write_text("x")
    request = Request(
        defenses=("all",), benches=("ten", "mild"), profile="small", regens=("none",), ids=("ten/00001", "mild/00001")
    )
    with pytest.raises(UserError, match="--out"):  # it is said before anything is made
        evaluate(
            request, _places(desk, "file"), Resources(executor="inline"), Budget.parse("0"), lambda s: None, "harness"
        )
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert "uce over mild (benign)" in shown.err
    assert "over ten" not in shown.err


def test_a_run_s_folder_is_made_where_nothing_was(tmp_path: Path) -> None:
    from harness.pipeline.evaluate import _check_out

    _check_out(tmp_path / "a/b/c")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_mistake_of_the_user_and_ends_with_four(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        with _disks():
            raise OSError(number, "No room", "runs/x/scores.parquet")

    with pytest.raises(TransientError, match=r"No room \(runs/x/scores.parquet\); make room, and run the same command"):
        full()
    monkeypatch.setattr(cli, "watch", lambda _command: lambda **_: full())
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 4
    with pytest.raises(PermissionError), _disks():
        raise PermissionError(errno.EACCES, "not yours")
