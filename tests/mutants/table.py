"""All mutants, by what they break."""

from __future__ import annotations

from tests.mutants.attempts import ATTEMPTS
from tests.mutants.broadcasts import BROADCASTS
from tests.mutants.documents import DOCUMENTS
from tests.mutants.mail import MAIL
from tests.mutants.ordering import ORDERING
from tests.mutants.own import OWN
from tests.mutants.realtime import REALTIME
from tests.mutants.records import RECORDS
from tests.mutants.repeating import REPEATING
from tests.mutants.routing import ROUTING
from tests.mutants.rules import RULES

MUTANTS = (
    *(*ATTEMPTS, *ROUTING, *RECORDS, *RULES, *ORDERING, *REPEATING),
    *(*OWN, *DOCUMENTS, *MAIL, *BROADCASTS, *REALTIME),
)
