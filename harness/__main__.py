"""``python -m harness`` is ``harness``."""

import sys
from pathlib import Path

# Python puts the working folder first on the path, where somebody's `torch.py` would be taken for torch.
if sys.path and Path(sys.path[0]).resolve() == Path.cwd() and Path.cwd() != Path(__file__).resolve().parent.parent:
    del sys.path[0]

from harness.cli import main

main()
