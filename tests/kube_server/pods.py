"""Pods as processes: a network namespace and an address each, on a copy-on-write root.

Images are ignored: a container's command runs on the root of this machine, with the programs of
this environment. Volumes, init containers, probes, hooks, restarts and grace periods are as the
pod's spec has them, of the kinds that pods of this project have. Root is read-only where the spec
says so; users are those of the spec.
"""

import asyncio
import base64
import contextlib
import os
import re
import shlex
import shutil
import signal
import sys
from asyncio import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2

from tests.kube_server.cluster import run_program
from tests.kube_server.kubelet import Kubelet, container_status, now, pod_status

Object = dict[str, Any]
USER: Final = 65532
"""User of containers whose spec names none."""
_RETRY_S: Final = 1.0
_VOLUMES_S: Final = 2.0
_CHANGING: Final = {"configMap", "secret"}
_LONGEST_BACK_OFF_S: Final = 30.0
_VARIABLE: Final = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")
_INIT: Final = ("tini", "--")
"""Not on this machine: signals go to all processes of a container."""


@dataclass(slots=True)
class Container:
    """Container of a pod, and its process."""

    spec: Object
    process: subprocess.Process | None = None
    state: Object = field(default_factory=lambda: {"waiting": {"reason": "PodInitializing"}})
    last: Object = field(default_factory=dict)
    restarts: int = 0
    is_ready: bool = False

    def status(self) -> Object:
        """Return its part of the pod's status."""
        return container_status(
            self.spec, self.state, is_ready=self.is_ready, restarts=self.restarts, last=self.last
        )

    def send(self, signal_number: int) -> None:
        """Signal all of its processes."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal_number)


@dataclass(slots=True)
class ProcessPod:
    """Pod of real processes; `is_ready` as it was last reported."""

    kubelet: Kubelet
    pod: Object
    address: str
    is_ready: bool = False
    inits: list[Container] = field(default_factory=list)
    containers: list[Container] = field(default_factory=list)
    _started_at: str = field(default_factory=now)
    _is_stopping: bool = False
    _names: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.pod["metadata"]["name"])

    @property
    def network(self) -> str:
        """Its network namespace."""
        return f"{self.kubelet.cluster.network.name}-{self.pod['metadata']['uid'][:8]}"

    @property
    def folder(self) -> Path:
        """Its volumes, roots and logs (`CONTAINER.log`)."""
        return self.kubelet.folder / str(self.pod["metadata"]["uid"])

    @property
    def _namespace(self) -> str:
        return str(self.pod["metadata"]["namespace"])

    async def run(self) -> None:
        """Run the init containers, then the others, until they end or the pod is stopped."""
        spec = self.pod["spec"]
        self.inits = [Container(one) for one in spec.get("initContainers", ())]
        self.containers = [Container(one) for one in spec["containers"]]
        self.folder.mkdir(parents=True, exist_ok=True)
        await self.kubelet.cluster.network.add_pod(self.network, self.address)
        self._write_names()
        self._names = asyncio.create_task(self._keep_names())
        while not await self._mount_volumes(spec.get("volumes", ())):
            await self.report()
            await asyncio.sleep(_RETRY_S)
        for container in self.inits:
            await self._run_init(container)
        volumes = asyncio.create_task(self._keep_volumes())
        try:
            async with asyncio.TaskGroup() as group:
                for container in self.containers:
                    group.create_task(self._run_container(container))
        finally:
            volumes.cancel()

    async def report(self) -> None:
        """Write the status."""
        shown = [container.status() for container in self.containers]
        ended = [c.state["terminated"] for c in self.containers if "terminated" in c.state]
        phase = "Running"
        if not all("terminated" in init.state for init in self.inits):
            phase = "Pending"
        elif len(ended) == len(shown):
            phase = "Failed" if any(one["exitCode"] for one in ended) else "Succeeded"
        self.is_ready = phase == "Running" and all(c.is_ready for c in self.containers)
        inits = [init.status() for init in self.inits]
        status = pod_status(self.address, self._started_at, shown, inits, phase=phase)
        await self.kubelet.write_status(self.pod, status)

    async def stop(self, grace_s: float) -> None:
        """Run the hooks, send SIGTERM, and SIGKILL after the grace period."""
        self._is_stopping = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await asyncio.gather(*map(self._end, self.containers))
        if self._names is not None:
            self._names.cancel()
        await self.kubelet.cluster.network.remove_pod(self.network)
        for container in (*self.inits, *self.containers):
            if container.process is not None:
                await container.process.wait()
        self.kubelet.cluster.network.give_back(self.address)

    def crash(self) -> None:
        """Kill the processes of all containers, which the kubelet starts again."""
        for container in self.containers:
            container.send(signal.SIGKILL)

    async def unplug(self) -> None:
        """Lose what is sent from and to it, as when its node is off the network."""
        await run_program("ip", "-n", self.network, "link", "set", "eth0", "down")

    def log(self, container: str) -> str:
        """Return what a container has printed."""
        path = self.folder / f"{container}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    async def _run_init(self, container: Container) -> None:
        while True:
            code = await self._run_once(container)
            if code == 0:
                container.state, container.is_ready = (
                    {"terminated": container.last.popitem()[1]},
                    True,
                )
                return
            await self._back_off(container)

    async def _run_container(self, container: Container) -> None:
        policy = self.pod["spec"].get("restartPolicy", "Always")
        while not self._is_stopping:
            await self._run_once(container)
            if self._is_stopping:
                return
            if policy == "Never":
                container.state = {"terminated": container.last["terminated"]}
                await self.report()
                return
            await self._back_off(container)

    async def _run_once(self, container: Container) -> int:
        """Return the exit status; `last` has more of it."""
        container.process = await self._spawn(container.spec)
        since = now()
        container.state = {"running": {"startedAt": since}}
        await self.report()
        probes = asyncio.create_task(self._probe(container))
        code = await container.process.wait()
        probes.cancel()
        container.is_ready = False
        container.last = {
            "terminated": {
                "exitCode": code % 256,
                "reason": "Completed" if code == 0 else "Error",
                "message": self.log(container.spec["name"])[-1500:],
                "startedAt": since,
                "finishedAt": now(),
            }
        }
        return code

    async def _back_off(self, container: Container) -> None:
        message = f"back-off restarting failed container={container.spec['name']}"
        container.state = {"waiting": {"reason": "CrashLoopBackOff", "message": message}}
        await self.report()
        await asyncio.sleep(min(2.0**container.restarts, _LONGEST_BACK_OFF_S))
        container.restarts += 1

    async def _end(self, container: Container) -> None:
        hook = container.spec.get("lifecycle", {}).get("preStop", {})
        if "sleep" in hook:
            await asyncio.sleep(hook["sleep"]["seconds"])
        container.send(signal.SIGTERM)
        if container.process is not None:
            await container.process.wait()

    async def _probe(self, container: Container) -> None:
        """Keep `is_ready`, and kill the container when it does not start or is not alive."""
        probes = {
            kind: container.spec.get(f"{kind}Probe")
            for kind in ("startup", "readiness", "liveness")
        }
        if probes["startup"] and not await self._holds(container, probes["startup"], start=True):
            container.send(signal.SIGKILL)
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self._probe_readiness(container, probes["readiness"]))
            if probes["liveness"]:
                group.create_task(self._probe_liveness(container, probes["liveness"]))

    async def _holds(self, container: Container, probe: Object, *, start: bool = False) -> bool:
        """Return False once a probe failed as often as it may; True if it succeeds at the start."""
        failures = 0
        while failures < probe.get("failureThreshold", 3):
            is_good = await self._probe_once(container, probe, probe.get("timeoutSeconds", 1))
            if is_good and start:
                return True
            failures = 0 if is_good else failures + 1
            await asyncio.sleep(probe.get("periodSeconds", 10))
        return False

    async def _probe_liveness(self, container: Container, probe: Object) -> None:
        await self._holds(container, probe)
        container.send(signal.SIGTERM)

    async def _probe_readiness(self, container: Container, probe: Object | None) -> None:
        failures = 0
        while True:
            is_good = probe is None or await self._probe_once(
                container, probe, probe.get("timeoutSeconds", 1)
            )
            failures = 0 if is_good else failures + 1
            limit = 1 if probe is None else probe.get("failureThreshold", 3)
            is_ready = is_good or (container.is_ready and failures < limit)
            if is_ready != container.is_ready:
                container.is_ready = is_ready
                await self.report()
            if probe is None:
                return
            await asyncio.sleep(probe.get("periodSeconds", 10))

    async def _probe_once(self, container: Container, probe: Object, timeout_s: float) -> bool:
        """Return whether an action of a probe or a hook succeeds."""
        with contextlib.suppress(OSError, TimeoutError, httpx2.HTTPError):
            async with asyncio.timeout(timeout_s):
                action = probe["httpGet"]
                named = {p.get("name"): p["containerPort"] for p in container.spec.get("ports", ())}
                port = named.get(action["port"], action["port"])
                url = f"{action.get('scheme', 'HTTP').lower()}://{self.address}:{port}"
                # A kubelet checks no certificates.
                async with httpx2.AsyncClient(verify=False, trust_env=False) as http:
                    answer = await http.get(f"{url}{action['path']}")
                return 200 <= answer.status_code < 400
        return False

    async def _spawn(self, container: Object) -> subprocess.Process:
        """Start a container's command: its mounts, its root, its user."""
        env = await self._environment(container)
        words = [*container.get("command", ()), *container.get("args", ())]
        if tuple(words[:2]) == _INIT:
            words = words[2:]
        words = [_expand(word, env) for word in words]
        root = self.folder / f"root-{container['name']}"
        security = container.get("securityContext", {})
        lines = [
            "set -e",
            f"mkdir -p {root}; mount -t tmpfs tmpfs {root}; cd {root}; mkdir upper work root",
            "mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root",
            *(f"mount --rbind {path} root{path}" for path in ("/dev", "/proc", "/sys")),
            "rm -f root/etc/resolv.conf; touch root/etc/hosts",
            f"mount --bind {self.folder}/hosts root/etc/hosts",
            # They may be in homes that other users may not enter.
            *(
                f"chmod a+x root{parent}"
                for path in (*_PYTHON, *self.kubelet.shared)
                for parent in path.parents
            ),
        ]
        for mount in container.get("volumeMounts", ()):
            source = self.folder / "volumes" / mount["name"] / mount.get("subPath", "")
            # /var/run is a link, which has to stay below the root.
            path = shlex.quote(mount["mountPath"])
            target = f'"root$(chroot root realpath {path})"'
            lines += [f"chroot root mkdir -p {path}; mount --bind {source} {target}"]
            if mount.get("readOnly"):
                lines += [f"mount -o remount,bind,ro {target}"]
        for path in map(str, self.kubelet.shared):
            lines += [f"mkdir -p root{path}; mount --bind {path} root{path}"]
        if security.get("readOnlyRootFilesystem"):
            lines += ["mount -o remount,ro root"]
        lines += [
            f"exec chroot root {shlex.join(_as_user(container, self.pod))} env -i -C / "
            + shlex.join([*(f"{key}={value}" for key, value in env.items()), *words])
        ]
        with (self.folder / f"{container['name']}.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *("ip", "netns", "exec", self.network, "unshare", "--mount", "sh", "-c"),
                "\n".join(lines),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    async def _environment(self, container: Object) -> dict[str, str]:
        server = self.kubelet.cluster.network.server
        env = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": "/tmp",  # noqa: S108  # of the pod
            "HOSTNAME": self.name,
            "KUBERNETES_SERVICE_HOST": server,
            "KUBERNETES_SERVICE_PORT": "6443",
        }
        for source in container.get("envFrom", ()):
            data = await self._data("secrets", source["secretRef"]["name"]) or {}
            env |= {key: value.decode() for key, value in data.items()}
        for variable in container.get("env", ()):
            source = variable.get("valueFrom", {})
            if "fieldRef" in source:
                env[variable["name"]] = self._field(source["fieldRef"]["fieldPath"])
            elif source:
                reference = source["secretKeyRef"]
                data = await self._data("secrets", reference["name"]) or {}
                if reference["key"] in data:
                    env[variable["name"]] = data[reference["key"]].decode()
            else:
                env[variable["name"]] = _expand(variable.get("value", ""), env)
        return env

    def _field(self, path: str) -> str:
        if path == "status.podIP":
            return self.address
        value: Any = self.pod
        for key in path.split("."):
            value = value.get(key, {})
        return str(value or "")

    async def _data(self, kind: str, name: str) -> dict[str, bytes] | None:
        """Return the data of a ConfigMap or Secret; None if it does not exist."""
        one = await self.kubelet.call("GET", f"/api/v1/namespaces/{self._namespace}/{kind}/{name}")
        if one is None:
            return None
        encoded = one.get("data" if kind == "secrets" else "binaryData") or {}
        data = {key: base64.b64decode(value) for key, value in encoded.items()}
        if kind == "configmaps":
            data |= {key: value.encode() for key, value in (one.get("data") or {}).items()}
        return data

    async def _mount_volumes(self, volumes: Sequence[Object]) -> bool:
        """Write volumes; False if an object is missing."""
        for volume in volumes:
            target = self.folder / "volumes" / volume["name"]
            target.mkdir(parents=True, exist_ok=True)
            if claim := volume.get("persistentVolumeClaim"):
                disk = self.kubelet.folder / "claims" / f"{self._namespace}-{claim['claimName']}"
                disk.mkdir(parents=True, exist_ok=True)
                shutil.chown(disk, *_ids({}, self.pod))
                target.rmdir()
                target.symlink_to(disk)
                continue
            sources = volume.get("projected", {}).get("sources") or [volume]
            for source in sources:
                files = await self._files(source)
                if files is None:
                    return False
                for name, content in files.items():
                    path = target / name
                    if path.exists() and path.read_bytes() == content:
                        continue
                    path.parent.mkdir(parents=True, exist_ok=True)
                    new = path.with_name(f"..{path.name}")
                    new.write_bytes(content)
                    new.chmod(0o440 if "secret" in source else 0o444)
                    shutil.chown(new, *_ids({}, self.pod))
                    new.replace(path)
            shutil.chown(target, *_ids({}, self.pod))
        return True

    async def _keep_volumes(self) -> None:
        """Bring changed ConfigMaps and Secrets into the volumes; a kubelet takes a minute."""
        kept = [one for one in self.pod["spec"].get("volumes", ()) if one.keys() & _CHANGING]
        while kept:
            await asyncio.sleep(_VOLUMES_S)
            await self._mount_volumes(kept)

    async def _files(self, source: Object) -> Mapping[str, bytes] | None:
        """Return the files of a volume's source by name; None if its object is missing."""
        if part := source.get("serviceAccountToken"):
            account = self.pod["spec"].get("serviceAccountName", "default")
            pod = {"apiVersion": "v1", "kind": "Pod", "name": self.name}
            request = {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {
                    "boundObjectRef": pod | {"uid": self.pod["metadata"]["uid"]},
                    "expirationSeconds": part.get("expirationSeconds", 3600),
                },
            }
            path = f"/api/v1/namespaces/{self._namespace}/serviceaccounts/{account}/token"
            answer = await self.kubelet.call("POST", path, request)
            return answer and {part["path"]: answer["status"]["token"].encode()}
        if part := source.get("downwardAPI"):
            return {
                item["path"]: self._field(item["fieldRef"]["fieldPath"]).encode()
                for item in part["items"]
            }
        for kind, key in (("secrets", "secret"), ("configmaps", "configMap")):
            if part := source.get(key):
                data = await self._data(kind, part.get("secretName") or part["name"])
                if data is None:
                    return {} if part.get("optional") else None
                items = part.get("items")
                return (
                    {i["path"]: data[i["key"]] for i in items if i["key"] in data}
                    if items
                    else data
                )
        return {}  # emptyDir

    async def _keep_names(self) -> None:
        while True:
            self._write_names()
            await asyncio.sleep(0.5)

    def _write_names(self) -> None:
        """Write /etc/hosts: each Service's ready addresses, by all of its names."""
        lines = ["127.0.0.1 localhost", f"{self.address} {self.name}"]
        for (name, namespace), addresses in self.kubelet.addresses_of_services.items():
            full = f"{name}.{namespace}.svc"
            names = f"{full} {full}.cluster.local {name}.{namespace}"
            if namespace == self._namespace:
                names += f" {name}"
            lines += [f"{address} {names}" for address in addresses]
        text = "\n".join(lines) + "\n"
        path = self.folder / "hosts"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


_PYTHON: Final = (Path(sys.executable), Path(sys.executable).resolve())


def _ids(container: Object, pod: Object) -> tuple[int, int]:
    """Return the user and group of a container, or of the files of a pod."""
    of_pod = pod["spec"].get("securityContext", {})
    of_container = container.get("securityContext", {})
    user = of_container.get("runAsUser", of_pod.get("runAsUser", USER))
    group = of_container.get("runAsGroup", of_pod.get("runAsGroup", user))
    return user, of_pod.get("fsGroup", group) if not container else group


def _as_user(container: Object, pod: Object) -> list[str]:
    user, group = _ids(container, pod)
    groups = {group, pod["spec"].get("securityContext", {}).get("fsGroup", group)}
    ids = ["--reuid", str(user), "--regid", str(group)]
    more = ["--groups", ",".join(map(str, sorted(groups))), "--no-new-privs", "--pdeathsig", "KILL"]
    return ["setpriv", *ids, *more]


def _expand(word: str, env: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda match: env.get(match[1], match[0]), word)
