"""The command line: results to stdout, talk to stderr, exit 0 done, 1 failed, 2 asked wrongly."""

import errno
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Annotated

import typer

from maisi import __version__
from maisi.cli.codec import decode, encode, reconstruct
from maisi.cli.console import ASKED_WRONGLY, complain, follow_log, interrupted
from maisi.cli.convert import convert
from maisi.cli.datasets import datasets
from maisi.cli.doctor import doctor
from maisi.cli.downstream import downstream
from maisi.cli.evaluate import evaluate
from maisi.cli.export import export
from maisi.cli.generate import generate
from maisi.cli.info import info
from maisi.cli.inpaint import inpaint
from maisi.cli.labels import labels
from maisi.cli.options import one_by_one
from maisi.cli.plan import plan
from maisi.cli.prepare import prepare
from maisi.cli.refine import refine
from maisi.cli.reproduce import reproduce
from maisi.cli.segment import segment
from maisi.cli.selftest import selftest
from maisi.cli.send import send
from maisi.cli.serve import serve
from maisi.cli.train import train
from maisi.compute.threads import wait_asleep

DONE, FAILED, INTERRUPTED, TERMINATED = 0, 1, 130, 143
DEBUG = "--debug"

app = typer.Typer(
    name="maisi",
    help="Synthetic 3-D CT volumes with the organ and tumour labels that belong to them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS: dict[str, list[Callable[..., None]]] = {
    "Make": [generate, inpaint, refine],
    "Serve": [serve, send],
    "Encode": [reconstruct, encode, decode],
    "Look": [segment, info, doctor, plan, selftest, reproduce],
    "Build": [datasets, prepare, convert],
}
for _panel, _commands in _COMMANDS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
app.add_typer(labels, name="labels", rich_help_panel="Make")
app.add_typer(evaluate, name="evaluate", rich_help_panel="Look")
app.command(rich_help_panel="Build", context_settings={"allow_extra_args": True})(export)
app.add_typer(train, name="train", rich_help_panel="Build")
app.add_typer(downstream, name="downstream", rich_help_panel="Look")

_ON_RANKS = ("generate", "encode", "decode", "reproduce", "train", "evaluate")

_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]  # every wrong use of options and arguments


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"maisi {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
    debug: Annotated[bool, typer.Option(DEBUG, help="Show what happens, and tracebacks of errors.")] = False,
) -> None:
    command = context.invoked_subcommand
    if os.environ.get("WORLD_SIZE", "1") != "1" and command not in _ON_RANKS:
        raise typer.BadParameter(f"torchrun splits {', '.join(_ON_RANKS)}; start `maisi {command}` without it")


def main(arguments: list[str] | None = None) -> int:
    """Carry out a command line (without the program's name) and give its exit code."""
    wait_asleep()
    given = sys.argv[1:] if arguments is None else arguments
    debug = DEBUG in given
    rest = [argument for argument in given if argument != DEBUG]
    with follow_log(logging.DEBUG if debug else logging.WARNING):
        try:
            return _carry_out(one_by_one(rest))
        except BaseException as error:
            if debug:
                raise
            return _explain(error)


def _carry_out(arguments: list[str]) -> int:
    stop, interrupt = _on(signal.SIGTERM, _stop), _on(signal.SIGINT, _interrupt)
    interrupted.clear()
    try:
        result = typer.main.get_command(app).main(args=arguments, prog_name="maisi", standalone_mode=False)
        sys.stdout.flush()
    finally:
        _on(signal.SIGTERM, stop)
        _on(signal.SIGINT, interrupt)
    if result == INTERRUPTED:
        raise KeyboardInterrupt
    return result if isinstance(result, int) else DONE


def _on(number: signal.Signals, handler: "signal._HANDLER") -> "signal._HANDLER":
    """Set what a signal does and give what it did; only the main thread may."""
    try:
        return signal.signal(number, handler)
    except ValueError:
        return signal.SIG_DFL


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    interrupted.set()
    raise KeyboardInterrupt


def _explain(error: BaseException) -> int:
    """Tell an error in a line or a few, and give the exit code for it."""
    from maisi.errors import InvalidRequestError, MaisiError

    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        complain("interrupted")
        return INTERRUPTED
    if isinstance(error, _USAGE_ERROR):
        _tell_usage(error)
        return ASKED_WRONGLY
    if isinstance(error, InvalidRequestError):
        if os.environ.get("RANK", "0") == "0":  # all ranks refuse alike
            complain(str(error))
        return ASKED_WRONGLY
    if isinstance(error, BrokenPipeError) or (isinstance(error, OSError) and error.errno == errno.EPIPE):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on: not even at exit
        return FAILED
    if isinstance(error, MaisiError):
        complain(str(error))
    elif isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        complain("out of memory; ask for a smaller size, or give --memory")
    else:
        complain(f"{type(error).__name__}: {error} (this is a bug of maisi; {DEBUG} shows where)")
    return FAILED


def _tell_usage(error: Exception) -> None:
    """Say what of a command line is wrong and where its help is; where nothing was asked, the help was shown."""
    message = getattr(error, "format_message", lambda: str(error))()
    if message:
        command = getattr(getattr(error, "ctx", None), "command_path", "maisi")
        complain(f"{message.rstrip('.')}. See {command} --help.")
