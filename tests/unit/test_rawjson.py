"""Members are sliced out of JSON text exactly, whatever their values are."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors.rawjson import members

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(
        [
            '"',
            "\\",
            '\\"',
            "{",
            "]}",
            "\0",
            "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
        ]
    )
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)
SPACES = st.text(alphabet=" \t\r\n", max_size=3)


@given(
    st.dictionaries(st.text(), VALUES), st.booleans(), SPACES, st.sampled_from([None, 1, "\t\r\n"])
)
def test_slicing_is_exact(
    value: dict[str, object], ascii_only: bool, space: str, indent: int | str | None
) -> None:
    def text_of(item: object) -> str:
        return json.dumps(item, ensure_ascii=ascii_only, indent=indent)

    parts = [
        f"{space}{text_of(name)}{space}:{space}{text_of(item)}{space}"
        for name, item in value.items()
    ]
    text = f"{space}{{{','.join(parts) or space}}}{space}".encode("utf-8", "surrogatepass")
    expected = {
        name: text_of(item).encode("utf-8", "surrogatepass") for name, item in value.items()
    }
    assert members(text) == expected


def test_values_that_decoding_would_change_are_untouched() -> None:
    text = (
        rb'{"big": 9007199254740993, "num": 1.10, "exp": 1E400, "nul": "\u0000", '
        rb'"long": ' + b"9" * 5000 + rb', "esc": "\u00e9\/", "dup": {"a":1,"a":2}}'
    )
    found = members(text)
    assert found is not None
    assert found["big"] == b"9007199254740993"
    assert found["num"] == b"1.10"
    assert found["exp"] == b"1E400"
    assert found["nul"] == rb'"\u0000"'
    assert found["long"] == b"9" * 5000
    assert found["esc"] == rb'"\u00e9\/"'
    assert found["dup"] == b'{"a":1,"a":2}'


def test_depth_does_not_matter() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    assert members(b'{"deep":' + deep + b"}") == {"deep": deep}


def test_escaped_names_are_decoded_and_the_last_of_equal_names_counts() -> None:
    assert members(rb'{"rec\u006frd":1,"record":2}') == {"record": b"2"}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b'"a"',
        b"{",
        b'{"a"',
        b'{"a":',
        b'{"a":1',
        b'{"a":1,',
        b'{"a":1,}',
        b'{"a":[1}',
        b'{"a":"x}',
        b'{"a":1}{',
        b'{"a":1} x',
        b"{} x",
        b"{1:2}",
        b'{"a" 1}',
        rb'{"\ud8":1}',
    ],
)
def test_what_is_no_whole_object_is_none(text: bytes) -> None:
    assert members(text) is None


@given(st.binary(max_size=60), st.text(alphabet='{}[]":,\\ a1', max_size=30))
def test_no_text_makes_the_scanner_fail(noise: bytes, text: str) -> None:
    for candidate in (noise, b'{"' + noise, text.encode(), b'{"a":' + text.encode() + b"}"):
        members(candidate)
