"""Every error Outbox raises on purpose, in one tree.

Each class carries the exit code the command line ends with, so that scripts can tell the cases
apart. The message of an error is one line that says what is wrong and what to do about it.
"""

from __future__ import annotations


class OutboxError(Exception):
    """Something Outbox was asked to do cannot be done."""

    exit_code = 1


class UsageError(OutboxError):
    """The input is not of the form it must have."""

    exit_code = 2


class ConfigurationError(OutboxError):
    """A setting is missing or wrong."""

    exit_code = 3


class DatabaseUnavailable(OutboxError):
    """PostgreSQL cannot be reached or refuses the connection."""

    exit_code = 4


class BrokerUnavailable(OutboxError):
    """The broker cannot be reached or refuses the connection."""

    exit_code = 5


class SchemaMismatch(OutboxError):
    """The schema `outbox` is missing, too old or too new for this program."""

    exit_code = 6


class WrongInstance(OutboxError):
    """The database is a copy or another instance's: nothing is sent until `outbox adopt`."""

    exit_code = 7


class PermissionRefused(OutboxError):
    """The database role lacks a right that the command needs."""

    exit_code = 8


class NotFound(OutboxError):
    """The thing named does not exist."""

    exit_code = 9


class DestinationRefused(OutboxError):
    """The egress guard refuses the destination."""

    exit_code = 10


class KeyMissing(ConfigurationError):
    """No key in OUTBOX_SECRET_KEY opens what is stored, or none is set."""

    exit_code = 11


class PayloadTooLarge(UsageError):
    """The payload exceeds the size limit."""

    exit_code = 12


class LossDetected(OutboxError):
    """A run that counts found deliveries lost."""

    exit_code = 13


class ProjectionsDiffer(OutboxError):
    """Rows are not what the facts say."""

    exit_code = 14


class MessageRefused(OutboxError):
    """Realtime does not take messages. `reason` is a stable code; `lasting` is true where it is the
    message's own fault, so that another try would end the same."""

    def __init__(self, reason: str, text: str, *, lasting: bool) -> None:
        super().__init__(text)
        self.reason = reason
        self.lasting = lasting


class VerificationError(OutboxError):
    """A signature does not verify: the request is not to be trusted."""


class HeaderMissing(VerificationError):
    """A header that every signed webhook carries is not there."""


class HeaderMalformed(VerificationError):
    """A webhook header is not of the form it must have, or stands there twice."""


class TimestampTooOld(VerificationError):
    """The webhook was signed longer ago than the tolerance allows."""


class TimestampTooNew(VerificationError):
    """The webhook claims to be signed further in the future than the tolerance allows."""


class SignatureMismatch(VerificationError):
    """No signature in the request matches a key of the receiver."""


class AlreadyProcessed(VerificationError):
    """The request is genuine, and its id was processed before: answer it with success."""


class IllegalTransition(OutboxError):
    """A delivery was asked to move between two states that no edge joins."""
