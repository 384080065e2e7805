"""Small pieces of Markdown."""

import inspect


def cell(text: str) -> str:
    """`text` inside a table's cell: one line, no bars."""
    return " ".join(text.split()).replace("|", "\\|")


def summary(kind: type) -> str:
    """A class's docstring as one line."""
    return cell(inspect.cleandoc(kind.__doc__ or ""))
