"""Everything that the chart can be told renders to objects that Kubernetes takes."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

import headrace
from headrace import deploy
from headrace.cli.app import app
from headrace.control.auth.credentials import secret_id
from headrace.control.kubernetes import role_rules
from headrace.core.internal_token import MIN_BYTES
from headrace.core.spec.kubernetes import Autoscaler
from headrace.core.spec.parse import parse_spec
from headrace.deploy.helm_values import chart_files, chart_folder
from tests.e2e.chart.sample_values import (
    A_JOB,
    A_STREAM,
    CHOICES,
    DIGEST,
    HPA,
    KEDA,
    LAG,
    Values,
    a_version,
    arm_name,
    combinations,
    merged,
)
from tests.kube import CHART, REGISTRY, ROOT, Object, complaints, documents, helm, needs, rendered

pytestmark = [pytest.mark.e2e, pytest.mark.kube, pytest.mark.slow, needs("helm")]

CERTIFICATES: Values = {"agentTls": {"certManager": {"enabled": True}}}
ARTIFACTS: Values = {"artifacts": {"url": "s3://models/prod"}}
OLDER = sorted((Path(__file__).parent / "older_values").glob("*.yaml"))


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [one for one in objects if one["kind"] == kind]


def refused(values: Values) -> str:
    """What `helm template` says against values."""
    told = json.dumps(merged({"image": {"registry": REGISTRY}}, values))
    status, _, said = helm("template", "headrace", CHART, "--values", "-", text=told)
    assert status != 0
    return said


def static(*versions: Values) -> Values:
    return {**ARTIFACTS, "workloads": {"mode": "static", "versions": list(versions)}}


@pytest.mark.parametrize(
    "values", [pytest.param(values, id=name) for name, values in combinations()]
)
def test_every_two_choices_together_make_objects_that_kubernetes_takes(values: Values) -> None:
    objects = rendered(values)

    assert complaints(objects) == []
    keys = [(one["apiVersion"], one["kind"], one["metadata"]["name"]) for one in objects]
    assert len(set(keys)) == len(keys)
    assert {o["metadata"].get("namespace") for o in objects if o["kind"] != "FlowSchema"} <= {
        "models"
    }
    secrets = {one["metadata"]["name"].partition("-")[2] for one in of_kind(objects, "Secret")}
    assert secrets <= {"admin", "internal", "gateways"}


def test_certificates_are_made_where_nobody_else_makes_them() -> None:
    objects = rendered({})
    secrets = {one["metadata"]["name"]: one for one in of_kind(objects, "Secret")}
    shown = {}
    for part in ("control", "gateway"):
        data = secrets[f"headrace-{part}-tls"]["data"]
        shown[part] = x509.load_pem_x509_certificate(base64.b64decode(data["tls.crt"]))
        authority = x509.load_pem_x509_certificate(base64.b64decode(data["ca.crt"]))
        shown[part].verify_directly_issued_by(authority)
        key = load_pem_private_key(base64.b64decode(data["tls.key"]), None)
        assert key.public_key() == shown[part].public_key()
    names = shown["control"].extensions.get_extension_for_class(x509.SubjectAlternativeName)

    assert complaints(objects) == []
    assert {"headrace-control.models.svc", "localhost"} <= set(
        names.value.get_values_for_type(x509.DNSName)
    )
    assert {
        volume["secret"]["secretName"]
        for _, pod in pods_of(objects)
        for volume in pod["spec"]["volumes"]
        if "secret" in volume
    } <= secrets.keys()
    named = {"agentTls": {"controlSecret": "a", "gatewaySecret": "b"}}
    assert {one["metadata"]["name"] for one in of_kind(rendered(named), "Secret")} == {
        "headrace-admin", "headrace-internal", "headrace-gateways",
    }  # fmt: skip


def test_the_chart_is_linted_strictly() -> None:
    status, output, said = helm("lint", "--strict", CHART, "--set", f"image.registry={REGISTRY}")

    assert status == 0, output + said
    assert "0 chart(s) failed" in output


def test_the_chart_is_of_the_package_s_version_and_its_generated_files_are_fresh() -> None:
    chart = documents((CHART / "Chart.yaml").read_text())[0]

    assert (chart["version"], chart["appVersion"]) == (headrace.__version__,) * 2
    assert chart_folder() == CHART
    for path, text in chart_files().items():
        assert (CHART / path).read_text() == text, f"{path}: make generate"
    there = {path.name for path in (CHART / "files" / "dashboards").iterdir()}
    assert there == {Path(path).name for path in chart_files() if "dashboards" in path}


@pytest.mark.parametrize("older", OLDER, ids=lambda path: path.stem)
def test_values_of_every_older_minor_version_are_taken(older: Path) -> None:
    objects = rendered({}, "--values", str(older))

    assert complaints(objects) == []
    assert of_kind(objects, "Deployment")


def test_there_are_values_of_this_minor_version_for_later_ones_to_be_held_to() -> None:
    minor = ".".join(headrace.__version__.split(".")[:2])

    assert minor in {path.stem for path in OLDER}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"gatewy": {}}, "gatewy"),
        ({"gateway": {"replica": 3}}, "replica"),
        ({"gateway": {"replicas": "three"}}, "replicas"),
        ({"gateway": {"service": {"httpPort": 70000}}}, "httpPort"),
        ({"control": {"replicas": 2}}, "existingSecret"),
        ({"gateway": {"autoscaling": {"minReplicas": 11}}}, "gateway.autoscaling: minReplicas"),
        ({"control": {"image": {"digest": "sha256:12"}}}, "digest"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"ingress": {"type": "nginx"}}, "ingress/type"),
        ({"ingress": {"type": "gateway-api"}}, "parentRefs"),
        ({"artifacts": {"url": "/var/models"}}, "artifacts/url"),
        ({"rbac": {"autoscaler": "both"}}, "autoscaler"),
        ({"workloads": {"mode": "manual"}}, "workloads/mode"),
        ({"workloads": {"versions": [a_version()]}}, "workloads/versions"),
        (static(a_version(weight=101)), "weight"),
        (static(a_version(digest="latest")), "digest"),
        (static(a_version(autoscaling={**HPA, "type": ["hpa", "keda"]})), "autoscaling"),
        (static(a_version(autoscaling={**HPA, **KEDA, "hpa": HPA})), "autoscaling"),
        (static(a_version(autoscaling={**HPA, "prometheusUrl": "http://p"})), "autoscaling"),
        (static(a_version(autoscaling={**KEDA, "prometheusUrl": ""})), "autoscaling"),
        ({"streams": [{**A_STREAM, "autoscaling": {**LAG, "triggers": []}}]}, "triggers"),
        ({"networkPolicy": {"dns": {"to": [], "ports": []}}}, "ports"),
        ({"monitoring": {"interval": "often"}}, "interval"),
        ({"monitoring": {"interval": "5m1h"}}, "interval"),
        ({"control": None}, "missing property 'control'"),
        ({"gateway": {"image": None}}, "missing property 'image'"),
        ({"gateway": {"replicas": 0}}, "/gateway/replicas"),
        ({"commonLabels": {"team": "équipe"}}, "/commonLabels/team"),
        ({"commonLabels": {"team": "x" * 64}}, "/commonLabels/team"),
        ({"commonLabels": {"app.kubernetes.io/name": "mine"}}, "/commonLabels"),
        ({"gateway": {"podAnnotations": {"no key": "a"}}}, "no key"),
        ({"gateway": {"service": {"loadBalancerClass": "a"}}}, "loadBalancerClass"),
        ({"gateway": {"service": {"externalTrafficPolicy": "Local"}}}, "externalTrafficPolicy"),
        ({"gateway": {"service": {"grpcPort": 8000}}}, "httpPort and grpcPort are the same"),
        ({"gateway": {"env": [{"name": "a b", "value": "1"}]}}, "/gateway/env/0/name"),
        ({"ingress": {"hostnames": ["Models.example"]}}, "/ingress/hostnames/0"),
        ({"environmentSecret": "a..b"}, "/environmentSecret"),
        ({"jobs": [{**A_JOB, "name": "naïve"}]}, "/jobs/0/name"),
        ({"jobs": [{**A_JOB, "schedule": "each day at nine"}]}, "/jobs/0/schedule"),
        (merged(ARTIFACTS, {"jobs": [A_JOB, A_JOB]}), "is there twice"),
        ({"jobs": [A_JOB]}, "artifacts.url"),
        (static(a_version(version="V2")), "/version"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_by_their_place(values: Values, said: str) -> None:
    assert said in refused(merged(CERTIFICATES, values))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"agentTls": {"gatewaySecret": "a"}}, "agentTls.controlSecret"),
        ({"agentTls": {"controlSecret": "a"}}, "agentTls.gatewaySecret"),
        ({**CERTIFICATES, "spec": {"version": 1, "endpoints": [{"name": "a"}]}}, "artifacts.url"),
        ({"workloads": {"mode": "static", "versions": [a_version()]}}, "artifacts.url"),
        (static(a_version(settings="nothing")), "workloads.versions[0].settings"),
        (static(a_version(settings='{"grpc_port": 9000}')), "grpc_port is 9000"),
        (static(a_version(), a_version()), "workloads.versions[1]: its objects would be called"),
        (
            static(a_version(autoscaling={**HPA, "minReplicas": 5})),
            "workloads.versions[0].autoscaling: minReplicas",
        ),
        (
            merged(
                static(*(a_version(version=str(i), weight=1) for i in range(1, 18))),
                CHOICES["ingress"][1],
            ),
            "17 versions of digits have a weight",
        ),
    ],
)
def test_what_no_schema_can_say_is_refused_with_the_way_out(values: Values, said: str) -> None:
    assert said in refused(values)


ODD: dict[str, tuple[Values, str, str]] = {
    "words that YAML takes for something else": (
        {
            "environmentSecret": "1",
            "commonLabels": {"a": "yes", "b": "12", "c": ""},
            "control": {
                "state": {"existingSecret": "1e3"},
                "internalSecret": "null",
                "serviceAccount": {"create": False, "name": "true"},
            },
            "image": {"pullSecrets": ["1"]},
            "jobs": [{**A_JOB, "name": "1e3"}],
            "streams": [{**A_STREAM, "name": "true"}],
        },
        "true",
        "1234",
    ),
    "long names": (
        {
            "jobs": [{**A_JOB, "name": "j" * 128}],
            "streams": [{**A_STREAM, "name": "s_" + "." * 60 + "S" * 66}],
        },
        "r" * 53,
        "n" * 63,
    ),
    "a month in seconds": (
        {"jobs": [{**A_JOB, "timeoutSeconds": 31536000, "startingDeadlineSeconds": 2592000}]},
        "headrace",
        "models",
    ),
    "variables that are told twice": (
        {
            "control": {"env": [{"name": "HEADRACE_HOME", "value": "/x"}]},
            "gateway": {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]},
            "workers": {"env": [{"name": "HOME", "value": "/y"}]},
            "jobs": [A_JOB],
        },
        "headrace",
        "models",
    ),
    "nothing runs": (
        static(a_version("x" * 63, replicas=0, weight=0), a_version("a.b-" + "c" * 59)),
        "headrace",
        "models",
    ),
    "nulls": (
        {"gateway": {"podAnnotations": None, "env": None, "resources": None, "affinity": None}},
        "headrace",
        "models",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_values_that_are_taken_make_objects_that_kubernetes_takes(name: str) -> None:
    values, release, namespace = ODD[name]
    told = merged(ARTIFACTS, values, CHOICES["ingress"][1], CHOICES["monitoring"][1])

    objects = rendered(told, release=release, namespace=namespace)

    assert complaints(objects) == []
    assert {one["metadata"]["namespace"] for one in objects} == {namespace}
    for _, pod in pods_of(objects):
        for container in pod["spec"]["containers"]:
            variables = [one["name"] for one in container.get("env", [])]
            assert len(set(variables)) == len(variables)
            assert all(isinstance(one, str) for one in container.get("args", []))


@pytest.mark.parametrize("release", ["1st", "a.b"])
def test_a_release_whose_name_begins_no_service_has_to_say_an_instance(release: str) -> None:
    status, _, said = helm("template", release, CHART, "--set", f"image.registry={REGISTRY}")

    assert status != 0
    assert "set `instance`" in said
    assert rendered({"instance": "models"}, release=release)


@pytest.mark.parametrize(
    ("scaler", "kind"), [(HPA, "HorizontalPodAutoscaler"), (KEDA, "ScaledObject")]
)
def test_where_somebody_else_scales_the_deployment_says_no_number(
    scaler: Values, kind: str
) -> None:
    objects = rendered(static(a_version(autoscaling=scaler)))

    (deployment,), (found,) = of_kind(objects, "Deployment"), of_kind(objects, kind)
    others = {"HorizontalPodAutoscaler", "ScaledObject"} - {kind}
    assert "replicas" not in deployment["spec"]
    assert found["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert not [one for one in objects if one["kind"] in others]


@pytest.mark.parametrize(
    ("values", "autoscaler"),
    [
        ({}, Autoscaler.HEADRACE),
        ({"spec": {"version": 1, "kubernetes": {"autoscaler": "hpa"}}}, Autoscaler.HPA),
        ({"spec": {"version": 1, "kubernetes": {"autoscaler": "keda"}}}, Autoscaler.KEDA),
        ({"rbac": {"autoscaler": "all"}}, None),
    ],
)
def test_the_control_plane_may_do_what_its_driver_does_and_no_more(
    values: Values, autoscaler: Autoscaler | None
) -> None:
    objects = rendered(merged(CERTIFICATES, values))

    (role,) = of_kind(objects, "Role")
    (binding,) = of_kind(objects, "RoleBinding")
    (control,) = [
        d for d in of_kind(objects, "Deployment") if d["metadata"]["name"].endswith("-control")
    ]
    assert role["rules"] == role_rules(autoscaler, "headrace-gateways")
    assert not of_kind(objects, "ClusterRole")
    assert (
        binding["subjects"][0]["name"] == control["spec"]["template"]["spec"]["serviceAccountName"]
    )


def pods_of(objects: list[Object]) -> list[tuple[str, Object]]:
    """Every pod that the objects make, by the name of what makes it."""
    found = []
    for one in objects:
        spec = one.get("spec", {})
        if one["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        template = one if one["kind"] == "Pod" else spec.get("template")
        if template is not None and "containers" in template.get("spec", {}):
            found.append((f"{one['kind']}/{one['metadata']['name']}", template))
    return found


def test_every_pod_is_locked_down_and_spared_the_variables_of_services() -> None:
    values = merged(ARTIFACTS, CERTIFICATES, CHOICES["apart"][1])
    objects = rendered(values) + rendered(merged(values, CHOICES["workloads"][1]))

    pods = pods_of(objects)
    assert len(pods) == 12
    for name, pod in pods:
        spec = pod["spec"]
        assert spec["enableServiceLinks"] is False, name
        calls_cluster = name.endswith(("-control", "-uninstall"))
        assert spec["automountServiceAccountToken"] is calls_cluster, name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in spec["containers"] + spec.get("initContainers", []):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["limits"]["memory"], name


def selects(selector: Object, labels: dict[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.items())


def test_every_pod_is_denied_what_no_policy_of_its_component_allows() -> None:
    objects = rendered(merged(ARTIFACTS, CERTIFICATES, CHOICES["apart"][1]))

    policies = of_kind(objects, "NetworkPolicy")
    (denial,) = [p for p in policies if "ingress" not in p["spec"] and "egress" not in p["spec"]]
    for name, pod in pods_of(objects):
        labels = pod["metadata"]["labels"]
        mine = [p for p in policies if selects(p["spec"]["podSelector"]["matchLabels"], labels)]
        assert denial in mine, name
        assert len(mine) == 2, name


def ports_into(policy: Object, component: str) -> set[int]:
    """The ports that a policy opens to pods of a component."""
    return {
        port["port"]
        for rule in policy["spec"].get("ingress", ())
        for peer in rule.get("from", ())
        if peer.get("podSelector", {}).get("matchLabels", {}).get("app.kubernetes.io/component")
        == component
        for port in rule["ports"]
    }


def test_replicas_are_reached_by_gateways_and_the_control_plane_only() -> None:
    objects = rendered(merged(ARTIFACTS, CERTIFICATES))

    policies = {p["metadata"]["name"]: p for p in of_kind(objects, "NetworkPolicy")}
    replica, control = policies["headrace-replica"], policies["headrace-control"]
    assert ports_into(replica, "gateway") == {8000, 8003}
    assert ports_into(replica, "control") == {8000, 8002}
    assert all("from" in rule for rule in replica["spec"]["ingress"])
    assert ports_into(control, "gateway") == {8443, 8444}
    assert ports_into(policies["headrace-gateway"], "control") == {8002}


def test_every_deployment_of_several_pods_has_a_budget_of_its_own_pods() -> None:
    values = merged(ARTIFACTS, CERTIFICATES, CHOICES["apart"][1], CHOICES["state"][1])
    objects = rendered(values) + rendered(merged(values, CHOICES["workloads"][1]))

    budgets = {b["metadata"]["name"]: b["spec"] for b in of_kind(objects, "PodDisruptionBudget")}
    for deployment in of_kind(objects, "Deployment"):
        if deployment["spec"].get("replicas") == 1:
            assert deployment["metadata"]["name"] not in budgets
            continue
        budget = budgets[deployment["metadata"]["name"]]
        assert budget["selector"] == deployment["spec"]["selector"]
        assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_two_control_planes_are_both_ready_and_their_service_reaches_the_leader() -> None:
    alone, pair = rendered({}), rendered(CHOICES["state"][1])

    def named(objects: list[Object], kind: str) -> Object:
        return next(
            o for o in of_kind(objects, kind) if o["metadata"]["name"] == "headrace-control"
        )

    for objects in (alone, pair):
        control, service = named(objects, "Deployment"), named(objects, "Service")
        (container,) = control["spec"]["template"]["spec"]["containers"]
        assert container["readinessProbe"]["httpGet"]["path"] == "/api/v1/health"
        role = {"headrace.dev/role": "leader"}
        assert service["spec"]["selector"] == control["spec"]["selector"]["matchLabels"] | role
    assert "headrace-control" not in {
        o["metadata"]["name"] for o in of_kind(alone, "PodDisruptionBudget")
    }
    strategy = named(pair, "Deployment")["spec"]["strategy"]
    assert strategy["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_a_changed_spec_starts_the_control_plane_anew_unless_only_endpoints_change() -> None:
    def annotations(values: Values) -> Any:
        (pod,) = [
            p for name, p in pods_of(rendered(merged(CERTIFICATES, values))) if "-control" in name
        ]
        return pod["metadata"]["annotations"]

    before = annotations({})

    assert annotations({"gateway": {"replicas": 7}}) == before
    endpoint = {"name": "digits", "model": "digits:1"}
    live = {"spec": {"endpoints": [endpoint], "kubernetes": {"max_rolling_ratio": 0.5}}}
    assert annotations(merged(ARTIFACTS, live)) == before
    assert annotations({"spec": {"version": 1, "endpoints": [], "budget": {"cpus": 2}}}) != before


def test_static_mode_has_neither_gateway_nor_control_plane_and_routes_by_weight() -> None:
    values = static(a_version(weight=90), a_version(version="2", weight=10))
    objects = rendered(merged(values, CHOICES["ingress"][2]))

    route, server = of_kind(objects, "HTTPRoute")
    assert server["metadata"]["name"] == "headrace-server"
    services = {one["metadata"]["name"] for one in of_kind(objects, "Service")}
    *named, split = route["spec"]["rules"]
    assert [backend["weight"] for backend in split["backendRefs"]] == [90, 10]
    assert {backend["name"] for backend in split["backendRefs"]} == services
    assert [rule["matches"][0]["path"]["value"] for rule in named] == [
        "/v2/models/digits/versions/1",
        "/v2/models/digits/versions/2",
    ]
    assert not of_kind(objects, "Role")
    assert not [
        o for o in objects if o["metadata"]["name"] in {"headrace-control", "headrace-gateway"}
    ]


def scraped_labels(monitor: Object) -> dict[str, str]:
    """The labels that the operator's targets have in the end, so far as they are known here."""
    labels = {"namespace": monitor["metadata"]["namespace"], "endpoint": "metrics"}
    (port,) = monitor["spec"].get("endpoints") or monitor["spec"]["podMetricsEndpoints"]
    for relabeling in port["relabelings"]:
        if "targetLabel" in relabeling:
            labels[relabeling["targetLabel"]] = relabeling["replacement"]
        if relabeling.get("action") == "labeldrop":
            labels.pop(relabeling["regex"], None)
    return labels


@pytest.mark.parametrize(
    ("values", "component"), [({}, "control"), (static(a_version()), "replica")]
)
def test_rules_read_what_the_monitors_of_the_same_release_scrape(
    values: Values, component: str
) -> None:
    values = merged(values, ARTIFACTS, CERTIFICATES, CHOICES["monitoring"][1])
    objects = rendered(values, release="team-a")
    monitors = {
        one["metadata"]["name"]: scraped_labels(one)
        for one in (*of_kind(objects, "ServiceMonitor"), *of_kind(objects, "PodMonitor"))
    }
    (rule,) = of_kind(objects, "PrometheusRule")
    rules = [one for group in rule["spec"]["groups"] for one in group["rules"]]
    own = {"namespace": "models", "job": "team-a"}

    # The label `endpoint` of the metrics is that of their name, not of a port.
    assert [name for name, labels in monitors.items() if labels == own] == [f"team-a-{component}"]
    assert all("endpoint" not in labels for labels in monitors.values())
    assert all(one["labels"].items() >= own.items() for one in rules)
    assert all('{namespace="models",job="team-a"' in one["expr"] for one in rules)


def route_rules(objects: list[Object]) -> dict[str, list[list[Any]]]:
    """The rules of routes by kind, in their order."""
    found: dict[str, list[list[Any]]] = {}
    for one in objects:
        if one["kind"] in {"HTTPRoute", "GRPCRoute"}:
            rules = json.loads(json.dumps(one["spec"]["rules"]))
            found.setdefault(one["kind"], []).append(rules)
    return {kind: sorted(rules, key=str) for kind, rules in found.items()}


@pytest.mark.parametrize("names", [("fraud",), ("fraud", "Other.x")])
@pytest.mark.parametrize("weights", [(100,), (90, 10), (60, 0, 40)])
def test_routes_of_static_mode_are_those_that_are_exported_for_the_gateway_api(
    names: tuple[str, ...], weights: tuple[int, ...]
) -> None:
    numbered = list(enumerate(weights, 1))
    spec = parse_spec(
        {
            "version": 1,
            "endpoints": [
                {
                    "name": name,
                    "access": "public",
                    "timeout_s": 5,
                    "versions": [{"model": f"m:{i}", "weight": weight} for i, weight in numbered],
                }
                for name in names
            ],
        }
    )
    rows = [a_version(n, str(i), weight=weight) for n in names for i, weight in numbered]
    services = {
        (row["endpoint"], row["version"]): (
            arm_name(row["endpoint"], row["arm"]), None,
        )
        for row in rows
    }  # fmt: skip
    place = deploy.ClusterTarget(namespace="models", services=services)
    export = deploy.gateway_api(deploy.read_facts(spec), place, deploy.GatewayApiOptions())

    objects = rendered(merged(static(*rows), CHOICES["ingress"][1]))

    assert complaints(objects) == []
    expected = route_rules([document.body for document in export.documents])
    assert len(expected["GRPCRoute"]) == len(names)
    assert route_rules(objects) == expected


def test_grpc_is_routed_only_where_every_version_serves_it_and_somebody_wants_it() -> None:
    older = a_version(version="2", settings='{"model_name": "digits"}')
    plain = rendered(merged(static(a_version(), older), CHOICES["ingress"][1]))
    unwanted = rendered(merged(static(a_version()), CHOICES["ingress"][2]))

    for objects in (plain, unwanted):
        assert of_kind(objects, "HTTPRoute")
        assert not of_kind(objects, "GRPCRoute")
    ports = [
        [port["name"] for port in one["spec"]["ports"]]
        for one in of_kind(plain, "Service")
        if one["metadata"]["labels"]["app.kubernetes.io/component"] == "replica"
    ]
    assert sorted(ports) == [["http", "grpc", "metrics"], ["http", "metrics"]]


def test_more_versions_than_a_route_has_rules_for_make_a_second_one() -> None:
    rows = [a_version(version=str(i), weight=100 if i == 1 else 0) for i in range(1, 33)]
    objects = rendered(merged(static(*rows), CHOICES["ingress"][1]))

    assert complaints(objects) == []
    for kind in ("HTTPRoute", "GRPCRoute"):
        routes = [o for o in of_kind(objects, kind) if o["metadata"]["name"] != "headrace-server"]
        assert [len(route["spec"]["rules"]) for route in routes] == [16, 16, 1]
        assert len({route["metadata"]["name"] for route in routes}) == 3


def test_an_image_is_named_by_digest_where_there_is_one_else_by_version() -> None:
    def images(values: Values) -> set[str]:
        pods = [pod for _, pod in pods_of(rendered(merged(CERTIFICATES, values)))]
        return {c["image"] for pod in pods for c in pod["spec"]["containers"]}

    version = headrace.__version__
    assert images({}) == {f"{REGISTRY}/{part}:{version}" for part in ("control", "gateway")}
    told = {"image": {"registry": "r.example/"}, "control": {"image": {"digest": DIGEST}}}
    assert f"r.example/control@{DIGEST}" in images(told)


def test_no_image_comes_from_a_registry_that_nobody_named() -> None:
    whole = {
        part: {"image": {"repository": f"localhost:5000/x/{part}"}}
        for part in ("control", "gateway")
    }

    assert "make push PREFIX=" in refused({"image": {"registry": ""}})
    objects = rendered({"image": {"registry": ""}, **whole})
    assert {
        c["image"].rpartition(":")[0] for _, p in pods_of(objects) for c in p["spec"]["containers"]
    } == {
        "localhost:5000/x/control",
        "localhost:5000/x/gateway",
    }


def control_arguments(values: Values) -> list[str]:
    """The arguments of the control plane."""
    pods = dict(pods_of(rendered(values)))
    arguments: list[str] = pods["Deployment/headrace-control"]["spec"]["containers"][0]["args"]
    return arguments


def test_pods_of_models_get_registry_pull_secrets_and_store_credentials_of_the_chart() -> None:
    told = merged(
        {"artifacts": {"url": "s3://m", "existingSecret": "store"}, "platformUid": True},
        {"image": {"registry": "r.example/ml/", "pullSecrets": ["a", "b"]}},
    )

    arguments = control_arguments(told)

    assert {
        "--image-registry=r.example/ml",
        "--pull-secret=a",
        "--pull-secret=b",
        "--store-secret=store",
        "--platform-uid",
    } <= set(arguments)
    assert not {"--platform-uid", "--store-secret="} & set(control_arguments({}))


@pytest.mark.parametrize("is_created", [True, False])
def test_objects_of_the_driver_have_owners_that_all_go_with_the_release(is_created: bool) -> None:
    account = {"serviceAccount": {"create": is_created, "name": "own"}}
    objects = rendered({"control": account})

    owners = [a for a in control_arguments({"control": account}) if a.startswith("--owner=")]

    released = {f"--owner={o['kind']}/{o['metadata']['name']}" for o in objects}
    assert set(owners) <= released
    assert len(owners) == 2 + is_created


def test_a_platform_chooses_the_users_of_all_pods() -> None:
    values = merged(ARTIFACTS, CERTIFICATES, CHOICES["apart"][1], {"platformUid": True})
    group = {"podSecurityContext": {"fsGroup": 7}, "securityContext": {"runAsUser": 8}}

    for objects in (rendered(values), rendered(merged(values, CHOICES["workloads"][1]))):
        for name, pod in pods_of(objects):
            context = pod["spec"]["securityContext"]
            assert context == {
                "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"},
            }, name  # fmt: skip
    for _, pod in pods_of(rendered(group)):
        assert pod["spec"]["securityContext"]["fsGroup"] == 7
        assert pod["spec"]["securityContext"]["runAsUser"] == 65532
        assert pod["spec"]["containers"][0]["securityContext"]["runAsUser"] == 8


SECURED: Values = {
    "spec": {
        "version": 1,
        "gateway": {"tls": {"certificate_file": "/tls/tls.crt", "key_file": "/tls/tls.key"}},
        "endpoints": [{"name": "digits", "model": "digits:1"}],
    }
}


@pytest.mark.parametrize(
    ("tls", "validation"),
    [
        (
            {},
            {"hostname": "headrace-gateway.models.svc", "wellKnownCACertificates": "System"},
        ),
        (
            {"hostname": "models.example", "caConfigMap": "authority"},
            {
                "hostname": "models.example",
                "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "authority"}],
            },
        ),
    ],
)
def test_routes_to_gateways_with_tls_encrypt_and_verify(
    tls: Values, validation: dict[str, Any]
) -> None:
    values = merged(ARTIFACTS, SECURED, CHOICES["ingress"][1], {"gateway": {"tls": tls}})
    objects = rendered(values)

    (policy,) = of_kind(objects, "BackendTLSPolicy")
    service = next(
        o for o in of_kind(objects, "Service") if o["metadata"]["name"] == "headrace-gateway"
    )
    assert complaints(objects) == []
    assert policy["spec"]["targetRefs"][0]["name"] == "headrace-gateway"
    assert policy["spec"]["validation"] == validation
    assert {port["appProtocol"] for port in service["spec"]["ports"]} == {"https"}
    assert not of_kind(rendered(merged(ARTIFACTS, CHOICES["ingress"][1])), "BackendTLSPolicy")


def test_gateways_are_scaled_by_one_of_replicas_and_autoscaler() -> None:
    objects = rendered({"gateway": {"replicas": 3, "autoscaling": {"enabled": True}}})

    (scaler,) = of_kind(objects, "HorizontalPodAutoscaler")
    gateway = next(
        o for o in of_kind(objects, "Deployment") if o["metadata"]["name"] == "headrace-gateway"
    )
    assert scaler["spec"]["scaleTargetRef"]["name"] == "headrace-gateway"
    assert "replicas" not in gateway["spec"]


def test_the_lease_of_the_leader_gets_a_priority_level_where_that_is_allowed() -> None:
    objects = rendered({"rbac": {"flowSchema": True}})

    (schema,) = of_kind(objects, "FlowSchema")
    (rule,) = schema["spec"]["rules"]
    (role,) = of_kind(objects, "Role")
    assert rule["subjects"][0]["serviceAccount"] == {
        "name": "headrace-control", "namespace": "models",
    }  # fmt: skip
    (lease,) = [r for r in role["rules"] if r["resources"] == ["leases"]]
    assert rule["resourceRules"][0]["verbs"] == lease["verbs"]
    assert schema["metadata"]["name"] == "models-headrace-leader-election"


def test_a_service_mesh_gets_its_connections_in_one_place() -> None:
    mesh = {"ports": [{"protocol": "TCP", "port": 15008}]}
    objects = rendered({"networkPolicy": {"ingress": [mesh], "egress": [mesh]}})

    policy = next(
        o for o in of_kind(objects, "NetworkPolicy") if o["metadata"]["name"] == "headrace-deny"
    )
    assert policy["spec"]["ingress"] == policy["spec"]["egress"] == [mesh]
    assert complaints(objects) == []


def test_the_token_by_which_replicas_know_the_control_plane_is_made_or_named() -> None:
    made = rendered(CERTIFICATES)
    own = {"internalSecret": "mine", "adminSecret": "admin"}
    named = rendered(merged(CERTIFICATES, {"control": own}))

    secrets = {one["metadata"]["name"]: one for one in of_kind(made, "Secret")}
    secret = secrets["headrace-internal"]
    assert len(base64.b64decode(secret["data"]["token"])) >= MIN_BYTES
    token = base64.b64decode(secrets["headrace-admin"]["data"]["token"]).decode()
    assert secret_id("hrt", token)
    assert [one["metadata"]["name"] for one in of_kind(named, "Secret")] == ["headrace-gateways"]
    for objects, name in ((made, "headrace-internal"), (named, "mine")):
        (pod,) = [pod for what, pod in pods_of(objects) if what == "Deployment/headrace-control"]
        (container,) = pod["spec"]["containers"]
        assert f"--internal-secret={name}" in container["args"]
        assert "--gateway-url=http://headrace-gateway.models.svc:8000" in container["args"]
        (volume,) = [v for v in pod["spec"]["volumes"] if v["name"] == "internal"]
        assert volume["secret"]["secretName"] == name


def options_of(*path: str) -> set[str]:
    """All options of a command of ours."""
    command: Any = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]
    return {option for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize(
    ("component", "path"),
    [
        ("control", ("control",)),
        ("gateway", ("gateway",)),
        ("stream", ("stream", "up")),
        ("fetch-model", ("models", "fetch")),
    ],
)
def test_containers_are_told_nothing_that_their_command_does_not_know(
    component: str, path: tuple[str, ...]
) -> None:
    # What runs for long needs an init process: a SIGTERM while Python starts would be lost.
    before = [] if component == "fetch-model" else ["tini", "--"]
    chosen = (CHOICES[kind][1] for kind in ("apart", "service", "images", "rest"))
    values = merged({"artifacts": {"existingSecret": "a"}}, ARTIFACTS, CERTIFICATES, *chosen)
    containers = [
        container
        for _, pod in pods_of(rendered(values))
        for container in pod["spec"]["containers"] + pod["spec"].get("initContainers", [])
        if container["name"] == component
    ]

    assert containers
    for container in containers:
        assert container["command"] == [*before, "headrace", *path]
        told = {a.partition("=")[0] for a in container["args"] if a.startswith("--")}
        assert told <= options_of(*path)


def test_values_in_the_guide_are_taken() -> None:
    page = (ROOT / "docs" / "how-to" / "kubernetes.md").read_text()
    blocks = re.findall(r"^```yml title=\"mine.yaml\"\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)

    assert len(blocks) == 2
    for block in blocks:
        (values,) = documents(block)
        assert complaints(rendered(merged(CERTIFICATES, values))) == []
