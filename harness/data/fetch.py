"""Get what a run needs and the package does not hold: benchmark files; for weights see ``harness.models.weights``.

A file is stored only once it is known to be the right one: by the card's sha256, else, with a warning,
by its columns and its number of rows. Gated sets are fetched with the user's own token or copied from the
user's own file; nothing here goes round a gate.
"""

from __future__ import annotations

import json
import tempfile
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from harness.cards.base import card_roots
from harness.cards.benchmark import BenchmarkCard, Edition
from harness.cards.load import load_cards
from harness.cards.yaml_file import show
from harness.data.archives import unpack
from harness.data.benchmarks import check, file_of, parse
from harness.data.hub import reason, token_of
from harness.data.prompt_file import LARGEST, PromptFile, read_file
from harness.errors import UserError
from harness.store.files import write_atomically
from harness.store.version import __version__

TIMEOUT_S = 60


class Fetched(NamedTuple):
    """A fetched benchmark file: path, sha256, number of rows, and a warning."""

    path: Path
    sha256: str
    rows: int
    warning: str  # "" when the file is the card's own


def fetch_bench(card: BenchmarkCard, data: Path, from_file: Path | None = None, token: str | None = None) -> Fetched:
    """Stores a benchmark's paper edition as ``data/bench/<name>.csv``, its provenance beside.

    Where several benchmarks read one file, it is stored once, under the name that their cards give it.

    Args:
        card: the benchmark.
        data: folder where fetched things lie; made private.
        from_file: the user's own copy: CSV or JSON, in gzip or not, or Parquet; else the card's source is asked,
            unless the right file is already here.
        token: for a gated source; else ``HF_TOKEN``, else that of a Hugging Face login.

    Raises:
        UserError: nothing to fetch, no access, no network, another file than the card's; nothing is written then.
    """
    edition = card.editions.get("paper")
    if edition is None or edition.source.startswith("package:"):
        raise UserError(f"benchmark {card.name} comes with the package: there is nothing to fetch")
    path = file_of(card, edition, data)
    if from_file is not None:
        content = unpack(read_file(from_file), from_file)
        prompt_file = parse(edition, content, from_file)
        _refuse_other(card, edition, prompt_file)
        return _store(card, edition, path, prompt_file, content, f"file {from_file.name}")
    here = _already(card, edition, path)
    if here is not None:
        return here
    content, source = _download(card, edition, token)
    prompt_file = parse(edition, content, path)
    if edition.sha256 is not None and prompt_file.sha256 != edition.sha256:
        raise UserError(
            f"benchmark {card.name}: {source} now holds another file than the card's "
            f"(sha256 {prompt_file.sha256[:12]}... instead of {edition.sha256[:12]}...); nothing was stored"
        )
    return _store(card, edition, path, prompt_file, content, source)


def how_to_get(card: BenchmarkCard, edition: Edition) -> str:
    """One line for a person: what the file is and each way to it."""
    what = f"benchmark {card.name} ({edition.rows} prompts{', gated' if edition.gated else ''})"
    own = f"`harness fetch bench {card.name} --from FILE` with your own copy"
    if edition.source == "user":
        return f"{what}: {edition.access or 'not public'}; {own}"
    get = f"`harness fetch bench {card.name}`"
    if edition.gated:
        get = f"{edition.access or 'ask its owner for access'}, then {get} with HF_TOKEN set to your token"
    return f"{what}: {get}, or {own}"


def _already(card: BenchmarkCard, edition: Edition, path: Path) -> Fetched | None:
    """The file that is here, if it is as good as what the source could give."""
    if not path.exists():
        return None
    try:
        prompt_file = parse(edition, read_file(path), path)
        kind, note = check(card, edition, prompt_file)
    except UserError:
        return None
    return (
        Fetched(path, prompt_file.sha256, len(prompt_file.records), note)
        if kind == "exact" or not edition.sha256
        else None
    )


def _refuse_other(card: BenchmarkCard, edition: Edition, prompt_file: PromptFile) -> None:
    """Refuses the file of another benchmark, by that one's name.

    It is told by its sha256; where the card has none and the rows are as many, as with Ring-A-Bell's three gated files
    of the same rows and columns, by the name that it has in their repository. What the card itself knows passes, and
    what a card without sha256 may read in its own way: a file of as many rows for the same concept.

    Raises:
        UserError: it is another benchmark's.
    """
    if prompt_file.sha256 in (edition.sha256, *(known.sha256 for known in edition.known)):
        return
    unknown = edition.sha256 is None and edition.rows == len(prompt_file.records)
    for other in load_cards(BenchmarkCard, card_roots()):
        if other.name == card.name:
            continue
        theirs = other.editions.get("paper")
        if theirs is None or theirs.source == edition.source:
            continue
        own = f"`harness fetch bench {other.name} --from FILE`"
        folder, _, name = theirs.source.rpartition("/")
        if unknown and folder == edition.source.rpartition("/")[0] and prompt_file.path.name == name:
            raise UserError(
                f"{show(prompt_file.path)}: is called as the file of {other.name}, not of {card.name}: {own}, "
                "or rename it"
            )
        if theirs.sha256 == prompt_file.sha256 and not (unknown and other.concept == card.concept):
            raise UserError(f"{show(prompt_file.path)}: is not {card.name} but {other.name}: {own}")


def _store(
    card: BenchmarkCard, edition: Edition, path: Path, prompt_file: PromptFile, content: bytes, source: str
) -> Fetched:
    """Writes file and provenance, each whole or not at all, where only the user reads them."""
    kind, note = check(card, edition, prompt_file)
    warning = note and f"{card.name}: {note}"
    twin = _twin(path, prompt_file.sha256)
    if twin:
        warning = f"{warning}; " * bool(warning) + f"{card.name}: the very same file is stored as {twin} already"
    record = {
        "bench": card.name,
        "edition": "paper",
        "task": edition.task,
        "sha256": prompt_file.sha256,
        "bytes": len(content),
        "rows": len(prompt_file.records),
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
    return Fetched(path, prompt_file.sha256, len(prompt_file.records), warning)


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
        if other != own and isinstance(record, dict) and record.get("sha256") == sha256:
            return str(record.get("bench"))
    return None


def _download(card: BenchmarkCard, edition: Edition, token: str | None) -> tuple[bytes, str]:
    """The source's bytes and its name."""
    if edition.source == "user":
        raise UserError(how_to_get(card, edition))
    if not edition.source.startswith("hub:"):
        return _get(card, edition), edition.source
    token = token_of(token)
    if edition.gated and token is None:
        raise UserError(how_to_get(card, edition))
    return _get_from_hub(card, edition, token)


def _get(card: BenchmarkCard, edition: Edition) -> bytes:
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


def _get_from_hub(card: BenchmarkCard, edition: Edition, token: str | None) -> tuple[bytes, str]:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    repo, _, rest = edition.source.removeprefix("hub:").partition("@")
    revision, _, name = rest.partition("/")
    # Into a folder of its own: a gated file is to lie in one private place, not in a shared cache as well.
    with tempfile.TemporaryDirectory() as folder:
        try:
            # A branch moves: what is downloaded, and recorded, is the commit that it is at now.
            page = hf_hub_url(repo, name, repo_type="dataset", revision=revision)
            commit = get_hf_file_metadata(page, token=token).commit_hash or revision
            got = hf_hub_download(repo, name, repo_type="dataset", revision=commit, token=token, local_dir=folder)
            content = Path(got).read_bytes()
        except Exception as error:  # the hub's transport errors share no base across its releases
            raise UserError(_unreachable(card, edition, reason(error))) from error
    return content, f"hub:{repo}@{commit}/{name}"


def _unreachable(card: BenchmarkCard, edition: Edition, reason: str) -> str:
    return f"{edition.source} cannot be fetched ({reason}); {how_to_get(card, edition)}"
