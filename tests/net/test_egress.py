"""The guard judges spellings and addresses by its own table."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.errors import DestinationRefused
from processors.egress import EgressPolicy, Verdict, classify, parse_destination, vetted

STRICT = EgressPolicy()
OPEN_HTTP = EgressPolicy(allow_http=True)

BAD_ADDRESSES = """
0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.255 127.0.0.1 127.255.255.254
169.254.169.254 169.254.0.1 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.9 192.0.2.1 192.88.99.1
192.168.0.1 198.18.0.1 198.19.255.255 198.51.100.7 203.0.113.9 224.0.0.1 239.255.255.255 240.0.0.1
255.255.255.255
:: ::1 ::7f00:1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:a9fe:a9fe ::ffff:0:7f00:1 ::5efe:7f00:1
64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b::10.0.0.1 64:ff9b:1::1 64:ff9b:1::7f00:1 100::1
2001::1 2001:0:7f00:1:: 2001:1ff:ffff::1 2001:db8::1 2002:7f00:1::1 2002:a00:1:: 3fff::1
3fff:fff::1 4000::1 5f00::1 8000::1 fc00::1 fd00:ec2::254 fe80::1 fe80::1%1 febf::1 fec0::1
ff02::1 ff0e::1 2606:4700::1%2
""".split()
GOOD_ADDRESSES = """
1.1.1.1 8.8.8.8 93.184.216.34 100.63.255.255 100.128.0.0 172.32.0.1 192.0.1.1 223.255.255.255
2606:4700::1111 2a00:1450:4001:81b::200e 2001:200::1 2001:4860:4860::8888 ::ffff:8.8.8.8
64:ff9b::808:808 3ffe::1
""".split()


@pytest.mark.parametrize("text", BAD_ADDRESSES)
def test_a_special_address_is_refused(text: str) -> None:
    assert classify(ip_address(text), STRICT) is Verdict.REFUSED


@pytest.mark.parametrize("text", GOOD_ADDRESSES)
def test_a_public_address_passes(text: str) -> None:
    assert classify(ip_address(text), STRICT) is Verdict.PUBLIC


@pytest.mark.parametrize("text", ["10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203"])
def test_an_operators_range_opens_every_form_of_its_addresses(text: str) -> None:
    policy = EgressPolicy(allow_cidrs=(IPv4Network("10.1.0.0/16"),))
    assert classify(ip_address(text), policy) is Verdict.ALLOWED
    assert classify(IPv4Address("10.2.0.1"), policy) is Verdict.REFUSED


def test_a_range_opens_neither_http_nor_a_port() -> None:
    policy = EgressPolicy(allow_cidrs=(IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")))
    assert parse_destination("https://127.0.0.1/", policy).port == 443
    with pytest.raises(DestinationRefused, match="http is not permitted"):
        parse_destination("http://127.0.0.1/", policy)
    with pytest.raises(DestinationRefused, match="port 8080"):
        parse_destination("https://127.0.0.1:8080/", policy)


@pytest.mark.parametrize(
    ("url", "setting"),
    [
        ("http://example.com/", "OUTBOX_EGRESS_ALLOW_HTTP"),
        ("https://example.com:8080/", "OUTBOX_EGRESS_PORTS"),
        ("https://10.0.0.1/", "OUTBOX_EGRESS_ALLOW_CIDRS"),
    ],
)
def test_what_an_operator_could_permit_is_refused_with_the_name_of_the_setting(
    url: str, setting: str
) -> None:
    with pytest.raises(DestinationRefused, match=setting):
        parse_destination(url, STRICT)


def test_a_zone_is_refused_even_inside_an_operators_range() -> None:
    policy = EgressPolicy(allow_cidrs=(IPv6Network("::/0"),))
    assert classify(ip_address("fe80::1%1"), policy) is Verdict.REFUSED


@given(st.integers(0, 2**32 - 1))
def test_a_mapped_address_gets_the_verdict_of_the_address_inside(number: int) -> None:
    inside = classify(IPv4Address(number), STRICT)
    assert classify(ip_address(f"::ffff:{IPv4Address(number)}"), STRICT) is inside
    assert classify(ip_address(f"64:ff9b::{IPv4Address(number)}"), STRICT) is inside


def test_one_bad_answer_condemns_all_and_is_not_named() -> None:
    answers = [ip_address("8.8.8.8"), ip_address("10.0.0.7")]
    with pytest.raises(DestinationRefused) as refusal:
        vetted(answers, STRICT)
    assert "10.0.0.7" not in str(refusal.value)
    assert vetted(answers[:1] * 2, STRICT) == answers[:1]


BAD_URLS = [
    "",
    "example.com",
    "//example.com/",
    "ftp://example.com/",
    "file:///etc/passwd",
    "gopher://example.com/",
    "https:example.com",
    "https:///path",
    "https://",
    "https://?x",
    "https://user@example.com/",
    "https://user:secret@example.com/",
    "https://example.com@127.0.0.1/",
    "https://example.com:443@127.0.0.1/",
    "https://example.com/#fragment",
    "https://example.com#@127.0.0.1/",
    "https://example.com:0/",
    "https://example.com:65536/",
    "https://example.com:65979/",
    "https://example.com:/",
    "https://example.com:+443/",
    "https://example.com:４４３/",
    "https://example.com:22/",
    "https://example.com:80/",
    "https://example.com:443:443/",
    " https://example.com/",
    "https://example.com/ ",
    "https://exam ple.com/",
    "https://example.com/a\r\nHost: evil",
    "https://example.com/a\nb",
    "https://example.com/a\tb",
    "https://example.com/\0",
    "https://example.com/\x7f",
    "https://example.com\\@127.0.0.1/",
    "https://example.com/a\\b",
    "https://example.com/ü",
    "https://example.com/<>",
    "https://127.1/",
    "https://127.0.1/",
    "https://2130706433/",
    "https://0x7f.1/",
    "https://0x7f000001/",
    "https://0X7F000001/",
    "https://0177.0.0.1/",
    "https://127.0.0.01/",
    "https://127.0.0.0x1/",
    "https://0/",
    "https://0x/",
    "https://1.2.3.4.5/",
    "https://256.1.1.1/",
    "https://example.123/",
    "https://example.0xff/",
    "https://127.0.0.1/",
    "https://127.0.0.1./",
    "https://169.254.169.254/latest/meta-data/",
    "https://127\u30020\u30020\u30021/",
    "https://127\uff0e0\uff0e0\uff0e1/",
    "https://\u2460\u2461\u2466.0.0.1/",
    "https://\u24dbocalhost/",
    "https://exam\u00adple.com/",
    "https://\ud800.com/",
    "https://xn--/",
    "https://xn--zzzzzz-/",
    "https://example..com/",
    "https://.example.com/",
    "https://example.com./",
    "https://-example.com/",
    "https://example-.com/",
    "https://exam%70le.com/",
    "https://example.com%2f@127.0.0.1/",
    "https://127.0.0.1%00.example.com/",
    "https://" + "a" * 64 + ".com/",
    "https://" + "a." * 130 + "com/",
    "https://example.com/" + "a" * 2048,
    "https://[::1]/",
    "https://[::]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::FFFF:7F00:1]/",
    "https://[::ffff:0:7f00:1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[2002:7f00:1::1]/",
    "https://[fd00:ec2::254]/",
    "https://[fec0::1]/",
    "https://[fe80::1%25lo]/",
    "https://[fe80::1%lo]/",
    "https://[2606:4700::1111%1]/",
    "https://[::1",
    "https://::1/",
    "https://[127.0.0.1]/",
    "https://[example.com]/",
    "https://[2606:4700::1111]x/",
    "https://[2606:4700::1111]:22/",
    "https://[v1.fe80::a]/",
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_crooked_url_is_refused_with_one_line(url: str) -> None:
    with pytest.raises(DestinationRefused) as refusal:
        parse_destination(url, STRICT)
    assert "\n" not in str(refusal.value)


def test_plain_http_needs_its_setting() -> None:
    with pytest.raises(DestinationRefused):
        parse_destination("http://example.com/", STRICT)
    assert parse_destination("http://example.com/", OPEN_HTTP).port == 80


def test_a_list_of_ports_replaces_the_default() -> None:
    policy = EgressPolicy(ports=frozenset({8443}))
    assert parse_destination("https://example.com:8443/", policy).host_header == "example.com:8443"
    with pytest.raises(DestinationRefused):
        parse_destination("https://example.com/", policy)


@pytest.mark.parametrize(
    ("url", "host", "header", "target"),
    [
        ("https://example.com", "example.com", "example.com", "/"),
        ("HTTPS://EXAMPLE.com:443/A?b=c&d=%20", "example.com", "example.com", "/A?b=c&d=%20"),
        ("https://example.com?x=1", "example.com", "example.com", "/?x=1"),
        ("https://bücher.example/a", "xn--bcher-kva.example", "xn--bcher-kva.example", "/a"),
        ("https://xn--bcher-kva.example/", "xn--bcher-kva.example", "xn--bcher-kva.example", "/"),
        ("https://my_host.example/a@b", "my_host.example", "my_host.example", "/a@b"),
        ("https://8.8.8.8/", "8.8.8.8", "8.8.8.8", "/"),
        ("https://[2606:4700:0::1111]:443/", "2606:4700::1111", "[2606:4700::1111]", "/"),
        ("https://1e100.net/", "1e100.net", "1e100.net", "/"),
    ],
)
def test_a_good_url_is_taken_apart(url: str, host: str, header: str, target: str) -> None:
    found = parse_destination(url, STRICT)
    assert (found.host, found.host_header, found.path_and_query) == (host, header, target)


@given(st.text())
def test_no_text_makes_the_parser_fail_otherwise(text: str) -> None:
    for url in (text, f"https://{text}", f"https://{text}/", f"https://example.com/{text}"):
        try:
            found = parse_destination(url, OPEN_HTTP)
        except DestinationRefused:
            continue
        assert found.host.isascii()
        assert found.path_and_query.startswith("/")
        assert not set(found.path_and_query + found.host_header) & set(" \r\n\0#\\")
