"""The fixtures of a stand-in server, for what the demo's screens hear."""

from tests.realtime.scene import realtime_template, shared

__all__ = ["realtime_template", "shared"]
