"""What a peer's server is told when it starts, and its command line.

Triton and TorchServe want a folder in a form of their own; they get one here.
"""

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.peers.environments import ROOT, Environment
from bench.peers.models import Model

SERVERS: Final = "bench.peers.servers"
FOLDER: Final = Path(__file__).parent / "servers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One start: what is served, where, by which environment; `home` is scratch."""

    model: Model
    environment: Environment
    home: Path
    port: int
    grpc_port: int
    metrics_port: int

    def variables(self) -> dict[str, str]:
        """What `bench.peers.servers.runtime` reads, and how the environment is found."""
        return {
            "PEER_NAME": self.model.name,
            "PEER_MODEL": str(self.model.path.resolve()),
            "PEER_INPUTS": ",".join(self.model.rows[0]),
            "PEER_PORT": str(self.port),
            "PEER_GRPC_PORT": str(self.grpc_port),
            "PEER_METRICS_PORT": str(self.metrics_port),
            "PEER_MAX_BATCH": str(self.model.max_batch),
            "PEER_HOME": str(self.home),
            "PYTHONPATH": str(ROOT),
            "PATH": f"{self.environment.folder / 'bin'}:{os.environ['PATH']}",
            "VIRTUAL_ENV": str(self.environment.folder),
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(self.home),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command line, and variables on top of `Launch.variables`.

    `scratch`: a folder outside of `Launch.home` that goes away with the server; None for none.
    """

    argv: list[str]
    variables: Mapping[str, str]
    scratch: Path | None = None


def module(name: str, *arguments: str) -> Callable[[Launch], Command]:
    """A peer that is a Python file of ours; `{port}` and `{path}` in arguments are filled in."""

    def start(launch: Launch) -> Command:
        fields = {"port": str(launch.port), "path": str(launch.model.path.resolve())}
        argv = [str(launch.environment.python), "-m", name]
        return Command(argv=[*argv, *[one.format(**fields) for one in arguments]], variables={})

    return start


def bentoml(launch: Launch) -> Command:
    """Its own command, in production mode."""
    argv = [str(launch.environment.script("bentoml")), "serve", f"{SERVERS}.bentoml_server:Infer"]
    argv += ["--host", "127.0.0.1", "--port", str(launch.port), "--working-dir", str(ROOT)]
    home = {"BENTOML_HOME": str(launch.home), "BENTOML_DO_NOT_TRACK": "True"}
    return Command(argv=argv, variables=home)


def ray(launch: Launch) -> Command:
    """Ray keeps its ports on loopback, and sends nothing home."""
    argv = [str(launch.environment.python), "-m", f"{SERVERS}.ray_server"]
    # Its sockets lie deep in its folder, and a socket's path may be 107 characters long.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    return Command(
        argv=argv,
        scratch=folder,
        variables={
            "PEER_HOME": str(folder),
            "HOME": str(folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "TMPDIR": str(folder),
        },
    )


def torchserve(launch: Launch) -> Command:
    """An archive with a handler, and a file of settings."""
    store = launch.home / "store"
    store.mkdir()
    write_archive(store / f"{launch.model.name}.mar", launch.model)
    config = launch.home / "config.properties"
    address = "http://127.0.0.1"
    config.write_text(
        f"inference_address={address}:{launch.port}\n"
        f"management_address={address}:{launch.grpc_port}\n"
        f"metrics_address={address}:{launch.metrics_port}\n"
        f"model_store={store}\n"
        f"load_models={launch.model.name}={launch.model.name}.mar\n"
        "disable_token_authorization=true\n"
        "default_workers_per_model=1\n"
        "job_queue_size=4096\n"
        "netty_client_threads=1\n"
        "vmargs=-Xmx512m -XX:+UseSerialGC\n"
    )
    log = launch.home / "log4j2.xml"
    log.write_text(
        '<Configuration status="ERROR"><Loggers><Root level="error"/></Loggers></Configuration>\n'
    )
    argv = [str(launch.environment.script("torchserve")), "--start", "--foreground"]
    argv += ["--ts-config", str(config), "--log-config", str(log), "--disable-token-auth"]
    return Command(argv=argv, variables={"LOG_LOCATION": str(launch.home)})


def write_archive(path: Path, model: Model) -> None:
    """A model archive of TorchServe's: a manifest and a handler; the model stays where it is."""
    described = {"modelName": model.name, "handler": "handler.py", "modelVersion": "1.0"}
    manifest = {
        "runtime": "python",
        "archiverVersion": "0.12.0",
        "model": {**described, "configFile": "model.yaml"},
    }
    settings = f"minWorkers: 1\nmaxWorkers: 1\nbatchSize: {model.max_batch}\nmaxBatchDelay: 1\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("model.yaml", settings)
        archive.write(FOLDER / "torchserve_handler.py", "handler.py")


def triton(launch: Launch) -> Command:
    """The server that pytriton carries, with its Python backend and a model repository."""
    packages = launch.environment.packages
    server = packages / "pytriton" / "tritonserver"
    backend = launch.home / "backends" / "python"
    shutil.copytree(server / "backends" / "python", backend)
    version = launch.environment.packages.parent.name.removeprefix("python")
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, backend)
    # Its embedded Python looks at no PYTHONPATH.
    (packages / "bench-peers.pth").write_text(f"{ROOT}\n")
    version_folder = launch.home / "repository" / launch.model.name / "1"
    version_folder.mkdir(parents=True)
    shutil.copy(FOLDER / "triton_model.py", version_folder / "model.py")
    config = triton_config(launch.model)
    (version_folder.parent / "config.pbtxt").write_text(config)
    argv = [str(server / "bin" / "tritonserver")]
    argv += ["--model-repository", str(launch.home / "repository")]
    argv += ["--backend-directory", str(launch.home / "backends")]
    for kind, number in (
        ("http", launch.port),
        ("grpc", launch.grpc_port),
        ("metrics", launch.metrics_port),
    ):
        argv += [f"--{kind}-address", "127.0.0.1", f"--{kind}-port", str(number)]
    argv += ["--log-info", "false", "--log-warning", "false", "--disable-auto-complete-config"]
    argv += ["--backend-config", "python,shm-default-byte-size=16777216"]
    libraries = f"{packages / 'nvidia_pytriton.libs'}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    return Command(argv=argv, variables={"LD_LIBRARY_PATH": libraries})


def triton_config(model: Model) -> str:
    """`config.pbtxt`: shapes from a request; what is queued while it is busy becomes a batch."""
    row = model.rows[0]
    tensors = {"input": row, "output": model.expected(row)}
    # Lengths of tokens differ from request to request.
    free = len(row) > 1
    lines = [f'name: "{model.name}"', 'backend: "python"', f"max_batch_size: {model.max_batch}"]
    for kind, arrays in tensors.items():
        for name, array in arrays.items():
            types = {"float32": "TYPE_FP32", "int64": "TYPE_INT64"}
            dims = [-1] if free and kind == "input" else list(array.shape[1:])
            what = f'name: "{name}" data_type: {types[array.dtype.name]} dims: {dims}'
            if free and kind == "input":
                what += " allow_ragged_batch: true"
            lines.append(f"{kind} [ {{ {what} }} ]")
    lines.append("instance_group [ { count: 1 kind: KIND_CPU } ]")
    if model.max_batch > 1:
        lines.append("dynamic_batching { }")
    return "\n".join(lines) + "\n"
