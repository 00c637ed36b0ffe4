"""One evaluation, from request to numbers: plan, run what is missing, gather, count, write.

runs/<run>/scores.parquet   every row of every chain, raw scores, no images
runs/<run>/cells.json       the counts; report.md and contact.png are made from them
runs/<run>/costs.json       seconds, from the store's sidecars
runs/<run>/run.json         command, plan, fingerprints and what they are made of; written last

Each file appears whole or not at all, and a killed run's are written anew by the next.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from harness import __version__, cards, cells, costs, measure, needs, plan, sets
from harness.cells import Cell
from harness.chain import Variant
from harness.errors import UserError
from harness.fingerprint import FileHashes
from harness.plan import Plan, Request
from harness.schema import KEY
from harness.stages.base import failed
from harness.store import Store, columns, discarded, read, replace, whole, write_atomically

if TYPE_CHECKING:
    from harness.flow import Outcome, Progress, Resources

_PATIENCE_S = {"cuda": 3600.0, "cpu": 24 * 3600.0}  # for a shard; a large model takes hours over one on a CPU
_SEEING = ("caption", "embed", "edit", "score")  # kinds of stages that look at pictures


@dataclass(frozen=True, kw_only=True)
class Places:
    """Folders of a run."""

    store: Path
    out: Path
    data: Path
    cards: Path | None = None

    @property
    def roots(self) -> list[Path]:
        return cards.roots(self.cards)


@dataclass(frozen=True)
class Budget:
    """How many rows may fail before a run counts as bad: a number of rows, or a share."""

    rows: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``"0"``, ``"12"`` or ``"5%"``.

        Raises:
            UserError: anything else.
        """
        found = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)%", text.strip())
        if found is None or (found[2] and float(found[2]) > 100):
            raise UserError(f"--max-errors {text!r}: give a number of rows (0, 12) or a share (5%)")
        return cls(rows=int(found[1])) if found[1] else cls(share=float(found[2]) / 100)

    def exceeded(self, errors: int, rows: int) -> bool:
        """Whether ``errors`` failed rows out of ``rows`` are too many."""
        return errors > (self.rows if self.rows is not None else (self.share or 0.0) * rows)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What an evaluation leaves: the plan, how it went, its cells, where things lie."""

    plan: Plan
    run: Path
    outcome: Outcome | None  # None: everything was in the store
    cells: tuple[Cell, ...] = ()
    errors: int = 0  # pictures that were not drawn or not scored in full; what a regeneration inherits is its picture's
    rows: int = 0  # pictures in all

    @property
    def paths(self) -> dict[str, Path]:
        return {
            "scores": self.run / "scores.parquet",
            "report": self.run / "report.md",
            "contact": self.run / "contact.png",
        }


def prepare(request: Request, places: Places) -> Plan:
    """The plan of ``request``, after checking that all it needs is on this machine.

    Writes nothing, except that a store that is there keeps the hashes of files.

    Raises:
        UserError: a wrong name, file or store; or one message that lists everything missing and how to get it.
    """
    from harness import fetch

    Store.check(places.store)
    chosen = plan.choose(request, places.roots)
    fetch.require(
        needs.things(request, chosen, places.roots), chosen.profile, places.data, needs.scorers(request, chosen)
    )
    hashes = FileHashes(places.store / "sha256.json" if Store.is_at(places.store) else None)
    return plan.make(request, places.roots, places.data, hashes)


def evaluate(
    request: Request, places: Places, resources: Resources, budget: Budget, progress: Progress, command: str
) -> Finished:
    """Run what is not in the store yet and count; ``cells`` is empty unless every shard is there.

    Raises:
        UserError: see ``prepare``; or a folder cannot be written, a disk is full, pictures were discarded.
        ConservationError: rows were lost or doubled (a bug, never a number).
    """
    made = prepare(request, places)
    told(made)
    run = places.out / made.name
    _check_out(run)
    store = Store.open(places.store)
    with _disks(), store.lock():
        _make_out(run)
        outcome = None
        if made.missing(store):
            _require_undiscarded(made, store)
            from harness import flow
            from harness.stages.base import Site

            device = "cuda" if resources.num_gpus else "cpu"
            site = Site(store=store, run=run, device=device, limit_s=_PATIENCE_S[device])
            outcome = flow.execute(made, site, resources, progress, lambda n: budget.exceeded(n, made.num_rows))
            if not outcome.complete:
                return Finished(plan=made, run=run, outcome=outcome, errors=outcome.errors)
        return _conclude(made, store, run, outcome, command)


@contextlib.contextmanager
def _disks() -> Iterator[None]:
    """A disk that takes no more is the user's to mend, and no bug."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        where = f" ({error.filename})" if error.filename else ""
        raise UserError(f"{error.strerror}{where}; make room, and run the same command again to go on") from error


def told(made: Plan) -> None:
    """Say in one line, on standard error, which pairs "all" does not mean."""
    if made.left_out:
        pairs = ", ".join(f"{defense} over {bench} ({concept})" for defense, bench, concept in made.left_out)
        print(f"harness: left out, no card declares it (or name a --concept): {pairs}", file=sys.stderr, flush=True)


def _require_undiscarded(made: Plan, store: Store) -> None:
    """Refuse to compute from pictures that were discarded, before any model is loaded.

    Raises:
        UserError: a stage that is not done yet needs them.
    """
    seen: set[Path] = set()
    for chain, spec, shard in ((c, p, s) for c in made.chains for p in c.stages for s in c.shards):
        if spec.kind not in _SEEING or whole(store.path(spec.stage, spec.fingerprint, shard.key)):
            continue
        for source in (*spec.upstream, *((spec.reference,) if spec.reference else ())):
            path = store.path(source.stage, source.fingerprint, (source.keys or {}).get(shard.key, shard.key))
            if path in seen or not whole(path) or "image" not in columns(path):
                continue
            seen.add(path)
            if discarded(path):
                raise UserError(
                    f"{spec.stage} needs pictures of {chain.defense} over {chain.bench} that were discarded: remove "
                    f"their shards (`harness store prune --stage {source.stage} --fingerprint {source.fingerprint}`) "
                    "and repeat the run's own command, which draws them again"
                )


def _check_out(run: Path) -> None:
    """Refuse a run's folder that cannot be made; writes nothing."""
    there = next(p for p in (run, *run.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "is not writable" if there.is_dir() else "is no folder"
        raise UserError(f"--out: {run} cannot be written: {there} {why}")


def _make_out(run: Path) -> None:
    """Make the run's folder, and remove what a killed run was writing in it."""
    try:
        run.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UserError(f"--out: {run} cannot be written: {error.strerror}") from None
    if not os.access(run, os.W_OK):
        raise UserError(f"--out: {run} cannot be written")
    for torn in (*run.glob(".tmp/*"), *(p for p in run.iterdir() if re.fullmatch(r"\..+\.[0-9a-f]{32}", p.name))):
        torn.unlink(missing_ok=True)


def _conclude(made: Plan, store: Store, run: Path, outcome: Outcome | None, command: str) -> Finished:
    scores = gather(made, store)
    known = measure.origins(made)
    measured = measure.measure(scores, made.policies, known, made.means)
    measured += sets.measure(made, store, known)
    about = record(made, command)
    shown = outcome is None and (run / "contact.png").exists() and _recorded(run) == _without_command(about)
    replace(run / "scores.parquet", scores)
    cells.write(run / "cells.json", measured)
    from harness.report import contact_sheet, markdown

    spent = costs.of(made, store, measured)
    write_atomically(run / "costs.json", json.dumps([c.to_json() for c in spent], indent=1).encode())
    write_atomically(run / "report.md", markdown.render(measured, about, spent).encode())
    if not shown:
        contact_sheet.write(run / "contact.png", scores, images_of(made, store), made.policies)
    write_atomically(run / "run.json", json.dumps(about, indent=1).encode())
    errors = len(failed(scores))
    return Finished(plan=made, run=run, outcome=outcome, cells=tuple(measured), errors=errors, rows=scores.num_rows)


def _recorded(run: Path) -> Any:
    """What the folder's files were made from; None where they are not complete."""
    try:
        return _without_command(json.loads((run / "run.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _without_command(about: Mapping[str, Any]) -> Any:
    """A run's record as its file has it, however it was asked for."""
    return json.loads(json.dumps({**about, "command": None}))


def gather(made: Plan, store: Store) -> pa.Table:
    """All rows of the run: image columns without the image, lineage, and every scorer's columns.

    A column is null where its scorer did not run, or the row is no regeneration.

    Raises:
        ValueError: a scorer's shard does not belong to its images.
    """
    tables = [
        _joined(variant, shard.key, store)
        for chain in made.chains
        for variant in chain.variants
        for shard in chain.shards
    ]
    return pa.concat_tables(tables, promote_options="default").combine_chunks()


def _joined(variant: Variant, key: str, store: Store) -> pa.Table:
    images = store.path(variant.images.stage, variant.images.fingerprint, key)
    table = read(images, [name for name in columns(images) if name != "image"])
    for spec in variant.scores:
        part = read(store.path(spec.stage, spec.fingerprint, key))
        if part.select(list(KEY)) != table.select(list(KEY)):
            raise ValueError(f"{spec.stage}/{spec.fingerprint}/{key} does not belong to its images")
        for name in part.column_names:
            if name not in KEY and not pa.types.is_fixed_size_list(part.schema.field(name).type):  # features stay there
                table = table.append_column(part.schema.field(name), part[name])
    return table


def record(made: Plan, command: str) -> dict[str, Any]:
    """What run.json keeps: enough to trace every cell and to repeat the run."""
    return {
        "run": made.name,
        "harness": __version__,
        "command": command,
        "request": asdict(made.request),
        "profile": made.profile.name,
        "backbone": made.backbone.name,
        "left_out": [pair._asdict() for pair in made.left_out],
        "policies": {c: [p.model_dump(mode="json") for p in ps] for c, ps in made.policies.items()},
        "chains": [
            {
                "defense": c.defense,
                "defended": c.defended,
                "bench": c.bench,
                "concept": c.concept,
                "rows": c.num_rows,
                "total_rows": c.total_rows,
                "shards": [s.key for s in c.shards],
                "variants": [
                    {
                        "variant": v.name,
                        "method": dict(v.method),
                        "settings": dict(v.settings),
                        "images": [v.images.stage, v.images.fingerprint],
                        "stages": [f"{s.stage}:{s.fingerprint}" for s in v.stages],
                    }
                    for v in c.variants
                ],
                "stages": [{"stage": s.stage, "fingerprint": s.fingerprint, "key": dict(s.key)} for s in c.stages],
            }
            for c in made.chains
        ],
        "platform": {"python": platform.python_version(), "machine": platform.machine()},
    }


def request_of(record: Mapping[str, Any]) -> Request:
    """The request that a run.json was made from.

    Raises:
        UserError: it has none, or one of another harness.
    """
    try:
        choices: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record["request"].items()}
        return Request(**choices)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"its run.json holds no request that this harness knows ({error})") from error


def images_of(made: Plan, store: Store) -> list[Path]:
    """Where the run's pictures lie, those made anew too."""
    return [
        store.path(variant.images.stage, variant.images.fingerprint, shard.key)
        for chain in made.chains
        for variant in chain.variants
        for shard in chain.shards
    ]


def save_pictures(made: Plan, places: Places, folder: Path) -> int:
    """Write what the regenerators drew as PNG files, ``folder/<regenerator>/<name>.png``; returns how many.

    The folder is made private (0700).
    """
    store = Store.open_existing(places.store)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    count = 0
    for chain in made.chains:
        for variant in chain.variants[1:]:
            for shard in chain.shards:
                path = store.path(variant.images.stage, variant.images.fingerprint, shard.key)
                for row in read(path, ["row_id", "image"]).to_pylist():
                    if row["image"] is None:
                        continue
                    name = row["row_id"].partition("/")[2]
                    target = folder / variant.name.replace(":", "_") / f"{name.removesuffix('.png')}.png"
                    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                    write_atomically(target, row["image"])
                    count += 1
    return count
