"""How a command fails: one line on standard error, and an exit status that scripts can use."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import os
import sys
import traceback
from typing import Final

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NOT_READY: Final = 3
INTERRUPTED: Final = 130

EXIT_CODES: Final = (
    "Exit status: 0 it worked; 1 it failed; 2 the command line is wrong; 3 not running, not ready, "
    "or not in time."
)


def report(error: Exception, *, debug: bool) -> int:
    """Say on standard error why a command failed; its exit status."""
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has left, as `head` does. Python would complain once more when it
        # flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    message, code = _explain(error)
    if message:
        print(f"headrace: {message}", file=sys.stderr)  # noqa: T201  # this is the program's output
    return code


def _explain(error: Exception) -> tuple[str, int]:
    if hasattr(error, "format_message"):  # typer's own, whose classes moved between its versions
        return _explain_usage(error), USAGE
    from headrace.core import DeadlineExceededError, HeadraceError, UnavailableError

    if isinstance(error, DeadlineExceededError | UnavailableError):
        return str(error), NOT_READY
    if isinstance(error, HeadraceError):
        return str(error), FAILED
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}", FAILED
    if isinstance(error, ModuleNotFoundError) and not _is_ours(error):
        return (
            f"this command needs the package '{error.name}', which is not installed here; small "
            "container images leave it out: use the image headrace/standalone"
        ), FAILED
    kind = type(error).__name__
    return f"unexpected {kind}: {error} (a bug; `headrace --debug …` shows where)", FAILED


def _is_ours(error: ModuleNotFoundError) -> bool:
    return (error.name or "headrace").partition(".")[0] == "headrace"


def _explain_usage(error: Exception) -> str:
    message = str(error.format_message()) if hasattr(error, "format_message") else str(error)
    if not message:  # a group of commands that was named alone: its help stands there already
        return ""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "headrace"
    return f"{message.rstrip('.')} (see `{command} --help`)"
