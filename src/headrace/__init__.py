"""Headrace carries a trained model to production: gateway, model server, registry, rollouts."""

__all__ = ["__version__"]

__version__: str


def __getattr__(name: str) -> str:
    # Whoever only imports Headrace does not wait until all that is installed has been looked at.
    if name != "__version__":
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

    try:
        return version("headrace")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0.0.0"
