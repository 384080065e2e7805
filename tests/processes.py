"""What a test reads of processes that may end at any moment."""

import psutil


def command_line(process: psutil.Process) -> list[str]:
    """The arguments of a process; empty if it has ended."""
    try:
        words: list[str] = process.cmdline()
    except psutil.NoSuchProcess:
        return []
    return words
