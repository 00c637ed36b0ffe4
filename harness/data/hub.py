"""The Hugging Face hub: what its cache holds on this machine, the user's token, and its errors in a few words."""

from __future__ import annotations

import os
from pathlib import Path


def cached_file(repository: str, name: str, revision: str | None = None) -> Path | None:
    """A repository's file in the Hugging Face cache; None where it is not there. Asks no network.

    Args:
        repository: ``owner/name``.
        name: the file's path within the repository.
        revision: commit or branch; None: main.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    path = try_to_load_from_cache(repository, name, constants.HF_HUB_CACHE, revision)
    return Path(path) if isinstance(path, str) else None


def cache_folder() -> str:
    """Where the cache lies, for messages."""
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def token_of(given: str | None) -> str | None:
    """The user's token for the hub: the one given, else of the environment, else of a login."""
    if given or os.environ.get("HF_TOKEN"):
        return given or os.environ["HF_TOKEN"]
    from huggingface_hub import get_token

    stored: str | None = get_token()
    return stored


def reason(error: Exception) -> str:
    """What went wrong, in a few words; hub messages run over many lines."""
    from huggingface_hub import errors

    reasons = (  # the narrower first
        (errors.GatedRepoError, "access is not granted to this token"),
        (errors.RepositoryNotFoundError, "no such repository, or no access to it"),
        (errors.RevisionNotFoundError, "no such revision"),
        (errors.LocalEntryNotFoundError, "the hub cannot be reached"),
        (errors.EntryNotFoundError, "no such file"),
    )
    for kind, words in reasons:
        if isinstance(error, kind):
            return words
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
