"""``harness store``: what lies in the store, how much it takes, and removing it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from harness.cli import options

store = typer.Typer(no_args_is_help=True, help="Look at the store of shards, and remove what is no longer wanted.")


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(store, name="store")


@store.command("ls", epilog=options.examples("harness store ls --json"))
def ls(path: options.StoreDir = options.STORE, json: options.Json = False) -> None:
    """List stages and fingerprints with their shards and size.

    With --json: `store`, its folder; `entries`, each with `stage`, `fingerprint`, `shards`, `size` (bytes), `what`.
    """
    from harness.store.shards import Store

    entries = Store.open_existing(path).entries()
    if json:
        options.emit({"store": str(path), "entries": [e._asdict() for e in entries]})
        return
    for e in entries:
        typer.echo(f"{e.stage:<24} {e.fingerprint}  {e.shards:>5} shards  {e.size / 1e6:>9.2f} MB  {e.what}")


@store.command("du", epilog=options.examples("harness store du"))
def du(path: options.StoreDir = options.STORE, json: options.Json = False) -> None:
    """Disk taken, by stage."""
    from harness.store.shards import Store

    sizes: dict[str, int] = {}
    for e in Store.open_existing(path).entries():
        sizes[e.stage] = sizes.get(e.stage, 0) + e.size
    if json:
        options.emit({"stages": sizes, "total": sum(sizes.values())})
        return
    for stage, size in sizes.items():
        typer.echo(f"{stage:<24} {size / 1e6:>9.2f} MB")
    typer.echo(f"{'total':<24} {sum(sizes.values()) / 1e6:>9.2f} MB")


@store.command("prune", epilog=options.examples("harness store prune --images"))
def prune(
    path: options.StoreDir = options.STORE,
    images: Annotated[bool, typer.Option("--images", help="Every image; scores stay, and numbers with them.")] = False,
    stage: Annotated[str | None, typer.Option("--stage", help="Every shard of this stage.")] = None,
    fingerprint: Annotated[str | None, typer.Option("--fingerprint", help="Every shard with this fingerprint.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: options.Json = False,
) -> None:
    """Remove images, a stage, or one fingerprint; asks before it does."""
    from harness.errors import UserError, nearest
    from harness.store.shards import Store

    if not (images or stage or fingerprint):
        raise UserError(
            "harness store prune: say what: --images, --stage NAME or --fingerprint HASH (see `harness store ls`)"
        )
    store = Store.open_existing(path)
    entries = store.entries()
    for given, known in ((stage, {e.stage for e in entries}), (fingerprint, {e.fingerprint for e in entries})):
        if given is not None and given not in known:
            raise UserError(f"nothing called {given!r} in {path}{nearest(given, known)}; see `harness store ls`")
    chosen = [e for e in entries if stage in (None, e.stage) and fingerprint in (None, e.fingerprint)]
    with store.lock():
        shards = store.images(chosen) if images else []
        if images:
            holding = {p.parent for p in shards}
            chosen = [e for e in chosen if store.folder(e.stage, e.fingerprint) in holding]
        size = sum(e.size for e in chosen)
        what = "images of" if images else "all of"
        if not (yes or json) and not typer.confirm(f"remove {what} {len(chosen)} folders, {size / 1e6:.1f} MB?"):
            raise typer.Exit(1)
        freed = store.discard_images(shards) if images else store.remove(chosen)
    result: dict[str, Any] = {"folders": len(chosen), "freed_bytes": freed}
    options.emit(result) if json else typer.echo(f"{len(chosen)} folders, {freed / 1e6:.1f} MB freed")
