"""The fixtures of `scene.py`, which tests/peers uses as well."""

from tests.realtime.scene import make_scene, realtime_database, realtime_template, scene, shared

__all__ = ["make_scene", "realtime_database", "realtime_template", "scene", "shared"]
