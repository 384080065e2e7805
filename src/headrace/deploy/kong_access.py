"""Who may call, in Kong's words: plugins that ask, and the consumers that tokens belong to.

Several ways in are "or" in a spec. Kong asks for all of its plugins, so each lets strangers pass as
one consumer, whom another plugin then refuses.
https://developer.konghq.com/gateway/authentication/#using-multiple-authentication-methods
"""

import json
from collections.abc import Iterator
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from headrace.core.spec_access import JwtSpec, Method
from headrace.deploy.export import Body
from headrace.deploy.facts import Endpoint, Facts
from headrace.deploy.losses import Loss
from headrace.deploy.public_keys import public_keys

_STRANGER: Final = "headrace-stranger"
_EC: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


def access_plugins(facts: Facts, endpoint: Endpoint) -> Iterator[Body]:
    """What asks who calls an endpoint; nothing where it is public."""
    methods = _methods(facts, endpoint)
    several: Body = {"anonymous": _STRANGER} if len(methods) > 1 else {}
    if Method.KEY in methods:
        config: Body = {"key_names": ["x-api-key"], "key_in_query": False, "hide_credentials": True}
        yield {"name": "key-auth", "config": {**config, **several}}
    if Method.JWT in methods:
        token: Body = {"key_claim_name": "iss", "claims_to_verify": ["exp"], "uri_param_names": []}
        yield {"name": "jwt", "config": {**token, **several}}


def consumers(facts: Facts) -> list[Body]:
    """One for each identity provider with its key, and the stranger, who is refused."""
    if not any(_methods(facts, endpoint) for endpoint in facts.endpoints):
        return []
    found: list[Body] = []
    if any(Method.JWT in _methods(facts, endpoint) for endpoint in facts.endpoints):
        for jwt in facts.spec.auth.jwt:
            secrets = list(_jwt_secrets(facts, jwt))
            if secrets:
                found.append({"username": f"headrace-jwt-{jwt.name}", "jwt_secrets": secrets})
    if any(len(_methods(facts, endpoint)) > 1 for endpoint in facts.endpoints):
        refusal: Body = {"status_code": 401, "message": "no key or token, or none that counts"}
        plugin: Body = {"name": "request-termination", "config": refusal}
        found.append({"username": _STRANGER, "plugins": [plugin]})
    return found


def access_losses(facts: Facts) -> Iterator[Loss]:
    """Ways in that Kong's own plugins cannot check."""
    names = {jwt.name for jwt in facts.spec.auth.jwt}
    for endpoint in facts.endpoints:
        access = endpoint.spec.access
        one = [m for m in access or () if access != "public" and m.startswith("jwt:")]
        if one and {m.partition(":")[2] for m in one} != names:
            yield Loss(
                f"{endpoint.place}.access",
                "takes a token of any issuer that it knows, not of some of them",
                "say `jwt`, or export the endpoints of each issuer by themselves (--endpoint)",
            )
    for i, jwt in enumerate(facts.spec.auth.jwt):
        count = len(_keys(facts, jwt))
        if jwt.jwks_file and count != 1:
            yield Loss(
                f"auth.jwt[{i}].jwks_file",
                f"takes one RSA or EC key for an issuer, and this file has {count}",
                "give a file with one key",
            )


def _methods(facts: Facts, endpoint: Endpoint) -> set[str]:
    """What lets a caller in, of what Kong can ask for; tokens only where somebody issues them."""
    access = endpoint.spec.access
    if access == "public":
        return set()
    named = {method.partition(":")[0] for method in access or (Method.KEY, Method.JWT)}
    issued = {Method.JWT.value} if facts.spec.auth.jwt else set()
    return named & ({Method.KEY.value} | issued)


def _keys(facts: Facts, jwt: JwtSpec) -> list[Any]:
    return public_keys(facts.key_sets.get(jwt.name, json.dumps({"keys": []})))


def _jwt_secrets(facts: Facts, jwt: JwtSpec) -> Iterator[Body]:
    for key in _keys(facts, jwt)[:1]:
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        algorithm = "RS256"
        if isinstance(key, EllipticCurvePublicKey):
            algorithm = _EC[key.curve.name]
        # Kong's schema wants a secret even where the algorithm has none.
        yield {
            "key": jwt.issuer,
            "algorithm": algorithm,
            "rsa_public_key": pem,
            "secret": "unused",
        }
