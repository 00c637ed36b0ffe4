"""Published weights that a run needs: which they are, whether they are on this machine, how to get them.

Whatever names weights, a backbone's card, a captioner's, CLIP of a profile, an editor's repositories, a scorer's model,
is a ``Weights`` here: a name, a source, a revision, files. They lie in the package or in the Hugging Face cache, at the
revision that the card pins; whether they are there is asked of the disk alone.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness import cards, overrides
from harness.cardfile import show
from harness.cards import BackboneCard, Card, DefenseCard, ProfileCard, locate
from harness.errors import UserError, nearest

if TYPE_CHECKING:
    from harness.editors import Edit
    from harness.judges.card import JudgeCard

_WHOLE = ("model_index.json", "config.json")  # one of them is in any folder of a whole model
# What transformers reads of a model that is one file; the second where a repository has no safetensors, as that of
# CLIP ViT-B/16: transformers reads it as tensors only (weights_only), never unpickling anything else.
_ONE_FILE = ("config.json", "preprocessor_config.json", "model.safetensors|pytorch_model.bin", "*.json", "*.txt")


class Weights(Protocol):
    """Where weights come from. ``BackboneCard`` and a local ``JudgeCard`` are such as they stand."""

    @property
    def name(self) -> str:
        """What ``harness fetch weights`` takes."""

    @property
    def source(self) -> str:
        """A hub id, or ``package:...``."""

    @property
    def revision(self) -> str | None:
        """Commit of the hub's repository; None: the one that its branch main is at."""

    @property
    def files(self) -> tuple[str, ...]:
        """Of a hub repository, those that are needed.

        A name with ``*`` is a pattern that may match nothing; of names with ``|`` between them one is needed, the
        first that there is.
        """

    @property
    def gated(self) -> bool:
        """Whether its owner asks for consent first."""

    @property
    def licence(self) -> str:
        """As its owner names it."""

    @property
    def root(self) -> Path:
        """Root of the card, for ``package:`` sources that do not start with ``harness``."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """Weights without a card of their own."""

    role: str  # "clip", "defense", "editor", "scorer": what messages call them
    name: str
    source: str
    files: tuple[str, ...]
    licence: str
    revision: str | None = None
    gated: bool = False
    root: Path = cards.PACKAGE


def of(card: Card, roots: Sequence[Path] = ()) -> list[Weights]:
    """The weights that a card names: none for a judge behind an API, all that it draws with for a profile.

    Args:
        card: a backbone, judge, defense, regenerator or profile; any other card names none.
        roots: where a profile's backbone and captioner are looked up; by default beside it.

    Raises:
        UserError: a profile names a card that is not there.
    """
    from harness.judges.card import JudgeCard
    from harness.regenerators import RegeneratorCard

    if isinstance(card, BackboneCard):
        return [card]
    if isinstance(card, JudgeCard):
        return of_judge(card)
    if isinstance(card, RegeneratorCard):
        return of_editor(card.name, card.edit, card.root) if card.edit is not None else []
    if isinstance(card, DefenseCard):
        return of_defense(card, {"params": card.params, "concepts": card.concepts or {}})
    if isinstance(card, ProfileCard):
        where = roots or [card.root]
        captioner = of(cards.load("judge", card.captioner, where)) if card.captioner is not None else []
        return [overrides.backbone(card.backbone, where), *captioner, *of_clip(card)]
    return []


def of_judge(card: JudgeCard) -> list[Weights]:
    """A local judge's or captioner's; none for one behind an API."""
    return [card] if card.backend == "local" else []


def of_clip(profile: ProfileCard) -> list[Weights]:
    """The CLIP that a profile's regenerators compare with; none when it has none."""
    clip = profile.clip
    if clip is None:
        return []
    return [
        Held(
            role="clip",
            name=profile.name,
            source=clip.source,
            revision=clip.revision,
            files=clip.files,
            licence=clip.licence,
            gated=clip.gated,
            root=profile.root,
        )
    ]


def of_editor(name: str, edit: Edit, root: Path) -> list[Weights]:
    """An editor's repositories: its pipeline's own, and its low-rank weights' where it has such.

    Args:
        name: of the regenerator.
        edit: the section ``edit`` of its card, in the edition that runs.
        root: the card's.
    """
    from harness.editors import sources

    licences = (edit.licence, edit.lora.licence if edit.lora is not None else "")
    return [
        Held(
            role="editor",
            name=name,
            source=source.source,
            revision=source.revision,
            files=source.files,
            licence=licence,
            gated=source.gated,
            root=root,
        )
        for source, licence in zip(sources(edit), licences, strict=False)
    ]


def of_defense(card: DefenseCard, params: Mapping[str, Any]) -> list[Weights]:
    """The published weights of the hub that a defense is read from instead of being built.

    Args:
        card: of the defense.
        params: its parameters, for one concept or for all; a ``weights`` of the hub counts at any depth.

    Raises:
        UserError: a hub id without its commit.
    """
    from harness import defenses

    found: list[Weights] = []
    for key, value in params.items():
        if isinstance(value, Mapping):
            found += of_defense(card, value)
        elif key == "weights" and isinstance(value, str) and value.startswith(defenses.HUB):
            repository, commit, file = defenses.hub(value)
            found.append(
                Held(
                    role="defense",
                    name=card.name,
                    source=repository,
                    revision=commit,
                    files=(file,),
                    licence=card.licence or "see its page on the hub",
                )
            )
    return found


def of_scorer(stem: str, params: Mapping[str, Any]) -> list[Weights]:
    """The hub's model that a scorer reads; none where its weights are a path's, the package's or a library's.

    Args:
        stem: the scorer, with or without a reference (``dinov2@same/base``).
        params: as the profile sets them.

    Raises:
        UserError: no such scorer, or a parameter it does not have.
    """
    from harness import scorers

    stem = stem.partition("@")[0]
    scorers.columns(stem)  # refuses an unknown name
    defaults: Mapping[str, Any] = getattr(importlib.import_module(f"harness.scorers.{stem}"), "DEFAULTS", {})
    chosen = scorers.options(stem, params, defaults)
    source = str(chosen.get("source") or "")
    if source.count("/") != 1 or source.startswith(("package:", "/", ".", "~")) or Path(source).is_dir():
        return []
    return [
        Held(
            role="scorer",
            name=stem,
            source=source,
            revision=chosen.get("revision"),
            files=_ONE_FILE,
            licence="see its page on the hub",
        )
    ]


def find(name: str, roots: Sequence[Path]) -> list[Weights]:
    """All weights that go by a name: of a backbone, judge, defense, regenerator, profile or scorer.

    Raises:
        UserError: no such name (with the nearest), or nothing to fetch under it.
    """
    from harness import scorers

    name = name.partition(":")[0]  # the weights are the same however they are sampled
    kinds: tuple[cards.Kind, ...] = ("backbone", "judge", "defense", "regenerator", "profile")
    known = {kind: cards.names(kind, roots) for kind in kinds}
    stems = scorers.names()
    every = sorted({*stems, *(n for names in known.values() for n in names)})
    if name not in every:
        raise UserError(f"no weights {name!r}{nearest(name, every)} (there are those of: {', '.join(every)})")
    found = [w for kind in kinds if name in known[kind] for w in of(cards.load(kind, name, roots), roots)]
    if name in stems:
        found += of_scorer(name, {})
    if not found:
        raise UserError(f"{name}: has no weights of its own to fetch; see `harness describe`")
    return distinct(found)


def distinct(found: Iterable[Weights]) -> list[Weights]:
    """Each repository, revision and list of files once, where it came first."""
    seen: dict[tuple[str, str | None, tuple[str, ...]], Weights] = {}
    for one in found:
        seen.setdefault((one.source, one.revision, one.files), one)
    return list(seen.values())


def missing(wanted: Weights) -> list[str]:
    """What is not on this machine: no line, or one that says how to get it. Asks no network."""
    what = _what(wanted)
    if wanted.source.startswith("package:"):
        folder = locate(wanted.source, wanted.root)
        named = _literal(wanted)
        there = folder.is_dir() and (bool(named) or any((folder / name).is_file() for name in _WHOLE))
        absent = _absent(named, lambda name: (folder / name).is_file())
        return [] if there and not absent else [f"{what}: {show(folder)} is missing from the package; install it again"]
    from huggingface_hub import constants, try_to_load_from_cache

    def is_here(name: str) -> bool:
        found = try_to_load_from_cache(wanted.source, name, constants.HF_HUB_CACHE, wanted.revision)
        return isinstance(found, str)

    literal = _literal(wanted)
    absent = _absent(literal, is_here)
    if not absent:
        return []
    page = f"https://huggingface.co/{wanted.source}"
    gate = f"; gated: accept the terms at {page} and set HF_TOKEN" if wanted.gated else ""
    return [
        f"weights of {what} ({wanted.source}, {len(absent)} of {len(literal)} files are not in "
        f"{constants.HF_HUB_CACHE}): `harness fetch weights {wanted.name}`{gate}"
    ]


def missing_scorer(stem: str, params: Mapping[str, Any]) -> list[str]:
    """What a scorer lacks on this machine: a line for each thing, with how to get it. Asks no network, loads no model.

    Raises:
        UserError: no such scorer, or a parameter it does not have.
    """
    from harness import scorers

    plain = stem.partition("@")[0]
    lines = [line for wanted in of_scorer(plain, params) for line in missing(wanted)]
    try:
        scorers.weights(plain, params)
    except UserError as error:
        lines.insert(0, str(error))
    return lines


def fetch(wanted: Weights, token: str | None = None) -> Path:
    """The folder of the weights, downloaded at their revision into the Hugging Face cache if need be.

    Raises:
        UserError: no access, no network, or a file that the card names and the repository does not hold.
    """
    if wanted.source.startswith("package:"):
        left = missing(wanted)
        if left:
            raise UserError(left[0])
        return locate(wanted.source, wanted.root)
    from huggingface_hub import snapshot_download

    def download(names: list[str]) -> Path:
        try:
            return Path(
                snapshot_download(
                    wanted.source, revision=wanted.revision, allow_patterns=names or None, token=token_of(token)
                )
            )
        except Exception as error:  # the hub's transport errors share no base across its releases
            raise UserError(f"weights of {_what(wanted)}: {wanted.source}: {reason(error)}") from error

    folder = download([name.partition("|")[0] for name in wanted.files])
    for name in _literal(wanted):
        for other in name.split("|")[1:]:  # one after the other: what is not needed is not downloaded
            if _absent([name], lambda one: (folder / one).is_file()):
                download([other])
    absent = _absent(_literal(wanted), lambda name: (folder / name).is_file())
    if absent:
        raise UserError(
            f"weights of {_what(wanted)}: {wanted.source}@{wanted.revision or 'main'} does not hold "
            f"{', '.join(absent).replace('|', ' or ')}, which its card names"
        )
    return folder


def token_of(given: str | None) -> str | None:
    """The user's token for the hub: given, else of the environment, else of a login."""
    if given or os.environ.get("HF_TOKEN"):
        return given or os.environ["HF_TOKEN"]
    from huggingface_hub import get_token

    stored: str | None = get_token()
    return stored


def reason(error: Exception) -> str:
    """What went wrong, in a few words; hub messages run over many lines."""
    from huggingface_hub import errors

    reasons = (  # the narrower first
        (errors.GatedRepoError, "access is not granted to this token"),
        (errors.RepositoryNotFoundError, "no such repository, or no access to it"),
        (errors.RevisionNotFoundError, "no such revision"),
        (errors.LocalEntryNotFoundError, "the hub cannot be reached"),
        (errors.EntryNotFoundError, "no such file"),
    )
    for kind, words in reasons:
        if isinstance(error, kind):
            return words
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _literal(wanted: Weights) -> list[str]:
    """The files that must be there, each perhaps one of several."""
    return [name for name in wanted.files if "*" not in name]


def _absent(names: Iterable[str], is_here: Callable[[str], bool]) -> list[str]:
    """Of ``names`` those that are not here under any of their names."""
    return [name for name in names if not any(map(is_here, name.split("|")))]


def _what(wanted: Weights) -> str:
    """The weights' role and name, as messages call them."""
    if isinstance(wanted, Held):
        return f"{wanted.role} {wanted.name}"
    return f"{'backbone' if isinstance(wanted, BackboneCard) else 'judge'} {wanted.name}"
