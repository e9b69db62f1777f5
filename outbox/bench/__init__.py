"""Measures this installation's own speed: `outbox bench`.

Layers, from the outside in: `scenarios` names what can be measured, one module a family measures
it, `books` reads what happened from the journal, `rig` starts and ends everything, `report` says
what came of it. Promises: nothing of the machine's own is touched unless a URL is given, nothing
is left behind, every wait has an end, and no rate is told before its counts balance.
"""
