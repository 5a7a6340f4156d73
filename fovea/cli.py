"""The `fovea` command line: sub-commands, and how their errors end.

Exit codes: 0 done, 1 the work failed, 2 bad usage, 130 stopped by Ctrl-C, 143 stopped by SIGTERM.
"""

import importlib
import logging
import signal
import sys
from typing import Final, Never

import typer

from fovea.version import __version__

COMMANDS: Final = {
    "demo": "all",
    "phantom": "ingest",
    "ingest": "ingest",
    "verify": "ingest",
    "audit": "ingest",
    "explain": "ingest",
    "show": "ingest",
    "pretrain": "train",
    "embed": "eval",
    "probe": "eval",
    "export": "train",
}
"""Sub-command -> the extra that installs what it needs. Each is `fovea/<name>.py` with a function `command`."""

STORE_CLIENTS: Final = ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google.api_core", "google.auth", "s3fs")
"""Packages that speak to stores, and raise exceptions of their own where the store refuses."""


def build_app() -> typer.Typer:
    """The application with every sub-command; their heavy imports happen when they run."""
    app = typer.Typer(
        name="fovea",
        help="Retinal OCT DICOMs to verified shards, and a 3-D V-JEPA trained and scored on them.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback(invoke_without_command=True)(_version)
    for name in COMMANDS:
        module = importlib.import_module(f"fovea.{name}")
        settings = getattr(module, "CONTEXT_SETTINGS", None)
        app.command(name, context_settings=settings)(module.command)
    return app


def _version(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(f"fovea {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point: run a sub-command, and turn what it raises into one sentence and an exit code."""
    debug = "--debug" in sys.argv
    argv = [word for word in sys.argv[1:] if word != "--debug"]
    signal.signal(signal.SIGINT, _interrupted)
    for client in () if debug else STORE_CLIENTS:
        # gcsfs logs a traceback of its own before it raises.
        logging.getLogger(client).setLevel(logging.CRITICAL)
    try:
        build_app()(args=argv, prog_name="fovea")
    except Exception as error:
        if debug:
            raise
        _end(error, argv[0] if argv else "")


def _interrupted(*_: object) -> Never:
    _complain("stopped by SIGINT.")
    sys.exit(128 + signal.SIGINT)


def _end(error: Exception, command: str) -> Never:
    """Print one sentence and exit: rooms mark errors that they explain with `exit_code`."""
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        _complain(str(error))
        sys.exit(code)
    if isinstance(error, ModuleNotFoundError):
        extra = COMMANDS.get(command, "all")
        _complain(f"`fovea {command}` needs the module {error.name!r}: pip install 'fovea-oct[{extra}]'.")
        sys.exit(2)
    if type(error).__module__.startswith(STORE_CLIENTS):
        _complain(f"the store answered {type(error).__name__}: check the address, the credentials and the network.")
        sys.exit(1)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"{where}{error.strerror}: check the path, its permissions and the space that is left.")
        sys.exit(1)
    _complain(f"{type(error).__name__}: {error} (an error that fovea did not foresee; --debug shows the traceback)")
    sys.exit(1)


def _complain(sentence: str) -> None:
    # An error may quote a file's name or a table's cell, which may hold a terminal's control sequences.
    shown = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in sentence)
    sys.stderr.write(f"fovea: {shown}\n")
