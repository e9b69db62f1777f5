"""`outbox config` and `outbox completion`: what is in force, and help for the shell."""

from __future__ import annotations

import click

from outbox.commands.base import Wiring, json_option, pass_wiring, print_json, print_rows
from outbox.settings import OPTIONS

SHELLS = ("bash", "zsh", "fish")


@click.command()
@json_option
@pass_wiring
def config(wiring: Wiring, as_json: bool) -> None:
    """Show the settings in force and where each comes from. Secrets are masked."""
    settings = wiring.settings
    shown = settings.shown()
    rows = [
        {
            "setting": option.word,
            "value": shown[option.word],
            "source": settings.sources.get(option.name, "default"),
            "variable": option.variable,
        }
        for option in OPTIONS
    ]
    if as_json:
        print_json({row["setting"]: row for row in rows})
    else:
        print_rows(rows, ["setting", "value", "source", "variable"])


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a completion script: for example `eval "$(outbox completion bash)"`."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    root = ctx.find_root().command
    click.echo(kind(root, {}, "outbox", "_OUTBOX_COMPLETE").source())
