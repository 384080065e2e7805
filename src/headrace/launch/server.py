"""A replica as a child process of a Python program, and the handle by which it is called."""

import atexit
import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from headrace.client import Client
from headrace.core import (
    DeadlineExceededError,
    HeadraceError,
    InferResponse,
    InvalidArgumentError,
    ModelSignature,
    UnavailableError,
)
from headrace.core.processes import Process, python_module
from headrace.launch.objects import write_object

if TYPE_CHECKING:
    from headrace.client.tensors import TensorLike

_POLL_S: Final = 0.02
_DRAIN_S: Final = 10.0
_ERROR_LINES: Final = 20
_ALLOW_CODE: Final = "--allow-code"
_OF_OTHERS: Final = re.compile("HEADRACE_(HOST|[A-Z]+_PORT)")
_PREFIX: Final = "headrace: "
"""Begins the command's own errors."""


class ServeError(HeadraceError):
    """The model could not be served; the message is the replica's."""


class Server:
    """A running replica with one model. It ends at `stop`, or with this interpreter.

    Use it in a `with` statement, for example in tests. Made by `serve`.
    """

    def __init__(
        self, process: Process, *, name: str, url: str, folder: Path, pipe: int, log: Path
    ) -> None:
        self.name = name
        """Name of the model in URLs."""
        self.url = url
        """Address, such as `http://127.0.0.1:43210`."""
        self.log_path = log
        """File with the replica's log, JSON lines; deleted by `stop`."""
        self.client = Client(url)
        """Client of the replica; it has all options of a call."""
        self._process = process
        self._folder = folder
        self._pipe = pipe
        _servers[id(self)] = self

    @property
    def signature(self) -> ModelSignature:
        """Return the inputs and outputs of the model."""
        return self.client.signature(self.name)

    @property
    def is_running(self) -> bool:
        """Whether the process runs."""
        return self._pipe >= 0 and self._process.is_running()

    def infer(
        self,
        inputs: "Mapping[str, TensorLike] | TensorLike",
        **options: Any,  # noqa: ANN401  # of `Client.infer`
    ) -> InferResponse:
        """Run the model once.

        Args:
            inputs: Inputs by name; an array or list for a model with one input; a data frame.
            options: As for `Client.infer`.

        Raises:
            InvalidArgumentError: The inputs do not fit the model.
            UnavailableError: The replica was stopped, or ended.
        """
        if not self.is_running:
            log = "" if self._pipe < 0 else f": {_reason(self.log_path)}"
            raise UnavailableError(f"the server of '{self.name}' has ended{log}")
        if not isinstance(inputs, Mapping):
            inputs = self._by_name(inputs)
        return self.client.infer(self.name, inputs, **options)

    def _by_name(self, values: Any) -> "Mapping[str, TensorLike]":  # noqa: ANN401  # pandas is optional
        """Return an array for the only input, or the columns of a data frame by input."""
        specs = self.signature.inputs
        if len(specs) == 1:
            return {specs[0].name: values.to_numpy() if hasattr(values, "to_numpy") else values}
        if hasattr(values, "columns"):
            return {
                spec.name: np.asarray(values[spec.name]).reshape(-1, *spec.shape[1:]).tolist()
                for spec in specs
                if spec.name in values.columns
            }
        names = ", ".join(spec.name for spec in specs)
        msg = f"'{self.name}' has several inputs: pass a dict or a data frame with {names}"
        raise InvalidArgumentError(msg)

    def stop(self) -> None:
        """Answer the requests in flight, then end the process. Idempotent."""
        _servers.pop(id(self), None)
        pipe, self._pipe = self._pipe, -1
        if pipe < 0:
            return
        self.client.close()
        _end(self._process, pipe, self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = f"serves at {self.url}, API at {self.url}/docs" if self.is_running else "has ended"
        return f"<headrace.Server '{self.name}' {state}>"


_servers: Final[dict[int, Server]] = {}
"""Running servers: one that the program does not keep must not end."""


@atexit.register
def _stop_all() -> None:
    for server in list(_servers.values()):
        server.stop()


def serve(
    model: object,
    *,
    name: str | None = None,
    port: int = 0,
    grpc_port: int | None = None,
    max_batch_size: int | None = None,
    allow_code: bool = False,
    home: "Path | str | None" = None,
    timeout_s: float = 60.0,
) -> Server:
    """Serve a model in a child process, as `headrace serve` does, and return when it is ready.

        server = headrace.serve("model.onnx")
        server.infer([[5.1, 3.5, 1.4, 0.2]]).outputs

    Works in notebooks, in scripts and beside a running event loop, which it blocks meanwhile.

    Args:
        model: What `headrace serve` takes, or an object: a function or class with type hints, an
            estimator of scikit-learn, a model of XGBoost, LightGBM or CatBoost, an ONNX
            `ModelProto`, a TorchScript module.
        name: Name in URLs; None takes it from the file or the object.
        port: HTTP port; 0 picks a free one.
        grpc_port: Port for gRPC; None for none.
        max_batch_size: Largest batch in rows; None for 32.
        allow_code: Whether a file may run its author's code, such as a pickle. Objects may.
        home: Home with the registry; None for `./.headrace`.
        timeout_s: Time limit of the start.

    Raises:
        ServeError: The model cannot be served; the message is the replica's.
        InvalidArgumentError: The object is of no supported kind.
        DeadlineExceededError: It is not ready in time.
    """
    folder = Path(tempfile.mkdtemp(prefix="headrace-"))
    # Settings of other processes: a fixed port would be taken by the second server.
    environment = {k: v for k, v in os.environ.items() if not _OF_OTHERS.fullmatch(k)}
    try:
        if isinstance(model, str | os.PathLike):
            target = os.fspath(model)
        else:
            target = str(write_object(model, folder))
            allow_code = True
            name = name or _name_of(model)
            # Modules beside a notebook are pickled by name.
            paths = [*filter(None, sys.path), os.environ.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        options = {
            "--host": "127.0.0.1",
            "--port": str(port),
            "--metrics-port": "0",
            "--log-format": "json",
            "--grpc-port": grpc_port,
            "--max-batch-size": max_batch_size,
            "--name": name,
            "--home": home,
        }
        arguments = [f"{flag}={value}" for flag, value in options.items() if value is not None]
        if allow_code:
            arguments.append(_ALLOW_CODE)
        log = folder / "server.log"
        reader, pipe = os.pipe()
        try:
            process = Process.spawn(
                python_module("headrace.launch", "serve", *arguments, "--", str(target)),
                log=log,
                pass_fd=reader,
                environment=environment,
            )
        finally:
            os.close(reader)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    try:
        url, served_name = _wait_ready(process, log, time.monotonic() + timeout_s, timeout_s)
        return Server(process, name=served_name, url=url, folder=folder, pipe=pipe, log=log)
    except BaseException:  # also Ctrl-C
        _end(process, pipe, folder)
        raise


def _end(process: Process, pipe: int, folder: Path) -> None:
    process.end_blocking(within_s=_DRAIN_S)
    process.close()
    os.close(pipe)
    shutil.rmtree(folder, ignore_errors=True)


def _name_of(model: object) -> str:
    name = getattr(model, "__name__", type(model).__name__)
    return str(name).strip("_<>") or "model"


def _wait_ready(process: Process, log: Path, deadline: float, timeout_s: float) -> tuple[str, str]:
    """Return the replica's URL and its model's name once its log says that it is ready."""
    while True:
        is_running = process.is_running()  # before the log is read
        url = ""
        for record in _records(log):
            if record.get("message") == "listening" and not url:
                url = f"http://{record['host']}:{record['port']}"  # the first is HTTP
            if record.get("message") == "ready":
                return url, str(record["model"])
        if not is_running:
            raise ServeError(_reason(log))
        if time.monotonic() > deadline:
            raise DeadlineExceededError(f"the model was not ready within {timeout_s:g} s")
        time.sleep(_POLL_S)


def _records(log: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the complete records of a log; other lines have no message."""
    with contextlib.suppress(FileNotFoundError):
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


def _reason(log: Path) -> str:
    """Return the reason for which a process ended, from its log."""
    errors = [str(record["message"]) for record in _records(log) if record.get("level") == "error"]
    if errors:
        return errors[-1]
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    plain = [line for line in lines if not line.startswith("{")][-_ERROR_LINES:]
    text = "\n".join(plain).strip().removeprefix(_PREFIX)
    if _ALLOW_CODE in text:
        text += "; from Python, pass `allow_code=True`"
    return text or "the process ended without a message"
