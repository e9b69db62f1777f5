"""Several databases in one process: what one does when it fails, and what the others notice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from outbox import databases
from outbox.databases import Databases
from outbox.errors import (
    BrokerUnavailable,
    ConfigurationError,
    DatabaseUnavailable,
    OutboxError,
    SchemaMismatch,
)
from outbox.settings import Settings, load_settings

EAST, WEST = "postgresql://u:hush@h:1/east", "postgresql://u:hush@h:1/west"
BOTH = Settings(database_url=f"{EAST}\n{WEST}")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "AGAIN_S", 0.0)


def named(settings: Settings) -> str:
    """A proof that succeeds: the name of the database is its namespace."""
    return settings.database.rpartition("/")[2]


def proven(settings: Settings = BOTH) -> Databases:
    made = Databases(settings, named)
    made.prove(every=True)
    return made


def failing(*errors: OutboxError) -> Callable[[Settings], str]:
    """A proof that fails for the western database, once with each error."""
    left = list(errors)

    def prove(settings: Settings) -> str:
        if settings.database == WEST and left:
            raise left.pop(0)
        return named(settings)

    return prove


def test_what_fails_is_begun_again_and_the_other_never_stops() -> None:
    begun: list[str] = []

    async def main() -> None:
        stop = asyncio.Event()

        async def serve(_settings: Settings, namespace: str, own: asyncio.Event) -> None:
            begun.append(namespace)
            if namespace == "west" and begun.count("west") < 3:
                own.set()  # as a worker that fails does; it is nobody else's
                raise RuntimeError("a bug")
            if begun.count("west") == 3:
                stop.set()
            await own.wait()

        await proven().serve(serve, stop, again=True)

    with capture_logs() as logs:
        asyncio.run(main())
    assert sorted(begun) == ["east", "west", "west", "west"]
    assert [line["event"] for line in logs] == ["run.database_failed"] * 2


def test_where_nothing_is_tried_again_an_error_waits_for_the_others() -> None:
    done: list[str] = []

    async def serve(_settings: Settings, namespace: str, _stop: asyncio.Event) -> None:
        if namespace == "east":
            raise BrokerUnavailable("nothing taken")
        await asyncio.sleep(0)
        done.append(namespace)

    with pytest.raises(BrokerUnavailable, match="nothing taken"):
        asyncio.run(proven().serve(serve, asyncio.Event(), again=False))
    assert done == ["west"]


def test_a_mistake_in_what_all_share_ends_all() -> None:
    async def serve(_settings: Settings, namespace: str, stop: asyncio.Event) -> None:
        if namespace == "east":
            raise ConfigurationError("no such bucket")
        await stop.wait()

    with pytest.raises(ConfigurationError, match="bucket"):
        asyncio.run(proven().serve(serve, asyncio.Event(), again=True))


def test_the_error_of_a_single_database_is_raised_as_it_is() -> None:
    async def serve(_settings: Settings, _namespace: str, _stop: asyncio.Event) -> None:
        raise RuntimeError("a bug")

    one = proven(Settings(database_url=EAST))
    with pytest.raises(RuntimeError, match="a bug"):
        asyncio.run(one.serve(serve, asyncio.Event(), again=True))
    alone = Databases(Settings(database_url=WEST), failing(DatabaseUnavailable("gone")))
    with pytest.raises(DatabaseUnavailable, match=r"^gone$"):
        alone.prove(every=False)


def test_one_that_is_away_is_proven_when_it_comes_and_each_reason_is_told_once() -> None:
    away, old = DatabaseUnavailable("away"), SchemaMismatch("old")
    made = Databases(BOTH, failing(away, away, away, old, old))
    made.prove(every=False)
    served: list[str] = []

    async def main() -> None:
        stop = asyncio.Event()

        async def serve(_settings: Settings, namespace: str, own: asyncio.Event) -> None:
            served.append(namespace)
            if namespace == "west":
                stop.set()
            await own.wait()

        await made.serve(serve, stop, again=True)

    with capture_logs() as logs:
        asyncio.run(main())
    assert served == ["east", "west"]
    assert [line["error"] for line in logs] == ["away", "old"]


def test_several_urls_stand_one_a_line_in_every_place(tmp_path: Path) -> None:
    urls = [EAST, "host=a,b dbname=west"]
    file = tmp_path / "outbox.toml"
    file.write_text(f'database_url = ["{urls[0]}", "{urls[1]}"]\n')
    (tmp_path / "urls").write_text(f"{urls[0]}\n\n  {urls[1]}\n")
    text = "\n".join(urls)
    for settings in (
        load_settings({"config": str(file)}, {}),
        load_settings({}, {"OUTBOX_DATABASE_URL": text}),
        load_settings({}, {"OUTBOX_DATABASE_URL": f"@{tmp_path / 'urls'}"}),
        load_settings({"database_url": text}, {}),
    ):
        assert settings.databases == urls
        assert settings.shown()["database_url"] == "\n".join(urls).replace("hush", "***")


@pytest.mark.parametrize("text", [f"{EAST}\n{EAST}", f"{EAST}\nnonsense", "\n"])
def test_a_list_that_cannot_be_meant_is_refused_without_quoting_it(text: str) -> None:
    with pytest.raises(ConfigurationError, match="OUTBOX_DATABASE_URL") as raised:
        load_settings({}, {"OUTBOX_DATABASE_URL": text})
    assert "hush" not in str(raised.value)
