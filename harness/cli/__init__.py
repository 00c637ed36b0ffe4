"""The command line. Each command lives in a module of its own and imports what it needs when it runs.

Exit codes: 0 done; 1 a stage failed, or the gate; 2 a mistake in what was given; 3 too many rows failed;
4 incomplete for a passing reason, run the same command again; 130 interrupted.
"""

from __future__ import annotations

import errno
import io
import sys
from typing import Any

import typer

from harness.cli import (
    audit,
    baseline,
    build,
    catalog,
    compare,
    conformance,
    evaluate,
    fetch,
    hints,
    images,
    judge,
    publish,
    report,
    reproduce,
    status,
    store,
    sweep,
)
from harness.cli.repeated import watch
from harness.errors import TransientError, UserError
from harness.store.version import __version__

_EPILOG = (
    "Exit codes: 0 done; 1 a stage failed, or the gate; 2 a mistake in what was given; 3 too many rows failed; "
    "4 incomplete, run the same command again; 130 interrupted."
)

app = typer.Typer(
    name="harness",
    help=(
        "Measure how safe text-to-image systems are under adversarial prompts.\n\n"
        "Try it on the embedded world of shapes, offline, on two CPU cores:\n\n"
        "\b\n  harness eval --defense rece --bench ring-a-bell-k77 --profile shapes"
    ),
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=True,  # --install-completion, --show-completion
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (
    evaluate,
    sweep,
    status,
    build,
    images,
    catalog,
    conformance,
    report,
    reproduce,
    compare,
    audit,
    baseline,
    judge,
    fetch,
    store,
    publish,
):
    module.register(app)

_MISPLACED = {  # errors of the file system that are mended outside, and the exit code
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG), 2),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), 4),
}
_Misuse: Any = typer.BadParameter.__bases__[0]  # click's UsageError, wherever this Typer has it from


def _version(show: bool) -> None:
    if show:
        typer.echo(f"harness {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Options of the program itself."""


class _Pipe(io.FileIO):
    """A standard stream whose reader may leave (`harness eval ... | head`): what follows goes nowhere.

    So the work is ended properly, with its own exit code, instead of breaking off in the middle of a line.
    """

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


def _outlive(stream: Any) -> Any:
    """``stream``, one of the process's two outputs, as one that its reader may consent."""
    try:
        raw = _Pipe(stream.fileno(), "w", closefd=False)
    except (AttributeError, OSError):  # closed, or something in memory
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="replace",  # a terminal that cannot show a sign, or a name that is no text, costs no run its numbers
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _print_help_whole(command: Any) -> None:
    """Have every command print its help as plain text: in a table, narrow terminals lose the ends of long words."""
    if nested := getattr(command, "commands", None):
        for one in nested.values():
            _print_help_whole(one)
    else:
        command.rich_markup_mode = None


def main() -> None:
    """Entry point: a user's mistake is one line on standard error and exit code 2."""
    sys.stdout, sys.stderr = _outlive(sys.stdout), _outlive(sys.stderr)
    try:
        command = watch(typer.main.get_command(app))
        hints.watch(command)
        _print_help_whole(command)
        sys.exit(command(standalone_mode=False) or 0)  # a command that leaves early gives its exit code
    except UserError as error:
        print(f"harness: {error}", file=sys.stderr)
        sys.exit(2)
    except TransientError as error:
        print(f"harness: {error}", file=sys.stderr)
        sys.exit(4)
    except OSError as error:  # a file or folder that was named; of anything else the traceback says more
        code = _MISPLACED.get(error.errno or 0)
        if code is None or error.filename is None:
            raise
        print(f"harness: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(code)
    except _Misuse as error:
        if error.format_message():  # else nothing was asked for, and the help has been printed
            where = f"; see `{error.ctx.command_path} --help`" if error.ctx else ""
            print(f"harness: {hints.message(error)}{where}", file=sys.stderr)
        sys.exit(2)
    except typer.Abort:  # a question that nobody answered
        print("harness: aborted", file=sys.stderr)
        sys.exit(130)
