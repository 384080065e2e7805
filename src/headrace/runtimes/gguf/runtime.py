"""Runtime of GGUF models: llama.cpp's server in this process, on a socket of its own."""

import ctypes
import re
import signal
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

import msgspec

from headrace.core import (
    InvalidArgumentError,
    ModelSignature,
    RuntimeFailedError,
    Tensors,
    UnsupportedModelError,
)
from headrace.core.devices import ON_CPU, DeviceUse
from headrace.core.settings import LlmSpec
from headrace.runtimes.base import LoadOptions
from headrace.runtimes.file_bytes import visible_files
from headrace.runtimes.gguf.file import MAGIC, SUFFIX, GgufModelFiles, find_gguf
from headrace.runtimes.tables.tabular import import_library

_ERRORS: Final = 1
"""llama.cpp's level of log lines: it warns of each prompt that is in the cache."""
_MIN_HTTP_THREADS: Final = 32
"""llama.cpp occupies a thread for each request, also while the request waits for a slot."""
_HTTP_THREADS_A_SLOT: Final = 4
_LOG_DELAY_S: Final = 0.5
"""llama.cpp writes its log in a thread of its own, which cannot be awaited."""
_SIGACTION_BYTES: Final = 256
"""More than the size of `struct sigaction` on any Linux."""
_METRIC: Final = re.compile(r"^llamacpp:(\w+) (\S+)", re.MULTILINE)


class LlmLoad(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that llama.cpp's server has now, and what it has done since its start."""

    running: int = 0
    """Requests in a slot."""
    waiting: int = 0
    """Requests without a slot."""
    run_s: float = 0.0
    """Time that requests have spent in slots, summed up; a request counts when it ends."""

    @property
    def in_flight(self) -> int:
        """Return the number of requests that run or wait."""
        return self.running + self.waiting


class _Server(Protocol):
    """llama.cpp's server."""

    def handle_metrics(self) -> str:
        """Return its metrics as Prometheus reads them."""


class GgufRuntime:
    """Loader of a `.gguf` file, or of a directory with its parts, LoRA adapters and defaults."""

    name = "gguf"
    runs_code = False
    libraries = ("xllamacpp",)
    extra = "llm"

    def recognises(self, path: Path) -> bool:
        """Whether `path` is a GGUF file by its first bytes, or a directory with one by its name."""
        if path.is_dir():
            return any(map(self.recognises, visible_files(path, (SUFFIX,))))
        with path.open("rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC

    def load(self, path: Path, options: LoadOptions) -> "GgufModel":
        """Read the model's header; `GgufModel.serve` loads its weights.

        Raises:
            UnsupportedModelError: It is damaged or not supported.
        """
        return GgufModel(find_gguf(path), DeviceUse(asked=options.device, used=ON_CPU))


class GgufModel:
    """A language model, which llama.cpp's server runs.

    It has no tensors: callers use OpenAI's API on the address of `serve`.
    """

    signature = ModelSignature(
        inputs=(), outputs=(), batched=True, row_reason="llama.cpp batches the tokens of all slots"
    )
    concurrent = True

    def __init__(self, files: GgufModelFiles, device: DeviceUse) -> None:
        self.files = files
        self.device = device
        self._server: _Server | None = None

    def facts(self) -> dict[str, str]:
        """Return the facts of the model's header by name, for display."""
        return self.files.facts()

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:  # noqa: ARG002  # as `Model`
        """Refuse to run tensors.

        Raises:
            InvalidArgumentError: Always; the message names the path to call.
        """
        raise InvalidArgumentError(
            "a language model has no tensors: call it with OpenAI's API, at /v1/chat/completions"
        )

    def serve(
        self, address: Path | tuple[str, int], *, name: str, spec: LlmSpec, threads: int
    ) -> None:
        """Load the weights and serve OpenAI's API; return when requests are answered. Blocking.

        Args:
            address: A Unix socket's path, or host and port.
            name: The model's name in responses.
            threads: Threads that compute.

        Raises:
            FailedPreconditionError: The library is not installed.
            UnsupportedModelError: llama.cpp refuses the model.
            InvalidArgumentError: The settings do not fit the model.
        """
        library = import_library("xllamacpp", GgufRuntime.extra)
        params = library.CommonParams()
        params.model.path = str(self.files.path)
        params.model_alias = {name}
        params.lora_adapters = [
            library.CommonAdapterLoraInfo(str(file)) for file in self.files.adapters
        ]
        context = self.files.context_of(spec)
        params.n_parallel, params.n_ctx = spec.slots, spec.slots * context
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.n_threads_http = max(_MIN_HTTP_THREADS, _HTTP_THREADS_A_SLOT * spec.slots)
        params.n_gpu_layers = 0
        params.fit_params = False  # it would change the context without notice
        params.cache_ram_mib = 0  # up to 8 GiB, besides the slots' own caches
        params.cache_idle_slots = False
        params.endpoint_metrics = True
        params.endpoint_slots = params.ui = False
        params.cors_origins = ""  # the gateway decides
        params.verbosity = _ERRORS
        params.chat_template = self.files.chat_template
        flags = library.common_params_sampling_config
        for option, value in msgspec.structs.asdict(self.files.generation).items():
            if option == "n_predict" and value is not None:
                params.n_predict = value
            elif value is not None:
                setattr(params.sampling, option, value)
                # Without its flag, a setting in the GGUF file replaces this one.
                flag = getattr(flags, f"COMMON_PARAMS_SAMPLING_CONFIG_{option.upper()}")
                params.sampling.user_sampling_config |= flag.value
        if spec.pooling is not None or self.files.pooling is not None:
            params.embedding = True
            params.n_batch = params.n_ubatch = context  # an input is embedded in one run
        if spec.pooling is not None:
            kind = f"LLAMA_POOLING_TYPE_{spec.pooling.name}"
            params.pooling_type = getattr(library.llama_pooling_type, kind)
        bound = Path(f"{address}.sock")  # llama.cpp recognises a path by this suffix only
        if isinstance(address, Path):
            bound.unlink(missing_ok=True)
            params.hostnames = [str(bound)]
        else:
            params.hostnames, params.port = [address[0]], address[1]
        try:
            with _same_signal_handlers():
                self._server = library.Server(params)
        except RuntimeError as error:
            time.sleep(_LOG_DELAY_S)
            raise UnsupportedModelError(
                f"{self.files.path}: llama.cpp cannot serve this model or its chat template; the "
                "lines above say why"
            ) from error
        if isinstance(address, Path):
            # The group of a shared directory is the gateway's group.
            bound.chmod(0o660 if bound.parent.stat().st_mode & stat.S_ISGID else 0o600)
            bound.rename(address)

    def load(self) -> LlmLoad:
        """Return the load; none before `serve`. Blocks while tokens are computed, seldom 1 s.

        Raises:
            RuntimeFailedError: llama.cpp's metrics cannot be read.
        """
        if self._server is None:
            return LlmLoad()
        try:
            metrics = dict(_METRIC.findall(self._server.handle_metrics()))
            return LlmLoad(
                running=int(metrics["requests_processing"]),
                waiting=int(metrics["requests_deferred"]),
                run_s=float(metrics["prompt_seconds_total"])
                + float(metrics["tokens_predicted_seconds_total"]),
            )
        except Exception as error:  # what the library raises is not documented
            reason = f"{type(error).__name__}: {error}"
            raise RuntimeFailedError(f"cannot read llama.cpp's metrics: {reason}") from error

    def close(self) -> None:
        """Stop the server: requests in progress are cut."""
        self._server = None


@contextmanager
def _same_signal_handlers() -> Iterator[None]:
    """Restore this process's handlers of signals, which llama.cpp's server replaces at its start.

    Python's `signal` cannot restore them: it runs in the main thread only.
    """
    libc = ctypes.CDLL(None)
    saved = {
        number: ctypes.create_string_buffer(_SIGACTION_BYTES)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    for number, action in saved.items():
        libc.sigaction(number, None, action)
    try:
        yield
    finally:
        for number, action in saved.items():
            libc.sigaction(number, action, None)
