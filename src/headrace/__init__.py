"""Headrace carries a trained model to production: gateway, model server, registry, rollouts."""

__all__ = ["AsyncClient", "Client", "ServeError", "Server", "__version__", "model", "serve"]

__version__: str

_HOMES = {
    "AsyncClient": "headrace.client",
    "Client": "headrace.client",
    "ServeError": "headrace.launch",
    "Server": "headrace.launch",
    "model": "headrace.runtimes.python",
    "serve": "headrace.launch",
}
"""Modules of the names that are imported on first use, so that `import headrace` is fast. Their
types are in `__init__.pyi`: imports here would make every package depend on them."""


def __getattr__(name: str) -> object:
    if name in _HOMES:
        from importlib import import_module  # noqa: PLC0415  # as the names

        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if name != "__version__":
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415  # slow to load

    try:
        number = version("headrace")
    except PackageNotFoundError:  # a source tree that was never installed
        number = "0.0.0"
    globals()[name] = number  # each lookup reads and parses a file
    return number


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
