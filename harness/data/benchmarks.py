"""From a benchmark's file to rows: columns by the card's rules, nothing dropped, nothing guessed.

Duplicate prompts and empty prompts stay (published denominators count them); a row that must not be drawn
stays too, with its reason in ``excluded``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from harness.cards.backbone import BackboneCard
from harness.cards.benchmark import BenchmarkCard, Edition
from harness.cards.places import locate
from harness.cards.profile import ProfileCard
from harness.cards.yaml_file import show
from harness.data import prompt_file as cell
from harness.data.guard import verdict
from harness.data.prompt_file import PromptFile, read_file, read_groups, read_prompt_file
from harness.errors import UserError, nearest
from harness.store.schema import PROMPT

MINORS = "minor-group"  # reason of a row whose text was dropped on reading, since its group names minors


class Identity(NamedTuple):
    """What a file is recognised as: the edition's own, a known variant that may stand in, or one that looks alike."""

    kind: Literal["exact", "variant", "alike"]
    note: str  # "" when there is nothing to say


def file_of(card: BenchmarkCard, edition: Edition, data: Path) -> Path:
    """Where the edition's file lies, or would lie once fetched into ``data``."""
    if edition.source.startswith("package:"):
        return locate(edition.source, card.root)
    return data / "bench" / f"{edition.file or card.name}.{'csv' if edition.task is None else 'json'}"


def parse(edition: Edition, data: bytes, path: Path) -> PromptFile:
    """The rows of an edition's file; texts of groups that name minors are dropped here.

    Raises:
        UserError: it cannot be read, with file, line and column.
    """
    if edition.task is None:
        return read_prompt_file(data, path)
    return read_groups(data, path, edition.task, edition.minors)


def identify(card: BenchmarkCard, edition: Edition, prompt_file: PromptFile) -> Identity:
    """Tells whether a file is the edition's: by sha256, else by its columns and its number of rows.

    Raises:
        UserError: a variant that is another benchmark, a column missing, another number of rows.
    """
    if prompt_file.sha256 == edition.sha256:
        return Identity("exact", "")
    for known in edition.known:
        if known.sha256 == prompt_file.sha256 and known.use:
            return Identity("variant", known.note)
        if known.sha256 == prompt_file.sha256:
            raise UserError(
                f"{show(prompt_file.path)}: is not {card.name} ({edition.rows} rows) but a file of {known.rows} rows "
                f"that goes by its name: {known.note}"
            )
    for candidates in _needed(edition):
        prompt_file.need(candidates)
    rows = len(prompt_file.records)
    if rows != edition.rows:
        why = "it is truncated, or another file" if rows < edition.rows else "it is another file"
        end = prompt_file.at(prompt_file.records[-1].line)
        raise UserError(f"{end}: ends after {rows} rows where {card.name} has {edition.rows}: {why}")
    if edition.sha256 is None and (edition.header is None or prompt_file.header == edition.header):
        return Identity("alike", "" if edition.source.startswith("package:") else "its sha256 is not known to the card")
    changed = "" if edition.header in (None, prompt_file.header) else "; its columns differ too"
    return Identity(
        "alike", f"its sha256 {prompt_file.sha256[:12]}... is not the card's (saved again, or edited?){changed}"
    )


def check(card: BenchmarkCard, edition: Edition, prompt_file: PromptFile) -> Identity:
    """Recognise a file, and check every cell that ``read`` will read.

    Raises:
        UserError: another file, a cell that cannot be read, an id given twice; with file, line and column.
    """
    recognised = identify(card, edition, prompt_file)
    columns = edition.columns
    place = prompt_file.find(columns.case or ())
    if recognised.kind == "alike" and place is not None:
        prompt_file.refuse_repeats(place)
    _column(prompt_file, columns.seed, cell.seed, None)
    _column(prompt_file, columns.guidance, cell.guidance, None)
    _column(prompt_file, columns.width, cell.pixels, None)
    _column(prompt_file, columns.height, cell.pixels, None)
    return recognised


def identity(card: BenchmarkCard, profile: ProfileCard, data: Path) -> dict[str, Any]:
    """The provenance of what ``read`` reads, for a run's record: edition, sha256, kind, note, rows."""
    edition, prompt_file = _open(card, profile, data)
    kind, note = identify(card, edition, prompt_file)
    return {
        "bench": card.name,
        "edition": profile.edition,
        "sha256": prompt_file.sha256,
        "identity": kind,
        "note": note or None,
        "rows": len(prompt_file.records),
    }


def read(
    card: BenchmarkCard, profile: ProfileCard, backbone: BackboneCard, data: Path, removed: Collection[str] = ()
) -> pa.Table:
    """The benchmark's rows in file order, ``samples`` rows for each prompt.

    Guidance and size are the row's own where the card says that they count, else the edition's, else the
    backbone's; another backbone than the one they were meant for (``drawn_at``) draws at its own. Of several samples
    of a prompt, each takes its own of the edition's ``sample_seeds``, the same for every prompt; without them sample
    k takes the row's seed + k.

    Args:
        card: the benchmark.
        profile: says which edition.
        backbone: gives guidance and size to rows without.
        data: folder where ``harness fetch`` puts things.
        removed: concepts, beside the benchmark's own, that a method removes from its prompts. What may not be drawn in
            a run of any of them is excluded, for all methods alike.

    Returns:
        A table of schema PROMPT.

    Raises:
        UserError: the file is not there, is another one, or a cell cannot be read (with file, line, column).
    """
    edition, prompt_file = _open(card, profile, data)
    check(card, edition, prompt_file)
    columns = edition.columns
    prompts = prompt_file.values(prompt_file.need(columns.prompt), str)
    seeds = _column(prompt_file, columns.seed, cell.seed, edition.seed)
    own = edition.drawn_at in (None, backbone.width)  # guidance and size are of the backbone the file speaks of
    table = {
        "prompt": prompts,
        "guidance": _column(
            prompt_file,
            columns.guidance if own else None,
            cell.guidance,
            _or(edition.guidance if own else None, backbone.guidance),
        ),
        "width": _column(prompt_file, columns.width if own else None, cell.pixels, edition.width or backbone.width),
        "height": _column(prompt_file, columns.height if own else None, cell.pixels, edition.height or backbone.height),
        "excluded": _verdicts(edition, prompt_file, prompts, dict.fromkeys((card.concept, *removed))),
        "row_id": [f"{card.name}/{i:05d}" for i in range(len(prompts))],
        "bench": [card.name] * len(prompts),
        "concept": [card.concept] * len(prompts),
    }
    samples = [s for _ in prompts for s in range(edition.samples)]
    long = {name: [v for v in values for _ in range(edition.samples)] for name, values in table.items()}
    long["sample"] = samples
    if edition.sample_seeds is not None:
        long["seed"] = [edition.sample_seeds[k] for k in samples]
    else:
        drawn = [s for s in seeds for _ in range(edition.samples)]
        long["seed"] = [(s + k) % (1 << 64) for s, k in zip(drawn, samples, strict=True)]
    return pa.table({field.name: pa.array(long[field.name], field.type) for field in PROMPT}, schema=PROMPT)


def expected(card: BenchmarkCard, profile: ProfileCard, backbone: BackboneCard) -> pa.Table:
    """As many rows as ``read`` would give, of a benchmark whose file is not here yet: to plan with, not to draw.

    Their prompts are blank, and what the guard would exclude of them is not known.

    Returns:
        A table of schema PROMPT.
    """
    edition = card.edition(profile.edition)
    own = edition.drawn_at in (None, backbone.width)
    common = {
        "bench": card.name, "concept": card.concept, "prompt": "", "seed": 0, "excluded": None,
        "guidance": (edition.guidance if own else None) or backbone.guidance,
        "width": (edition.width if own else None) or backbone.width,
        "height": (edition.height if own else None) or backbone.height,
    }  # fmt: skip
    rows = [
        {**common, "row_id": f"{card.name}/{i:05d}", "sample": s}
        for i in range(edition.rows)
        for s in range(edition.samples)
    ]
    return pa.Table.from_pylist(rows, schema=PROMPT)


def restrict(table: pa.Table, limit: int | None, ids: Sequence[str] | None) -> pa.Table:
    """The rows asked for: of each benchmark those named in ``ids``, then its first ``limit`` prompts.

    Args:
        table: schema PROMPT, of one benchmark or several.
        limit: prompts per benchmark, at least 1; None for all.
        ids: ``row_id`` values; where the table is of one benchmark, row numbers will do. None for all.

    Raises:
        UserError: a limit below 1, no id, an unknown id (with the nearest), an id given twice.
    """
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: a run needs at least one row; leave --limit out to take all")
    if ids is not None:
        table = table.filter(pc.is_in(table["row_id"], pa.array(_resolve(table, ids), pa.string())))
    if limit is None:
        return table
    kept: dict[str, dict[str, None]] = {}
    for bench, row in zip(table["bench"].to_pylist(), table["row_id"].to_pylist(), strict=True):
        rows = kept.setdefault(bench, {})
        if len(rows) < limit:
            rows[row] = None
    chosen = [row for rows in kept.values() for row in rows]
    return table.filter(pc.is_in(table["row_id"], pa.array(chosen, pa.string())))


def categories(card: BenchmarkCard, profile: ProfileCard, data: Path) -> dict[str, tuple[str, ...]]:
    """The categories of each prompt: ``row_id`` to the names in the card's ``categories`` column, in the file's order.

    Raises:
        UserError: the edition has no such column; or as ``read``.
    """
    edition, prompt_file = _open(card, profile, data)
    if not edition.columns.categories:
        raise UserError(
            f"benchmark {card.name} has no categories in its {profile.edition} edition; see {show(card.path)}"
        )
    cells = prompt_file.values(prompt_file.need(edition.columns.categories), str)
    return {
        f"{card.name}/{i:05d}": tuple(name.strip() for name in text.split(",") if name.strip())
        for i, text in enumerate(cells)
    }


def in_categories(
    table: pa.Table, cards: Iterable[BenchmarkCard], profile: ProfileCard, data: Path, wanted: Sequence[str]
) -> pa.Table:
    """The rows of ``table`` that are about any of ``wanted``; a prompt may be about several things.

    Args:
        table: schema PROMPT, of the benchmarks ``cards``.
        cards: benchmarks, each with a ``categories`` column.
        profile: says which edition.
        data: folder where ``harness fetch`` puts things.
        wanted: names of categories, at least one.

    Raises:
        UserError: no name, one that no prompt has (with the nearest), a benchmark without categories.
    """
    by_row = {row: names for card in cards for row, names in categories(card, profile, data).items()}
    known = sorted({name for names in by_row.values() for name in names})
    for name in wanted:
        if name not in known:
            raise UserError(
                f"--category {name!r}: no such category{nearest(name, known)} (there are: {', '.join(known)})"
            )
    if not wanted:
        raise UserError(f"--category: no category given (there are: {', '.join(known)})")
    chosen = [row for row, names in by_row.items() if not set(wanted).isdisjoint(names)]
    return table.filter(pc.is_in(table["row_id"], pa.array(chosen, pa.string())))


def _resolve(table: pa.Table, ids: Sequence[str]) -> list[str]:
    """``ids`` as full ``row_id`` values, each checked."""
    known = dict.fromkeys(table["row_id"].to_pylist())
    benches = list(dict.fromkeys(table["bench"].to_pylist()))
    chosen: dict[str, str] = {}
    for given in ids:
        full = f"{benches[0]}/{int(given):05d}" if len(benches) == 1 and given.isdecimal() else given
        if full not in known:
            ends = f"{next(iter(known))} ... {next(reversed(known))}" if known else "none"
            raise UserError(f"--ids: no row {given!r}{nearest(full, known)} (there are: {ends})")
        if full in chosen:
            raise UserError(f"--ids: row {full!r} is given twice")
        chosen[full] = given
    if not chosen:
        raise UserError("--ids: no row given; leave --ids out to take all")
    return list(chosen)


def _open(card: BenchmarkCard, profile: ProfileCard, data: Path) -> tuple[Edition, PromptFile]:
    edition = card.edition(profile.edition)
    path = file_of(card, edition, data)
    if path.exists():
        return edition, parse(edition, read_file(path), path)
    if edition.source.startswith("package:"):
        raise UserError(f"benchmark {card.name}: its file {show(path)} is missing from the package; install it again")
    raise UserError(f"benchmark {card.name}: not fetched yet; see `harness fetch bench {card.name}`")


def _needed(edition: Edition) -> list[Sequence[str]]:
    columns = edition.columns
    wanted = (columns.prompt, columns.seed, columns.guidance, columns.width, columns.height)
    return [candidates for candidates in wanted if candidates]


def _column(prompt_file: PromptFile, candidates: Sequence[str] | None, parse: Any, default: Any) -> list[Any]:
    """The parsed column, ``default`` where a cell is empty or the file's column does not count."""
    if not candidates:
        return [default] * len(prompt_file.records)
    return [default if v is None else v for v in prompt_file.values(prompt_file.need(candidates), parse)]


def _or(first: float | None, second: float) -> float:
    return second if first is None else first


def _verdicts(
    edition: Edition, prompt_file: PromptFile, prompts: Sequence[str], concepts: Collection[str]
) -> list[str | None]:
    """Why each row must not be drawn, or None.

    A row of a group that names minors has no text left. Of all others the guard reads the prompt, and the texts that
    the prompt was made from.
    """
    sources = [place for name in edition.columns.guarded if (place := prompt_file.find((name,))) is not None]
    minors, group = {name.strip().casefold() for name in edition.minors}, prompt_file.find(("group",))
    verdicts: list[str | None] = []
    for prompt, record in zip(prompts, prompt_file.records, strict=True):
        if minors and group is not None and record.cells[group].strip().casefold() in minors:
            verdicts.append(MINORS)
            continue
        texts = (prompt, *(record.cells[place] for place in sources))
        reasons = (verdict(text, concept) for concept in concepts for text in texts)
        verdicts.append(next((why for why in reasons if why is not None), None))
    return verdicts
