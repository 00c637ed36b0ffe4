"""The command line. Each command lives in a module of its own and imports what it needs when it runs.

Exit codes: 0 done; 1 a stage failed; 2 a mistake in what was given; 3 too many rows failed;
4 incomplete for a passing reason, run the same command again; 130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from harness import __version__
from harness.cli import evaluate, fetch, images, judge, look, report, store
from harness.errors import UserError

_EPILOG = (
    "Exit codes: 0 done; 1 a stage failed; 2 a mistake in what was given; 3 too many rows failed; "
    "4 incomplete, run the same command again; 130 interrupted."
)

app = typer.Typer(
    name="harness",
    help=(
        "Measure how safe text-to-image systems are under adversarial prompts.\n\n"
        "Try it on the embedded world of shapes, offline, on two CPU cores:\n\n"
        "  harness eval --defense rece --bench ring-a-bell-k77 --profile shapes"
    ),
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (evaluate, images, look, report, judge, fetch, store):
    module.register(app)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"harness {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Options of the program itself."""


def main() -> None:
    """Entry point: a user's mistake is one line on standard error and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"harness: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(0)
