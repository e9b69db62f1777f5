"""The kind `email`: from an event, by templates, to messages that an SMTP server takes.

`templates` renders within limits, `config` is what a subscription asks for, `message` makes the
bytes, `signing` signs them, `smtp` keeps the connections, `processor` makes one attempt.
"""
