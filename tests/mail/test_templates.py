"""Templates read the event and nothing else, and whatever they do ends soon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from outbox.errors import UsageError
from processors.mail.templates import OUTPUT_CHARS_MAX, TemplateFailed, Templates

EVENT: dict[str, Any] = {
    "id": 1,
    "data": {
        "name": "{{ 7 * 7 }}",
        "items": ["a", "b"],
        "html": "<script>",
        "n": 3,
        "long": "x" * 100_000,
    },
}


def render(source: str, folder: Path | None = None, *, html: bool = False) -> str:
    templates = Templates(None if folder is None else str(folder))
    return templates.render(templates.compile(source, "text", html=html), EVENT)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ event.data.name }}", "{{ 7 * 7 }}"),
        ("{% for i in event.data.items %}{{ loop.index }}{{ i }}{% endfor %}", "1a2b"),
        ("{{ event.data.items | join(', ') }} {{ event.data.n * 2 }}", "a, b 6"),
        ("{{ event.data.nothing | default('-') }}{{ 'x' ~ event.id }}", "-x1"),
        ("{% if event.data.n > 2 %}{{ event.data.html | upper }}{% endif %}", "<SCRIPT>"),
    ],
)
def test_values_are_data(source: str, text: str) -> None:
    assert render(source) == text


def test_html_is_escaped_and_text_is_not() -> None:
    assert render("{{ event.data.html }}", html=True) == "&lt;script&gt;"
    assert render("{{ event.data.html }}") == "<script>"


GROWING = "{%% set ns = namespace(x=%s) %%}{%% for a in range(99) %%}%s{%% endfor %%}"
HOSTILE = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(60000) %}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}",
    "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    GROWING % ("'xx'", "{% set ns.x = ns.x ~ ns.x %}"),
    GROWING % ("'xx'", "{% set ns.x = ns.x + ns.x %}"),
    GROWING % ("[1]", "{% set ns.x = ns.x + ns.x %}"),
    GROWING % ("'xx'", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
    "{{ 'x' * 1000000000 }}",
    "{{ 10 ** 100000000 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ 'x'.ljust(1000000000) }}",
    "{{ 'x' | center(1000000000) }}",
    "{{ event.data.long | replace('x', event.data.long) }}",
    "{{ range(99999) | join(event.data.long) }}",
    "{{ [1] | batch(1000000000, 'x') | list }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ event.data.update({'n': 4}) }}",
    "{{ event.__class__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ lipsum(1000) }}",
    "{{ event.data.items }}",
    "{% include 'other.html' %}",
    "{{ event.data.nothing }}",
]


@pytest.mark.parametrize("source", HOSTILE)
def test_a_hostile_template_fails_and_ends(source: str) -> None:
    """Ends: the test's own limit is the proof. What it costs stays bounded by steps and sizes."""
    with pytest.raises((TemplateFailed, UsageError)):
        render(source)
    assert EVENT["data"]["n"] == 3


def test_output_is_bounded() -> None:
    many = "{{ event.data.long }}" * (OUTPUT_CHARS_MAX // 100_000 + 1)
    with pytest.raises(TemplateFailed, match="too much output"):
        render(many)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("a\n{% if %}", "subject: line 2: Expected an expression"),
        ("{{ x | nosuch }}", "subject: line 1: No filter named 'nosuch'"),
        ("{{ [1] | _each }}", "subject: line 1: _each and _bounded are not for templates"),
        ("x" * 200_000, "subject: the template is longer"),
    ],
)
def test_a_mistake_is_one_line_when_it_is_compiled(source: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Templates().compile(source, "subject")
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_files_come_from_the_operators_folder_alone(tmp_path: Path) -> None:
    folder = tmp_path / "templates"
    folder.mkdir()
    (folder / "paid.html").write_text("<p>{{ event.data.html }}</p>{% include 'foot.html' %}")
    (folder / "foot.html").write_text("Yours")
    (tmp_path / "secret.html").write_text("secret")
    (folder / "link.html").symlink_to(tmp_path / "secret.html")
    templates = Templates(str(folder))
    page = templates.load("paid.html", "html.file", html=True)
    assert templates.render(page, EVENT) == "<p>&lt;script&gt;</p>Yours"
    for name in ("../secret.html", "/etc/passwd", "link.html", "none.html", "a\0b", ""):
        with pytest.raises(UsageError, match="there is no file"):
            templates.load(name, "html.file")
    with pytest.raises(TemplateFailed):
        render("{% include '../secret.html' %}", folder)
    (folder / "paid.html").write_text("now another")
    assert templates.render(page, EVENT) == "now another"
    with pytest.raises(UsageError, match="set OUTBOX_TEMPLATES"):
        Templates().load("paid.html", "html.file")


def test_an_expression_keeps_what_it_is() -> None:
    templates = Templates()
    assert templates.expression("event.data['items']", "to.list")(EVENT) == ["a", "b"]
    with pytest.raises(TemplateFailed):
        templates.expression("event.data.none.x", "to.list")(EVENT)
    with pytest.raises(UsageError):
        templates.expression("event.", "to.list")
