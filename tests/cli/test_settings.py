"""Settings: where they come from, what is refused, what is never shown."""

from __future__ import annotations

from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path

import pytest

from outbox.errors import ConfigurationError, KeyMissing, UsageError
from outbox.secrets import KeyRing
from outbox.settings import OPTIONS, Settings, load_settings, masked_url

URL = "postgresql://me:hush@db:5432/shop"


def test_nothing_said_gives_the_defaults() -> None:
    settings = load_settings({}, {})
    assert settings == Settings()
    assert settings.broker_url == "memory://"
    assert settings.instance == "default"
    assert settings.lease == timedelta(seconds=30)
    assert settings.grace == timedelta(seconds=25)
    assert settings.retention == timedelta(days=7)


def test_flags_win_over_the_environment_which_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "outbox.toml"
    file.write_text('instance = "file"\nlease = "1s"\ngrace = "2s"\n')
    environ = {"OUTBOX_CONFIG": str(file), "OUTBOX_INSTANCE": "environment", "OUTBOX_LEASE": "3s"}
    settings = load_settings({"instance": "flag"}, environ)
    assert settings.instance == "flag"
    assert settings.lease == timedelta(seconds=3)
    assert settings.grace == timedelta(seconds=2)
    assert settings.sources == {"instance": "flag", "lease": "environment", "grace": "file"}


def test_every_kind_of_value_is_read(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("x")
    settings = load_settings(
        {},
        {
            "OUTBOX_DATABASE_URL": URL,
            "OUTBOX_BROKER_URL": "rediss://r:6379",
            "OUTBOX_EGRESS_ALLOW_CIDRS": "10.1.0.0/16, fd00::/8",
            "OUTBOX_EGRESS_ALLOW_HTTP": "TRUE",
            "OUTBOX_EGRESS_PORTS": "443,8443",
            "OUTBOX_CA_FILE": str(tmp_path / "ca.pem"),
            "OUTBOX_LOG_FORMAT": "json",
        },
    )
    assert settings.database == URL
    assert settings.egress_allow_cidrs == (ip_network("10.1.0.0/16"), ip_network("fd00::/8"))
    assert settings.egress_allow_http
    assert settings.egress_ports == {443, 8443}


def test_the_file_may_hold_lists_and_booleans(tmp_path: Path) -> None:
    file = tmp_path / "outbox.toml"
    file.write_text(
        'egress_allow_cidrs = ["10.1.0.0/16"]\negress_ports = [443, 80]\negress_allow_http = true\n'
    )
    settings = load_settings({"config": str(file)}, {})
    assert settings.egress_allow_cidrs == (ip_network("10.1.0.0/16"),)
    assert settings.egress_ports == {80, 443}
    assert settings.egress_allow_http


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("OUTBOX_DATABASE_URL", "mysql://hush@db/shop", "postgresql://user@host:5432/name"),
        ("OUTBOX_BROKER_URL", "kafka://hush", "redis://"),
        ("OUTBOX_SECRET_KEY", "hush", "base64 of 32 random bytes"),
        ("OUTBOX_INSTANCE", "a b", "write letters"),
        ("OUTBOX_LEASE", "soon", "30s"),
        ("OUTBOX_LEASE", "0s", "1s to 1h"),
        ("OUTBOX_GRACE", "2h", "0ms to 1h"),
        ("OUTBOX_RETENTION", "-1d", "7d"),
        ("OUTBOX_EGRESS_ALLOW_CIDRS", "10.1.2.3/16", "10.1.0.0/16"),
        ("OUTBOX_EGRESS_ALLOW_HTTP", "maybe", "true or false"),
        ("OUTBOX_EGRESS_PORTS", "https", "443"),
        ("OUTBOX_EGRESS_PORTS", "0", "443"),
        ("OUTBOX_EGRESS_PORTS", "65536", "443"),
        ("OUTBOX_CA_FILE", "no-such-file.pem", "readable file"),
        ("OUTBOX_LOG_FORMAT", "xml", "json or console"),
    ],
)
def test_a_wrong_value_names_the_variable_and_what_to_write(
    name: str, value: str, advice: str
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load_settings({}, {name: value})
    assert name in str(raised.value)
    assert advice in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "hush" not in str(raised.value)


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    file = tmp_path / "outbox.toml"
    file.write_text('leese = "1s"\ngrace = { a = 1 }\nretention = "x"\n')
    environ = {"OUTBOX_LEASE": "x", "OUTBOX_EGRESS_PORTS": "x", "OUTBOX_CONFIG": str(file)}
    with pytest.raises(ConfigurationError) as raised:
        load_settings({}, environ)
    lines = str(raised.value).splitlines()
    assert len(lines) == 5
    for wrong in ("'leese'", "grace", "retention", "OUTBOX_LEASE", "OUTBOX_EGRESS_PORTS"):
        assert any(wrong in line for line in lines)


def test_a_wrong_flag_is_a_usage_error_that_names_the_flag() -> None:
    with pytest.raises(UsageError, match=r"--lease: 'x' is not a duration"):
        load_settings({"lease": "x"}, {})


@pytest.mark.parametrize("content", ["lease = ", b"\xff\xfe"])
def test_a_file_that_is_not_toml_is_refused_in_one_line(tmp_path: Path, content: object) -> None:
    file = tmp_path / "outbox.toml"
    file.write_bytes(content if isinstance(content, bytes) else str(content).encode())
    with pytest.raises(ConfigurationError, match="OUTBOX_CONFIG") as raised:
        load_settings({}, {"OUTBOX_CONFIG": str(file)})
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cannot read no-such-file"):
        load_settings({"config": "no-such-file"}, {})


def test_a_secret_is_read_from_a_file(tmp_path: Path) -> None:
    key = KeyRing.generate_text()
    (tmp_path / "key").write_text(f"{key}\n")
    settings = load_settings({}, {"OUTBOX_SECRET_KEY": f"@{tmp_path / 'key'}"})
    assert settings.secret_key == key


def test_a_secret_named_in_the_file_is_found_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "url").write_text(URL)
    (tmp_path / "outbox.toml").write_text('database_url = "@url"\n')
    assert load_settings({"config": str(tmp_path / "outbox.toml")}, {}).database == URL


def test_a_secret_file_that_cannot_be_read_names_the_setting_too() -> None:
    with pytest.raises(ConfigurationError, match=r"OUTBOX_SECRET_KEY: cannot read no-such-file"):
        load_settings({}, {"OUTBOX_SECRET_KEY": "@no-such-file"})


def test_without_a_database_url_the_error_says_how_to_give_one() -> None:
    with pytest.raises(ConfigurationError, match="OUTBOX_DATABASE_URL is not set"):
        _ = Settings().database


def test_without_a_key_there_is_no_key_ring() -> None:
    with pytest.raises(KeyMissing, match="OUTBOX_SECRET_KEY is not set"):
        Settings().key_ring()


def test_no_representation_shows_a_secret() -> None:
    key = KeyRing.generate_text()
    settings = load_settings(
        {},
        {
            "OUTBOX_DATABASE_URL": URL,
            "OUTBOX_LISTEN_URL": "host=db password='hu sh' user=me",
            "OUTBOX_BROKER_URL": "redis://:hush@r:6379",
            "OUTBOX_SECRET_KEY": f"{key},{KeyRing.generate_text()}",
        },
    )
    for text in (repr(settings), str(settings), str(settings.shown())):
        assert "hush" not in text
        assert "hu sh" not in text
        assert key not in text
        assert "2 keys" in text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://db/shop", "postgresql://db/shop"),
        ("postgresql://me@db/shop", "postgresql://me@db/shop"),
        ("postgresql://me:hush@db/shop", "postgresql://me:***@db/shop"),
        ("postgresql://me:hu:sh@db/shop", "postgresql://me:***@db/shop"),
        ("postgresql://me:hu@sh@db/shop", "postgresql://me:***@db/shop"),
        ("postgresql://me:hu/sh@db/shop", "postgresql://***"),
        ("postgresql://me@db/shop?password=hush&a=b", "postgresql://me@db/shop?password=***&a=b"),
        ("postgresql://db/x?sslpassword=hush", "postgresql://db/x?sslpassword=***"),
        ("host=db password=hush dbname=x", "host=db password=*** dbname=x"),
        ("redis://:hush@r:6379/0", "redis://:***@r:6379/0"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert masked_url(url) == shown


def test_every_setting_has_a_variable_a_default_and_help() -> None:
    for option in OPTIONS:
        assert hasattr(Settings(), option.name)
        assert option.variable == f"OUTBOX_{option.word.upper()}"
        assert option.help
