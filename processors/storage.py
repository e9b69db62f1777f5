"""Where documents are kept: a folder, or a bucket of S3 or what speaks like it; by their content,
below a prefix for each organization.

Promises: what is stored is whole or not there, and storing it again changes nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from outbox.errors import ConfigurationError, NotFound, OutboxError
from outbox.settings import Settings

LINK_LIFE = timedelta(days=7)
"""How long a link holds: the longest that S3 signs for, so that a webhook which is retried for
three days still carries one that works."""
REQUEST_S = 30.0
LEFT_S = 3600.0
"""A file that is being written is as good as lost when it is so old."""

BEGUN = ".begun"
"""The folder of files that are being written: no organization's prefix begins so."""

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class StoreFailed(OutboxError):
    """Where documents are kept cannot be reached, or refuses."""


class Store(Protocol):
    """A place for bytes by name."""

    async def put(self, key: str, content: bytes) -> None:
        """Store, unless it is there. Raises StoreFailed."""

    async def get(self, key: str) -> bytes | None:
        """What is there. Raises StoreFailed."""

    async def remove(self, key: str) -> None:
        """Remove it if it is there. Raises StoreFailed."""

    async def sweep(self) -> None:
        """Remove what writers that died have left unfinished. Raises StoreFailed."""

    async def url(self, key: str) -> str | None:
        """A link that anybody may follow for LINK_LIFE, where one can be made."""

    def place(self, key: str) -> str:
        """Where it lies, for the operator."""


def key_of(org: str | None, sha256: str) -> str:
    """The name of a document: the organization's prefix, then its content."""
    if _SHA256.fullmatch(sha256) is None:
        raise NotFound(f"{sha256!r} is not the SHA-256 of a document: 64 hexadecimal digits")
    return f"{_prefix(org)}/{sha256[:2]}/{sha256}.pdf"


def _prefix(org: str | None) -> str:
    """One path segment an organization, whatever its name holds."""
    if org is None:
        return "system"
    text = "".join(chr(b) if b in _PLAIN else f"={b:02X}" for b in org.encode())
    if len(text) > 120:
        text = f"=={hashlib.sha256(org.encode()).hexdigest()}"
    return f"org-{text}"


class FolderStore:
    """A folder of this machine, or one that is mounted on all of them."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def put(self, key: str, content: bytes) -> None:
        """Written elsewhere, made durable, renamed."""
        await self._run(self._put, key, content)

    async def get(self, key: str) -> bytes | None:
        """The bytes."""
        try:
            return bytes(await self._run((self._root / key).read_bytes))
        except FileNotFoundError:
            return None

    async def remove(self, key: str) -> None:
        """The file goes, its folder stays."""
        await self._run((self._root / key).unlink, True)

    async def sweep(self) -> None:
        """Files that were begun long ago."""
        await self._run(self._sweep)

    async def url(self, key: str) -> str | None:  # noqa: ARG002 (nobody serves a folder)
        """None: a folder is not served by anybody."""
        return None

    def place(self, key: str) -> str:
        """Its path."""
        return str(self._root / key)

    def _put(self, key: str, content: bytes) -> None:
        path = self._root / key
        if path.is_file():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        begun = self._root / BEGUN
        begun.mkdir(exist_ok=True)
        descriptor, beside = tempfile.mkstemp(dir=begun)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(beside).replace(path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _sweep(self) -> None:
        before = time.time() - LEFT_S
        for path in (self._root / BEGUN).glob("*"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < before:
                    path.unlink()

    async def _run(self, act: Callable[..., Any], *args: object) -> Any:
        try:
            return await asyncio.to_thread(act, *args)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreFailed(f"{self._root}: {error.strerror}") from error


class BucketStore:
    """A bucket. Credentials come from where AWS's own tools look: AWS_ACCESS_KEY_ID and so on."""

    def __init__(self, bucket: str, prefix: str, options: dict[str, str]) -> None:
        try:
            import obstore
            from obstore.exceptions import (
                AlreadyExistsError,
                BaseError,
                NotFoundError,
                PreconditionError,
            )
            from obstore.store import S3Store
        except ImportError:
            raise ConfigurationError(
                "OUTBOX_ARTIFACTS_URL names a bucket, which needs obstore; run: pip install"
                " 'outboxd[pdf]'"
            ) from None
        endpoint = options.get("endpoint")
        given: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
        if region := options.get("region"):
            given["region"] = region
        self._obstore = obstore
        self._there = (AlreadyExistsError, PreconditionError)
        self._absent = (FileNotFoundError, NotFoundError)
        self._failed = BaseError
        self._bucket, self._prefix = bucket, prefix
        try:
            self._store = S3Store(
                bucket,
                prefix=prefix or None,
                client_options={
                    "allow_http": bool(endpoint and endpoint.startswith("http://")),
                    "timeout": timedelta(seconds=REQUEST_S),
                },
                retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=REQUEST_S)},
                **given,
            )
        except BaseError as error:
            raise ConfigurationError(f"OUTBOX_ARTIFACTS_URL: {_line(error)}") from error

    async def put(self, key: str, content: bytes) -> None:
        """With `If-None-Match: *`."""
        with suppress(*self._there), self._translated(*self._there):
            await self._obstore.put_async(
                self._store,
                key,
                content,
                mode="create",
                attributes={"Content-Type": "application/pdf"},
                use_multipart=False,
            )

    async def get(self, key: str) -> bytes | None:
        """The bytes."""
        try:
            with self._translated(*self._absent):
                result = await self._obstore.get_async(self._store, key)
                return bytes(await result.bytes_async())
        except self._absent:
            return None

    async def remove(self, key: str) -> None:
        """Removing what is not there is no error to S3."""
        with suppress(*self._absent), self._translated(*self._absent):
            await self._obstore.delete_async(self._store, key)

    async def sweep(self) -> None:
        """Nothing: an object that was not put whole is not there."""

    async def url(self, key: str) -> str | None:
        """A signed one."""
        with self._translated():
            return await self._obstore.sign_async(self._store, "GET", key, LINK_LIFE)

    def place(self, key: str) -> str:
        """Its address in the bucket."""
        return "/".join(filter(None, ("s3:/", self._bucket, self._prefix, key)))

    @contextmanager
    def _translated(self, *passing: type[Exception]) -> Iterator[None]:
        """What the library raises becomes StoreFailed, but for what is an answer: `passing`."""
        try:
            yield
        except passing:
            raise
        except (self._failed, OSError) as error:
            raise StoreFailed(f"the bucket failed: {_line(error)}") from error


def _line(error: BaseException) -> str:
    """The first line, short: the library quotes whole responses."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def open_store(settings: Settings) -> Store:
    """The store that OUTBOX_ARTIFACTS_URL names. Raises ConfigurationError."""
    if settings.artifacts_url is None:
        raise ConfigurationError(
            "OUTBOX_ARTIFACTS_URL is not set; set it to file:///folder or s3://bucket/prefix"
        )
    parts = urlsplit(settings.artifacts_url)
    if parts.scheme == "file":
        return FolderStore(Path(unquote(parts.path)))
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    return BucketStore(parts.netloc, parts.path.strip("/"), options)
