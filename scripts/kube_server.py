"""Kubernetes control plane for tests and developers: build of its programs, and a server of them.

`make kube-server` builds what is missing and starts a server in a network namespace of its own;
`ARGS=--build` only builds. The programs are built as Go modules, once for each version, into
`$XDG_CACHE_HOME/headrace/kubernetes`.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

KUBERNETES: Final = "1.36.3"
ETCD: Final = "3.6.16"
GO: Final = (1, 26)
"""Oldest Go that builds these versions."""
_KUBERNETES: Final = "k8s.io/kubernetes"
PROGRAMS: Final = {
    "etcd": ("etcd", "go.etcd.io/etcd/server/v3"),
    "etcdutl": ("etcd", "go.etcd.io/etcd/etcdutl/v3"),
    **{
        name: ("kubernetes", f"{_KUBERNETES}/cmd/{name}")
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
    },
}
"""Go module and package of each program."""
CUSTOM_RESOURCES: Final = {
    "sigs.k8s.io/gateway-api@v1.4.1": (
        "config/crd/standard/gateway.networking.k8s.io_",
        ("backendtlspolicies", "gateways", "grpcroutes", "httproutes"),
    ),
    "github.com/argoproj/argo-rollouts@v1.8.3": (
        "manifests/crds/",
        ("analysis-template-crd", "rollout-crd"),
    ),
    "github.com/kedacore/keda/v2@v2.21.0": (
        "config/crd/bases/keda.sh_",
        ("scaledobjects", "triggerauthentications"),
    ),
    "github.com/prometheus-operator/prometheus-operator@v0.85.0": (
        "example/prometheus-operator-crd/monitoring.coreos.com_",
        ("podmonitors", "prometheusrules", "servicemonitors"),
    ),
    "github.com/cert-manager/cert-manager@v1.21.2": (
        "deploy/crds/cert-manager.io_",
        ("certificates", "issuers"),
    ),
}
"""Go module ▸ the start of its paths, and the files with definitions of custom resources."""


class BuildError(Exception):
    """The programs cannot be built here."""


def cache() -> Path:
    """Return the folder of this version's programs; it exists only once all are built."""
    around = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(around) / "headrace" / "kubernetes" / f"{KUBERNETES}-etcd{ETCD}" / "bin"


def build(names: tuple[str, ...] = tuple(PROGRAMS)) -> Path:
    """Build the programs that are not in the cache; return their folder.

    A build that was interrupted goes on with the program that it was at.

    Raises:
        BuildError: Go is missing or too old, or a program does not build.
    """
    target = cache()
    if target.is_dir():
        return target
    partial = target.with_name("partial")
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():  # another process built them meanwhile
            return target
        missing = [name for name in names if not (partial / "bin" / name).exists()]
        if missing:
            _check_go()
            _say(
                f"building {len(missing)} programs of Kubernetes {KUBERNETES} and etcd {ETCD} "
                "into the cache, once: 10 minutes on two cores, 2 GB of memory"
            )
        for number, name in enumerate(missing, start=1):
            since = time.monotonic()
            _say(f"{number} of {len(missing)}: {name}")
            _build_program(name, partial)
            _say(f"{number} of {len(missing)}: {name} took {time.monotonic() - since:.0f} s")
        if set(names) == set(PROGRAMS):
            (partial / "bin").rename(target)
            shutil.rmtree(partial)
            return target
    return partial / "bin"


def custom_resources() -> Path:
    """Fetch the published definitions of custom resources; return the folder with their files.

    Raises:
        BuildError: A module cannot be fetched.
    """
    digest = hashlib.sha256(json.dumps(CUSTOM_RESOURCES).encode()).hexdigest()[:12]
    target = cache().parents[1] / f"custom-resources-{digest}"
    if target.is_dir():
        return target
    if shutil.which("go") is None:
        raise BuildError("no Go to fetch the definitions of custom resources with")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        files = Path(directory) / "files"
        files.mkdir()
        for module, (start, names) in CUSTOM_RESOURCES.items():
            source = json.loads(_go("mod", "download", "-json", module))["Dir"]
            for name in names:
                shutil.copyfile(Path(source) / f"{start}{name}.yaml", files / f"{name}.yaml")
        with contextlib.suppress(OSError):  # another process was first
            files.rename(target)
    return target


def _check_go() -> None:
    wanted = ".".join(map(str, GO))
    remedy = f"install Go {wanted} or newer (https://go.dev/dl) and put it on PATH"
    if shutil.which("go") is None:
        raise BuildError(f"there is no `go`: {remedy}")
    said = _go("version")
    version = re.search(r"go(\d+)\.(\d+)", said)
    if version is None or (int(version[1]), int(version[2])) < GO:
        raise BuildError(f"`go version` is {said.strip()!r}: {remedy}")


def _build_program(name: str, folder: Path) -> None:
    module, package = PROGRAMS[name]
    source = folder / module
    if not (source / "ready").exists():
        _write_module(module, source)
    flags = ["-s", "-w"]
    if module == "kubernetes":
        major, minor, _ = KUBERNETES.split(".")
        stamp = {
            "gitVersion": f"v{KUBERNETES}",
            "gitMajor": major,
            "gitMinor": minor,
            "gitTreeState": "clean",
        }
        for where in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
            flags += [f"-X {where}.{key}={value}" for key, value in stamp.items()]
    (folder / "bin").mkdir(exist_ok=True)
    _go("build", "-ldflags", " ".join(flags), "-o", f"../bin/{name}.new", package, folder=source)
    (folder / "bin" / f"{name}.new").rename(folder / "bin" / name)


def _write_module(module: str, source: Path) -> None:
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir()
    version = KUBERNETES if module == "kubernetes" else ETCD
    lines = ["module programs", f"go {GO[0]}.{GO[1]}"]
    if module == "kubernetes":
        # Its staging modules are replaced by folders, which only its own repository has.
        (source / "go.mod").write_text("\n".join(lines))
        said = _go("mod", "download", "-json", f"{_KUBERNETES}@v{version}", folder=source)
        text = Path(json.loads(said)["GoMod"]).read_text()
        staged = re.findall(r"(k8s\.io/\S+) => \./staging", text)
        minor = version.partition(".")[2]
        lines += [f"replace {name} => {name} v0.{minor}" for name in staged]
        lines += [f"require {_KUBERNETES} v{version}"]
    (source / "go.mod").write_text("\n".join(lines))
    # Without its version, `go get` would take the newest one.
    packages = [f"{package}@v{version}" for of, package in PROGRAMS.values() if of == module]
    _go("get", "-tool", *packages, folder=source)
    (source / "ready").touch()


def _go(*arguments: str, folder: Path | None = None) -> str:
    env = os.environ | {
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=mod -trimpath",
        "GOMEMLIMIT": "4GiB",
        "GOTOOLCHAIN": "local",
    }
    done = subprocess.run(  # noqa: S603  # fixed arguments
        ["go", *arguments],  # noqa: S607  # the developer's own
        cwd=folder, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BuildError(f"go {' '.join(arguments)}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def _say(text: str) -> None:
    print(f"kube-server: {text}", flush=True)


@contextlib.contextmanager
def _errors_are_told() -> Iterator[None]:
    try:
        yield
    except BuildError as error:
        sys.exit(f"kube-server: {error}")


def main() -> None:
    """Build the programs; start a server of them, until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="make kube-server ARGS=", description=__doc__)
    parser.add_argument("--build", action="store_true", help="only build")
    parser.add_argument("--nodes", type=int, default=3, help="nodes that take pods (default: 3)")
    parser.add_argument("--fake", action="store_true", help="pods are ready without a process")
    options = parser.parse_args()
    with _errors_are_told():
        _say(f"the programs are in {build()}")
        _say(f"definitions of custom resources are in {custom_resources()}")
    if options.build:
        return
    from tests.kube_server.lab import serve  # noqa: PLC0415  # the tests' server

    serve(nodes=options.nodes, is_fake=options.fake, say=_say)


if __name__ == "__main__":
    main()
