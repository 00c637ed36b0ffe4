"""Open an ONNX network on the CPU, with one way to say that a file is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.errors import UserError


def open_session(model: Path, threads: int) -> Any:
    """The network at work on ``threads`` threads.

    Raises:
        UserError: the file is no ONNX network.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3  # it warns of published files whose initialisers are inputs too
    try:
        return onnxruntime.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
    # onnxruntime's own exceptions have no common class.
    except Exception as error:
        raise UserError(f"{model}: no ONNX network: {error}") from error
