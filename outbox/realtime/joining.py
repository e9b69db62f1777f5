"""What a client asks for when it joins, and the exact words in which it is refused.

Pure. A payload that is not of the documented form is read as well as it can be, never refused;
booleans may be texts. The texts are part of the protocol: clients tell cases apart by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

REPLAY_MAX = 25
PREFIX = "realtime:"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something is refused: `CODE: text` to a channel, the text alone elsewhere."""

    code: str
    text: str

    @property
    def reason(self) -> str:
        """As a join is answered."""
        return f"{self.code}: {self.text}"


TOKEN_MALFORMED = Refusal("MalformedJWT", "The token provided is not a valid JWT")
TOKEN_FORGED = Refusal("JwtSignatureError", "Failed to validate JWT signature")
TOKEN_INCOMPLETE = Refusal("InvalidJWTToken", "Fields `role` and `exp` are required in JWT")
PRIVATE_ONLY = Refusal("PrivateOnly", "This project only allows private channels")
NO_TOPIC = Refusal("TopicNameRequired", "You must provide a topic name")
TOO_MANY_CHANNELS = Refusal("ChannelRateLimitReached", "Too many channels")
TOO_MANY_JOINS = Refusal("ClientJoinRateLimitReached", "Too many joins per second")
REPLAY_PUBLIC = Refusal("UnableToReplayMessages", "Replay is not allowed for public channels")
REPLAY_INVALID = Refusal("UnableToReplayMessages", "Replay params are not valid")
REPLAY_FAILED = Refusal("UnableToReplayMessages", "Realtime was unable to replay messages")
NO_DATABASE = Refusal(
    "UnableToConnectToProject", "Realtime was unable to connect to the project database"
)
NO_PARTITION = Refusal("MissingPartition", 'no partition of relation "messages" found for row')

API_KEY_MISSING = "API key is missing"
TOKEN_EXPIRED = "Token has expired"  # noqa: S105 (a text, not a token)
NOT_CONNECTED = "Error connecting to Realtime"
TOO_MANY_USERS = "Too many connected users"
TOO_MANY_MESSAGES = "Too many messages per second"
NOT_REPLICATING = "Replication connection was not established in time"
REPLICATING = "Replication connection established"
SERVER_LEAVES = "Server requested disconnect"


def unreadable(sub_topic: str) -> Refusal:
    """Of a channel that this client may not read."""
    text = f"You do not have permissions to read from this Channel topic: {sub_topic}"
    return Refusal("Unauthorized", text)


def revoked(sub_topic: str) -> str:
    """To a channel whose new token does not let it stay."""
    return f"You no longer have permission to read from this Channel topic: {sub_topic}"


def expired(seconds: int) -> Refusal:
    """Of a token that was good once."""
    return Refusal("InvalidJWTToken", f"Token has expired {max(seconds, 0)} seconds ago")


@dataclass(frozen=True, slots=True)
class Replay:
    """Messages from `since_ms` (epoch) on, the newest `limit` of them."""

    since_ms: int
    limit: int


@dataclass(frozen=True, slots=True)
class Join:
    """What a join asks for."""

    private: bool = False
    ack: bool = False
    to_self: bool = False
    replay: Replay | Refusal | None = None
    replication_ready: bool = False
    presence: bool = False
    presence_key: str = ""
    table_changes: bool = False
    token: str | None = None


def read_join(payload: Any) -> Join:
    """Read the payload of phx_join."""
    given = _object(payload)
    config = _object(given.get("config"))
    broadcast, presence = _object(config.get("broadcast")), _object(config.get("presence"))
    private = _boolean(config.get("private"))
    tokens = [given.get(name) for name in ("user_token", "access_token")]
    key = presence.get("key")
    return Join(
        private=private,
        ack=_boolean(broadcast.get("ack")),
        to_self=_boolean(broadcast.get("self")),
        replay=_read_replay(broadcast.get("replay"), private),
        replication_ready=_boolean(broadcast.get("replication_ready")),
        presence=_boolean(presence.get("enabled")),
        presence_key=key if isinstance(key, str) else "",
        table_changes=bool(config.get("postgres_changes")),
        token=next((token for token in tokens if isinstance(token, str)), None),
    )


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _boolean(value: Any) -> bool:
    return value is True or value == "true"


def _read_replay(value: Any, private: bool) -> Replay | Refusal | None:
    if not isinstance(value, dict):
        return None
    if not private:
        return REPLAY_PUBLIC
    since, limit = value.get("since"), value.get("limit", REPLAY_MAX)
    if type(since) is not int or type(limit) is not int or not 0 <= since < 2**53:
        return REPLAY_INVALID
    return Replay(since, min(max(limit, 1), REPLAY_MAX))
