"""Table of features by target: one row per group of the spec's fields.

The documentation shows this table, and exports refuse by it.
"""

from dataclasses import replace
from typing import Final

from headrace.core.spec.kubernetes import Autoscaler
from headrace.deploy.features import (
    FeatureSupport,
    Holds,
    SpecFeature,
    about,
    external,
    no,
    row,
    yes,
)

_CHART = "use the control plane (`headrace export helm`)"
_BEHIND = external("Headrace's gateway behind it does it")
_REPLICAS = external("the replicas do it")
_RULES = external("`headrace export prometheus`")
_SETTINGS = yes("the replicas' settings")
_OURS = external("of Headrace's own gateway")
_NO_AUTH = no(
    "does not authenticate callers",
    "set `access: public` and authenticate elsewhere, or keep Headrace's gateway behind it",
)
_NO_LIMIT = no("has no such limit", "keep Headrace's gateway behind it")
_NO_COUNT = no(
    "cannot count it", "keep Headrace's gateway behind it, or limit `requests_per_s` only"
)
_NO_CONTROL = no("needs a control plane", _CHART)
_NO_POOL = no(
    "a pool's processes need the model of each request",
    "give the endpoint dedicated replicas",
)
_NO_STICKY = no(
    "cannot keep a caller on one version", "export for Envoy, or keep Headrace's gateway behind it"
)
_NO_FALLBACK = no(
    "sends no request to another endpoint",
    "export for Envoy, or keep Headrace's gateway behind it",
)
_PODS = yes("the replicas' pods")
_NO_STEPS = no("has no steps", "export for Argo Rollouts")
_STEP_BY_STEP = external("routes are of one moment: export again (`--from-system`) as it goes on")
_NO_TEST = no("has no sequential test", "leave it out: thresholds decide there")
_NO_DATA = no("compares no answers", "let Headrace roll it out, or set it null")
_NO_TIME = no("its analysis ends by counting checks", "leave it out, or let Headrace roll it out")
_NO_BASELINE = no(
    "has no fresh copies of the old version", "compare with the old version (`baseline: false`)"
)
_NO_TIER = no("knows no kinds of callers", "keep Headrace's gateway behind it")


def _includes_method(method: str) -> Holds:
    return lambda access: access != "public" and method in access


_NO_SPLIT = no(
    "moves all requests to the newest version, step by step",
    "export routes (`gateway-api`), or list one version only",
    when=lambda weight: weight != 100,  # noqa: PLR2004  # percent: all of it
    rest="a split that stays",
)
_NO_ALIASES = no("reads no bodies", "let callers use the endpoint's name")
_NO_ZERO = no(
    "cannot hold a request until a copy runs",
    "set `min_replicas: 1`, or export for KServe",
    when=lambda count: count == 0,
    rest="0",
)
_NO_SCALER = no(
    "says nothing of replica counts",
    "say `kubernetes.autoscaler: hpa`, or " + _CHART,
    unless=lambda spec: spec.kubernetes.autoscaler == Autoscaler.HPA,
    rest="without an HPA",
)
_KNATIVE = about("Knative's, within its bounds")
_NO_KNATIVE = no("Knative has one for the whole cluster, or none", _CHART)
_NO_SUCH_SCALER = no("an HPA knows nothing of it", "leave it out, or " + _CHART)
_NO_KEDA = no(
    "tells KEDA no pods' names",
    "say `hpa`, or " + _CHART,
    when=lambda value: value == Autoscaler.KEDA,
    rest="`keda`",
)
_NO_FOREIGN = no("serves models, not another's server", "export for Envoy, Kong or gateway-api")
_PUBLIC_ONLY = replace(_NO_AUTH, when=lambda access: access != "public", rest="all but `public`")


def _rollout(title: str, fields: str, by_argo: FeatureSupport) -> SpecFeature:
    """Return the row of a setting that only Argo Rollouts may express."""
    steps = (_STEP_BY_STEP, _NO_STEPS, by_argo, _STEP_BY_STEP, _BEHIND, _STEP_BY_STEP)
    return row(f"Rollout: {title}", fields, *steps)


def _of_replicas(
    title: str, fields: str, by_kserve: FeatureSupport, by_argo: FeatureSupport
) -> SpecFeature:
    """Return the row of a setting of replicas, which routes leave to them."""
    return row(title, fields, *(_REPLICAS, by_kserve, by_argo, _REPLICAS, _BEHIND, _REPLICAS))


TABLE: Final[tuple[SpecFeature, ...]] = (
    # In each row: gateway-api, kserve, argo-rollouts, kong, aws-apigateway, envoy.
    row("Format of the file", "version", every=external("of the file")),
    row("Endpoints", "endpoints[].name", every=yes()),
    row(
        "Models and their versions",
        "endpoints[]: model version versions endpoints[].versions[]: model version",
        *(yes("a Service per version"), yes("`storageUri`"), yes()),
        *(yes("a target per version"), _BEHIND, yes("`--replica`")),
    ),
    row(
        "Weights of a split",
        "endpoints[].versions[].weight",
        yes(),
        yes("two versions: `canaryTrafficPercent`"),
        *(_NO_SPLIT, yes(), _BEHIND, yes()),
    ),
    row(
        "Another's server",
        "endpoints[].upstream endpoints[].versions[].upstream",
        yes("`--service` names it"),
        *(_NO_FOREIGN, _NO_FOREIGN),
        *(yes("`http` and `https` without a path"), _BEHIND, yes()),
    ),
    row(
        "TLS to another's server",
        "endpoints[].upstream.tls endpoints[].versions[].upstream.tls",
        no("its Service's TLS is a BackendTLSPolicy's", "write that policy by hand"),
        *(_NO_FOREIGN, _NO_FOREIGN),
        no("certificates are entities of Kong's own", "add them there, with `tls_verify`"),
        *(_BEHIND, yes("certificates from the files")),
    ),
    row(
        "API key of another's server",
        "endpoints[].upstream.api_key_file endpoints[].versions[].upstream.api_key_file",
        no("a route has no credentials", "add the key at the Service, or in front of it"),
        *(_NO_FOREIGN, _NO_FOREIGN),
        no("is not exported", "add it with the plugin `request-transformer`"),
        *(_BEHIND, yes("the file must not end in a newline")),
    ),
    row(
        "Health and bounds of another's server",
        "endpoints[].upstream: health_path health_interval_s max_requests "
        "endpoints[].versions[].upstream: health_path health_interval_s max_requests",
        external("its Service's readiness"),
        *(_NO_FOREIGN, _NO_FOREIGN),
        no("is not exported", "add it to the upstream by hand"),
        *(_BEHIND, yes()),
    ),
    _of_replicas("Replicas", "endpoints[].replicas endpoints[].versions[].replicas", yes(), yes()),
    _of_replicas(
        "Batching, labels, runtime, device, nulls, language models",
        "endpoints[]: batching labels runtime device nulls llm",
        _SETTINGS,
        _SETTINGS,
    ),
    row("Example request", "endpoints[].example", every=external("of Headrace's readiness check")),
    _of_replicas("Code of the model's author", "endpoints[].allow_code", yes(), yes()),
    _of_replicas(
        "Network of the replicas",
        "endpoints[].network",
        *(about("pods have one unless a NetworkPolicy forbids it"),) * 2,
    ),
    _of_replicas(
        "Isolation and memory of the replicas",
        "endpoints[].isolation endpoints[].memory_bytes",
        *(about("as the pods' security context and limits say"),) * 2,
    ),
    row(
        "Timeout",
        "endpoints[].timeout_s",
        *(yes(), about("whole seconds"), yes()),
        about("between two reads"),
        yes("up to 29 s"),
        yes(),
    ),
    row("SLO", "endpoints[].slo", *(_RULES,) * 6),
    row(
        "SLO in a rollout",
        "endpoints[].slo.latency_s",
        *(_RULES, _RULES, yes("a threshold of the analysis"), _RULES, _RULES, _RULES),
    ),
    _of_replicas(
        "Scaling: bounds and target",
        "endpoints[].autoscale endpoints[].autoscale: max_replicas target_in_flight",
        yes(),
        _NO_SCALER,
    ),
    row(
        "Scaling to zero",
        "endpoints[].autoscale.min_replicas",
        *(_NO_ZERO, yes(), _NO_SCALER, _NO_ZERO, _BEHIND, _NO_ZERO),
    ),
    _of_replicas(
        "Scaling: windows, panic, idle time",
        "endpoints[].autoscale: stable_window_s panic_window_s panic_ratio idle_s",
        _KNATIVE,
        _NO_SUCH_SCALER,
    ),
    _of_replicas(
        "Scaling: delay before fewer",
        "endpoints[].autoscale.scale_down_delay_s",
        _KNATIVE,
        _NO_SCALER,
    ),
    _of_replicas(
        "Scaling: step sizes",
        "endpoints[].autoscale: max_scale_up_ratio max_scale_down_ratio",
        _NO_KNATIVE,
        _NO_SCALER,
    ),
    _of_replicas(
        "Scaling: waits, schedules, holding",
        "endpoints[].autoscale: target_queue_wait_s schedule hold_s max_held",
        _NO_KNATIVE,
        _NO_SUCH_SCALER,
    ),
    _rollout("canary, blue-green", "endpoints[].rollout", yes()),
    _rollout("A/B", "endpoints[].rollout: weight mismatch_alpha", _NO_STICKY),
    _rollout("shadow", "endpoints[].rollout: mirror_percent promotes", _NO_DATA),
    _rollout("fresh copies of the old version", "endpoints[].rollout.baseline", _NO_BASELINE),
    _rollout("level of the test", "endpoints[].rollout.alpha", _NO_TEST),
    _rollout(
        "smallest sample",
        "endpoints[].rollout.min_samples",
        about("requests within the query's window"),
    ),
    _rollout("warm-up", "endpoints[].rollout.warmup_s", yes("`initialDelay`")),
    _rollout(
        "longest time, and what then", "endpoints[].rollout: max_duration_s on_timeout", _NO_TIME
    ),
    _rollout(
        "time to become ready",
        "endpoints[].rollout.ready_timeout_s",
        yes("`progressDeadlineSeconds`"),
    ),
    _rollout(
        "the old version is kept", "endpoints[].rollout.keep_s", yes("`scaleDownDelaySeconds`")
    ),
    _rollout(
        "errors, rejections, latency",
        "endpoints[].rollout.metrics",
        about("thresholds on the replicas' metrics"),
    ),
    _rollout(
        "answers, tokens, reward",
        "endpoints[].rollout.metrics: predictions disagreement reward time_per_output_token "
        "output_tokens",
        _NO_DATA,
    ),
    row(
        "Sticky callers: header, cookie",
        "endpoints[].sticky",
        *(_NO_STICKY, _NO_STICKY, _NO_STICKY),
        about("consistent hashing: few callers move when weights change"),
        *(_BEHIND, yes()),
    ),
    row(
        "Sticky callers: a token's claim",
        "endpoints[].sticky.claim",
        *(_NO_STICKY, _NO_STICKY, _NO_STICKY, _NO_STICKY, _BEHIND, yes()),
    ),
    row(
        "Pause",
        "endpoints[].paused",
        every=no("routes every endpoint", "resume it, or leave it out", when=bool),
    ),
    row("Fallback", "endpoints[].fallback", *(_NO_FALLBACK,) * 4, *(_BEHIND, yes())),
    _of_replicas(
        "Drift, features, payload log",
        "online_stores endpoints[]: drift features payload_log",
        _NO_CONTROL,
        _NO_CONTROL,
    ),
    row("Pools", "endpoints[].pool", *(_NO_POOL, _NO_POOL, _NO_POOL, _NO_POOL, _BEHIND, _NO_POOL)),
    row("Pools' own settings", "pools", every=external("of the pools' processes")),
    row("Aliases in OpenAI's API", "endpoints[].aliases", *(_NO_ALIASES,) * 4, *(_BEHIND, yes())),
    row(
        "Access",
        "endpoints[].access",
        *(_PUBLIC_ONLY,) * 3,
        no(
            "takes no client certificates",
            "let keys or tokens in only, or add Kong's `mtls-auth`",
            when=_includes_method("certificate"),
            rest="`certificate`",
        ),
        about("the gateway behind asks; tokens are checked before it where only they let one in"),
        no(
            "knows no API keys: they are in a control plane's state",
            "let tokens or certificates in, or keep the control plane",
            when=_includes_method("key"),
            rest="`key`",
        ),
    ),
    row(
        "Tokens: issuer, audience, keys",
        "auth.jwt auth.jwt[]: name issuer jwks_file",
        *(_NO_AUTH,) * 3,
        *(yes("one RSA or EC key of a file"), yes("HTTP API"), yes()),
    ),
    row(
        "Tokens: audience",
        "auth.jwt[].audiences",
        *(_NO_AUTH,) * 3,
        no(
            "its `jwt` plugin checks no audience: a token for another service would be let in",
            "use the `openid-connect` plugin (Enterprise), or Headrace's gateway behind it",
        ),
        *(yes("HTTP API"), yes()),
    ),
    row(
        "Tokens: keys from a URL",
        "auth.jwt[].jwks_url",
        *(_NO_AUTH,) * 3,
        no("its `jwt` plugin fetches no keys", "give `jwks_file`"),
        *(about("found by the issuer's own document"), yes()),
    ),
    row(
        "Tokens: clocks, cache, claims",
        "auth.jwt[]: jwks_cache_s clock_skew_s caller_claim scope_claim tier_claim",
        *(_NO_AUTH,) * 3,
        no("its `jwt` plugin has no such setting", "leave it out"),
        *(_BEHIND, yes()),
    ),
    row(
        "Client certificates",
        "auth.certificates",
        *(_NO_AUTH,) * 3,
        no("takes no client certificates", "add Kong's `mtls-auth`"),
        no("ends TLS, so that none comes to the gateway behind", "let keys or tokens in"),
        yes(),
    ),
    row(
        "Tiers",
        "tiers",
        *(_NO_TIER,) * 3,
        no("has kinds of callers in Enterprise only", "limit `per_caller`"),
        *(about("a usage plan each (REST API); the gateway behind limits too"), yes()),
    ),
    row(
        "Tiers: rows, tokens, concurrency, days",
        "tiers[]: rows_per_s max_concurrent requests_per_day tokens_per_minute "
        "input_tokens_per_minute output_tokens_per_minute tokens_per_day token_weights",
        *(_NO_TIER,) * 3,
        no("has kinds of callers in Enterprise only", "limit `per_caller`"),
        *(_BEHIND, _NO_COUNT),
    ),
    row(
        "Limits: requests per second",
        "endpoints[].limits.requests_per_s",
        *(_NO_LIMIT,) * 3,
        about("fixed windows, the split and each version by itself"),
        *(about("throttling, of each of its routes by itself"), yes()),
    ),
    row(
        "Limits: burst",
        "endpoints[].limits.burst",
        *(_NO_LIMIT,) * 3,
        no("has fixed windows without a burst", "leave it out"),
        *(yes("throttling"), yes()),
    ),
    row(
        "Limits: requests per day",
        "endpoints[].limits.requests_per_day endpoints[].limits.per_caller.requests_per_day",
        *(_NO_LIMIT,) * 3,
        *(about("each node counts for itself"), _BEHIND, _NO_COUNT),
    ),
    row(
        "Limits: rows, concurrency, tokens",
        "endpoints[].limits: rows_per_s max_concurrent tokens_per_minute input_tokens_per_minute "
        "output_tokens_per_minute tokens_per_day token_weights "
        "endpoints[].limits.per_caller: rows_per_s max_concurrent tokens_per_minute "
        "input_tokens_per_minute output_tokens_per_minute tokens_per_day token_weights",
        *(_NO_LIMIT,) * 3,
        *(_NO_COUNT, _BEHIND, _NO_COUNT),
    ),
    row(
        "Limits per caller",
        "endpoints[].limits.per_caller",
        *(_NO_LIMIT,) * 3,
        *(about("fixed windows"), _BEHIND, yes()),
    ),
    row(
        "Limits per caller: burst",
        "endpoints[].limits.per_caller.burst",
        *(_NO_LIMIT,) * 3,
        no("has fixed windows without a burst", "leave it out"),
        *(_BEHIND, yes()),
    ),
    row(
        "Size of a request",
        "endpoints[].limits.max_body_bytes gateway.max_body_bytes",
        _NO_LIMIT,
        *(_SETTINGS, _SETTINGS),
        *(yes(), yes("up to 10 MB, by the gateway behind"), yes()),
    ),
    row(
        "The gateway's addresses",
        "gateway: host http_port grpc_port",
        *(external("its own listeners"),) * 5,
        yes(),
    ),
    row(
        "The gateway's TLS", "gateway.tls", *(external("its own listeners"),) * 5, yes("its files")
    ),
    row(
        "The gateway's client certificates",
        "gateway.tls: client_ca_file require_client_certificate",
        *(no("its listeners are not exported", "set it there, then `--allow-loss` it"),) * 5,
        yes(),
    ),
    row("The gateway's connections", "gateway.connections", *(_OURS,) * 5, yes()),
    row("Pages of other origins", "gateway.cors", *(_OURS,) * 5, yes()),
    row(
        "Request log",
        "gateway: access_log request_log endpoints[]: request_log",
        *(_OURS,) * 5,
        yes(),
    ),
    row(
        "Limits that gateways share",
        "gateway: shared_limits limits_service limits_listen",
        *(_OURS,) * 5,
        no("the service is a control plane's", "leave it out, or keep the control plane"),
    ),
    _of_replicas("Signatures", "security", *(_NO_CONTROL,) * 2),
    row("Traces", "tracing", *(_REPLICAS, _NO_CONTROL, _NO_CONTROL, _REPLICAS, _BEHIND, yes())),
    _of_replicas(
        "Pods: image, resources, nodes, environment",
        "kubernetes: image pull_policy pull_secrets resources node_selector tolerations "
        "replica_env service_account runtime_class priority_class pod_annotations "
        "pod_labels endpoints pools",
        *(_PODS,) * 2,
    ),
    _of_replicas(
        "Pods: volumes, shared memory, patch",
        "kubernetes: shm_size pod_template node_cache model_volume kubernetes.node_cache: "
        "claim path kubernetes.model_volume: claim image path",
        no("KServe has its own pod template and downloads", "leave it out, or patch the export"),
        _PODS,
    ),
    _of_replicas(
        "Pods: who scales them",
        "kubernetes.autoscaler kubernetes.prometheus_url",
        no("scales by itself, by requests", "leave it out"),
        _NO_KEDA,
    ),
    row(
        "Pods: how many Deployments replace theirs at once",
        "kubernetes.max_rolling_ratio",
        every=external("the control plane's own pace"),
    ),
    row("Budget", "budget", every=external("a ResourceQuota, or the machine's scheduler")),
    row("Alerts", "alerts", every=_RULES),
    row("Streams", "streams", every=external("stream workers, which no request reaches")),
    row("Jobs", "jobs", every=external("jobs, which no request reaches")),
)
