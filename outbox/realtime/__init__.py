"""A small server that speaks the protocol of Supabase Realtime, for development and tests.

It serves what applications of Outbox need of it: broadcasts over websockets and REST, private
channels that PostgreSQL's row-level security judges, replay, presence. Production is Supabase.
Needs `pip install 'outboxd[realtime]'`; nothing here is imported by `import outbox`.
"""
