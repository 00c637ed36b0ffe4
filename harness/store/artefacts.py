"""Where a built defense lies: its tensors and provenance, and while it is built checkpoints, progress and a lock.

<root>/artefact/<fingerprint>/artefact.safetensors   what was built, published once, never changed
<root>/artefact/<fingerprint>/artefact.json          its kind, what it was made of, the tensors' sha256
<root>/artefact/<fingerprint>/artefact.cost.json     seconds that it took, on which device and host
<root>/artefact/<fingerprint>/checkpoints/           of the build: a killed one goes on from here; gone afterwards
<root>/artefact/<fingerprint>/progress.json          how far the build is; gone afterwards
<root>/artefact/<fingerprint>/.lock                  held by whoever builds it
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from harness.store.shards import Store

STAGE = "artefact"  # the folder of the store


class BuildProgress(NamedTuple):
    """How far a build is, as the process that builds it last wrote."""

    phase: str  # "loading", or what the mechanism calls it: "train", "draw"
    step: int  # steps of the phase that are done
    steps: int  # of the phase; 0: not known
    loss: float | None  # of the last step, where the phase minimises one
    seconds: float  # spent by all who have been at it, in whole
    host: str
    pid: int


@dataclass(frozen=True)
class ArtefactFolder:
    """The folder of one built defense. Nothing is made or read before it is asked for."""

    folder: Path

    @classmethod
    def of(cls, store: Store, fingerprint: str) -> ArtefactFolder:
        """The folder of the artefact with this fingerprint."""
        return cls(store.folder(STAGE, fingerprint))

    @property
    def tensors(self) -> Path:
        """The file of the artefact's tensors; where it lies, the build is done."""
        return self.folder / "artefact.safetensors"

    @property
    def checkpoints(self) -> Path:
        """The folder that is private to the build."""
        return self.folder / "checkpoints"

    @property
    def is_built(self) -> bool:
        """Whether the artefact is there."""
        return self.tensors.is_file()

    def lock(self) -> FileLock:
        """Held by the one builder; the system releases it when the process ends, however it ends.

        On a file system shared between hosts it holds across them, where that file system has locks (NFS does).
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return FileLock(self.folder / ".lock")

    def note(self, phase: str, step: int, steps: int, loss: float | None, seconds: float) -> None:
        """Write how far the build is, for progress displays; a write that fails is ignored."""
        said = BuildProgress(phase, step, steps, loss, round(seconds, 3), socket.gethostname(), os.getpid())
        path = self.folder / "progress.json"
        part = path.with_name(f".progress.{os.getpid()}.part")
        with contextlib.suppress(OSError):
            part.write_text(json.dumps(said._asdict()))
            part.replace(path)

    def progress(self) -> BuildProgress | None:
        """The progress last written; None before a build begins and after it ends."""
        try:
            return BuildProgress(**json.loads((self.folder / "progress.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def cost(self) -> dict[str, Any] | None:
        """What the build took: seconds, device, host; None where it is not known."""
        return Store.cost(self.tensors)

    def finish(self, seconds: float, device: str) -> None:
        """After the tensors are written: note what they took, and remove what only the build needed."""
        Store.note_cost(self.tensors, seconds, 1, device)
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        (self.folder / "progress.json").unlink(missing_ok=True)


class Clock:
    """Seconds spent on a build, those of earlier builders included, which were stopped or killed."""

    def __init__(self, before: BuildProgress | None) -> None:
        self._before = before.seconds if before is not None else 0.0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._before + time.monotonic() - self._started
