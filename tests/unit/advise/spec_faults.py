"""Faults of the spec and its files, each with the one check that has to find it."""

from tests.unit.advise.planting import (
    InSpec,
    both,
    chmod,
    drop,
    elliptic_signer,
    nameless,
    put,
    self_signed,
    with_model,
    with_upstream,
    write,
)

LOCAL = put("gateway.host", "127.0.0.1")
SECURE = {
    "url": "https://churn.scoring.test:8443",
    "tls": {
        "ca_file": "./pki/ca.pem",
        "certificate_file": "./pki/client.pem",
        "key_file": "./pki/client.key",
    },
}
PYTHON = "class Model(PythonModel):\n    pass\n"
FIRST = "endpoints[0]"
UNTIERED = both(drop("tiers"), drop("auth.certificates.0.tier"))
"""Tiers need an endpoint that identifies its callers."""
IN_SPEC = [
    InSpec(check=check, name=name, change=change, where=where)
    for check, name, where, change in [
        (
            "HR001",
            "public beyond loopback",
            f"{FIRST}.access",
            both(UNTIERED, put("endpoints.0.access", "public")),
        ),
        (
            "HR002",
            "public on loopback",
            f"{FIRST}.access",
            both(LOCAL, UNTIERED, put("endpoints.0.access", "public")),
        ),
        (
            "HR003",
            "silent on loopback",
            f"{FIRST}.access",
            both(LOCAL, UNTIERED, drop("endpoints.0.access")),
        ),
        ("HR004", "lets nobody in", f"{FIRST}.access", put("endpoints.0.access", [])),
        ("HR005", "no client CA", "auth.certificates", drop("gateway.tls.client_ca_file")),
        (
            "HR005",
            "no client CA and no rule",
            f"{FIRST}.access",
            both(drop("gateway.tls.client_ca_file"), drop("auth.certificates")),
        ),
        (
            "HR006",
            "an unknown provider",
            f"{FIRST}.access",
            put("endpoints.0.access", ["key", "jwt:partners"]),
        ),
        (
            "HR007",
            "an issuer over http",
            "auth.jwt[0].issuer",
            put("auth.jwt.0.issuer", "http://login.hardened.test"),
        ),
        (
            "HR008",
            "a shared audience",
            "auth.jwt[0].audiences[1]",
            put("auth.jwt.0.audiences", ["https://inference.hardened.test", "account"]),
        ),
        ("HR009", "clocks", "auth.jwt[0].clock_skew_s", put("auth.jwt.0.clock_skew_s", 300)),
        (
            "HR010",
            "old keys",
            "auth.jwt[0].jwks_cache_s",
            both(
                drop("auth.jwt.0.jwks_file"),
                put("auth.jwt.0.jwks_url", "https://login.hardened.test/keys"),
                put("auth.jwt.0.jwks_cache_s", 86400.0),
            ),
        ),
        (
            "HR011",
            "a shared secret",
            "auth.jwt[0].jwks_file",
            write("pki/issuer.jwks.json", '{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}'),
        ),
        (
            "HR011",
            "a short RSA key",
            "auth.jwt[0].jwks_file",
            write("pki/issuer.jwks.json", '{"keys": [{"kty": "RSA", "n": "' + "_" * 171 + '"}]}'),
        ),
        (
            "HR012",
            "an example's issuer",
            "auth.jwt[0].issuer",
            put("auth.jwt.0.issuer", "https://login.example.com"),
        ),
        (
            "HR012",
            "an example's upstream",
            f"{FIRST}.upstream.url",
            with_upstream(SECURE | {"url": "https://models.example:8443"}),
        ),
        (
            "HR013",
            "any certificate",
            "auth.certificates[0].dns",
            put("auth.certificates.0.dns", "*"),
        ),
        (
            "HR014",
            "certificates may all",
            "auth.certificates[0].scopes",
            put("auth.certificates.0.scopes", ["infer:*"]),
        ),
        (
            "HR015",
            "an unknown tier",
            "auth.certificates[0].tier",
            put("auth.certificates.0.tier", "platinum"),
        ),
        ("HR102", "TLS 1.2", "gateway.tls.min_version", put("gateway.tls.min_version", "1.2")),
        ("HR108", "a key for all", "gateway.tls.key_file", chmod("pki/server.key", 0o644)),
        (
            "HR109",
            "another's key",
            "gateway.tls.key_file",
            put("gateway.tls.key_file", "./pki/client.key"),
        ),
        (
            "HR107",
            "its own authority",
            "gateway.tls.certificate_file",
            self_signed,
        ),
        (
            "HR110",
            "no host's name",
            "gateway.tls.certificate_file",
            nameless,
        ),
        (
            "HR111",
            "a plain upstream",
            f"{FIRST}.upstream.url",
            with_upstream({"url": "http://churn.scoring.test:8000"}),
        ),
        (
            "HR112",
            "an upstream of any authority",
            f"{FIRST}.upstream.tls.ca_file",
            both(with_upstream(SECURE), drop("endpoints.0.upstream.tls.ca_file")),
        ),
        (
            "HR113",
            "an upstream that is shown nothing",
            f"{FIRST}.upstream.tls.certificate_file",
            with_upstream(SECURE | {"tls": {"ca_file": "./pki/ca.pem"}}),
        ),
        ("HR201", "no limits", f"{FIRST}.limits", drop("endpoints.0.limits")),
        (
            "HR202",
            "none per caller",
            f"{FIRST}.limits.per_caller",
            drop("endpoints.0.limits.per_caller"),
        ),
        (
            "HR203",
            "large bodies",
            "gateway.max_body_bytes",
            put("gateway.max_body_bytes", 1_000_000_000),
        ),
        ("HR204", "no timeout", f"{FIRST}.timeout_s", put("endpoints.0.timeout_s", None)),
        (
            "HR205",
            "a long queue",
            f"{FIRST}.batching.max_queue_size",
            put("endpoints.0.batching", {"max_queue_size": 1_000_000}),
        ),
        ("HR301", "no promise", f"{FIRST}.slo", drop("endpoints.0.slo")),
        ("HR302", "one copy", f"{FIRST}.replicas", drop("endpoints.0.autoscale")),
        (
            "HR303",
            "no room",
            f"{FIRST}.autoscale.max_replicas",
            put("endpoints.0.autoscale.max_replicas", 2),
        ),
        (
            "HR304",
            "to zero",
            f"{FIRST}.autoscale.min_replicas",
            put("endpoints.0.autoscale.min_replicas", 0),
        ),
        ("HR305", "all at once", f"{FIRST}.rollout", drop("endpoints.0.rollout")),
        (
            "HR306",
            "a blind rollout",
            f"{FIRST}.rollout.metrics",
            put(
                "endpoints.0.rollout.metrics",
                {"errors": None, "rejections": None, "latency": None, "predictions": None},
            ),
        ),
        (
            "HR307",
            "wide margins of errors",
            f"{FIRST}.rollout.metrics.errors.margin",
            put("endpoints.0.rollout.metrics.errors.margin", 0.5),
        ),
        (
            "HR307",
            "wide margins of latency",
            f"{FIRST}.rollout.metrics.latency.margin_ratio",
            put("endpoints.0.rollout.metrics.latency.margin_ratio", 10.0),
        ),
        (
            "HR308",
            "promoted unjudged",
            f"{FIRST}.rollout.on_timeout",
            put("endpoints.0.rollout.on_timeout", "promote"),
        ),
        ("HR309", "no access log", "gateway.access_log", put("gateway.access_log", value=False)),
        (
            "HR309",
            "no request log",
            "gateway.request_log.mode",
            put("gateway.request_log.mode", value="off"),
        ),
        (
            "HR401",
            "unsigned models",
            "security.require_signature",
            put("security.require_signature", value=False),
        ),
        (
            "HR403",
            "a key that signs something else",
            "security.trusted_keys[0]",
            elliptic_signer,
        ),
        (
            "HR404",
            "anybody's trust",
            "security.trusted_keys[0]",
            chmod("pki/signer.pub.pem", 0o666),
        ),
        ("HR405", "a path", f"{FIRST}.model", with_model("digits.txt", "weights")),
        ("HR406", "the newest", f"{FIRST}.model", put("endpoints.0.model", "digits")),
        (
            "HR407",
            "code is allowed",
            f"{FIRST}.allow_code",
            put("endpoints.0.allow_code", value=True),
        ),
        ("HR408", "Python", f"{FIRST}.model", put("endpoints.0.runtime", "python")),
        ("HR408", "TorchScript", f"{FIRST}.model", put("endpoints.0.runtime", "torchscript")),
        ("HR409", "network", f"{FIRST}.network", put("endpoints.0.network", value=True)),
        (
            "HR701",
            "a key in a label",
            f"{FIRST}.labels.output[0]",
            put("endpoints.0.labels", {"output": ["hr_a1b2c3d4_QmFzZTY0LXNlY3JldC1vZi1hLWtleQ"]}),
        ),
        (
            "HR702",
            "a dangling file",
            "gateway.tls.client_ca_file",
            put("gateway.tls.client_ca_file", "./pki/gone.pem"),
        ),
        (
            "HR703",
            "no certificate",
            "gateway.tls.client_ca_file",
            write("pki/ca.pem", "not a certificate"),
        ),
        (
            "HR703",
            "no set of keys",
            "auth.jwt[0].jwks_file",
            write("pki/issuer.jwks.json", "[" * 10_000),
        ),
        ("HR704", "anybody's spec", "headrace.yaml", chmod("headrace.yaml", 0o666)),
    ]
]
