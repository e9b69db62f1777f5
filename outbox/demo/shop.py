"""The shop: a small schema, and sessions that write orders into it as an application would.

Run as a process of its own (`python -P -m outbox.demo.shop`): a line of JSON on standard input
says what to write, lines on standard output tell the progress. It ends when its input is closed.
Every row change it counts was committed; what it rolls back is marked and counted apart.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from outbox.demo.scene import INVOICE_EVERY, ORGS, ROLLED_BACK, pace
from outbox.demo.told import tell
from outbox.store.connect import connect

SCHEMA = """
CREATE SCHEMA shop;
CREATE TABLE shop.customers (
    id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    org   text NOT NULL,
    name  text NOT NULL,
    email text NOT NULL
);
CREATE TABLE shop.orders (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    org         text NOT NULL,
    customer_id bigint NOT NULL REFERENCES shop.customers,
    status      text NOT NULL DEFAULT 'placed',
    total       numeric(12, 2) NOT NULL,
    note        text,
    placed_at   timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE shop.order_items (
    order_id bigint NOT NULL REFERENCES shop.orders,
    position integer NOT NULL,
    org      text NOT NULL,
    product  text NOT NULL,
    quantity integer NOT NULL,
    price    numeric(12, 2) NOT NULL,
    PRIMARY KEY (order_id, position)
);
CREATE TABLE shop.members (
    user_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    org     text NOT NULL
);
"""
TABLES = ("shop.customers", "shop.orders", "shop.order_items")
MEMBERS = """
ALTER TABLE shop.members ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON shop.members FOR SELECT TO authenticated USING (user_id = auth.uid());
GRANT USAGE ON SCHEMA shop TO authenticated;
GRANT SELECT ON shop.members TO authenticated;
SELECT outbox.install_realtime_policies('orders', 'shop.members', 'user_id', 'org');
"""
"""Who may listen to which channel: members to that of their organization."""

CUSTOMERS_PER_ORG = 5
TELL_S = 0.1
_NAMES = ("Ada", "Björn", "Chiara", "Dmitri", "Élodie", "Fatima", "Goro", "Hana")
_PRODUCTS = ("lamp", "chair", "Käse", "notebook", "teapot", "piñata", "bicycle", "ladder")


class _ChangedMind(Exception):
    """Raised inside a transaction to roll it back."""


@dataclass(slots=True)
class Board:
    """What all sessions together have done."""

    orders: int = 0
    changes: int = 0
    rolled_back: int = 0
    error: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, orders: int = 0, changes: int = 0, rolled_back: int = 0) -> None:
        """Count what a transaction did, after its end."""
        with self.lock:
            self.orders += orders
            self.changes += changes
            self.rolled_back += rolled_back

    def shown(self) -> dict[str, int]:
        """The counts as they are told."""
        return {
            "orders": self.orders,
            "changes": self.changes,
            "rolled_back": self.rolled_back,
        }


ISSUE = """
SELECT outbox.emit('invoice.issued', json_build_object(
    'number', 'R-' || o.id, 'currency', 'EUR', 'seller', json_build_object('name', initcap(o.org)),
    'customer', json_build_object('name', c.name, 'email', c.email),
    'items', (SELECT json_agg(json_build_object('description', i.product, 'tax_rate', 19,
        'quantity', i.quantity, 'unit_price', i.price) ORDER BY i.position)
        FROM shop.order_items i WHERE i.order_id = o.id)),
    org_id => o.org, subject => 'orders/' || o.id)
FROM shop.orders o JOIN shop.customers c ON c.id = o.customer_id WHERE o.id = %s
"""
"""An event of the application's own, in the transaction that pays."""


class Session:
    """One application session: places orders, pays some, cancels some, thinks again at times."""

    def __init__(
        self, connection: Any, customers: dict[str, list[int]], board: Board, rng: random.Random
    ) -> None:
        self._connection = connection
        self._customers = customers
        self._board = board
        self._random = rng
        self._paid = 0

    def write(self, orders: int, gap_s: float) -> None:
        """Write so many orders, one every `gap_s` seconds, and what happens to them afterwards."""
        rng = self._random
        begun_at = time.monotonic()
        for number in range(orders):
            time.sleep(max(0.0, begun_at + number * gap_s - time.monotonic()))
            if rng.random() < 0.1:
                self._think_again()
            order_id, items = self._place()
            fate = rng.random()
            if fate < 0.7:
                self._pay(order_id)
            elif fate < 0.8:
                self._cancel(order_id, items)

    def _place(self) -> tuple[int, int]:
        with self._connection.transaction():
            order_id, items = self._insert(None)
        self._board.add(orders=1, changes=1 + items)
        return order_id, items

    def _think_again(self) -> None:
        with suppress(_ChangedMind), self._connection.transaction():
            self._insert(ROLLED_BACK)
            raise _ChangedMind
        self._board.add(rolled_back=1)

    def _insert(self, note: str | None) -> tuple[int, int]:
        rng = self._random
        org = rng.choice(ORGS)
        items = [
            (n, rng.choice(_PRODUCTS), rng.randint(1, 5), rng.randint(100, 9999) / 100)
            for n in range(1, rng.randint(1, 3) + 1)
        ]
        total = sum(quantity * price for _, _, quantity, price in items)
        row = self._connection.execute(
            "INSERT INTO shop.orders (org, customer_id, total, note) VALUES (%s, %s, %s, %s)"
            " RETURNING id",
            [org, rng.choice(self._customers[org]), total, note],
        ).fetchone()
        numbers, products, quantities, prices = map(list, zip(*items, strict=True))
        self._connection.execute(
            "INSERT INTO shop.order_items (order_id, org, position, product, quantity, price)"
            " SELECT %s, %s, * FROM unnest(%s::int[], %s::text[], %s::int[], %s::numeric[])",
            [row[0], org, numbers, products, quantities, prices],
        )
        return row[0], len(items)

    def _pay(self, order_id: int) -> None:
        with self._connection.transaction():
            done = self._connection.execute(
                "UPDATE shop.orders SET status = 'paid' WHERE id = %s", [order_id]
            )
            invoiced = self._paid % INVOICE_EVERY == 0
            if invoiced:
                self._connection.execute(ISSUE, [order_id])
        self._paid += 1
        self._board.add(changes=done.rowcount + invoiced)

    def _cancel(self, order_id: int, items: int) -> None:
        with self._connection.transaction():
            self._connection.execute("DELETE FROM shop.order_items WHERE order_id = %s", [order_id])
            self._connection.execute("DELETE FROM shop.orders WHERE id = %s", [order_id])
        self._board.add(changes=1 + items)


def add_customers(connection: Any, board: Board, rng: random.Random) -> dict[str, list[int]]:
    """A few customers of each organization; returns their ids."""
    customers: dict[str, list[int]] = {}
    for org in ORGS:
        names = [rng.choice(_NAMES) for _ in range(CUSTOMERS_PER_ORG)]
        rows = connection.execute(
            "INSERT INTO shop.customers (org, name, email)"
            " SELECT %s, name, 'someone@example.com' FROM unnest(%s::text[]) name RETURNING id",
            [org, names],
        ).fetchall()
        customers[org] = [row[0] for row in rows]
        board.add(changes=len(rows))
    return customers


def open_shop(
    url: str, orders: int, sessions: int, seed: int, board: Board, per_s: float | None = None
) -> None:
    """Write `orders` orders by so many concurrent sessions, `per_s` a second, which follows from
    their number if not given. Errors end up on the board."""
    gap_s = sessions / (per_s or pace(orders))
    with connect(url, autocommit=True) as connection:
        customers = add_customers(connection, board, random.Random(seed))  # noqa: S311 (a shop)

    def session(number: int, share: int) -> None:
        try:
            rng = random.Random(f"{seed}/{number}")  # noqa: S311 (a shop)
            with connect(url, autocommit=True) as connection:
                connection.prepare_threshold = 5  # as an application's driver does
                Session(connection, customers, board, rng).write(share, gap_s)
        except Exception as error:  # noqa: BLE001 (told to the parent, which ends the demo)
            board.error = f"{type(error).__name__}: {error}"

    shares = [orders // sessions + (n < orders % sessions) for n in range(sessions)]
    threads = [threading.Thread(target=session, args=one) for one in enumerate(shares)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    """Be told what to write, write it, tell."""
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    board = Board()

    def work() -> None:
        try:
            open_shop(**task, board=board)
        except Exception as error:  # noqa: BLE001 (the same)
            board.error = f"{type(error).__name__}: {error}"

    writing = threading.Thread(target=work, daemon=True)
    writing.start()
    while writing.is_alive():
        writing.join(TELL_S)
        tell(board.shown())
    tell({"error": board.error} if board.error else {**board.shown(), "done": True})


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
