"""What code a process runs: the sources of this package and the versions of the libraries that results depend on.

``identity`` is sent to workers by value, so that it needs nothing of this package there: it must tell the truth also
where another copy, or none, is installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def identity(packages: Iterable[str], distributions: Iterable[str]) -> dict[str, Any]:
    """Where ``packages`` would be imported from, a digest of the sources of each, and versions of distributions.

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

    def source(package: str) -> dict[str, Any]:
        spec = importlib.util.find_spec(package)
        if spec is None or not (spec.origin or spec.submodule_search_locations):
            return {"digest": "not installed", "where": None}
        roots = [Path(place) for place in spec.submodule_search_locations or ()]
        files = [(root, path) for root in roots for path in sorted(root.rglob("*.py"))]
        if not roots:  # a module alone
            roots = [Path(str(spec.origin)).parent]
            files = [(roots[0], Path(str(spec.origin)))]
        content = hashlib.sha256()
        for root, path in files:
            content.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
        return {"digest": content.hexdigest()[:16], "where": str(roots[0])}

    versions = {"python": ".".join(platform.python_version_tuple()[:2])}
    versions |= {name: version(name) or "not installed" for name in sorted(distributions)}
    return {"sources": {package: source(package) for package in packages}, "versions": versions}


def difference(own: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """In what ``other`` departs from ``own``, in a few words; empty where it is the same code."""
    parts = []
    for package, mine in own["sources"].items():
        theirs = other["sources"][package]
        if theirs["digest"] != mine["digest"]:
            where = f" in {theirs['where']}" if theirs["where"] else ""
            parts.append(f"{package} {theirs['digest']}{where} instead of {mine['digest']} in {mine['where']}")
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
