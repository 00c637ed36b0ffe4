"""Get what a run needs and the package does not hold: benchmark files and published weights.

A file is stored only once it is known to be the right one: by the card's sha256, else, with a warning,
by its columns and its number of rows. Gated sets are fetched with the user's own token or copied from the
user's own file; nothing here goes round a gate.

Whatever names weights (a backbone, a captioner, CLIP, an editor) is a ``Weights`` here: name, source, revision, files.
"""

from __future__ import annotations

import json
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from harness import __version__
from harness.cardfile import show
from harness.cards import BackboneCard, Card, DatasetCard, Edition, ProfileCard, locate
from harness.errors import UserError
from harness.prompts import file_of, identify, parse
from harness.sheet import Sheet, read_file
from harness.store import write_atomically

LARGEST = 64 << 20  # bytes of a benchmark file
TIMEOUT_S = 60


class Fetched(NamedTuple):
    """What lies where now."""

    path: Path
    sha256: str
    rows: int
    warning: str  # "" when the file is the card's own


def fetch_bench(card: DatasetCard, data: Path, from_file: Path | None = None, token: str | None = None) -> Fetched:
    """Stores a benchmark's paper edition as ``data/bench/<name>.csv``, its provenance beside.

    Where several benchmarks read one file, it is stored once, under the name that their cards give it.

    Args:
        card: the benchmark.
        data: folder where fetched things lie; made private.
        from_file: the user's own copy; else the card's source is asked, unless the right file is already here.
        token: for a gated source; else ``HF_TOKEN``, else that of a Hugging Face login.

    Raises:
        UserError: nothing to fetch, no access, no network, another file than the card's; nothing is written then.
    """
    edition = card.editions.get("paper")
    if edition is None or edition.source.startswith("package:"):
        raise UserError(f"benchmark {card.name} comes with the package: there is nothing to fetch")
    path = file_of(card, edition, data)
    if from_file is not None:
        content = read_file(from_file)
        return _store(card, edition, path, parse(edition, content, from_file), content, f"file {from_file.name}")
    here = _already(card, edition, path)
    if here is not None:
        return here
    content, source = _download(card, edition, token)
    found = parse(edition, content, path)
    if edition.sha256 is not None and found.sha256 != edition.sha256:
        raise UserError(
            f"benchmark {card.name}: {source} now holds another file than the card's "
            f"(sha256 {found.sha256[:12]}... instead of {edition.sha256[:12]}...); nothing was stored"
        )
    return _store(card, edition, path, found, content, source)


def how_to_get(card: DatasetCard, edition: Edition) -> str:
    """One line for a person: what the file is and each way to it."""
    what = f"benchmark {card.name} ({edition.rows} prompts{', gated' if edition.gated else ''})"
    own = f"`harness fetch bench {card.name} --from FILE` with your own copy"
    if edition.source == "user":
        return f"{what}: {edition.access or 'not public'}; {own}"
    get = f"`harness fetch bench {card.name}`"
    if edition.gated:
        get = f"{edition.access or 'ask its owner for access'}, then {get} with HF_TOKEN set to your token"
    return f"{what}: {get}, or {own}"


def missing(cards: Iterable[Card], profile: ProfileCard, data: Path) -> list[str]:
    """What a run over these benchmarks and backbones lacks on this machine: one line each, with how to get it.

    Looks at files only; asks no network.

    Raises:
        UserError: a benchmark has no edition for the profile.
    """
    lines = []
    for card in cards:
        if isinstance(card, DatasetCard):
            edition = card.edition(profile.edition)
            path = file_of(card, edition, data)
            if path.exists():
                continue
            packaged = edition.source.startswith("package:")
            lines.append(_reinstall(f"benchmark {card.name}", path) if packaged else how_to_get(card, edition))
        elif isinstance(card, BackboneCard):
            lines.extend(missing_weights(card))
    return lines


def require(cards: Iterable[Card], profile: ProfileCard, data: Path) -> None:
    """Refuses a run that lacks something, naming everything at once.

    Raises:
        UserError: one message, a line for each missing thing.
    """
    lines = missing(cards, profile, data)
    if not lines:
        return
    hint = "" if profile.edition == "shapes" else "; `--profile shapes` needs none of it"
    listed = "".join(f"\n  - {line}" for line in lines)
    raise UserError(
        f"profile {profile.name} lacks {len(lines)} thing{'s'[: len(lines) > 1]} on this machine{hint}:{listed}"
    )


def missing_weights(card: BackboneCard) -> list[str]:
    """What the backbone lacks on this machine: no line, or one that says how to get it. Asks no network."""
    if card.source.startswith("package:"):
        folder = locate(card.source, card.root)
        return [] if (folder / "model_index.json").is_file() else [_reinstall(f"backbone {card.name}", folder)]
    from huggingface_hub import constants, try_to_load_from_cache

    def is_here(name: str) -> bool:
        found = try_to_load_from_cache(card.source, name, constants.HF_HUB_CACHE, card.revision)
        return isinstance(found, str)

    absent = [name for name in card.files if not is_here(name)]
    if not absent:
        return []
    gate = f"; gated: accept the terms at https://huggingface.co/{card.source} and set HF_TOKEN" if card.gated else ""
    return [
        f"weights of backbone {card.name} ({card.source}, {len(absent)} of {len(card.files)} files are not in "
        f"{constants.HF_HUB_CACHE}): `harness fetch weights {card.name}`{gate}"
    ]


def fetch_weights(card: BackboneCard, token: str | None = None) -> Path:
    """The folder of the backbone's weights, downloaded at the card's revision into the Hugging Face cache if need be.

    Raises:
        UserError: no access or no network.
    """
    if card.source.startswith("package:"):
        left = missing_weights(card)
        if left:
            raise UserError(left[0])
        return locate(card.source, card.root)
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            card.source, revision=card.revision, allow_patterns=list(card.files), token=_token(token)
        )
    except Exception as error:  # the hub's transport errors share no base across its releases
        raise UserError(f"weights of backbone {card.name}: {card.source}: {_reason(error)}") from error
    left = missing_weights(card)
    if left:
        raise UserError(f"{card.source}@{card.revision} does not hold all that its card names: {left[0]}")
    return Path(folder)


def _already(card: DatasetCard, edition: Edition, path: Path) -> Fetched | None:
    """The file that is here, if it is as good as what the source could give."""
    if not path.exists():
        return None
    try:
        found = parse(edition, read_file(path), path)
        kind, note = identify(card, edition, found)
    except UserError:
        return None
    return Fetched(path, found.sha256, len(found.records), note) if kind == "exact" or not edition.sha256 else None


def _store(card: DatasetCard, edition: Edition, path: Path, found: Sheet, content: bytes, source: str) -> Fetched:
    """Writes file and provenance, each whole or not at all, where only the user reads them."""
    kind, note = identify(card, edition, found)
    warning = note and f"{card.name}: {note}"
    twin = _twin(path, found.sha256)
    if twin:
        warning = f"{warning}; " * bool(warning) + f"{card.name}: the very same file is stored as {twin} already"
    record = {
        "bench": card.name,
        "edition": "paper",
        "task": edition.task,
        "sha256": found.sha256,
        "bytes": len(content),
        "rows": len(found.records),
        "identity": kind,
        "note": note or None,
        "source": source,
        "licence": edition.licence,
        "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
        "harness": __version__,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.parent.chmod(0o700)
        write_atomically(path, content)
        write_atomically(provenance(path), (json.dumps(record, indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(f"{show(path)}: cannot be written: {error.strerror}") from None
    return Fetched(path, found.sha256, len(found.records), warning)


def provenance(path: Path) -> Path:
    """Where the provenance of a stored benchmark file lies."""
    return path.with_name(f"{path.name}.source.json")


def _twin(path: Path, sha256: str) -> str | None:
    """Another stored file that is byte for byte this one: a likely mix-up of look-alike files."""
    own = provenance(path)
    for other in sorted(path.parent.glob("*.source.json")):
        try:
            record = json.loads(other.read_text())
        except (OSError, ValueError):
            continue
        if other != own and record.get("sha256") == sha256:
            return str(record.get("bench"))
    return None


def _download(card: DatasetCard, edition: Edition, token: str | None) -> tuple[bytes, str]:
    """The source's bytes and its name."""
    if edition.source == "user":
        raise UserError(how_to_get(card, edition))
    if not edition.source.startswith("hub:"):
        return _get(card, edition), edition.source
    token = _token(token)
    if edition.gated and token is None:
        raise UserError(how_to_get(card, edition))
    return _get_from_hub(card, edition, token)


def _get(card: DatasetCard, edition: Edition) -> bytes:
    request = urllib.request.Request(edition.source, headers={"User-Agent": f"harness/{__version__}"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            content: bytes = answer.read(LARGEST + 1)
    except (OSError, urllib.error.URLError) as error:
        raise UserError(_unreachable(card, edition, str(getattr(error, "reason", error)))) from None
    if len(content) > LARGEST:
        raise UserError(
            f"benchmark {card.name}: {edition.source} holds more than {LARGEST >> 20} MiB; nothing was stored"
        )
    return content


def _get_from_hub(card: DatasetCard, edition: Edition, token: str | None) -> tuple[bytes, str]:
    from huggingface_hub import hf_hub_download

    repo, _, rest = edition.source.removeprefix("hub:").partition("@")
    revision, _, name = rest.partition("/")
    # Into a folder of its own: a gated file is to lie in one private place, not in a shared cache as well.
    with tempfile.TemporaryDirectory() as folder:
        try:
            got = hf_hub_download(repo, name, repo_type="dataset", revision=revision, token=token, local_dir=folder)
            content = Path(got).read_bytes()
        except Exception as error:  # the hub's transport errors share no base across its releases
            raise UserError(_unreachable(card, edition, _reason(error))) from error
    return content, edition.source


def _unreachable(card: DatasetCard, edition: Edition, reason: str) -> str:
    return f"{edition.source} cannot be fetched ({reason}); {how_to_get(card, edition)}"


def _reinstall(what: str, path: Path) -> str:
    return f"{what}: {show(path)} is missing from the package; install it again"


def _token(given: str | None) -> str | None:
    if given or os.environ.get("HF_TOKEN"):
        return given or os.environ["HF_TOKEN"]
    from huggingface_hub import get_token

    stored: str | None = get_token()
    return stored


def _reason(error: Exception) -> str:
    """What went wrong, in a few words; hub messages run over many lines."""
    from huggingface_hub import errors

    reasons = (  # the narrower first
        (errors.GatedRepoError, "access is not granted to this token"),
        (errors.RepositoryNotFoundError, "no such repository, or no access to it"),
        (errors.RevisionNotFoundError, "no such revision"),
        (errors.LocalEntryNotFoundError, "the hub cannot be reached"),
        (errors.EntryNotFoundError, "no such file"),
    )
    for kind, reason in reasons:
        if isinstance(error, kind):
            return reason
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
