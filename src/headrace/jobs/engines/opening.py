"""Which engine does a person mean? Told before anything is loaded, with what is missing for it."""

from enum import StrEnum

from headrace.core import InvalidArgumentError
from headrace.jobs.engines.engine import Engine
from headrace.jobs.engines.local import LocalEngine
from headrace.jobs.engines.ray import RayEngine, check_address, import_ray
from headrace.jobs.engines.spark import SparkEngine, import_spark, master_of


class EngineName(StrEnum):
    """What runs the shards."""

    LOCAL = "local"
    RAY = "ray"
    SPARK = "spark"


def open_engine(
    name: EngineName, *, address: str, workers: int | None, cores: int, source: str
) -> Engine:
    """The engine of a name.

    Args:
        address: Of a cluster; empty for one on this machine that ends with the job.
        workers: Shards at once; None for what the engine has cores for.
        cores: Of this machine.
        source: The input as a person named it.

    Raises:
        InvalidArgumentError: The engine has no such address; that of one machine has none.
        FailedPreconditionError: What it needs is not installed.
    """
    match name:
        case EngineName.LOCAL:
            if address:
                msg = f"--address {address} is of a cluster: say --engine ray or --engine spark"
                raise InvalidArgumentError(msg)
            return LocalEngine(workers=workers or cores)
        case EngineName.RAY:
            import_ray()
            # A cluster of our own is as large as the job may be.
            size = workers if address else workers or cores
            return RayEngine(source=source, address=check_address(address or "local"), workers=size)
        case EngineName.SPARK:
            import_spark()
            size = workers if address else workers or cores
            master_of(address or "local", size)
            return SparkEngine(source=source, address=address or "local", workers=size)
