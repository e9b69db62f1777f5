"""The whole pipeline in one command: a real PostgreSQL, a shop, the daemon, receivers that verify.

This package owns what exists for show alone: the shop that writes orders (`shop`), the receivers
(`receiver`), the postbox (`postbox`), the counting (`ledger`) and the view (`view`); what it shows
is the product itself. It promises to count honestly (from the journal and from the receivers, each
against the other) and to leave nothing running.
"""
