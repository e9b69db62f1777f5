"""The commands of `outbox`, one module a topic. Each parses, calls, prints.

They are loaded when called. None imports a processor or a broker: what they need of those comes
through the `Wiring` that `cli.py` hands them.
"""
