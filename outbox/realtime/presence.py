"""Who is present in a room: what each channel said of itself, by key.

Pure. Several channels may share a key; each has one meta at a time, with a `phx_ref` that names it.
"""

from __future__ import annotations

from typing import Any

State = dict[str, dict[str, list[dict[str, Any]]]]


class Presence:
    """The metas of a room. Channels are any hashable thing."""

    def __init__(self) -> None:
        self._metas: dict[object, tuple[str, dict[str, Any]]] = {}
        self._drawn = 0

    def track(self, channel: object, key: str, payload: dict[str, Any]) -> dict[str, State]:
        """Note what a channel says of itself; returns the difference to tell everybody."""
        left = self._leave(channel)
        self._drawn += 1
        meta = {**payload, "phx_ref": f"{self._drawn:x}"}
        self._metas[channel] = (key, meta)
        return {"joins": {key: {"metas": [meta]}}, "leaves": left}

    def untrack(self, channel: object) -> dict[str, State] | None:
        """Forget a channel; returns the difference, None where it had said nothing."""
        left = self._leave(channel)
        return {"joins": {}, "leaves": left} if left else None

    def state(self) -> State:
        """Everything, by key."""
        found: State = {}
        for key, meta in self._metas.values():
            found.setdefault(key, {"metas": []})["metas"].append(meta)
        return found

    def _leave(self, channel: object) -> State:
        known = self._metas.pop(channel, None)
        return {} if known is None else {known[0]: {"metas": [known[1]]}}
