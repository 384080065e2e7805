"""Upstream addresses that somebody other than an admin may name."""

import contextlib
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from headrace.core.spec.access import SecuritySpec
from headrace.core.spec.base import parsed
from headrace.core.spec.upstream import UpstreamSpec, upstream_problem
from headrace.gateway.settings import parse_url

REMEDY: Final = "an admin can allow it in `security.upstream_hosts`"
FORBIDDEN: Final = (
    *("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4"),
    *("100.100.100.200/32", "168.63.129.16/32", "169.254.169.254/32", "255.255.255.255/32"),
)
FORBIDDEN_IPV6: Final = (
    *("::/128", "::1/128", "fe80::/10", "ff00::/8", "fd00:ec2::254/128", "fec0::/10"),
    *("2001::/32", "2001:db8::/32", "100::/64"),
)


def addresses(networks: Sequence[str]) -> st.SearchStrategy[int]:
    """Numbers of addresses in any of `networks`, their first and last often among them."""
    return st.sampled_from(networks).map(ip_network).flatmap(_in_network)


def _in_network(network: IPv4Network | IPv6Network) -> st.SearchStrategy[int]:
    first, last = int(network[0]), int(network[-1])
    return st.sampled_from((first, last)) | st.integers(first, last)


@st.composite
def ipv4_forms(draw: st.DrawFn, number: int) -> str:
    """One of the forms in which `inet_aton`, or a socket, takes an IPv4 address."""
    parts = draw(st.integers(1, 4))
    rest = 8 * (5 - parts)
    values = [number >> shift & 255 for shift in range(24, rest - 8, -8)][: parts - 1]
    values.append(number & (1 << rest) - 1)
    form = draw(st.sampled_from(["{}", "0{:o}", "0x{:x}", "0X{:X}", "00{:o}", "0x0{:x}"]))
    mixed = draw(st.booleans())
    texts = [
        (draw(st.sampled_from(["{}", "0{:o}", "0x{:x}"])) if mixed else form).format(value)
        for value in values
    ]
    return ".".join(texts) + draw(st.sampled_from(["", "."]))


@st.composite
def ipv6_forms(draw: st.DrawFn, number: int) -> str:
    address = IPv6Address(number)
    text = draw(st.sampled_from([address.compressed, address.exploded, _dotted(address)]))
    text = text.upper() if draw(st.booleans()) else text
    return f"[{text}{draw(st.sampled_from(['', '%lo', '%25eth0', '%1']))}]"


def _dotted(address: IPv6Address) -> str:
    head = address.exploded[:30]
    return head + str(IPv4Address(int(address) & 0xFFFF_FFFF))


EMBEDDING: Final = (
    lambda v4: 0xFFFF << 32 | v4,  # IPv4-mapped
    lambda v4: v4,  # IPv4-compatible
    lambda v4: 0xFFFF << 48 | v4,  # IPv4-translated
    lambda v4: int(IPv6Address("64:ff9b::")) | v4,  # NAT64
    lambda v4: int(IPv6Address("64:ff9b:1::")) | v4,  # NAT64 of one network
    lambda v4: 0x2002 << 112 | v4 << 80 | 1,  # 6to4
    lambda v4: 0x2001 << 112 | v4 << 64 | 1,  # Teredo: the server
    lambda v4: 0x2001 << 112 | (v4 ^ 0xFFFF_FFFF),  # Teredo: the client
)


@st.composite
def forbidden_hosts(draw: st.DrawFn) -> str:
    v4 = draw(addresses(FORBIDDEN))
    match draw(st.integers(0, 2)):
        case 0:
            return draw(ipv4_forms(v4))
        case 1:
            return draw(ipv6_forms(draw(st.sampled_from(EMBEDDING))(v4)))
        case _:
            return draw(ipv6_forms(draw(addresses(FORBIDDEN_IPV6))))


@given(forbidden_hosts(), st.sampled_from(["", ":80", ":65535"]), st.sampled_from(["", "/a"]))
def test_no_form_of_a_forbidden_address_is_allowed(host: str, port: str, path: str) -> None:
    for scheme in ("http", "https", "grpc", "grpcs"):
        assert upstream_problem(f"{scheme}://{host}{port}{path}", ())
        assert upstream_problem(f"{scheme}://{host}{port}{path}", ("*.example", "8.8.8.8"))


@given(st.text(alphabet="0123456789abcdefxX.:[]%-_/\\@#?\uff11\u3002lo", max_size=20))
def test_what_is_allowed_is_a_public_or_private_address_to_everybody(host: str) -> None:
    """Law: the gateway and the C library read an allowed host as the address that was judged."""
    url = f"http://{host}:80/a"
    if upstream_problem(url, ()):
        return
    server = parse_url(url)
    numeric = socket.getaddrinfo(server.host, 80, flags=socket.AI_NUMERICHOST)
    assert server.is_ip
    for _, _, _, _, (resolved, *_) in numeric:
        assert not upstream_problem(f"http://{_bracketed(str(resolved))}", ())
        assert not any(_contains(text, str(resolved)) for text in (*FORBIDDEN, *FORBIDDEN_IPV6))


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _contains(network: str, address: str) -> bool:
    kinds = (IPv6Address, IPv6Network) if ":" in address else (IPv4Address, IPv4Network)
    return isinstance(ip_network(network), kinds[1]) and kinds[0](address) in ip_network(network)


@pytest.mark.parametrize(
    "host",
    [
        *("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "8.8.8.8", "1.1.1.1"),
        *("[fd12:3456::1]", "[2606:4700::1111]", "[64:ff9b::8.8.8.8]", "[64:ff9b::10.0.0.1]"),
    ],
)
def test_private_and_global_addresses_are_allowed(host: str) -> None:
    assert upstream_problem(f"http://{host}:8000/base", ()) == ""


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("127.0.0.1", "loopback"),
        ("127.8.9.1", "loopback"),
        ("[::1]", "loopback"),
        ("0.0.0.0", "unspecified"),  # noqa: S104  # refused
        ("[::]", "unspecified"),
        ("169.254.169.254", "link-local"),
        ("169.254.170.2", "link-local"),
        ("[fe80::1]", "link-local"),
        ("100.100.100.200", "cloud metadata"),
        ("168.63.129.16", "cloud metadata"),
        ("192.0.0.192", "cloud metadata"),
        ("[fd00:ec2::254]", "cloud metadata"),
        ("[fd00:ec2::23]", "cloud metadata"),
        ("224.0.0.1", "multicast"),
        ("[ff02::1]", "multicast"),
        ("255.255.255.255", "reserved"),
        ("100.64.0.1", "reserved"),
        ("192.0.2.1", "reserved"),
        ("[::ffff:127.0.0.1]", "reserved"),
        ("[::ffff:10.0.0.1]", "reserved"),
        ("[::7f00:1]", "reserved"),
        ("[64:ff9b::7f00:1]", "loopback"),
        ("[64:ff9b::169.254.169.254]", "link-local"),
        ("[2002:7f00:1::1]", "reserved"),
        ("[2001:0:7f00:1::1]", "reserved"),
        ("[fec0::1]", "reserved"),
    ],
)
def test_a_special_address_is_refused_by_its_kind(host: str, kind: str) -> None:
    problem = upstream_problem(f"http://{host}:80", ())

    assert problem == f"upstream host '{host.strip('[]')}' is a {kind} address; {REMEDY}"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "localhost.", "ip6-localhost", "metadata", "triton.internal"]
)
def test_a_name_is_refused_unless_it_is_listed(host: str) -> None:
    problem = upstream_problem(f"http://{host}:80", ())

    name = host.lower().removesuffix(".")
    assert (
        problem == f"upstream host '{name}' is a name, which may resolve to any address; {REMEDY}"
    )
    assert upstream_problem(f"http://{host}:80", (name,)) == ""


ODD: Final = (
    *("127.1", "127.0.1", "2130706433", "0x7f.1", "0x7f000001", "0177.0.0.1", "0x7F.0x0.0x0.0x1"),
    *("127.000.000.001", "0", "127.0.0.1.", "10.0.0.1.", "1.", "a.1", "a.0x", "a..b", ".", ""),
    *("\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021", "\u24dbocalhost", "\uff4cocalhost"),
    *("127.0.0.1%2f", "%31%32%37.0.0.1", "127%2e0.0.1", "loc%61lhost", "localhost%00"),
    *("[fe80::1%25eth0]", "[fe80::1%eth0]", "[::1%lo]", "[fd00::1%1]", "[127.0.0.1]", "[::1"),
    *("::1", "[]", "10.0.0.1\\@127.0.0.1", "10.0.0.1@127.0.0.1", "a:b@127.0.0.1", "@"),
    *("10.0.0.1:80:80", "10.0.0.1:x", "10.0.0.1:99999", "a b", "10.0.0.1\\a"),
)


@pytest.mark.parametrize("host", ODD)
def test_an_odd_spelling_is_refused_whatever_is_listed(host: str) -> None:
    listed = ("127.0.0.0/8", "10.0.0.0/8", "::/0", "0.0.0.0/0", "localhost", "*.b")

    for allowed in ((), listed):
        problem = upstream_problem(f"http://{host}", allowed)
        assert problem == ("the upstream's `url` needs a host name, or an address without a zone")


@pytest.mark.parametrize(
    ("host", "pattern", "is_allowed"),
    [
        ("triton.internal", "triton.internal", True),
        ("TRITON.internal.", "Triton.Internal", True),
        ("a.triton.internal", "triton.internal", False),
        ("a.models.example", "*.models.example", True),
        ("a.b.models.example", "*.models.example", True),
        ("models.example", "*.models.example", False),
        ("evilmodels.example", "*.models.example", False),
        ("a.models.example.evil", "*.models.example", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.0/8", True),
        ("127.0.0.1", "localhost", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("8.8.8.8", "10.0.0.0/8", False),
        ("[fd00::1]", "fd00::/8", True),
        ("[::ffff:10.0.0.1]", "10.0.0.0/8", False),
        ("10.0.0.1", "::/0", False),
    ],
)
def test_a_list_allows_what_it_names_and_nothing_else(
    host: str,
    pattern: str,
    is_allowed: bool,  # noqa: FBT001  # pytest passes it by name
) -> None:
    listed = parsed(SecuritySpec, {"upstream_hosts": [pattern]}).upstream_hosts

    problem = upstream_problem(f"https://{host}:8443/a", listed)

    assert (problem == "") == is_allowed
    if problem:
        assert problem.endswith(f"is not one of `security.upstream_hosts`; {REMEDY}")


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "*",
            "*.",
            "**.a",
            "a.*",
            "*a",
            "127.1",
            "0x7f.1",
            "1",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "*.10",
        ),
        *("http://a", "a:80", "a/b", "\u00e9", "a b", ".a", "a.", "fe80::1%eth0/64", "[::1]"),
    ],
)
def test_a_list_holds_only_hosts_and_networks(pattern: str) -> None:
    with pytest.raises(ValidationError, match="neither a host name"):
        parsed(SecuritySpec, {"upstream_hosts": [pattern]})


@given(
    st.text(st.characters(min_codepoint=1, max_codepoint=0x2100), max_size=30),
    st.text(st.characters(min_codepoint=1, max_codepoint=0x2100), max_size=10),
)
def test_the_gateway_can_connect_to_whatever_a_spec_may_name(rest: str, path: str) -> None:
    """Law: one upstream that the gateway refuses would hold up the routes of all endpoints."""
    for url, health in ((f"http://{rest}", "/"), (f"http://10.0.0.1/{path}", path)):
        with contextlib.suppress(ValidationError):
            settings = parsed(UpstreamSpec, {"url": url, "health_path": health})
            assert 0 < parse_url(settings.url).port < 1 << 16
            assert f"{settings.url}{settings.health_path}".isprintable()
            assert f"{settings.url}{settings.health_path}".isascii()


@pytest.mark.parametrize(
    "values",
    [
        *({"url": f"http://10.0.0.1{rest}"} for rest in (":0", ":65536", ":99999", ":x", ":1:2")),
        *(
            {"url": f"http://10.0.0.1/{rest}"}
            for rest in ("\x01", "\x7f", "\u00e9", "a\n", "\r\nx: y")
        ),
        *(
            {"url": f"http://{host}"}
            for host in ("[::1", "a\x01b", "%00", "a:b", "a@b", "a\\b", "1.")
        ),
        *({"url": "http://a", "health_path": path} for path in ("a", "/\r\nx: y", "/\x00", "/a b")),
        {"url": "https://a", "tls": {"server_name": "a\r\n"}},
    ],
)
def test_what_would_hold_up_all_routes_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        parsed(UpstreamSpec, values)
