"""What code a process runs: the sources of this package and the versions of the libraries that results depend on.

``identity`` is sent to workers by value, so that it needs nothing of this package there: it must tell the truth also
where another copy, or none, is installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def identity(package: str, distributions: Iterable[str]) -> dict[str, Any]:
    """Where ``package`` would be imported from, a digest of its sources, and versions of distributions.

    A distribution whose module would be imported from elsewhere, as from a ``torch.py`` in the working folder, has
    that place instead of a version. Nothing is imported.
    """
    import hashlib
    import importlib.util
    import platform
    from importlib import metadata
    from pathlib import Path

    def version(name: str) -> str | None:
        try:
            known = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            return None
        spec = importlib.util.find_spec(name.replace("-", "_"))  # where a module has another name, there is none
        root = str(known.locate_file(""))
        elsewhere = spec is not None and spec.origin is not None and not spec.origin.startswith(root)
        return spec.origin if spec is not None and elsewhere else known.version

    versions = {"python": ".".join(platform.python_version_tuple()[:2])}
    versions |= {name: version(name) or "not installed" for name in sorted(distributions)}
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return {"source": "not installed", "where": None, "versions": versions}
    root, content = Path(spec.origin).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")) if spec.submodule_search_locations else [Path(spec.origin)]:
        content.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return {"source": content.hexdigest()[:16], "where": str(root), "versions": versions}


def difference(own: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """In what ``other`` departs from ``own``, in a few words; empty where it is the same code."""
    parts = []
    if own["source"] != other["source"]:
        where = f" in {other['where']}" if other["where"] else ""
        parts.append(f"harness {other['source']}{where} instead of {own['source']} in {own['where']}")
    for name, version in own["versions"].items():
        if other["versions"].get(name) != version:
            parts.append(f"{name} {other['versions'].get(name)} instead of {version}")
    return ", ".join(parts)


def gpu_bytes() -> int | None:
    """Bytes of memory of the smallest GPU of this machine; None where that cannot be asked. Sent by value, too."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return min((int(pynvml.nvmlDeviceGetMemoryInfo(h).total) for h in handles), default=None)
    except Exception:  # no library, no driver, no memory of its own: whatever it is, it is not known
        return None
