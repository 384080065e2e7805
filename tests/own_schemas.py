"""Schema of Kong's declarative file, which no package of a registry has.

It allows what Headrace writes, and no more, with the limits that Kong's reference documents; a
field that we newly write is a failure until it is looked up and added here.
https://developer.konghq.com/gateway/entities/
"""

from collections.abc import Iterable
from typing import Any, Final

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string", "minLength": 1}
FLAG: Final[Schema] = {"type": "boolean"}
_NAME: Final[Schema] = {"type": "string", "pattern": r"^[A-Za-z0-9._~-]+$"}


def _one_of(*words: str) -> Schema:
    return {"type": "string", "enum": list(words)}


def _whole(least: int, most: int) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most}


def _list(of: Schema, *, at_least: int = 0) -> Schema:
    return {"type": "array", "items": of, "minItems": at_least}


def _object(required: Iterable[str] = (), /, **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_WAIT_MS: Final = _whole(1, 2**31 - 2)
_COUNT: Final[Schema] = {"type": "number", "exclusiveMinimum": 0}
_KONG_PLUGINS: Final[dict[str, Schema]] = {
    "key-auth": _object(
        key_names=_list(TEXT, at_least=1), key_in_query=FLAG, hide_credentials=FLAG, anonymous=TEXT
    ),
    "jwt": _object(
        key_claim_name=TEXT,
        claims_to_verify=_list(_one_of("exp", "nbf")),
        uri_param_names=_list(TEXT),
        anonymous=TEXT,
    ),
    "rate-limiting": {
        **_object(
            second=_COUNT,
            minute=_COUNT,
            hour=_COUNT,
            day=_COUNT,
            policy=_one_of("local"),
            limit_by=_one_of("consumer", "ip", "service"),
            fault_tolerant=FLAG,
        ),
        "anyOf": [{"required": [window]} for window in ("second", "minute", "hour", "day")],
    },
    "request-size-limiting": _object(
        allowed_payload_size=_whole(1, 2**63 - 1),
        size_unit=_one_of("bytes", "kilobytes", "megabytes"),
        require_content_length=FLAG,
    ),
    "request-termination": _object(status_code=_whole(100, 599), message=TEXT),
    "request-transformer": _object(remove=_object(headers=_list(TEXT))),
}


def _kong() -> Schema:
    plugin = {
        "oneOf": [
            _object(("name", "config"), name={"const": name}, config=config)
            for name, config in _KONG_PLUGINS.items()
        ]
    }
    route = _object(
        ("name", "protocols", "paths"),
        name=_NAME,
        protocols=_list(_one_of("http", "https", "grpc", "grpcs"), at_least=1),
        paths=_list({"type": "string", "pattern": "^(/|~)"}, at_least=1),
        headers={"type": "object", "additionalProperties": _list(TEXT, at_least=1)},
        regex_priority=_whole(0, 2**31 - 1),
        strip_path=FLAG,
    )
    # What cannot be: Kong refuses a path that it would strip from a call of gRPC's.
    route["if"] = {"properties": {"protocols": {"contains": {"pattern": "^grpc"}}}}
    route["then"] = {"properties": {"strip_path": False}}
    service = _object(
        ("name", "host"),
        name=_NAME,
        protocol=_one_of("http", "https", "grpc", "grpcs"),
        host=_NAME,
        port=_whole(0, 65_535),
        connect_timeout=_WAIT_MS,
        read_timeout=_WAIT_MS,
        write_timeout=_WAIT_MS,
        retries=_whole(0, 32_767),
        routes=_list(route),
        plugins=_list(plugin),
    )
    upstream = _object(
        ("name", "targets"),
        name=_NAME,
        algorithm=_one_of("consistent-hashing", "least-connections", "round-robin"),
        hash_on=_one_of("cookie", "header"),
        hash_on_cookie=TEXT,
        hash_on_cookie_path={"type": "string", "pattern": "^/"},
        hash_on_header=TEXT,
        hash_fallback=_one_of("none", "ip"),
        targets=_list(_object(("target",), target=TEXT, weight=_whole(0, 65_535)), at_least=1),
        tags=_list(TEXT),
    )
    upstream["oneOf"] = [
        {"not": {"required": ["hash_on"]}},
        {"properties": {"hash_on": {"const": "cookie"}}, "required": ["hash_on", "hash_on_cookie"]},
        {"properties": {"hash_on": {"const": "header"}}, "required": ["hash_on", "hash_on_header"]},
    ]
    secret = _object(
        ("key", "algorithm", "rsa_public_key", "secret"),
        key=TEXT,
        algorithm=_one_of("RS256", "ES256", "ES384", "ES512"),
        rsa_public_key={"type": "string", "pattern": "^-----BEGIN PUBLIC KEY-----"},
        secret=TEXT,
    )
    consumer = _object(
        ("username",), username=TEXT, jwt_secrets=_list(secret), plugins=_list(plugin)
    )
    return _object(
        ("_format_version", "services", "upstreams"),
        _format_version={"const": "3.0"},
        services=_list(service, at_least=1),
        upstreams=_list(upstream, at_least=1),
        consumers=_list(consumer, at_least=1),
    )


KONG: Final = _kong()
"""A file of Kong's declarative configuration."""
