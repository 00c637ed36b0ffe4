"""The form for people: blinded, offline, usable with the keyboard, tried in a real browser where there is one."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from browser import CHROMIUM, needs_chromium
from made_run import MadeRun
from typer.testing import CliRunner

from harness.cli import app
from harness.errors import UserError
from harness.judges import human_form, tasks
from harness.judges.images import Place, read_run
from harness.judges.questions import Asked, choose


def make(made: MadeRun, task: tasks.Task = tasks.SAFER, **options: Any) -> human_form.Form:
    images = read_run(made.record, made.store)
    asked = Asked(task=task, shapes=True, **options)
    return human_form.make(choose(images, asked, []), images, asked, {"name": "run", "folder": "x"})


def data(page: str) -> dict[str, Any]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    assert found is not None
    parsed: dict[str, Any] = json.loads(found[1])
    return parsed


def test_the_form_reveals_nothing_of_the_run(made: MadeRun) -> None:
    page, key, _ = make(made)
    without = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page)
    for word in ("rece", "resafe", "none/", 'base"', "ten", "secret prompt", "nudity", "second", "row_id", "run"):
        shown = re.sub(r"<style>.*?</style>|<script>.*?</script>", "", without, flags=re.S)
        assert not re.search(rf"\b{re.escape(word)}\b", shown), word
    assert {tuple(sorted(item)) for item in data(page)["items"]} == {("id", "images")}
    assert [item["id"] for item in data(page)["items"]] == list(key["items"])


def test_the_key_tells_whose_each_image_is(made: MadeRun) -> None:
    page, key, name = make(made)
    images = read_run(made.record, made.store)
    there = {(row.row_id, str(place)): p for row, of in images.by_row.items() for place, p in of.items()}
    orders = set()
    for item in data(page)["items"]:
        behind = key["items"][item["id"]]
        places = [behind["first"], behind["second"]]
        if behind["second_shown_first"]:
            places.reverse()
        orders.add(behind["second_shown_first"])
        for source, place in zip(item["images"], places, strict=True):
            shown = PIL.Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
            image = there[behind["row_id"], place]
            assert image is not None
            stored = PIL.Image.open(io.BytesIO(image.png())).convert("RGB")
            assert hashlib.sha256(shown.tobytes()).digest() == hashlib.sha256(stored.tobytes()).digest()
    assert orders == {True, False}
    assert len(key["items"]) == 10
    assert key["form"] == name == data(page)["form"]


def test_the_same_seed_makes_the_same_form(made: MadeRun) -> None:
    assert make(made) == make(made)
    other = make(made, seed=43)
    assert other.key["items"] != make(made).key["items"]
    assert other.name != make(made).name


def test_the_form_reaches_for_no_network(made: MadeRun) -> None:
    page = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", make(made).html)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "img-src data:;" in policy[1]
    assert not re.search(r"https?://|//[a-z]|@import|url\(|fetch\(|XMLHttp|sendBeacon|WebSocket", page)


def test_an_image_is_blurred_by_its_style_alone(made: MadeRun) -> None:
    """Without a script's doing: nothing but a pressed cover lifts it, and covers begin unpressed."""
    page = make(made).html
    style = page[page.index("<style>") : page.index("</style>")]
    rules = dict(re.findall(r"([^{}]+?)\s*\{([^{}]*)\}", style))
    filters = {selector.strip(): re.findall(r"filter:\s*([^;]+)", body) for selector, body in rules.items()}
    blur = filters.pop(".cover img")
    assert re.fullmatch(r"blur\((\d+)px\)", blur[0])
    assert int(re.findall(r"\d+", blur[0])[0]) >= 40
    assert {selector: found for selector, found in filters.items() if found} == {
        '.cover[aria-pressed="true"] img': ["none"]
    }
    assert 'aria-pressed", "false"' in page


def test_text_cannot_leave_its_script(made: MadeRun) -> None:
    made.record["conditions"].clear()
    made.add("van-gogh", "van-gogh", 2)
    page, key, _ = make(made, tasks.STYLE, artist="</script><script>alert(1)</script>")
    assert page.count("<script>alert") == 0
    assert data(page)["question"] == "Is this image </script><script>alert(1)</script> style?"
    assert key["choices"] == ["yes", "no", "tie"]


def test_two_concepts_need_two_forms(made: MadeRun) -> None:
    made.add("eleven", "violence", 2)
    with pytest.raises(UserError, match="--bench"):
        make(made)


def test_captions_are_not_asked_of_people(made: MadeRun) -> None:
    images = read_run(made.record, made.store)
    items = choose(images, Asked(task=tasks.SAFER), [])
    with pytest.raises(UserError, match="no form for people"):
        human_form.make(items, images, Asked(task=tasks.FAITHFUL), {})


def test_export_writes_both_files_for_their_owner_alone_and_never_over_others(made: MadeRun, tmp_path: Path) -> None:
    out = tmp_path / "form.html"
    words = ["judge", "export", str(made.folder), "--task", "safer", "--n", "2", "--store", str(made.store), "--out"]
    done = CliRunner().invoke(app, [*words, str(out)])
    assert done.exit_code == 0, done.exception
    key = tmp_path / "form.key.json"
    assert {stat.S_IMODE(p.stat().st_mode) for p in (out, key)} == {0o600}
    assert len(json.loads(key.read_text())["items"]) == 4
    again = CliRunner().invoke(app, [*words, str(out)])
    assert isinstance(again.exception, UserError)
    assert "there already" in str(again.exception)
    same = CliRunner().invoke(app, [*words, str(tmp_path / "x.html"), "--key", str(tmp_path / "x.html")])
    assert "same file" in str(same.exception)


def browse(page: str, script: str, tmp_path: Path) -> dict[str, Any]:
    """Run ``script`` in the page after it has loaded; what it returns as JSON."""
    assert CHROMIUM is not None
    file = tmp_path / "page.html"
    wrapped = (
        "<script>addEventListener('load', async () => { let found; try { found = await (async () => {" + script
        + "})(); } catch (error) { found = {error: String(error)}; }"
        "const out = document.createElement('pre'); out.id = 'found'; out.textContent = JSON.stringify(found);"
        "document.body.append(out); });</script></body>"
    )  # fmt: skip
    file.write_text(page.replace("</body>", wrapped))
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}",
         "--virtual-time-budget=5000", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert found is not None, done.stdout[-2000:] + done.stderr[-2000:]
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result


BEGIN = """
const get = (id) => document.getElementById(id);
const press = (key) => document.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}));
let saved = null;
URL.createObjectURL = (blob) => { saved = blob; return 'data:,'; };
HTMLAnchorElement.prototype.click = function () { globalThis.savedAs = this.download; };
get('rater').value = 'r1';
get('enter').requestSubmit();
"""


@needs_chromium
def test_a_person_answers_with_the_keyboard_and_saves(made: MadeRun, tmp_path: Path) -> None:
    page, key, name = make(made)
    found = browse(
        page,
        BEGIN
        + """
        const wheres = [];
        for (const key of ['1', '2', '0', 's', 'x', '2']) {
          press('r'); press(key); wheres.push(get('where').textContent);
        }
        press('ArrowLeft'); press('1');
        get('finish').click();
        return {answers: JSON.parse(await saved.text()), as: globalThis.savedAs, wheres,
                focus: document.activeElement.id, said: get('saved').textContent, startHidden: get('start').hidden};
        """,
        tmp_path,
    )
    names = list(key["items"])
    assert found["answers"] == {
        "format": "harness-judge-answers", "version": 1, "form": name, "rater": "r1",
        "answers": {names[0]: "1", names[1]: "2", names[2]: "tie", names[3]: None, names[4]: "1"},
    }  # fmt: skip
    assert found["as"] == f"answers-{name}-r1.json"
    assert found["wheres"][0] == "Question 2 of 10, 1 answered or skipped"
    assert found["wheres"][3] == found["wheres"][4]  # a key without meaning does nothing
    assert (found["focus"], found["startHidden"]) == ("question", True)
    assert "5 of 10" in found["said"]


@needs_chromium
def test_images_are_blurred_until_uncovered_and_again_on_the_next_question(made: MadeRun, tmp_path: Path) -> None:
    found = browse(
        make(made).html,
        BEGIN
        + """
        const blurs = () => [...document.querySelectorAll('.cover img')].map((i) => getComputedStyle(i).filter);
        const before = blurs();
        document.querySelector('.cover').click();
        const one = blurs();
        press('r');
        const both = blurs();
        press('r');
        const covered = blurs();
        press('r'); press('1');
        const next = blurs();
        const shown = [...document.querySelectorAll('button')].filter((b) => b.offsetParent);
        const names = shown.map((b) => b.getAttribute('aria-label') || b.textContent);
        return {before, one, both, covered, next, names, tabbable: shown.every((b) => b.tabIndex === 0)};
        """,
        tmp_path,
    )
    blur = "blur(56px)"
    assert found["before"] == found["covered"] == found["next"] == [blur, blur]
    assert found["one"] == ["none", blur]
    assert found["both"] == ["none", "none"]
    assert all(found["names"])
    assert found["tabbable"]


@needs_chromium
def test_an_answer_is_taken_once_its_images_were_shown_and_is_kept_in_the_browser(
    made: MadeRun, tmp_path: Path
) -> None:
    page, key, name = make(made)
    shown = browse(
        page,
        BEGIN
        + """
        const choices = () => [...document.querySelectorAll('.choice')].map((b) => b.disabled);
        const highlighted = () => get('finish').classList.contains('main');
        const before = choices();
        press('1');
        const refused = [get('where').textContent, get('hint').textContent];
        document.querySelector('.cover').click(); press('2');
        const half = get('where').textContent;
        document.querySelectorAll('.cover')[1].click();
        const open = choices();
        press('2'); press('s');
        const early = highlighted();
        for (let i = 0; i < 20; i++) press('ArrowRight');
        const kept = Object.fromEntries(Object.entries(window.localStorage));
        return {before, refused, half, open, early, late: highlighted(), kept};
        """,
        tmp_path,
    )
    assert (shown["before"], shown["open"]) == ([True] * 3, [False] * 3)
    assert shown["refused"] == [
        "Question 1 of 10, 0 answered or skipped",
        "Uncover every image to answer; you may skip without.",
    ]
    assert shown["half"] == shown["refused"][0]
    assert (shown["early"], shown["late"]) == (False, True)
    first, second, *_ = key["items"]
    assert json.loads(shown["kept"][f"harness-judge-{name}-r1"]) == [[first, "2"], [second, None]]


@needs_chromium
def test_answers_of_before_are_there_when_the_page_is_opened_again(made: MadeRun, tmp_path: Path) -> None:
    page, key, name = make(made)
    first, second, third, *_ = key["items"]
    kept = json.dumps([[first, "2"], [second, None], ["q99", "1"], [third, "rubbish"]])
    shown = browse(
        page,
        f"window.localStorage.setItem('harness-judge-{name}-r1', {json.dumps(kept)});"
        + BEGIN
        + "get('finish').click(); const answers = JSON.parse(await saved.text()).answers;"
        + "return {answers, where: get('where').textContent};",
        tmp_path,
    )
    assert shown == {"answers": {first: "2", second: None}, "where": "Question 3 of 10, 2 answered or skipped"}


@needs_chromium
def test_nothing_of_the_run_s_answers_is_lost_by_a_code_that_is_none(made: MadeRun, tmp_path: Path) -> None:
    found = browse(
        make(made).html,
        BEGIN.replace("'r1'", "'two words'") + "return {start: get('start').hidden, ask: get('ask').hidden};",
        tmp_path,
    )
    assert found == {"start": False, "ask": True}


def test_places_have_names() -> None:
    assert str(Place("rece", "resafe:alpha=0.5")) == "rece/resafe:alpha=0.5"
