"""A control plane whose parts are real and of which nothing runs."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.control.auth.roles import Caller, Grant, Role
from headrace.control.base.context import Addresses, ServiceContext
from headrace.control.base.faults import Faults
from headrace.control.base.home import Home
from headrace.control.base.journal import EventJournal
from headrace.control.base.log_files import LogFiles
from headrace.control.base.ownership import ProcessOwner
from headrace.control.gateway.certificates import Certificates
from headrace.control.gateway.supervisor import EnvoySupervisor
from headrace.control.local.driver import LocalDriver
from headrace.control.plane.control_plane import ControlPlane
from headrace.control.reconcile.publication import RoutePublication
from headrace.control.reconcile.reconciler import Reconciler
from headrace.control.reconcile.service import ReconcileService
from headrace.control.state import home_url, open_store
from headrace.control.telemetry.prometheus import PrometheusHistory
from headrace.core import (
    CodeNotAllowedError,
    Datatype,
    Inspected,
    ModelSignature,
    SystemClock,
    TensorSpec,
    UnsupportedModelError,
)
from headrace.gateway import EnvoyGateway, EnvoySettings
from headrace.registry import Registry

SIGNATURE = ModelSignature(
    inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 2)),),
    outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 2)),),
    batched=True,
)


def admin_called(name: str) -> Caller:
    return Caller(name=name, kind="user", grants=(Grant(Role.ADMIN),))


def inspect(
    path: Path,
    runtime: str = "",
    *,
    allow_code: bool = False,
    cancel: threading.Event | None = None,  # noqa: ARG001  # as the real one
) -> Inspected:
    """A runtime that serves every file which does not say that it is bad; `.py` files run code."""
    if path.is_file() and path.read_bytes().startswith(b"bad"):
        raise UnsupportedModelError(f"{path}: is no model")
    runs_code = path.suffix == ".py"
    if runs_code and not allow_code:
        raise CodeNotAllowedError(str(path), "python")
    return Inspected("python" if runs_code else runtime or "onnx", SIGNATURE, runs_code)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.at(tmp_path / "h")


@pytest.fixture
def registry(home: Home) -> Registry:
    return Registry(home.root, inspect)


@pytest.fixture
def addresses() -> Addresses:
    """Where the plane says that it is reached; a test may name others by a parameter."""
    return Addresses(
        http_url="http://127.0.0.1:8000",
        grpc_target="127.0.0.1:8001",
        metrics_url="http://127.0.0.1:8002/metrics",
        admin_url="http://127.0.0.1:8080",
    )


@pytest.fixture
def prometheus() -> PrometheusHistory | None:
    """None, unless a test names one by a parameter."""
    return None


@pytest.fixture
def plane(
    home: Home,
    registry: Registry,
    addresses: Addresses,
    prometheus: PrometheusHistory | None,
) -> Iterator[ControlPlane]:
    clock = SystemClock()
    keeper = EnvoySupervisor(
        envoy=EnvoyGateway(EnvoySettings(run_dir=home.run / "envoy")),
        owner=ProcessOwner.of(home.root),
        record_path=home.gateway_file,
        routes_path=home.routes_file,
        clock=clock,
    )
    driver = LocalDriver(home=home, socket_dir=home.socket_dir())
    reconciler = Reconciler(
        driver=driver,
        publication=RoutePublication(publisher=keeper),
        clock=clock,
        drain_timeout_s=1.0,
    )
    store = open_store(home_url(home.root))
    context = ServiceContext(
        home=home,
        store=store,
        registry=registry,
        journal=EventJournal(store=store),
        faults=Faults(clock=clock),
        clock=clock,
        addresses=addresses,
    )
    reconciling = ReconcileService(
        context,
        reconciler=reconciler,
        gateway_supervisor=keeper,
        certificates=Certificates(clock=clock),
        limits=None,
        gateway_address="127.0.0.1:8000",
        sends_first_requests=True,
    )
    yield ControlPlane(
        context,
        reconciling=reconciling,
        driver=driver,
        inspect=inspect,
        log_files=LogFiles(directory=home.logs),
        prometheus=prometheus,
    )
    store.close()
    driver.close()
