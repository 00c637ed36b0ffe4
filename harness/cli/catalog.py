"""``harness list``, ``describe``, ``diff`` and ``doctor``: look at what there is."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cards.backbone import BackboneCard
from harness.cards.base import Card, card_roots
from harness.cards.benchmark import BenchmarkCard
from harness.cards.defense import DefenseCard
from harness.cards.judge import JudgeCard
from harness.cards.load import load_card, load_cards, plugin_faults
from harness.cards.policy import PolicyCard
from harness.cards.profile import ProfileCard
from harness.cards.regenerator import RegeneratorCard
from harness.cards.report import ReportCard
from harness.cards.sweep import SweepCard
from harness.cli import options
from harness.errors import UserError
from harness.pipeline import prerequisites

# What a person types -> kind of card.
KINDS: dict[str, type[Card]] = {
    "backbones": BackboneCard, "defenses": DefenseCard, "regenerators": RegeneratorCard, "judges": JudgeCard,
    "policies": PolicyCard, "profiles": ProfileCard, "sweeps": SweepCard, "datasets": BenchmarkCard,
    "reports": ReportCard,
}  # fmt: skip
# Other words for them; one of a kind names the kind too (`harness list defense`).
_ALSO = {
    "benchmarks": "datasets", "benchmark": "datasets", "benches": "datasets", "bench": "datasets",
    "tables": "reports", "table": "reports", "captioners": "judges", "models": "backbones", "methods": "defenses",
}  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("list", epilog=options.examples("harness list defenses"))(list_)
    app.command("describe", epilog=options.examples("harness describe rece"))(describe)
    app.command(
        "diff", epilog=options.examples("harness diff runs/rece_i2p_paper_0a1b2c3d runs/rece_i2p_paper_4e5f6a7b")
    )(diff)
    app.command("doctor", epilog=options.examples("harness doctor --profile paper"))(doctor)


def list_(
    kind: Annotated[str | None, typer.Argument(help=f"One of: {', '.join(KINDS)}, scorers. Default: all.")] = None,
    cards: options.Cards = None,
    json: options.Json = False,
) -> None:
    """List what can be chosen, a line each; of what another installed package brings, the package.

    With --json: kinds, each with its names and summaries; and `provided_by`, the packages, where there are some.
    """
    from harness import scorers
    from harness.errors import nearest

    singular = {cls.KIND: plural for plural, cls in KINDS.items()} | {"scorer": "scorers"} | _ALSO
    kind = singular.get(kind, kind) if kind is not None else None
    if kind is not None and kind not in (*KINDS, "scorers"):
        known = [*KINDS, "scorers"]
        raise UserError(f"no kind {kind!r}{nearest(kind, known)} (there are: {', '.join(known)})")
    where = card_roots(cards)
    summaries: dict[str, dict[str, str]] = {}
    for plural, cls in KINDS.items():
        if kind in (None, plural):
            summaries[plural] = {c.name: c.summary for c in load_cards(cls, where)}
    if kind in (None, "scorers"):
        summaries["scorers"] = {stem: scorers.summary(stem) for stem in scorers.names()}
    providers = _providers(list(summaries), where)
    for line in _faults(list(summaries), where):
        print(f"harness: {line}", file=sys.stderr)
    if json:
        options.emit(summaries | ({"provided_by": providers} if providers else {}))
        return
    width = max((len(n) for names in summaries.values() for n in names), default=0)
    for plural, names in summaries.items():
        if names:
            typer.echo(f"{plural}:" if kind is None else "", nl=kind is None)
            for name, summary in names.items():
                provider = providers.get(plural, {}).get(name)
                typer.echo(f"  {name:<{width}}  {summary}" + (f"  [{provider}]" if provider else ""))


def _providers(plurals: Sequence[str], where: Sequence[Path]) -> dict[str, dict[str, str]]:
    """By kind and name, which installed package brings what is not ours: the card, or a defense's mechanism."""
    from harness import defenses, scorers
    from harness.cards import plugins

    folders, lost = plugins.card_folders(), defenses.faults() if "defenses" in plurals else {}
    mechanisms = {*plugins.names("defenses")} - lost.keys()
    providers: dict[str, dict[str, str]] = {}
    for plural in (p for p in plurals if p in KINDS):
        for card in load_cards(KINDS[plural], where):
            brought = folders.get(card.root)
            if brought is None and isinstance(card, DefenseCard) and card.mechanism in mechanisms:
                brought = defenses.plugin(card.mechanism)
            if brought is not None:
                providers.setdefault(plural, {})[card.name] = brought.provider
    for stem in scorers.names() if "scorers" in plurals else ():
        if (brought := scorers.plugin(stem)) is not None:
            providers.setdefault("scorers", {})[stem] = brought.provider
    return providers


def _faults(plurals: Sequence[str], where: Sequence[Path]) -> list[str]:
    """What installed packages bring and cannot be used, a line each."""
    from harness import defenses, scorers
    from harness.cards import plugins

    lines = plugins.card_folder_faults()
    for plural in (p for p in plurals if p in KINDS):
        lines += plugin_faults(KINDS[plural], where).values()
    if "defenses" in plurals:
        lines += defenses.faults().values()
    if "scorers" in plurals:
        lines += scorers.faults().values()
    return lines


def describe(
    name: Annotated[str, typer.Argument(help="Name of any card or scorer, as `harness list` shows it.")],
    cards: options.Cards = None,
    json: options.Json = False,
) -> None:
    """Show one card whole: source, licence, hyperparameters, and the file it is in; or a scorer, with its columns.

    With --json: `name`, and `found`, one object for each card or scorer of that name, with its `kind` and `file`.
    """
    from harness import scorers
    from harness.cards.load import card_names, load_card
    from harness.errors import nearest

    where = card_roots(cards)
    kinds = [k for k in KINDS.values() if name in card_names(k, where)]
    is_scorer = name in scorers.names()
    if not kinds and not is_scorer:
        known = [*scorers.names(), *(n for k in KINDS.values() for n in card_names(k, where))]
        raise UserError(f"no card or scorer {name!r}{nearest(name, known)}; see `harness list`")
    described = [(k.KIND, load_card(k, name, where)) for k in kinds]
    if json:
        shown = [{"kind": k, "file": str(c.path), **c.model_dump(mode="json")} for k, c in described]
        options.emit({"name": name, "found": [*shown, *([_scorer(name)] if is_scorer else [])]})
        return
    for kind, card in described:
        _print_card(kind, str(card.path), card.model_dump(mode="json", exclude={"name"}, exclude_defaults=True))
    if is_scorer:
        about = _scorer(name)
        kind, file, text = (about.pop(key) for key in ("kind", "file", "about"))
        _print_card(kind, file, {key: about[key] for key in about if key not in ("name", "summary")}, text)


def _print_card(kind: str, file: str, content: Mapping[str, Any], text: str = "") -> None:
    """One card or scorer as YAML, its text as comment."""
    import yaml

    typer.echo("\n".join([f"# {kind}  {file}", *(f"# {line}".rstrip() for line in text.splitlines())]))
    typer.echo(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=110))


def _scorer(stem: str) -> dict[str, Any]:
    """What a scorer's module declares; of its weights, files that are here, models of the hub, or what is lacking."""
    import importlib

    from harness import scorers

    module, brought = importlib.import_module(scorers.module_name(stem)), scorers.plugin(stem)
    try:
        held: list[str] = [str(path) for path in scorers.weights(stem)]
    except UserError as error:
        held = [f"lacking: {error}"]
    held += [f"{w.source}@{w.revision} (licence: {w.licence})" for w in scorers.hub_weights(stem)]
    return {
        "kind": "scorer",
        "file": str(module.__file__),
        "name": stem,
        "summary": scorers.summary(stem),
        "about": (module.__doc__ or "").strip(),  # licences of what it is made of are said here
        "columns": {column: str(kind) for column, kind in scorers.columns(stem).items()},
        "references": list(scorers.REFERENCES) if scorers.pair(stem) else [],  # of a pair scorer: NAME@same/base
        "reads_prompt": scorers.text(stem),
        "parameters": dict(getattr(module, "DEFAULTS", {})),
        "micro_batch": module.MICRO_BATCH,
        "libraries": list(scorers.libraries(stem)),
        "weights": held,
        **({"provided_by": brought.provider} if brought is not None else {}),
    }


def diff(
    left: Annotated[Path, typer.Argument(help="Folder of a run.")],
    right: Annotated[Path, typer.Argument(help="Folder of another run.")],
    json: options.Json = False,
) -> None:
    """Say which keys of which stage differ between two runs; exit code 0 also when some do."""
    from harness.pipeline.record import differences
    from harness.report.stored_run import read_record

    differing = differences(read_record(left), read_record(right))
    for row in differing:
        if "only_in" in row:
            row["only_in"] = str(left if row["only_in"] == "left" else right)
    if json:
        options.emit({"differences": differing})
        return
    for row in differing:
        if "only_in" in row:
            typer.echo(f"{row['stage']}: only in {row['only_in']}")
        else:
            typer.echo(f"{row['stage']}: {row['key']}: {row['left']} -> {row['right']}")
    if not differing:
        typer.echo("no difference: both runs rest on the same stages")


def doctor(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="With --random-weights: backbones, captioners, or a profile for its CLIP."),
    ] = None,
    profile: options.Profile = "paper",
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights",
            help="Build the cards' models at full size without weights (all, or those named): parts, GB, and what does "
            "not fit.",
        ),
    ] = False,
    store: options.StoreDir = options.STORE,
    data: options.Data = options.DATA,
    cards: options.Cards = None,
    json: options.Json = False,
) -> None:
    """Check this machine for a profile: versions, GPUs, disk, weights, benchmarks; exit code 1 if it cannot run."""
    if random_weights:
        _at_full_size(names or [], card_roots(cards), json)
        return
    if names:
        raise UserError(f"doctor {' '.join(names)}: cards are named with --random-weights")
    checks = _machine(profile, store, data, card_roots(cards))
    if json:
        options.emit(checks)
    else:
        for name, value in checks.items():
            lines = value if isinstance(value, list) else [value]
            typer.echo(f"{name:>18}  {lines[0] if lines else 'none'}")
            for line in lines[1:]:
                typer.echo(f"{'':>18}  {line}")
    if not checks["ready"]:
        raise typer.Exit(1)


def _at_full_size(names: list[str], roots: list[Path], json: bool) -> None:
    """Print what the cards' models are at full size; exit code 1 where something does not fit."""
    from harness.pipeline import random_weights

    checks = [random_weights.check(name, roots) for name in names or random_weights.checked_cards()]
    if json:
        options.emit({"cards": checks})
    else:
        for card in checks:
            parts = ", ".join(f"{part} {about['million_parameters']:g}" for part, about in card["parts"].items())
            memory = f"{card['weights_gb']:g} GB of weights in {card['dtype']}, memory_gb {card['memory_gb']:g}"
            typer.echo(f"{card['card']:>20}  {parts} million parameters; {memory}")
            for line in card["faults"]:
                typer.echo(f"{'':>20}  does not fit: {line}")
    if any(card["faults"] for card in checks):
        raise typer.Exit(1)


def _machine(profile: str, store: Path, data: Path, where: list[Path]) -> dict[str, Any]:
    """What this machine has and lacks for a profile."""
    import shutil

    from harness.pipeline import hardware, scorer_files
    from harness.store import fingerprint

    card = scorer_files.completed(load_card(ProfileCard, profile, where), data)
    benches = [b for b in load_cards(BenchmarkCard, where) if card.edition in b.editions]
    stems = sorted({s for concept in card.concepts for s in card.measures(concept).scorers})
    weights = prerequisites.missing(prerequisites.profile_weights(card, where), card, data, stems)
    lacking = prerequisites.missing(benches, card, data)
    folder = next(p for p in (store.resolve(), *store.resolve().parents) if p.exists())
    versions = fingerprint.versions(
        ("torch", "diffusers", "transformers", "ray", "pyarrow", "nudenet", "onnxruntime", "numpy")
    )
    there = hardware.local()
    return {
        "profile": profile,
        "python": sys.version.split()[0],
        "versions": versions,
        "cores": there.cores,
        "gpus": there.gpus,
        "free_disk_gb": round(shutil.disk_usage(folder).free / 1e9, 1),
        "cards": [str(r) for r in where],
        "missing_weights": weights,
        "missing_benchmarks": lacking,
        "ready": not weights and len(lacking) < len(benches) and all(versions.values()),
    }
