"""The settings in force: one frozen object, read in one place, validated as a whole.

A value comes from a flag, else from the environment, else from the TOML file that OUTBOX_CONFIG
names, else from the default that stands here and nowhere else. Everything wrong is reported at
once, each line naming the setting and what to write. Secrets never appear in a representation.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType

from outbox import setting_values as read
from outbox.durations import format_duration
from outbox.errors import ConfigurationError, OutboxError, UsageError
from outbox.secrets import KeyRing
from outbox.setting_values import DATABASE_EXAMPLE, Network

FILE_BYTES_MAX = 65536


@dataclass(frozen=True, slots=True, repr=False)
class Settings:
    """What is in force. Lists are empty and texts None where nothing was said."""

    database_url: str | None = None
    listen_url: str | None = None
    broker_url: str = "memory://"
    secret_key: str | None = None
    instance: str = "default"
    lease: timedelta = timedelta(seconds=30)
    grace: timedelta = timedelta(seconds=25)
    retention: timedelta = timedelta(days=7)
    egress_allow_cidrs: tuple[Network, ...] = ()
    egress_allow_http: bool = False
    egress_ports: frozenset[int] = frozenset()
    ca_file: str | None = None
    realtime_url: str | None = None
    realtime_key: str | None = None
    realtime_rate: float = 100.0
    jwt_secret: str | None = None
    jwks: str | None = None
    templates: str | None = None
    artifacts_url: str | None = None
    artifacts_keep: timedelta | None = None
    render_timeout: timedelta = timedelta(seconds=10)
    render_memory_mb: int = 1024
    render_processes: int | None = None
    smtp_url: str | None = None
    dkim_domain: str | None = None
    dkim_selector: str | None = None
    dkim_key: str | None = None
    log_format: str | None = None
    debug: bool = False
    imports: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def database(self) -> str:
        """The database URL. Raises ConfigurationError where none is set, or several."""
        if len(self.databases) > 1:
            raise ConfigurationError(
                f"OUTBOX_DATABASE_URL names {len(self.databases)} databases, and this is done in "
                "one; name it with --database-url"
            )
        return self.databases[0]

    @property
    def databases(self) -> list[str]:
        """The database URLs, at least one. Raises ConfigurationError where none is set."""
        if self.database_url is None:
            raise ConfigurationError(
                f"OUTBOX_DATABASE_URL is not set; set it to a URL such as {DATABASE_EXAMPLE}, "
                "or pass --database-url"
            )
        return self.database_url.splitlines()

    @property
    def in_memory(self) -> bool:
        """Whether the broker lives inside the daemon's process."""
        return self.broker_url.startswith("memory:")

    def key_ring(self) -> KeyRing:
        """The keys for secrets at rest. Raises KeyMissing where none is set."""
        return KeyRing.from_text(self.secret_key)

    def shown(self) -> dict[str, object]:
        """Every setting as it may be shown: durations as written, secrets masked."""
        return {option.word: _shown(option, getattr(self, option.name)) for option in OPTIONS}

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{k}={v!r}' for k, v in self.shown().items())})"


@dataclass(frozen=True, slots=True)
class Option:
    """One setting: how it is named outside, read and shown. `separator` stands between several
    values in one text."""

    name: str
    read: Callable[[str], object]
    help: str
    secret: bool = False
    alias: str | None = None
    separator: str = ","

    @property
    def word(self) -> str:
        """Its name outside, where Python could not name it so."""
        return self.alias or self.name

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return f"OUTBOX_{self.word.upper()}"

    @property
    def flag(self) -> str:
        """Its name on the command line, where a command takes it."""
        return f"--{self.word.replace('_', '-')}"


def load_settings(flags: Mapping[str, str], environ: Mapping[str, str]) -> Settings:
    """Read all settings. `flags` maps setting names, and `config`, to what was given.

    Raises ConfigurationError (UsageError if only flags are wrong) with one line for each mistake.
    """
    found: dict[str, _Given] = {}
    errors: list[tuple[bool, str]] = []
    _read_file(flags.get("config") or environ.get("OUTBOX_CONFIG"), found, errors)
    for option in OPTIONS:
        if environ.get(option.variable):
            found[option.name] = _Given(environ[option.variable], option.variable, "environment")
        if option.name in flags:
            found[option.name] = _Given(flags[option.name], option.flag, "flag")
    values: dict[str, object] = {}
    for option in OPTIONS:
        if given := found.get(option.name):
            try:
                values[option.name] = option.read(given.resolved(option))
            except (OutboxError, ValueError) as error:
                text = str(error)
                line = text if option.variable in text else f"{given.place}: {text}"
                errors.append((given.source == "flag", line))
    if errors:
        kind = UsageError if all(by_flag for by_flag, _ in errors) else ConfigurationError
        raise kind("\n".join(line for _, line in errors))
    sources = {name: given.source for name, given in found.items()}
    return Settings(**values, sources=MappingProxyType(sources))  # type: ignore[arg-type]


def wants_traceback(environ: Mapping[str, str]) -> bool:
    """Whether OUTBOX_DEBUG asks for tracebacks; works where the settings themselves are wrong."""
    return environ.get("OUTBOX_DEBUG", "").lower() in read.TRUE


@dataclass(frozen=True, slots=True)
class _Given:
    """A value as written, where it stands, and what kind of place that is."""

    text: str
    place: str
    source: str
    folder: Path = Path()

    def resolved(self, option: Option) -> str:
        """The value, read from the file where a secret is written as `@file`."""
        if not (option.secret and self.text.startswith("@")):
            return self.text
        return read_secret_file(self.folder / self.text[1:])


def read_secret_file(path: Path) -> str:
    """The text of a file that holds one secret. Raises ConfigurationError."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise ConfigurationError(f"{path} is too long to hold one secret")
        return data.decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigurationError(f"cannot read {path}: {reason}") from error


def _read_file(path: str | None, found: dict[str, _Given], errors: list[tuple[bool, str]]) -> None:
    if not path:
        return
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        errors.append((False, f"OUTBOX_CONFIG: cannot read {path}: {reason}"))
        return
    except tomllib.TOMLDecodeError as error:
        errors.append((False, f"OUTBOX_CONFIG: {path} is not TOML: {error}"))
        return
    known = {option.word: option for option in OPTIONS}
    for name, value in content.items():
        if name not in known:
            names = ", ".join(sorted(known))
            errors.append((False, f"{path}: unknown setting {name!r}; known are: {names}"))
        elif (text := _toml_text(value, known[name].separator)) is None:
            errors.append((False, f"{path}: {name} must be a text, a boolean or a list of texts"))
        elif text:
            found[known[name].name] = _Given(text, f"{name} in {path}", "file", Path(path).parent)


def _toml_text(value: object, separator: str) -> str | None:
    """A TOML value in the form the environment would hold; None for what has none."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int):
        return str(value)
    if isinstance(value, list) and all(type(item) in {str, int} for item in value):
        return separator.join(map(str, value))
    return None


_HOUR = timedelta(hours=1)
OPTIONS: tuple[Option, ...] = (
    Option(
        "database_url",
        read.database_urls,
        "libpq URL of the database; several, one a line, for run and worker",
        secret=True,
        separator="\n",
    ),
    Option("listen_url", read.database_url, "direct URL for LISTEN, behind a pooler", secret=True),
    Option("broker_url", read.broker_url, "redis://, rediss://, amqp:// or memory://", secret=True),
    Option("secret_key", read.secret_key, "base64 of 32 bytes; several by comma", secret=True),
    Option("instance", read.instance, "name of this installation"),
    Option("lease", read.between(timedelta(seconds=1), _HOUR), "the right to try a delivery"),
    Option("grace", read.between(timedelta(0), _HOUR), "time to finish after a first signal"),
    Option("retention", read.between(timedelta(seconds=1), timedelta(days=3650)), "life of events"),
    Option("egress_allow_cidrs", read.networks, "private ranges that webhooks may reach"),
    Option("egress_allow_http", read.boolean, "permit webhooks over plain http"),
    Option("egress_ports", read.ports, "ports that webhooks may name"),
    Option("ca_file", read.existing_file, "PEM file of further authorities to trust"),
    Option("realtime_url", read.http_url, "Realtime server, for broadcasts over http"),
    Option("realtime_key", read.one_line, "token of a role that may broadcast", secret=True),
    Option("realtime_rate", read.rate, "broadcasts a second over http at most"),
    Option("jwt_secret", read.jwt_secret, "secret of clients' tokens (HS256)", secret=True),
    Option("jwks", read.key_set, "key set of clients' tokens: a file or JSON"),
    Option("templates", read.folder, "folder of templates of documents and mails"),
    Option(
        "artifacts_url", read.artifacts_url, "file:///folder or s3://bucket/prefix", secret=True
    ),
    Option("artifacts_keep", read.between(_HOUR, timedelta(days=3650)), "life of documents"),
    Option(
        "render_timeout", read.between(timedelta(seconds=1), _HOUR), "processor time of a document"
    ),
    Option("render_memory_mb", read.number(256, 65536), "memory of a document, in MB"),
    Option("render_processes", read.number(1, 256), "documents rendered at once; one a processor"),
    Option("smtp_url", read.smtp_url, "SMTP server that takes e-mail", secret=True),
    Option("dkim_domain", str, "domain that e-mail is signed for"),
    Option("dkim_selector", str, "names of the signing keys in DNS; several by comma"),
    Option("dkim_key", str, "private keys in PEM that sign e-mail", secret=True),
    Option("log_format", read.log_format, "json or console"),
    Option("debug", read.boolean, "tracebacks and debug lines"),
    Option(
        "imports", read.modules, "modules that hold processors of yours, by comma", alias="import"
    ),
)


# -- how each is shown ----------------------------------------------------------------------------

_PASSWORD = re.compile(r"(\b\w*password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]*)", re.IGNORECASE)


def masked_url(url: str) -> str:
    """A URL or libpq connection string without its passwords."""
    match = re.fullmatch(r"([a-z]+)://([^/?#]*)(.*)", url, re.DOTALL)
    if match is None:
        return _PASSWORD.sub(r"\1***", url)
    scheme, authority, rest = match.groups()
    if "@" in rest:  # a password with an unescaped '/' or '?' may end anywhere
        return f"{scheme}://***"
    user, at, host = authority.rpartition("@")
    name, colon, _ = user.partition(":")
    shown = f"{name}{':***' if colon else ''}{at}{host}"
    return f"{scheme}://{shown}{_PASSWORD.sub(lambda m: m[1] + '***', rest)}"


def _shown(option: Option, value: object) -> object:
    match value:
        case timedelta():
            return format_duration(value)
        case frozenset():
            return sorted(value)
        case tuple():
            return [str(item) for item in value]
        case str() if option.name == "secret_key":
            count = len(read.items(value))
            return f"*** ({count} key{'s' if count > 1 else ''})"
        case str() if option.name == "jwt_secret":
            return "***"
        case str() if option.name == "jwks":
            return f"{value.count('kty')} keys"
        case str() if option.name == "dkim_key":
            count = value.count("-----BEGIN")
            return f"*** ({count} key{'s' if count != 1 else ''})"
        case str() if option.secret:
            return "\n".join(map(masked_url, value.splitlines()))
        case _:
            return value
