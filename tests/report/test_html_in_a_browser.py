"""The page clicked through in a real browser, by keyboard: sort, filter, flips, slider; narrow, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, needs_chromium
from html_samples import POLICIES, SECRET, rows, run_page, shards

from harness.metrics.policies import verdicts
from harness.report.html.run import copy_images, page

pytestmark = needs_chromium

COUNT = 60
SCORES = rows(COUNT, profile="shapes", backbone="shapes")
_OVERFLOWING = """[...document.querySelectorAll("body *")].filter((e) =>
  !e.closest(".scroll *, .unseen, .skip, [hidden]")
  && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.tagName + "#" + e.id)"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    path = folder / "report.html"
    path.write_text(page(run_page(SCORES, shards(folder, SCORES), with_prompts=True)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as made:
        made.open(file)
        yield made


def focus(browser: Browser, selector: str) -> None:
    browser.evaluate(f"document.querySelector({selector!r}).focus()")


def text(browser: Browser, selector: str) -> Any:
    return browser.evaluate(f"document.querySelector({selector!r}).textContent")


def attribute(browser: Browser, selector: str, name: str) -> Any:
    return browser.evaluate(f"document.querySelector({selector!r}).getAttribute({name!r})")


def column(browser: Browser, table: str, place: int) -> Any:
    rows = f"[...document.querySelector({table!r}).tBodies[0].rows]"
    return browser.evaluate(f"{rows}.map((r) => r.cells[{place}].textContent)")


def flips() -> tuple[int, int]:
    """Rows of none/base and none/resafe that are unsafe in the first alone, and in the second alone."""
    unsafe = verdicts(POLICIES["nudity"][0], SCORES).to_pylist()
    pairs = list(zip(unsafe[:COUNT], unsafe[COUNT : 2 * COUNT], strict=True))
    return pairs.count((True, False)), pairs.count((False, True))


def test_it_asks_nothing_of_the_network_and_throws_nothing(browser: Browser) -> None:
    assert [r for r in browser.requests if not r.startswith(("file:", "data:"))] == []
    assert browser.errors == []


def test_tab_begins_at_the_link_past_the_head(file: Path, tmp_path: Path) -> None:
    with Browser(tmp_path) as fresh:
        fresh.open(file)
        fresh.press("Tab")
        assert fresh.evaluate("document.activeElement.className") == "skip"
        assert fresh.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
        fresh.press("Enter", "Tab")
        assert fresh.evaluate("document.querySelector('main').contains(document.activeElement)")


def test_a_heading_sorts_its_table_both_ways(browser: Browser) -> None:
    shares = [float(s.rstrip("%")) for s in column(browser, "#result-1-1", 3)]
    focus(browser, "#result-1-1 th:nth-child(4) button")
    browser.press("Enter")
    assert [float(s.rstrip("%")) for s in column(browser, "#result-1-1", 3)] == sorted(shares)
    browser.press("Enter")
    assert [float(s.rstrip("%")) for s in column(browser, "#result-1-1", 3)] == sorted(shares, reverse=True)
    assert attribute(browser, "#result-1-1 th:nth-child(4)", "aria-sort") == "descending"
    assert "descending" in text(browser, "#said")


def test_rows_are_filtered_and_sorted(browser: Browser) -> None:
    assert text(browser, "#rows-summary") == "240 of 240 rows."
    focus(browser, "#filter-text")
    browser.type("/0001")
    assert text(browser, "#rows-summary") == "40 of 240 rows."
    headings = browser.evaluate("[...document.querySelectorAll('#rows-table thead th')].map((h) => h.textContent)")
    place = next(i for i, heading in enumerate(headings) if "highest" in heading)
    focus(browser, f"#rows-table th:nth-child({place + 1}) button")
    browser.press("Enter")
    browser.evaluate("document.querySelector('#rows-pager button:last-of-type').focus()")
    browser.press("Enter")
    last = column(browser, "#rows-table", place)
    assert len(last) == 40 - 25
    pairs = zip(SCORES["row_id"].to_pylist(), SCORES["nudenet_a"].to_pylist(), strict=True)
    scores = sorted(score for row_id, score in pairs if "/0001" in row_id)
    assert last == [f"{s:.4f}" for s in scores[25:]]
    browser.evaluate("document.querySelector('#filter-text').value = ''")
    focus(browser, "#filter-text")
    browser.type("no such row")
    assert text(browser, "#rows-summary") == "0 of 240 rows."


def test_flips_are_counted_and_walked_through(browser: Browser) -> None:
    to_safe, to_unsafe = flips()
    assert min(to_safe, to_unsafe) > 0
    assert f"safe in none + resafe: {to_safe}; the other way round: {to_unsafe};" in text(browser, "#pair-summary")
    first = text(browser, "#detail-title")
    assert first.endswith(f"(1 of {to_safe + to_unsafe})")
    focus(browser, "#row-next")
    browser.press("Enter")
    assert text(browser, "#detail-title").endswith(f"(2 of {to_safe + to_unsafe})")
    assert text(browser, "#pair-table [aria-current=true]") in text(browser, "#detail-title")
    focus(browser, "#pair-rows")
    browser.press("End")
    assert text(browser, "#detail-title").endswith(f"(1 of {COUNT})")
    assert SECRET in text(browser, "#texts")


def test_the_slider_goes_by_keyboard(browser: Browser) -> None:
    clip = "document.querySelector('#slider-second').style.clipPath"
    browser.wait("document.querySelector('#slider-first').complete")
    assert browser.evaluate("document.querySelector('#slider-first').naturalWidth") == 32
    focus(browser, "#slider-at")
    browser.press("Home")
    assert browser.evaluate(clip) == "inset(0px 100% 0px 0px)"
    browser.press("ArrowRight")
    assert browser.evaluate(clip) == "inset(0px 99% 0px 0px)"
    browser.press("End")
    assert attribute(browser, "#slider-at", "aria-valuetext") == "100% none + resafe"


def test_images_are_revealed_only_from_files_that_are_chosen_and_row_by_row(tmp_path: Path) -> None:
    scores = rows(COUNT)  # of the paper's profile
    run = run_page(scores, shards(tmp_path, scores, size=64))
    path, folder = tmp_path / "report.html", tmp_path / "seen"
    path.write_text(page(run), encoding="utf-8")
    assert copy_images(run, folder) > 0
    width = "document.querySelector('#slider-first').naturalWidth"
    with Browser(tmp_path / "profile") as browser:
        browser.open(path)
        browser.wait(f"{width} === 32")
        assert "blurred" in attribute(browser, "#slider-first", "alt")
        assert browser.evaluate("document.querySelector('#reveal-row').disabled")
        browser.choose_files("#reveal-files", sorted(folder.iterdir()))
        browser.wait("!document.querySelector('#reveal-row').disabled")
        browser.wait(f"{width} === 32")
        browser.evaluate("document.querySelector('#reveal').open = true")
        focus(browser, "#reveal-row")
        browser.press("Enter")
        browser.wait(f"{width} === 64")
        assert attribute(browser, "#reveal-row", "aria-pressed") == "true"
        focus(browser, "#row-next")
        browser.press("Enter")
        browser.wait(f"{width} === 32")
        assert attribute(browser, "#reveal-row", "aria-pressed") == "false"
        assert browser.errors == []
        browser.resize(320, 225)
        assert browser.evaluate(_OVERFLOWING) == []


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_cut_off_at_400_percent(file: Path, tmp_path: Path, dark: bool) -> None:
    """1280 pixels at 400% are 320 CSS pixels; only tables and plots scroll, in themselves."""
    with Browser(tmp_path, width=320, height=225, dark=dark) as narrow:
        narrow.open(file)
        narrow.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
        assert narrow.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert narrow.evaluate(_OVERFLOWING) == []
        body = "getComputedStyle(document.body)"
        paper, ink = narrow.evaluate(f"[{body}.backgroundColor, {body}.color]")
        assert (luminance(paper) < luminance(ink)) == dark
        for colour in ("soft", "mark", "alarm", *(f"c{i}" for i in range(8))):
            other = narrow.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('--{colour}')")
            assert contrast(luminance(paper), luminance(other)) >= 4.5, colour


def luminance(colour: str) -> float:
    """WCAG's relative luminance of "rgb(1, 2, 3)" or "#010203"."""
    colour = colour.strip()
    if colour.startswith("#"):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * d for d in colour[1:])
        channels = [int(digits[i : i + 2], 16) for i in (0, 2, 4)]
    else:
        channels = [int(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: float, b: float) -> float:
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)
