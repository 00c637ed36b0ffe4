"""A run that goes on without its shell: a process in a session of its own, whose output goes to a file of its run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.errors import UserError
from harness.pipeline import run_status
from harness.pipeline.run_status import RunStatus
from harness.store.holder import Holder

LOG = Path("log") / "submitted.txt"


def submit(run: Path, words: Sequence[str], variables: Mapping[str, str], command: str) -> RunStatus:
    """Start ``harness WORDS`` detached; returns as soon as it lives.

    Args:
        run: its folder; made where it is not there, private.
        words: what follows the program's name.
        variables: of its environment, beside this one's.
        command: as it was typed, for the status.

    Raises:
        UserError: another process holds the run, or its folder cannot be written.
    """
    there = run_status.read(run)
    if there is not None and there.state in run_status.AT_WORK:
        raise UserError(f"{run.name} is at work already, by {there.holder}: harness status {run.name} (or stop it)")
    log = run / LOG
    try:
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise UserError(f"--out: {log} cannot be written: {error.strerror}") from None
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "harness", *words],
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            env={**os.environ, **variables},
            start_new_session=True,
        )
    finally:
        os.close(descriptor)
    now = time.time()
    status = RunStatus(
        run=run.name, command=command, holder=Holder.of(process.pid), begun=now, updated=now, log=str(log)
    )
    run_status.announce(run, status)
    return status
