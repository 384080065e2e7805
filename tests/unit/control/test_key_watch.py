import json

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from jwt.algorithms import OKPAlgorithm

from headrace.control.key_watch import KeyWatch
from headrace.core import SystemClock
from headrace.core.access_settings import JwtSettings

pytestmark = pytest.mark.anyio

CORP = JwtSettings(
    name="corp",
    issuer="https://id.example",
    audiences=("gw",),
    jwks_url="https://id.example/keys",
    jwks_cache_s=60.0,
)
FILE = msgspec.structs.replace(CORP, name="file", jwks_url="", jwks_file="/keys.json")


def _key(name: str) -> dict[str, object]:
    public = ed25519.Ed25519PrivateKey.generate().public_key()
    return {**OKPAlgorithm.to_jwk(public, as_dict=True), "kid": name}


ONE, TWO = _key("1"), _key("2")


class Hand(SystemClock):
    """A clock that is moved by hand."""

    at = 1000.0

    def monotonic(self) -> float:
        return self.at


class Provider:
    """Gives `text`, or nothing if it is None."""

    def __init__(self, *keys: object) -> None:
        self.text: str | None = ""
        self.asked: list[str] = []
        self.give(*keys)

    def give(self, *keys: object) -> None:
        self.text = json.dumps({"keys": keys})

    async def __call__(self, url: str) -> str:
        self.asked.append(url)
        if self.text is None:
            raise OSError("gone")
        return self.text


async def test_a_digest_changes_with_the_keys_and_not_with_their_order() -> None:
    clock, provider = Hand(), Provider(ONE, TWO)
    watch = KeyWatch(clock=clock, fetch=provider)
    seen = []

    for keys in ((ONE, TWO), (TWO, ONE), (TWO,)):
        provider.give(*keys)
        await watch.look([CORP, FILE])
        seen.append(watch.digests([CORP, FILE]))
        clock.at += 60.0

    assert seen[0] == seen[1] != seen[2]
    assert seen[0].keys() == {"corp"}


async def test_a_url_is_asked_once_in_the_time_that_its_keys_are_used() -> None:
    clock, provider = Hand(), Provider(ONE)
    watch = KeyWatch(clock=clock, fetch=provider)

    for _ in range(121):
        await watch.look([CORP])
        clock.at += 1.0

    assert provider.asked == [CORP.jwks_url] * 3


@pytest.mark.parametrize("text", [None, "", "{", '{"keys":[]}'])
async def test_a_provider_that_gives_no_keys_changes_nothing(text: str | None) -> None:
    clock, provider = Hand(), Provider(ONE)
    watch = KeyWatch(clock=clock, fetch=provider)
    await watch.look([CORP])
    before = watch.digests([CORP])

    provider.text = text
    clock.at += 60.0
    await watch.look([CORP])

    assert watch.digests([CORP]) == before


async def test_a_provider_that_is_gone_from_the_spec_is_forgotten() -> None:
    watch = KeyWatch(clock=Hand(), fetch=Provider(ONE))
    await watch.look([CORP])

    await watch.look([])

    assert watch.digests([CORP]) == {}
