"""A run's page, parsed: its numbers are the cells', it asks no network, and nothing private is in it unless asked."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from html_samples import COMMAND, SECRET, rows, run_page, shards
from parsed_page import Page, columns_of
from report_samples import report_card, runs
from test_run_reports import cells_of_a_run

from harness.metrics.policies import verdicts
from harness.report.html.run import page
from harness.report.render import render
from harness.report.table import assemble
from harness.report.text import counts, percent

_LOADS = ("src", "href", "srcset", "data", "poster", "action", "formaction", "xlink:href", "background", "ping")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    scores = rows(12)
    return page(run_page(scores, shards(folder, scores)))


@pytest.fixture(scope="module")
def parsed(text: str) -> Page:
    return Page(text)


def table_text(folder: Path) -> str:
    card = report_card(folder)
    return render(assemble(card, runs(folder / "runs", {"one": cells_of_a_run()}), "paper"), "html")


def asks_no_network(text: str) -> None:
    parsed = Page(text)
    for element in parsed.elements:
        for name in _LOADS:
            value = element.attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (element, name)
        assert element.tag not in ("link", "iframe", "object", "embed", "base")
    (policy,) = [m["content"] for m in parsed.of("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for kind in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(parsed.texts[kind].encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
    assert not re.search(r"url\(|@import|https?:|//\w+\.|fetch\(|XMLHttp|WebSocket|import\(", parsed.texts["style"])
    assert not re.search(r"https?:|fetch\(|XMLHttp|WebSocket|import\(|eval\(|innerHTML", parsed.texts["script"])
    assert not [e for e in parsed.elements if any(n.startswith("on") or n == "style" for n in e.attributes)]


def test_it_asks_no_network_and_runs_only_its_own_script(text: str, tmp_path: Path) -> None:
    asks_no_network(text)
    asks_no_network(table_text(tmp_path))


def test_it_is_well_formed_and_usable_by_keyboard(parsed: Page) -> None:
    assert parsed.unclosed == []
    ids = [e.attributes["id"] for e in parsed.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    for e in parsed.elements:
        for name in ("aria-labelledby", "href"):
            value = e.attributes.get(name)
            assert value is None or value.removeprefix("#") in ids, (name, value)
        assert "tabindex" not in e.attributes or e.attributes["tabindex"] in ("0", "-1")  # the order is the page's own
        if e.attributes.get("class") == "scroll":
            assert e.attributes["tabindex"] == "0"
            assert e.attributes["role"] == "region"
    assert parsed.of("html")[0]["lang"] == "en"
    first = next(e for e in parsed.elements if e.tag in ("a", "button", "input", "select"))
    assert first.attributes["href"] == "#main"
    assert [e for e in parsed.elements if e.attributes.get("aria-live")]
    assert "width=device-width" in str([m for m in parsed.of("meta") if m.get("name") == "viewport"])


def test_its_tables_hold_every_cell(parsed: Page) -> None:
    shown = run_page(rows(12)).cells
    head, *lines = parsed.tables["cells-1"]
    assert len(lines) == len(shown)
    for line, one in zip(lines, shown, strict=True):
        row = dict(zip(head, line, strict=True))
        assert (row["defense"], row["variant"], row["metric"]) == (one.defense, one.variant, one.metric)
        assert row["k/n or n"] == (counts(one) if one.k is not None else str(one.n))
        assert row["errors"] == str(one.errors)
    head, *lines = parsed.tables["result-1-1"]
    main = [c for c in shown if c.metric == "asr" and c.main]
    assert [line[:4] for line in lines] == [[c.defense, c.variant, counts(c), percent(c.value)] for c in main]


def test_each_cell_names_its_stages_and_the_command(folder: Path) -> None:
    run = run_page(rows())
    cells = [replace(c, fingerprints=(f"generate:{c.defense}",)) for c in run.cells]
    text = page(replace(run, cells=cells))
    parsed = Page(text)
    stages = dict(parsed.tables["cells-2"][1:])
    for line, one in zip(parsed.tables["cells-1"][1:], cells, strict=True):
        assert stages[line[-1]] == f"generate:{one.defense}"
    assert text.count(COMMAND.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")) == 2
    assert COMMAND not in text


def test_its_rows_are_those_of_the_scores(parsed: Page) -> None:
    scores = rows(12)
    main = run_page(scores).policies["nudity"][0]
    assert columns_of(parsed)[main.name] == verdicts(main, scores).to_pylist()


def test_nothing_private_is_in_it_unless_asked(text: str, folder: Path) -> None:
    assert SECRET not in text
    assert json.loads(Page(text).texts["texts-data"] or "null") is None
    asked = Page(page(replace(run_page(rows(12)), with_prompts=True)))
    assert len(asked.texts["texts-data"].strip()) > 100


def test_text_of_a_run_is_never_markup() -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    scores = rows(bench=evil)
    parsed = Page(page(run_page(scores)))
    assert not [e for e in parsed.elements if e.attributes.get("src") == "x"]
    assert json.loads(parsed.texts["about"])["parts"][0]["bench"] == evil


def test_cost_has_hours_of_the_device_that_was_used(parsed: Page) -> None:
    head, line = parsed.tables["cost-1"]
    row = dict(zip(head, line, strict=True))
    assert (row["s/image"], row["s/image if only flagged"]) == ("11.250", "4.219 (3/8)")
    assert (row["GPU-hours"], row["CPU-hours"]) == ("0.0250", "")
    assert [line[3] for line in parsed.tables["cost-2"][1:]] == ["generate", "optimise"]


def test_curves_have_each_papers_cut_off_with_its_labels(parsed: Page) -> None:
    names = [line[0] for line in parsed.tables["cut-offs-1"][1:]]
    assert names == ["resafe-nudity-0.45", "other-0.6", "third-0.9"]
    assert "nudenet_a, nudenet_b > 0.45" in parsed.tables["cut-offs-1"][1][1]
    assert len(parsed.tables["cut-offs-2"]) == 1 + 4 * 3
    assert len(parsed.of("svg")) == 1
    assert len(parsed.of("circle")) == 4 * 3


def test_subset_world_and_reasons_are_stamped() -> None:
    run = run_page(rows(profile="shapes", backbone="shapes"))
    text = page(replace(run, cells=[replace(c, subset="8/95") for c in run.cells]))
    assert "numbers of the shapes world" in text
    assert "Subset: 8/95 rows of b." in text
    assert "excluded: age-term 1" in text
    assert "error: generate:crash 1" in text


def test_a_run_without_policies_has_a_page_too() -> None:
    run = run_page(rows())
    cells = [c for c in run.cells if c.policy is None]
    parsed = Page(page(replace(run, policies={"nudity": ()}, cells=cells)))
    assert json.loads(parsed.texts["about"])["parts"][0]["policies"] == []


def test_the_same_run_gives_the_same_file(folder: Path, text: str) -> None:
    scores = rows(12)
    assert page(run_page(scores, [folder / "shards" / "0.parquet"])) == text


def test_a_papers_table_is_a_page(tmp_path: Path) -> None:
    text = table_text(tmp_path)
    parsed = Page(text)
    lines = parsed.tables["table-1"]
    assert any("91/95 95.8%" in cell and "paper 95.79" in cell for line in lines for cell in line)
    assert "rece" in str(lines).lower()
