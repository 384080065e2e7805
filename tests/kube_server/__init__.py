"""Real Kubernetes API server for tests, with a kubelet whose pods are fake or processes.

`make kube-server ARGS=--build` builds its programs once; tests skip where they are missing. A test
is marked `kube_server` and imports its fixtures:

    from tests.kube_server.fixtures import kube_lab, namespace  # noqa: F401

    def test_x(namespace: TestNamespace) -> None:
        namespace.create({...})                        # as administrator; blocks
        namespace.lab.run(namespace.lab.kubelet.set_state("digits", State.CRASHING))
        token = namespace.token("driver", role_rules())
        http = namespace.lab.cluster.http(token)       # an AsyncClient of the API server

`kube_lab` has fake pods and is shared by all tests of a worker; `kube_lab_of_processes` belongs to
a module. Both are a `Lab`: `cluster` (kill, restart, backup, restore, compact, audit_log) and
`kubelet` (states, lingering, silent nodes, pods) live in the loop of another thread, so call their
coroutines by `lab.run(...)`, or by `await lab.call(...)` in async tests.
"""
