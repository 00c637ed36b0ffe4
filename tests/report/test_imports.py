from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "ray", "diffusers", "transformers", "scipy", "pandas", "matplotlib", "onnxruntime", "nudenet")


def test_reports_import_nothing_heavy() -> None:
    code = (
        "import sys, harness.metrics.cells, harness.report.table, harness.report.contact_sheet\n"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
