"""`outbox realtime`: a stand-in for Supabase Realtime, for development and tests."""

from __future__ import annotations

import asyncio
import signal

import click

from outbox.commands.base import Wiring, pass_wiring, say, takes_settings
from outbox.errors import ConfigurationError


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=4000, show_default=True, help="0 takes any."
)
@click.option(
    "--install-shim",
    is_flag=True,
    help="First install the schema realtime that it reads; refused where Supabase's is.",
)
@click.option("--private-only", is_flag=True, help="Refuse channels that are not private.")
@click.option(
    "--events-per-second",
    type=click.IntRange(1, 1_000_000),
    default=100,
    show_default=True,
    help="Messages a second, as your plan limits them.",
)
@click.option(
    "--payload-kb",
    type=click.IntRange(1, 8000),
    default=3000,
    show_default=True,
    help="Size of a message, as your plan limits it.",
)
@click.option(
    "--refuse-at-once",
    is_flag=True,
    help="Refuse without the delays (2 s a connection, 5 s a join) that slow a client in a loop.",
)
@takes_settings("jwt_secret", "jwks", "listen_url", "log_format")
@pass_wiring
def realtime(
    wiring: Wiring,
    host: str,
    port: int,
    install_shim: bool,
    private_only: bool,
    events_per_second: int,
    payload_kb: int,
    refuse_at_once: bool,
) -> None:
    """Serve broadcasts as Supabase Realtime does, for development and tests.

    It is not for production, which is Supabase. Websockets at /realtime/v1/websocket, REST at
    /realtime/v1/api/broadcast. Row-level security on realtime.messages says who may join a private
    channel. Clients' tokens are verified with OUTBOX_JWT_SECRET or OUTBOX_JWKS.
    """
    try:
        from outbox.realtime.server import RealtimeServer, address_of, bind, serve
        from outbox.realtime.tokens import Verifier
    except ImportError as error:
        raise ConfigurationError(
            f"{error.name} is not installed; run: pip install 'outboxd[realtime]'"
        ) from error
    from outbox.logs import configure_logs
    from outbox.realtime.limits import Limits
    from outbox.store.realtime import require_shim

    settings = wiring.settings
    verifier = Verifier(settings.jwt_secret, settings.jwks)
    require_shim(settings.database, install=install_shim)
    configure_logs(settings.log_format, debug=settings.debug)
    limits = Limits(
        events_per_s=events_per_second, payload_kb=payload_kb, private_only=private_only
    )
    if refuse_at_once:
        limits = limits.without_delays()
    server = RealtimeServer(settings.listen_url or settings.database, verifier, limits)
    with bind(host, port) as listening:
        address = address_of(listening)

        async def main() -> None:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, server.stop)
            await serve(server, listening, lambda: say(_told(address)))

        asyncio.run(main())


def _told(address: str) -> str:
    page = address.removesuffix("realtime/v1")
    return f"listening on {address}\na page that shows topics side by side: {page}"
