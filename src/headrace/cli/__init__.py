"""Command line: one module or package per command group. Imports `console` and below."""

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit status. Ctrl-C during the imports prints no traceback.

    Args:
        arguments: Arguments without the program's name; None for this process's.
    """
    try:
        from headrace.cli.app import main as run  # noqa: PLC0415  # takes 0.1 s or more
    except KeyboardInterrupt:
        return 130  # as `INTERRUPTED` of `base.output`
    return run(arguments)
