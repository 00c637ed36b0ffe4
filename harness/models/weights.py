"""Published weights on this machine: whether they are here, how to get them, what identifies them.

They lie in the package, on a path of the user's own, or in the Hugging Face cache at the revision that their card pins;
whether they are there is asked of the disk alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from harness.cards.places import PACKAGE
from harness.cards.weights_ref import WeightsRef
from harness.cards.yaml_file import show
from harness.data.hub import cache_folder, cached_file, reason, token_of
from harness.errors import UserError
from harness.models import intact, local_weights
from harness.store.fingerprint import FileHashes

_OF_A_WHOLE_MODEL = ("model_index.json", "config.json")  # one of them is in any folder of a whole model


def missing(weights: WeightsRef) -> list[str]:
    """What is not on this machine, or damaged: no line, or some that say how to get it. Asks no network."""
    required = weights.required_files
    if weights.is_own:
        fault = local_weights.fault(weights)
        if fault is not None:
            return [fault]
        return [f"weights of {weights}: {show(path)} {wrong}" for path, wrong in _damaged(weights)]
    if weights.is_packaged:
        folder = weights.place
        absent = _absent(required, lambda name: (folder / name).is_file())
        is_model = bool(required) or any((folder / name).is_file() for name in _OF_A_WHOLE_MODEL)
        if folder.is_dir() and is_model and not absent:
            again = "install the package again" if folder.is_relative_to(PACKAGE) else "copy it again"
            return [f"{weights}: {show(path)} {wrong}: {again}" for path, wrong in _damaged(weights)]
        return [f"{weights}: {show(folder)} is missing from the package; install it again"]
    absent = _absent(required, lambda name: cached_file(weights.source, name, weights.revision) is not None)
    if not absent:
        again = f"`harness fetch weights {weights.name}`"
        return [f"weights of {weights}: {path} {wrong}: remove it, then {again}" for path, wrong in _damaged(weights)]
    page = f"https://huggingface.co/{weights.source}"
    gate = f"; gated: accept the terms at {page} and set HF_TOKEN" if weights.gated else ""
    return [
        f"weights of {weights} ({weights.source}, {len(absent)} of {len(required)} files are not in "
        f"{cache_folder()}): `harness fetch weights {weights.name}`{gate}"
    ]


def _damaged(weights: WeightsRef) -> list[tuple[Path, str]]:
    """The files that cannot be whole by their headers, and what is wrong with each."""
    return [(path, wrong) for path in files(weights) if (wrong := intact.flaw(path)) is not None]


def fetch(weights: WeightsRef, token: str | None = None) -> Path:
    """The folder of the weights, downloaded at their revision into the Hugging Face cache if need be.

    Raises:
        UserError: no access, no network, or a file that the card names and the repository does not hold.
    """
    if weights.is_local:
        lines = missing(weights)
        if lines:
            raise UserError(lines[0])
        return weights.place
    folder = _download(weights, [name.partition("|")[0] for name in weights.files], token)

    def is_here(name: str) -> bool:
        return (folder / name).is_file()

    for name in weights.required_files:
        for other in name.split("|")[1:]:  # one after the other: what is not needed is not downloaded
            if _absent([name], is_here):
                _download(weights, [other], token)
    absent = _absent(weights.required_files, is_here)
    if absent:
        raise UserError(
            f"weights of {weights}: {weights.source}@{weights.revision or 'main'} does not hold "
            f"{', '.join(absent).replace('|', ' or ')}, which its card names"
        )
    return folder


def identity(weights: WeightsRef, hashes: FileHashes) -> Any:
    """What identifies weights in a fingerprint: the hub's commit, or the sha256 of each local file, wherever it lies.

    Raises:
        UserError: the user's own weights are not there, or not whole.
    """
    if weights.is_own:
        fetch(weights)  # refuses what is not whole
        place = weights.place
        return {path.relative_to(place).as_posix(): hashes.of(path) for path in files(weights)}
    return hashes.of_folder(weights.place) if weights.is_packaged else commit(weights)


def commit(weights: WeightsRef) -> str | None:
    """The commit of weights of the hub: the one that is pinned, else the one that this machine holds; None: local ones.

    Raises:
        UserError: unpinned, and not on this machine.
    """
    if weights.is_local or weights.revision is not None:
        return weights.revision
    return folder(weights).name  # .../snapshots/<commit>


def identities(references: Sequence[WeightsRef], hashes: FileHashes) -> Any:
    """What identifies a model's weights: of one reference as ``identity``, of several by their roles."""
    if len(references) == 1:
        return identity(references[0], hashes)
    return {weights.role: identity(weights, hashes) for weights in references}


def folder(weights: WeightsRef) -> Path:
    """Where weights lie on this machine: a folder, or of the user's own perhaps one file.

    Raises:
        UserError: they are not here.
    """
    if weights.is_local:
        return weights.place
    name = weights.required_files[0]
    path = cached_file(weights.source, name, weights.revision)
    if path is None:
        raise UserError(missing(weights)[0])
    return path.parents[name.count("/")]


def files(weights: WeightsRef) -> list[Path]:
    """The files that are on this machine, of those that the card names; of a local folder all."""
    if weights.is_own:
        return local_weights.read_files(weights.place)
    if weights.is_packaged:
        return sorted(p for p in weights.place.rglob("*") if p.is_file())
    names = [name.split("|") for name in weights.required_files]
    cached = [[cached_file(weights.source, n, weights.revision) for n in either] for either in names]
    return [path for either in cached for path in either if path is not None]


def distinct(references: Iterable[WeightsRef]) -> list[WeightsRef]:
    """The references without repeats of repository, revision and files, in order of first appearance."""
    seen: dict[tuple[str, str | None, tuple[str, ...]], WeightsRef] = {}
    for weights in references:
        seen.setdefault((weights.source, weights.revision, weights.files), weights)
    return list(seen.values())


def _download(weights: WeightsRef, names: list[str], token: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                weights.source, revision=weights.revision, allow_patterns=names or None, token=token_of(token)
            )
        )
    except Exception as error:  # the hub's transport errors share no base across its releases
        raise UserError(f"weights of {weights}: {weights.source}: {reason(error)}") from error


def _absent(names: Iterable[str], is_here: Callable[[str], bool]) -> list[str]:
    """Of ``names`` those that are not here under any of their names."""
    return [name for name in names if not any(map(is_here, name.split("|")))]
