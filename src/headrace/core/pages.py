"""Reports as HTML pages that load no resources and run no scripts."""

from pathlib import Path

from headrace.core.text import printable


def report_page(template: Path, **values: object) -> str:
    """Return a report as one HTML document.

    Args:
        template: A Jinja template that extends `page.html`. It escapes all values and makes control
            characters visible, so that no name is interpreted as markup.
    """
    from jinja2 import (  # noqa: PLC0415  # slow to load, and most reports are text
        Environment,
        FileSystemLoader,
        StrictUndefined,
    )

    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    return environment.get_template(template.name).render(values)
