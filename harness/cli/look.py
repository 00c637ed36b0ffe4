"""``harness list``, ``describe``, ``diff`` and ``doctor``: look at what there is."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli import options

# What a person types -> kind of card.
KINDS = {
    "backbones": "backbone", "defenses": "defense", "regenerators": "regenerator", "judges": "judge",
    "policies": "policy", "profiles": "profile", "datasets": "dataset", "reports": "report",
}  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("list", epilog="Example: harness list defenses")(list_)
    app.command("describe", epilog="Example: harness describe rece")(describe)
    app.command("diff", epilog="Example: harness diff runs/rece_i2p_paper_0a1b2c3d runs/rece_i2p_paper_4e5f6a7b")(diff)
    app.command("doctor", epilog="Example: harness doctor --profile paper")(doctor)


def list_(
    kind: Annotated[str | None, typer.Argument(help=f"One of: {', '.join(KINDS)}, scorers. Default: all.")] = None,
    cards: options.Cards = None,
    json: options.Json = False,
) -> None:
    """List what can be chosen, a line each."""
    from harness import scorers
    from harness.cards import load_all, roots
    from harness.errors import UserError, nearest

    if kind is not None and kind not in (*KINDS, "scorers"):
        known = [*KINDS, "scorers"]
        raise UserError(f"no kind {kind!r}{nearest(kind, known)} (there are: {', '.join(known)})")
    found: dict[str, dict[str, str]] = {}
    for plural, singular in KINDS.items():
        if kind in (None, plural):
            found[plural] = {c.name: c.summary for c in load_all(singular, roots(cards))}  # type: ignore[arg-type]
    if kind in (None, "scorers"):
        found["scorers"] = {stem: scorers.summary(stem) for stem in scorers.names()}
    if json:
        options.emit(found)
        return
    width = max((len(n) for names in found.values() for n in names), default=0)
    for plural, names in found.items():
        if names:
            typer.echo(f"{plural}:" if kind is None else "", nl=kind is None)
            for name, summary in names.items():
                typer.echo(f"  {name:<{width}}  {summary}")


def describe(
    name: Annotated[str, typer.Argument(help="Name of any card, as `harness list` shows it.")],
    cards: options.Cards = None,
    json: options.Json = False,
) -> None:
    """Show one card whole: source, licence, hyperparameters, and the file it is in."""
    from harness.cards import load, names, roots
    from harness.errors import UserError, nearest

    where = roots(cards)
    kinds = [k for k in KINDS.values() if name in names(k, where)]  # type: ignore[arg-type]
    if not kinds:
        known = [n for k in KINDS.values() for n in names(k, where)]  # type: ignore[arg-type]
        raise UserError(f"no card {name!r}{nearest(name, known)}; see `harness list`")
    found = [(k, load(k, name, where)) for k in kinds]  # type: ignore[call-overload]
    if json:
        options.emit([{"kind": k, "file": str(c.path), **c.model_dump(mode="json")} for k, c in found])
        return
    import yaml

    for kind, card in found:
        typer.echo(f"# {kind}  {card.path}")
        content = card.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)
        typer.echo(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110))


def diff(
    left: Annotated[Path, typer.Argument(help="Folder of a run.")],
    right: Annotated[Path, typer.Argument(help="Folder of another run.")],
    json: options.Json = False,
) -> None:
    """Say which keys of which stage differ between two runs; exit code 0 also when some do."""
    from harness.cli.report import read_record
    from harness.fingerprint import difference

    stages = [_stages(read_record(run)) for run in (left, right)]
    found: list[dict[str, Any]] = []
    for name in sorted({*stages[0], *stages[1]}):
        a, b = stages[0].get(name), stages[1].get(name)
        if a is None or b is None:
            found.append({"stage": name, "only_in": str(left if b is None else right)})
        else:
            found += [{"stage": name, "key": k, "left": x, "right": y} for k, x, y in difference(a, b)]
    if json:
        options.emit({"differences": found})
        return
    for row in found:
        if "only_in" in row:
            typer.echo(f"{row['stage']}: only in {row['only_in']}")
        else:
            typer.echo(f"{row['stage']}: {row['key']}: {row['left']} -> {row['right']}")
    if not found:
        typer.echo("no difference: both runs rest on the same stages")


def _stages(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each stage's key by ``bench/defense/stage``, of what a regenerator adds by ``bench/defense/variant/stage``."""
    from harness.compare import BASE

    found: dict[str, dict[str, Any]] = {}
    for chain in record["chains"]:
        keys = {f"{s['stage']}:{s['fingerprint']}": {**s["key"], "shards": chain["shards"]} for s in chain["stages"]}
        # A record of an earlier release has no variants.
        variants = {v["variant"]: v["stages"] for v in chain.get("variants", [{"variant": BASE, "stages": list(keys)}])}
        for variant, stages in variants.items():
            own = stages if variant == BASE else [s for s in stages if s not in variants[BASE]]
            place = f"{chain['bench']}/{chain['defense']}" + ("" if variant == BASE else f"/{variant}")
            found |= {f"{place}/{stage.partition(':')[0]}": keys[stage] for stage in own}
    return found


def doctor(
    profile: options.Profile = "shapes",
    store: options.StoreDir = options.STORE,
    data: options.Data = options.DATA,
    cards: options.Cards = None,
    json: options.Json = False,
) -> None:
    """Check this machine for a profile: versions, GPUs, disk, weights, benchmarks; exit code 1 if it cannot run."""
    import shutil

    from harness import fetch, fingerprint
    from harness.cards import load, load_all, roots
    from harness.cli.running import visible_gpus

    where = roots(cards)
    card = load("profile", profile, where)
    benches = [b for b in load_all("dataset", where) if card.edition in b.editions]  # type: ignore[attr-defined]
    stems = sorted({s for concept in card.concepts for s in card.measures(concept).scorers})
    weights = fetch.missing([card], card, data, stems)
    lacking = fetch.missing(benches, card, data)
    folder = next(p for p in (store.resolve(), *store.resolve().parents) if p.exists())
    versions = fingerprint.versions(
        ("torch", "diffusers", "transformers", "ray", "pyarrow", "nudenet", "onnxruntime", "numpy")
    )
    found = {
        "profile": profile,
        "python": sys.version.split()[0],
        "versions": versions,
        "cores": len(os.sched_getaffinity(0)),
        "gpus": visible_gpus(),
        "free_disk_gb": round(shutil.disk_usage(folder).free / 1e9, 1),
        "cards": [str(r) for r in where],
        "missing_weights": weights,
        "missing_benchmarks": lacking,
        "ready": not weights and len(lacking) < len(benches) and all(versions.values()),
    }
    if json:
        options.emit(found)
    else:
        for name, value in found.items():
            lines = value if isinstance(value, list) else [value]
            typer.echo(f"{name:>18}  {lines[0] if lines else 'none'}")
            for line in lines[1:]:
                typer.echo(f"{'':>18}  {line}")
    if not found["ready"]:
        raise typer.Exit(1)
