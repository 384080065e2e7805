"""Function calls in a child process with progress messages."""

import math
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Final, TypeVar

import msgspec

from headrace.core import HeadraceError

Result = TypeVar("Result")

_LONGEST_WAIT_S: Final = 86_400.0
"""Longest poll, as poll() takes no infinity."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Message of the child: progress text, or the result or error."""

    words: str = ""
    error: str = ""
    result: msgspec.Raw = msgspec.Raw()


def run_in_child(
    function: Callable[..., Result],
    *arguments: object,
    returns: type[Result],
    raises: type[HeadraceError],
    deadline: float = math.inf,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Result:
    """Call `function(on_progress, *arguments)` in a new interpreter and return its result.

    Args:
        function: Importable function; raises HeadraceError on failure.
        returns: The result's type, which msgspec can encode.
        raises: Error class for every kind of failure.
        deadline: Monotonic time at which the child is killed.
        on_progress: Called in this process with the child's progress texts.
    """
    spawn = multiprocessing.get_context("spawn")
    parent_end, child_end = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_call, args=(child_end, function, arguments), daemon=True)
    process.start()
    child_end.close()
    try:
        while True:
            left_s = min(max(deadline - time.monotonic(), 0.0), _LONGEST_WAIT_S)
            if not parent_end.poll(left_s):
                raise raises("its process did not finish by the deadline")
            message = msgspec.json.decode(parent_end.recv_bytes(), type=_Message)
            if message.error:
                raise raises(message.error)
            if message.result:
                return msgspec.json.decode(message.result, type=returns)
            on_progress(message.words)
    except EOFError:
        process.join()
        raise raises(f"its process ended with status {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        parent_end.close()


def _call(
    answer: Connection, function: Callable[..., object], arguments: tuple[object, ...]
) -> None:
    def send(message: _Message) -> None:
        answer.send_bytes(msgspec.json.encode(message))

    try:
        result = function(lambda words: send(_Message(words=words)), *arguments)
    except HeadraceError as error:
        send(_Message(error=str(error) or type(error).__name__))
        return
    send(_Message(result=msgspec.Raw(msgspec.json.encode(result))))
