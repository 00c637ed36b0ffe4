"""Files that a scorer reads and that the user brings, such as Q16's learned prompts: imported once, found by every run.

    <data>/scorers/<stem>/<the file>    and source.json: the parameter that it is, sha256, where it came from

A profile that names a file itself (``settings: {q16: {prompts: PATH}}``) keeps its own.
"""

from __future__ import annotations

import json
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from harness import scorers
from harness.cards.profile import ProfileCard
from harness.cards.yaml_file import show
from harness.errors import UserError
from harness.store.files import write_atomically
from harness.store.fingerprint import sha256_of
from harness.store.version import __version__

_RECORD = "source.json"


class Imported(NamedTuple):
    """What lies where now."""

    path: Path
    sha256: str
    warning: str  # "" when the file is a published one


def import_file(stem: str, file: Path, data: Path) -> Imported:
    """Check and store the file that a scorer needs.

    Args:
        stem: of the scorer.
        file: the user's own copy.
        data: folder where fetched things lie; what is made there is private.

    Raises:
        UserError: the scorer reads no such file, the file is none of its kind, or it cannot be written.
    """
    parameter = scorers.own_file(stem)
    if parameter is None:
        readers = [name for name in scorers.names() if scorers.own_file(name) is not None]
        raise UserError(f"scorer {stem!r} reads no file of the user's own; --from is for {', '.join(readers)}")
    if not file.is_file():
        raise UserError(f"--from: no file {show(file)}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scorers.check_own_file(stem, file)
    folder = data / "scorers" / stem
    path = folder / f"{parameter}{file.suffix}"
    record = {
        "scorer": stem,
        "parameter": parameter,
        "file": path.name,
        "sha256": sha256_of(file),
        "source": f"file {file.name}",
        "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
        "harness": __version__,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(path, file.read_bytes())
        write_atomically(folder / _RECORD, (json.dumps(record, indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(f"{show(path)}: cannot be written: {error.strerror}") from None
    return Imported(path, str(record["sha256"]), "; ".join(str(one.message) for one in caught))


def completed(profile: ProfileCard, data: Path | None) -> ProfileCard:
    """The profile with every imported file as the parameter of its scorer, where the profile names none itself."""
    settings = dict(profile.settings)
    for record in sorted((data / "scorers").glob(f"*/{_RECORD}")) if data is not None else ():
        try:
            known = json.loads(record.read_text(encoding="utf-8"))
            stem, parameter, path = known["scorer"], known["parameter"], record.with_name(known["file"])
        except (OSError, ValueError, KeyError, TypeError):
            again = f"`harness fetch weights {record.parent.name} --from FILE`"
            raise UserError(f"{show(record)}: cannot be read; {again} writes it anew") from None
        settings[stem] = {parameter: str(path.absolute()), **settings.get(stem, {})}
    return profile.model_copy(update={"settings": settings})
