from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.kubernetes import InstallationName
from headrace.core import InvalidArgumentError
from headrace.core.spec.parse import SystemSpec, parse_spec
from headrace.core.spec.scale import AutoscaleSpec
from headrace.deploy.features import NotExpressibleError
from headrace.deploy.helm_spec import (
    ArtifactFile,
    HelmExport,
    HelmMode,
    HelmOptions,
    Mount,
    variables_of,
)
from headrace.deploy.helm_values import (
    chart_files,
    chart_folder,
    chart_with,
    helm_values,
    rule_groups,
    version_values,
)
from tests.unit.control.kubernetes.states import a_state, an_arm, an_endpoint

DIGEST = "sha256:" + "0f" * 32
STORED = {
    name: ArtifactFile(digest=DIGEST, filename="model.onnx") for name in ("fraud:3", "fraud:4")
}
URL = "s3://models/prod"
KAFKA = {"broker": "kafka://kafka-0:9092,kafka-1", "topics": ["in", "more"]}


def a_spec(**parts: object) -> SystemSpec:
    return parse_spec({"version": 1, "endpoints": [], **parts})


def a_stream(**parts: object) -> dict[str, Any]:
    return {
        "name": "pay",
        "model": "fraud:3",
        "source": KAFKA,
        "sink": {"topic": "out"},
        "workers": {"min": 1, "max": 8},
        **parts,
    }


def a_job(**parts: object) -> dict[str, Any]:
    return {
        "name": "nightly",
        "model": "fraud:3",
        "input": "s3://data/in/*.parquet",
        "output": "/data/out/{run_id}",
        **parts,
    }


def exported(spec: SystemSpec, **options: Any) -> HelmExport:  # noqa: ANN401  # of several types
    options = {"artifacts": URL, "mounts": (Mount.parsed("claim:data=/data"),), **options}
    return helm_values(spec, HelmOptions(**options), stored=STORED)


def places(spec: SystemSpec, **options: Any) -> dict[str, str]:  # noqa: ANN401  # as above
    """Places of what cannot be expressed, and how it is told."""
    with pytest.raises(NotExpressibleError) as caught:
        exported(spec, **options)
    return {loss.location: str(loss) for loss in caught.value.losses}


def test_the_spec_goes_to_the_control_plane_as_it_is() -> None:
    spec = a_spec(endpoints=[{"name": "fraud", "model": "fraud:3", "access": ["key"]}])

    values = exported(spec).values

    assert values["spec"] == spec.document()
    assert values["artifacts"] == {"url": URL}
    assert "workloads" not in values


def test_a_model_that_lies_on_this_machine_is_refused_by_its_place() -> None:
    versions = [{"model": "/m/a.onnx", "weight": 100}, {"model": "fraud:3", "weight": 0}]
    spec = a_spec(
        endpoints=[{"name": "a", "model": "/m/b.onnx"}, {"name": "b", "versions": versions}],
        jobs=[a_job(model="/m/c.onnx")],
        streams=[a_stream(model="/m/d.onnx")],
    )

    found = places(spec)

    assert set(found) == {
        "endpoints[0].model",
        "endpoints[1].versions[0].model",
        "jobs[0].model",
        "streams[0].model",
    }
    assert all("headrace models push" in said for said in found.values())


def test_a_model_that_the_registry_lacks_is_told_for_jobs_and_streams_only() -> None:
    spec = a_spec(
        endpoints=[{"name": "b", "model": "other:1"}],
        jobs=[a_job(model="other:1")],
        streams=[a_stream(model="other:2")],
    )

    found = places(spec)

    assert set(found) == {"jobs[0].model", "streams[0].model"}
    assert "'other:1', which the registry does not have" in found["jobs[0].model"]


def test_the_home_s_own_store_is_refused() -> None:
    spec = a_spec(endpoints=[{"name": "b", "model": "fraud:3", "features": {"service": "s"}}])

    assert set(places(spec)) == {"endpoints[0].features.online_store"}


def test_a_store_of_one_machine_is_refused_where_it_is_named() -> None:
    spec = a_spec(
        online_stores=[{"name": "here", "url": "sqlite:////srv/x.db"}],
        endpoints=[
            {
                "name": "b",
                "model": "fraud:3",
                "features": {"service": "s", "online_store": "here"},
            }
        ],
    )

    assert set(places(spec)) == {"online_stores[0].url"}


def test_workers_in_pods_get_the_stores_that_their_stream_names() -> None:
    url = "redis://:${PW}@cache/0"
    stores = [{"name": "main", "url": url}, {"name": "other", "url": "redis://other/0"}]
    stream = a_stream(workers=1, push={"view": "v", "online_store": "main"})

    (values,) = exported(a_spec(online_stores=stores, streams=[stream])).values["streams"]

    assert values["onlineStores"] == [{"name": "main", "url": url}]


def test_pools_need_a_control_plane() -> None:
    spec = a_spec(
        pools=[{"name": "small"}],
        endpoints=[{"name": "a", "model": "fraud:3", "pool": "small", "access": "public"}],
    )

    found = places(spec, mode=HelmMode.STATIC)

    assert set(found) == {"pools[0]", "endpoints[0].pool"}
    assert "--mode static" in found["pools[0]"]
    assert exported(spec).values["spec"] == spec.document()


def test_files_of_the_spec_have_to_be_mounted() -> None:
    spec = a_spec(security={"require_signature": True, "trusted_keys": ["/etc/trust/a.pem"]})

    found = places(spec)
    values = exported(spec, mounts=(Mount.parsed("secret:trust=/etc/trust"),)).values

    assert set(found) == {"security.trusted_keys"}
    assert "--mount secret:NAME=/etc/trust" in found["security.trusted_keys"]
    assert values["control"]["extraVolumes"] == [
        {"name": "mount-0", "secret": {"secretName": "trust"}}
    ]
    assert values["control"]["extraVolumeMounts"] == [
        {"name": "mount-0", "mountPath": "/etc/trust", "readOnly": True}
    ]


@pytest.mark.parametrize(
    "text",
    ["trust", "secret:=/etc/a", "volume:a=/etc/a", "secret:A=/etc/a", "secret:a=etc",
     "secret:a=/", "secret:a=/b/../etc", "secret:a=/etc/headrace"],
)  # fmt: skip
def test_a_mount_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="--mount"):
        Mount.parsed(text)


@given(st.lists(st.sampled_from(["a", "b", "..", "."]), max_size=6))
def test_no_path_with_dots_escapes_a_mount(parts: list[str]) -> None:
    mount = Mount.parsed("claim:data=/data/a")

    path = "/data/" + "/".join(parts)

    plain = [part for part in parts if part != "."]
    assert mount.has(path) == (plain[:1] == ["a"] and ".." not in plain)


def test_what_may_be_left_out_is_said_and_not_refused() -> None:
    spec = a_spec(pools=[{"name": "small"}])

    export = exported(spec, allowed=("pools[]",), mode=HelmMode.STATIC)

    assert any(note.startswith("pools[0]: left out") for note in export.notes)


def test_jobs_leave_the_control_plane_s_spec_unless_it_runs_them() -> None:
    spec = a_spec(jobs=[a_job()], streams=[a_stream()])

    apart = exported(spec).values
    there = exported(spec, separate_jobs=False, separate_streams=False).values

    assert "jobs" not in apart["spec"]
    assert "streams" not in apart["spec"]
    assert [job["name"] for job in apart["jobs"]] == ["nightly"]
    assert there["spec"] == spec.document()
    assert "jobs" not in there
    assert "streams" not in there


def test_a_run_is_called_after_its_job_so_that_another_try_goes_on() -> None:
    schedule = {"cron": "0 6 * * *", "timezone": "Europe/Paris", "catch_up_within_s": 7200.0}
    job = a_job(schedule=schedule, retries=4, timeout_s=90.5, memory_limit="2GiB", workers=3)

    (values,) = exported(a_spec(jobs=[job])).values["jobs"]

    assert "--run-id=$(RUN_ID)" in values["args"]
    assert "--output=/data/out/$(RUN_ID)" in values["args"]
    assert "--model=/models/model.onnx" in values["args"]
    assert values["model"] == {"digest": DIGEST}
    assert (values["schedule"], values["timeZone"]) == ("0 6 * * *", "Europe/Paris")
    assert (values["concurrencyPolicy"], values["suspend"]) == ("Forbid", False)
    assert (values["startingDeadlineSeconds"], values["timeoutSeconds"]) == (7200, 91)
    assert values["resources"]["limits"] == {"memory": str(2 << 30)}
    assert values["retries"] == 4


def test_a_job_without_a_schedule_waits_for_a_hand() -> None:
    (values,) = exported(a_spec(jobs=[a_job()])).values["jobs"]

    assert values["suspend"] is True


def test_what_looks_like_a_variable_of_kubernetes_stays_text() -> None:
    job = a_job(sql="select '$(HOME)' as a")

    (values,) = exported(a_spec(jobs=[job])).values["jobs"]

    assert "--sql=select '$$(HOME)' as a" in values["args"]


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"output": "/data/{date}"}, "jobs[0].output"),
        ({"output": "/elsewhere/{run_id}"}, "jobs[0].output"),
        ({"input": "/elsewhere/*.csv"}, "jobs[0].input"),
        ({"model": "scores"}, "jobs[0].model"),
        ({"schedule": {"cron": "0 6 * * *", "overlap": "wait"}}, "jobs[0].schedule.overlap"),
        ({"schedule": {"cron": "0 6 * * *", "catch_up": "all"}}, "jobs[0].schedule.catch_up"),
        ({"schedule": {"cron": "0 6 * * 7"}}, "jobs[0].schedule.cron"),
        ({"schedule": {"cron": "0 6 L * *"}}, "jobs[0].schedule.cron"),
        ({"schedule": {"cron": "0 6 * * *", "late_after_s": 9.0}}, "jobs[0].schedule.late_after_s"),
    ],
)
def test_what_a_cron_job_cannot_do_is_refused_by_its_place(
    changed: dict[str, Any], place: str
) -> None:
    endpoints = [{"name": "scores", "model": "fraud:3"}]

    assert set(places(a_spec(endpoints=endpoints, jobs=[a_job(**changed)]))) == {place}


def test_workers_fetch_their_model_and_are_one_to_a_pod() -> None:
    (values,) = exported(a_spec(streams=[a_stream()])).values["streams"]

    assert values["models"] == [{"name": "model", "digest": DIGEST}]
    assert values["spec"]["model"] == "/models/model/model.onnx"
    assert "workers" not in values["spec"]


def test_a_number_of_workers_is_the_number_of_pods_and_nobody_scales() -> None:
    (values,) = exported(a_spec(streams=[a_stream(workers=3)])).values["streams"]

    assert values["replicas"] == 3
    assert "autoscaling" not in values


def test_keda_asks_kafka_for_the_lag_of_each_topic() -> None:
    (values,) = exported(a_spec(streams=[a_stream()]), lag_records=500).values["streams"]

    scaling = values["autoscaling"]
    assert (scaling["minReplicas"], scaling["maxReplicas"]) == (1, 8)
    assert [trigger["metadata"]["topic"] for trigger in scaling["triggers"]] == ["in", "more"]
    assert scaling["triggers"][0]["metadata"] == {
        "bootstrapServers": "kafka-0:9092,kafka-1:9092",
        "consumerGroup": "pay",
        "topic": "in",
        "lagThreshold": "500",
        "offsetResetPolicy": "earliest",
    }


def test_keda_asks_redis_and_nats_as_the_brokers_name_things() -> None:
    redis = a_stream(source={"broker": "rediss://cache/2", "topics": ["in"], "group": "g"})
    nats = a_stream(
        name="b", source={"broker": "nats://n:4222", "topics": ["pay.in"], "group": "g 1"}
    )

    one, other = exported(a_spec(streams=[redis, nats]), nats_monitoring="nats:8222").values[
        "streams"
    ]

    assert one["autoscaling"]["triggers"][0]["metadata"] == {
        "address": "cache:6379",
        "consumerGroup": "g",
        "lagCount": "2560",
        "databaseIndex": "2",
        "enableTLS": "true",
        "stream": "in",
    }
    assert other["autoscaling"]["triggers"][0]["metadata"] == {
        "natsServerMonitoringEndpoint": "nats:8222",
        "account": "$G",
        "stream": "pay=in",
        "consumer": "g=201",
        "lagThreshold": "2560",
    }


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"source": {"broker": "pulsar://p:6650", "topics": ["in"]}}, "streams[0].workers"),
        ({"source": {"broker": "nats://n:4222", "topics": ["in"]}}, "streams[0].source.broker"),
        ({"source": {"broker": "redis://:${PW}@r", "topics": ["in"]}}, "streams[0].source.broker"),
        ({"source": {"broker": "redis://u:${PW}@r", "topics": ["in"]}}, "streams[0].source.broker"),
        ({"source": {"broker": "kafka://k?security.protocol=SASL_SSL", "topics": ["in"]}},
         "streams[0].source.broker"),
        ({"source": {"broker": "log:demo", "topics": ["in"]}, "workers": 1},
         "streams[0].source.broker"),
        ({"model": None, "endpoint": "scores", "workers": 1}, "streams[0].endpoint"),
        ({"paused": True}, "streams[0].paused"),
    ],
)  # fmt: skip
def test_what_workers_in_pods_cannot_do_is_refused_by_its_place(
    changed: dict[str, Any], place: str
) -> None:
    stream = {key: value for key, value in a_stream(**changed).items() if value is not None}
    endpoints = [{"name": "scores", "model": "fraud:3"}]

    assert set(places(a_spec(endpoints=endpoints, streams=[stream]))) == {place}


def test_a_broker_that_asks_who_connects_is_asked_by_keda_s_own_authentication() -> None:
    stream = a_stream(source={"broker": "redis://u:${PW}@r", "topics": ["in"]})

    (values,) = exported(a_spec(streams=[stream]), keda_authentication="r").values["streams"]

    (trigger,) = values["autoscaling"]["triggers"]
    assert trigger["authenticationRef"] == {"name": "r"}
    assert "PW" not in str(trigger)


def test_static_objects_have_no_gateway_and_say_so_where_the_spec_needs_one() -> None:
    spec = a_spec(
        auth={
            "jwt": [
                {
                    "name": "corp",
                    "issuer": "https://i",
                    "audiences": ["a"],
                    "jwks_url": "https://i/k",
                }
            ]
        },
        endpoints=[
            {"name": "a", "model": "fraud:3", "access": ["key"], "sticky": {"header": "x-user"}},
            {"name": "b", "model": "fraud:3"},
            {"name": "c", "model": "fraud:3", "access": "public", "slo": {"latency_s": 0.2}},
        ],
    )

    assert set(places(spec, mode=HelmMode.STATIC)) == {
        "auth",
        "endpoints[0].access",
        "endpoints[0].sticky",
        "endpoints[1].access",
    }


def test_static_objects_are_scaled_by_somebody_else_or_not_at_all() -> None:
    scale = {"min_replicas": 1, "max_replicas": 3, "target_in_flight": 4}
    endpoint = {"name": "a", "model": "fraud:3", "access": "public", "autoscale": scale}

    found = places(a_spec(endpoints=[endpoint]), mode=HelmMode.STATIC)

    assert set(found) == {"endpoints[0].autoscale"}
    hpa = a_spec(endpoints=[endpoint], kubernetes={"autoscaler": "hpa"})
    assert exported(hpa, mode=HelmMode.STATIC).values["workloads"]["mode"] == "static"


def test_a_version_s_values_are_what_the_driver_would_make() -> None:
    scale = AutoscaleSpec(min_replicas=2, max_replicas=9, target_in_flight=7.5)
    arm = an_arm(weight=25, replicas=3)
    endpoint = an_endpoint(arm, autoscale=scale)
    desired = a_state(endpoint, autoscaler="hpa", node_selector={"pool": "gpu"})

    values = version_values(
        endpoint,
        arm,
        number=0,
        spec=desired.spec,
        installation=InstallationName(namespace="a", artifacts_url=URL, image_registry="r"),
    )

    assert (values["revision"], values["weight"]) == (arm.revision.id, 25)
    assert values["digest"] == f"sha256:{arm.revision.settings.sha256}"
    assert values["pod"]["nodeSelector"] == {"pool": "gpu"}
    assert values["autoscaling"]["type"] == "hpa"
    assert values["autoscaling"]["targetInFlight"] == "7500m"
    assert '"path": "/models/model.onnx"' in values["settings"]


def test_a_version_that_no_cluster_runs_is_told_with_its_endpoint() -> None:
    spec = a_spec(endpoints=[{"name": "digits", "model": "digits:1", "access": "public"}])
    options = HelmOptions(mode=HelmMode.STATIC)

    with pytest.raises(NotExpressibleError, match=r"endpoints\[0\]: .*artifacts"):
        helm_values(spec, options, endpoints=(an_endpoint(),))


def test_variables_are_found_wherever_they_stand() -> None:
    assert variables_of({"a": ["x${ONE}", {"b": "${TWO}${ONE}"}], "c": 3}) == ("ONE", "TWO")
    spec = a_spec(
        streams=[
            a_stream(
                source={"broker": "kafka://k?sasl.password=${PW}", "topics": ["in"]}, workers=1
            )
        ]
    )
    assert any("PW" in note and "environmentSecret" in note for note in exported(spec).notes)


def test_values_keep_the_chart_s_comments_and_replace_its_spec_as_a_whole() -> None:
    spec = a_spec(endpoints=[{"name": "fraud", "model": "fraud:3"}])

    files = chart_with(exported(spec).values, chart_folder())

    text = files["values.yaml"].decode()
    assert "# Content of headrace.yaml; `headrace export helm` fills it in." in text
    assert "model: fraud:3" in text
    assert "url: s3://models/prod" in text
    assert {"Chart.yaml", "values.schema.json", "README.md"} < set(files)


def test_rules_of_a_spec_hold_its_promises() -> None:
    slo = {"latency_s": 0.123, "availability": 0.999}
    promised = rule_groups({"endpoints": [{"name": "fraud", "slo": slo}]})

    assert "0.123" in str(promised)
    assert "0.123" not in str(rule_groups({"version": 1}))
    assert "{{ $labels" in chart_files()["files/rules.yaml"]


@pytest.mark.parametrize("cron", ["0 6 * * WED", "0 0 1 JUL *", "*/5 6-8 * * mon-fri"])
def test_names_of_days_and_months_are_no_signs_of_a_larger_dialect(cron: str) -> None:
    (job,) = exported(a_spec(jobs=[a_job(schedule={"cron": cron})])).values["jobs"]

    assert (job["schedule"], job["suspend"]) == (cron, False)


def test_a_schedule_that_may_be_left_out_leaves_a_suspended_job() -> None:
    spec = a_spec(jobs=[a_job(schedule={"cron": "0 0 L * *", "overlap": "wait"})])

    export = exported(spec, allowed=("jobs[].schedule.cron", "jobs[].schedule.overlap"))

    (job,) = export.values["jobs"]
    assert job["suspend"] is True
    assert "L" not in job["schedule"]
    assert job["concurrencyPolicy"] == "Forbid"
