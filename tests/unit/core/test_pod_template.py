import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.spec.pod_template import check_patch, identity_of, merged

BASE: dict[str, Any] = {
    "metadata": {"labels": {"headrace.dev/endpoint": "digits"}},
    "spec": {
        "securityContext": {"runAsUser": 65532},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "initContainers": [{"name": "fetch-model", "image": "r/replica:1"}],
        "containers": [
            {
                "name": "replica",
                "image": "r/replica:1",
                "env": [{"name": "HOME", "value": "/home"}],
                "resources": {"limits": {"memory": "1Gi"}},
                "volumeMounts": [{"name": "models", "mountPath": "/models"}],
                "securityContext": {"capabilities": {"drop": ["ALL"]}},
            }
        ],
        "volumes": [{"name": "models", "emptyDir": {}}],
    },
}
OURS = ("image", "command", "args", "ports", "startupProbe")
words = st.sampled_from(["a", "b", "c"])
values = st.one_of(words, st.integers(0, 3), st.booleans())


def named(key: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    item = st.fixed_dictionaries({key: words}, optional=fields)
    return st.lists(item, max_size=3, unique_by=lambda value: value[key])


mounts = named("mountPath", name=words).map(
    lambda items: [{**item, "mountPath": f"/x/{item['mountPath']}"} for item in items]
)
container = st.fixed_dictionaries(
    {"name": st.sampled_from(["replica", "fetch-model", "proxy"])},
    optional={
        "env": named("name", value=words),
        "volumeMounts": mounts,
        "securityContext": st.dictionaries(words, values, max_size=2),
        "resources": st.fixed_dictionaries(
            {}, optional={"limits": st.dictionaries(words, words), "claims": named("name")}
        ),
    },
)
containers = st.lists(container, max_size=3, unique_by=lambda value: value["name"])
patches = st.fixed_dictionaries(
    {},
    optional={
        "metadata": st.fixed_dictionaries({}, optional={"labels": st.dictionaries(words, words)}),
        "spec": st.fixed_dictionaries(
            {},
            optional={
                "containers": containers,
                "initContainers": containers,
                "volumes": named("name", emptyDir=st.just({"medium": "Memory"})),
                "tolerations": st.lists(st.fixed_dictionaries({"key": words}), max_size=3),
                "securityContext": st.dictionaries(words, values, max_size=2),
                "affinity": st.dictionaries(words, st.dictionaries(words, values), max_size=2),
            },
        ),
    },
)


def holds(result: Any, base: Any, name: str = "") -> bool:  # noqa: ANN401  # any part of an object
    """Whether every key and item of `base` is in `result`; values may differ."""
    if isinstance(base, dict):
        return all(key in result and holds(result[key], base[key], key) for key in base)
    if isinstance(base, list):
        by_key = {identity_of(name, item): item for item in result}
        return all(
            holds(by_key[identity_of(name, item)], item)
            if identity_of(name, item)
            else item in result
            for item in base
        )
    return True


def test_an_empty_patch_changes_nothing() -> None:
    assert merged(BASE, {}) == BASE


@given(patches)
def test_a_patch_is_valid_idempotent_and_removes_nothing(patch: dict[str, Any]) -> None:
    before = copy.deepcopy(BASE)

    once = merged(BASE, check_patch(patch))

    assert before == BASE, "neither argument changes"
    assert merged(once, patch) == once
    assert holds(once, BASE)
    assert holds(once, patch)
    for kind in ("initContainers", "containers"):
        (own,) = BASE["spec"][kind]
        (result,) = (c for c in once["spec"][kind] if c["name"] == own["name"])
        assert {f: result.get(f) for f in OURS} == {f: own.get(f) for f in OURS}


def test_items_are_merged_by_name_and_other_lists_are_extended() -> None:
    patch = {
        "spec": {
            "containers": [
                {"name": "replica", "env": [{"name": "TZ", "value": "UTC"}]},
                {"name": "proxy", "image": "mesh:1", "args": ["run"]},
            ],
            "tolerations": [{"key": "spot"}],
        }
    }

    spec = merged(BASE, patch)["spec"]

    replica, proxy = spec["containers"]
    assert [variable["name"] for variable in replica["env"]] == ["HOME", "TZ"]
    assert replica["image"] == "r/replica:1"
    assert proxy["args"] == ["run"]
    assert [taint["key"] for taint in spec["tolerations"]] == ["gpu", "spot"]


def of_replica(**fields: Any) -> dict[str, Any]:  # noqa: ANN401  # of several types
    return {"spec": {"containers": [{"name": "replica", **fields}]}}


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ({"spec": {"terminationGracePeriodSeconds": 5}}, "'spec.terminationGracePeriodSeconds'"),
        ({"spec": {"hostNetwork": True}}, "'spec.hostNetwork'"),
        ({"kind": "Pod"}, "'kind' is not part of a pod template"),
        ({"metadata": {"name": "x"}}, "'metadata.name' is not supported"),
        ({"metadata": {"labels": {"headrace.dev/revision": "x"}}}, "'headrace.dev/revision'"),
        ({"metadata": {"annotations": {"headrace.dev/model": "x"}}}, "'headrace.dev/model'"),
        ({"spec": {"volumes": [{"name": "settings", "emptyDir": {}}]}}, "the volume 'settings'"),
        (of_replica(image="x"), "set `kubernetes.image`"),
        (of_replica(ports=[{"containerPort": 1}]), "'ports' of container 'replica'"),
        (of_replica(livenessProbe={}), "'livenessProbe' of container 'replica'"),
        (of_replica(volumeMounts=[{"name": "a", "mountPath": "/models/x/"}]), "at '/models/x'"),
        (of_replica(volumeMounts=[{"name": "a", "mountPath": "//etc/headrace"}]), "/etc/headrace"),
        (of_replica(env=[{"name": "HEADRACE_INTERNAL_TOKEN_FILE", "value": "x"}]), "leave it out"),
        ({"spec": {"containers": [{"image": "x"}]}}, "'spec.containers' lacks 'name'"),
        ({"spec": {"containers": {"name": "x"}}}, "'spec.containers' has the wrong type"),
        ({"spec": None}, "'spec' is null"),
        ({"spec": {"affinity": {"$patch": "delete"}}}, "directives are not supported"),
    ],
)
def test_what_a_patch_must_not_change_is_refused(patch: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        check_patch(patch)

    assert said in str(caught.value)
