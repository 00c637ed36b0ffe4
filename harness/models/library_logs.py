"""Keep libraries from writing prompts, captions or paths anywhere: logs, warnings, progress bars.

diffusers and transformers quote a text that they cut, and Ray keeps what a worker prints in files. Nothing that a
library says is needed: what went wrong is raised, and stands in the private folder of the run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_BARS = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # read when a bar is made; when the hub is imported


@contextmanager
def silenced() -> Iterator[None]:
    """No library logs, warns or draws a bar in this process while the block runs, also one imported in it.

    ``logging.disable`` holds for every logger, whatever its handlers, level and propagation, and for those to come.
    """
    level = logging.root.manager.disable
    before = {name: os.environ.get(name) for name in _BARS}
    with warnings.catch_warnings():
        silence()
        try:
            yield
        finally:
            logging.disable(level)
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def silence() -> None:
    """The same for good, in a process of our own."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    os.environ.update(_BARS)


def keep_outputs_private() -> None:
    """Let nobody else read the files that this process's standard output and error go to."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.fchmod(descriptor, 0o600)
