"""Templates over an event: Jinja2, sandboxed, with a bound on time, steps and size.

Promises: values of an event are data and never become template source; a template reads nothing but
the event and the operator's folder of templates; whatever it does, it ends soon. Rendering runs on
the worker's loop, so every loop, call, filter and piece of output is charged to a budget, and what
could make something large out of something small in one step is left out or checked before.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from outbox.errors import OutboxError, UsageError

SECONDS_MAX = 0.5
STEPS_MAX = 100_000
STEPS_BETWEEN = 16
OUTPUT_CHARS_MAX = 2_000_000
VALUE_MAX = 1_000_000
"""Characters or items of any one value that a template makes."""
FILE_BYTES_MAX = 256 * 1024
SOURCE_CHARS_MAX = 128 * 1024

_FILTERS = """
    abs attr batch capitalize count d default dictsort e escape filesizeformat first float
    forceescape groupby int items join last length list lower map max min reject
    rejectattr reverse round safe select selectattr slice sort string striptags sum title tojson
    trim truncate unique upper urlencode wordcount
""".split()
_STR_METHODS = frozenset(
    """
    capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit
    isnumeric isspace istitle isupper islower lower lstrip partition rfind rpartition
    rsplit rstrip split splitlines startswith strip swapcase title upper removeprefix removesuffix
    """.split()
)


class TemplateFailed(OutboxError):
    """A template cannot be rendered with this event."""


class _Budget:
    """What one rendering may still use. One step cannot take long, so the clock is looked at every
    few steps."""

    __slots__ = ("_look", "_until", "chars", "steps")

    def __init__(self) -> None:
        self._until = time.monotonic() + SECONDS_MAX
        self.steps = STEPS_MAX
        self.chars = OUTPUT_CHARS_MAX
        self._look = STEPS_MAX - STEPS_BETWEEN

    def charge(self, chars: int = 0) -> None:
        self.steps -= 1
        self.chars -= chars
        if self.chars < 0:
            raise TemplateFailed("the template makes too much output")
        if self.steps < self._look:
            self._look = self.steps - STEPS_BETWEEN
            if self.steps < 0:
                raise TemplateFailed("the template makes too many steps")
            if time.monotonic() > self._until:
                raise TemplateFailed(f"the template takes longer than {SECONDS_MAX} s")


class _Environment(ImmutableSandboxedEnvironment):
    """Rendering is synchronous and one at a time, so the budget is an attribute."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, folder: Path | None, *, html: bool) -> None:
        super().__init__(
            autoescape=html,
            undefined=jinja2.StrictUndefined,
            finalize=self._finalize,
            loader=_Folder(folder),
            keep_trailing_newline=True,
            cache_size=200,
        )
        self.budget = _Budget()
        kept = {name: self.filters[name] for name in _FILTERS if name in self.filters}
        self.filters = {name: self._charged(name, f) for name, f in kept.items()}
        self.filters["replace"] = self._replace
        self.filters["_each"] = self._each
        self.filters["_bounded"] = self._bounded
        self.globals = {"range": self.globals["range"], "namespace": self.globals["namespace"]}
        self.policies["json.dumps_function"] = _dumps

    # -- what is intercepted --------------------------------------------------------------------

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Loops go through `_each`, texts put together through `_bounded`."""
        if "_each" in source or "_bounded" in source:
            raise jinja2.TemplateSyntaxError("_each and _bounded are not for templates", 1, name)
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            weight = sum(len(d.data) for d in loop.find_all(nodes.TemplateData))
            arguments = [nodes.Const(weight, lineno=loop.lineno)]
            loop.iter = nodes.Filter(
                loop.iter, "_each", arguments, [], None, None, lineno=loop.lineno
            )
        return _bound_concatenations(tree)

    def _each(self, values: Iterable[Any], weight: int = 0) -> Iterator[Any]:
        for value in values:
            self.budget.charge(weight)
            yield value

    def _bounded(self, value: Any) -> Any:
        self.budget.charge()
        if isinstance(value, str | list | tuple) and len(value) > VALUE_MAX:
            raise TemplateFailed(f"the template makes a value of more than {VALUE_MAX} characters")
        return value

    def _charged(self, name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that is charged, and whose result is of a bounded size. Jinja2 tells by its
        marks what else the filter is given."""
        index = 1 if hasattr(inner, "jinja_pass_arg") else 0

        def filtered(*args: Any, **kwargs: Any) -> Any:
            self.budget.charge()
            if name == "join":
                args = (*args[:index], self._joinable(args[index], args[index + 1 :]),
                        *args[index + 1 :])  # fmt: skip
            if name in {"batch", "slice", "truncate", "round"}:
                _small(args[index + 1 :], kwargs)
            return self._bounded(inner(*args, **kwargs))

        if hasattr(inner, "jinja_pass_arg"):
            filtered.jinja_pass_arg = inner.jinja_pass_arg  # type: ignore[attr-defined]
        return filtered

    def _joinable(self, values: Iterable[Any], more: tuple[Any, ...]) -> list[Any]:
        separator = len(str(more[0])) if more else 0
        taken, size = [], 0
        for value in values:
            self.budget.charge()
            size += separator + (len(value) if isinstance(value, str) else 32)
            if size > VALUE_MAX:
                raise TemplateFailed(f"the template joins more than {VALUE_MAX} characters")
            taken.append(value)
        return taken

    def _replace(self, text: Any, old: Any, new: Any) -> Any:
        self.budget.charge()
        text, old, new = str(text), str(old), str(new)
        if not old or text.count(old) * len(new) + len(text) > VALUE_MAX:
            raise TemplateFailed("the template replaces nothing, or by too much")
        return text.replace(old, new)

    def _finalize(self, value: Any) -> Any:
        if isinstance(value, str):
            self.budget.charge(len(value))
            return value
        self.budget.charge(16)
        if isinstance(value, dict | list):
            # Nobody wants Python's way to write a mapping in a letter.
            raise TemplateFailed("the template prints a list or an object; name its members")
        return value

    def call(self, *args: Any, **kwargs: Any) -> Any:
        self.budget.charge()
        return super().call(*args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator in {"*", "**"} and not _numbers(left, right, 10**15 if operator == "*" else 64):
            raise TemplateFailed(f"the template multiplies with {operator} more than numbers")
        if operator == "%" and not isinstance(left, int | float | Decimal):
            raise TemplateFailed("% is for numbers")
        return self._bounded(super().call_binop(context, operator, left, right))

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Members of an event come before methods: `event.data.items` is what the event says."""
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr not in _STR_METHODS:
            return False
        if isinstance(obj, bytes | int | float | Decimal):
            return False
        return super().is_safe_attribute(obj, attr, value)


def _numbers(left: Any, right: Any, most: int) -> bool:
    return all(isinstance(x, int | float | Decimal) and -most <= x <= most for x in (left, right))


def _small(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    if any(isinstance(x, int) and abs(x) > 10_000 for x in (*args, *kwargs.values())):
        raise TemplateFailed("a number that the template gives to a filter is too large")


def _bound_concatenations(tree: nodes.Template) -> nodes.Template:
    from jinja2.visitor import NodeTransformer

    class Bounding(NodeTransformer):
        def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 (jinja2's name)
            self.generic_visit(node)
            return nodes.Filter(node, "_bounded", [], [], None, None, lineno=node.lineno)

    bounded = Bounding().visit(tree)
    assert isinstance(bounded, nodes.Template)
    bounded.set_environment(tree.environment)  # type: ignore[arg-type]
    return bounded


def _dumps(value: Any, **options: Any) -> str:
    return json.dumps(value, default=str, **options)


class _Folder(jinja2.BaseLoader):
    """The operator's folder: nothing outside it, wherever links point."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = None if folder is None else folder.resolve()

    def get_source(
        self,
        environment: jinja2.Environment,  # noqa: ARG002 (jinja2's)
        template: str,
    ) -> tuple[str, str, Callable[[], bool]]:
        path = confined(self._folder, template)
        changed = path.stat().st_mtime_ns
        text = read_template_file(self._folder, template).decode("utf-8", "strict")
        return text, str(path), lambda: path.is_file() and path.stat().st_mtime_ns == changed


def confined(folder: Path | None, name: str) -> Path:
    """The path of a file of the operator's folder. Raises UsageError for one outside."""
    if folder is None:
        raise UsageError(f"{name!r} is a file: set OUTBOX_TEMPLATES to the folder it stands in")
    root = folder.resolve()
    try:
        path = (root / name).resolve()
        if path.is_relative_to(root) and path.is_file():
            return path
    except (OSError, ValueError):  # no file has such a name
        pass
    raise UsageError(f"there is no file {name!r} in the folder of OUTBOX_TEMPLATES")


def read_template_file(folder: Path | None, name: str, bytes_max: int = FILE_BYTES_MAX) -> bytes:
    """The contents of a file of the operator's folder. Raises UsageError."""
    with confined(folder, name).open("rb") as file:
        data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise UsageError(f"{name} is larger than {bytes_max} bytes")
    return data


@dataclass(frozen=True, slots=True)
class Text:
    """A compiled template; `constant` is its text where nothing in it depends on an event."""

    template: jinja2.Template
    constant: str | None = None


class Templates:
    """Compiles and renders. A compiled template is kept by whoever asked for it."""

    def __init__(self, folder: str | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._text = _Environment(self.folder, html=False)
        self._html = _Environment(self.folder, html=True)

    def compile(self, source: str, what: str, *, html: bool = False) -> Text:
        """A template out of its text. Raises UsageError, naming `what`."""
        if len(source) > SOURCE_CHARS_MAX:
            raise UsageError(f"{what}: the template is longer than {SOURCE_CHARS_MAX} characters")
        template = self._compiled(what, lambda: self._of(html).from_string(source))
        marked = any(mark in source for mark in ("{{", "{%", "{#"))
        return Text(template, None if marked else template.render())

    def load(self, name: str, what: str, *, html: bool = False) -> Text:
        """A template out of a file of the operator's folder; it is read again when it changes."""
        return Text(self._compiled(what, lambda: self._of(html).get_template(name)))

    def expression(self, source: str, what: str) -> Callable[[Mapping[str, Any]], Any]:
        """An expression over the event whose value stays what it is, such as a list."""
        environment = self._text
        if len(source) > SOURCE_CHARS_MAX:
            raise UsageError(f"{what}: the expression is too long")
        compiled = self._compiled(
            what, lambda: environment.compile_expression(source, undefined_to_none=False)
        )

        def value(event: Mapping[str, Any]) -> Any:
            return self._bounded(environment, lambda: compiled(event=event))

        return value

    def render(self, text: Text, event: Mapping[str, Any]) -> str:
        """Raises TemplateFailed."""
        if text.constant is not None:
            return text.constant
        template = text.template
        environment = template.environment
        assert isinstance(environment, _Environment)
        if template.name is not None and not template.is_up_to_date:
            template = self._loaded(environment, template.name)
        rendered: str = self._bounded(environment, lambda: template.render(event=event))
        if len(rendered) > OUTPUT_CHARS_MAX:
            raise TemplateFailed("the template makes too much output")
        return rendered

    def _loaded(self, environment: _Environment, name: str) -> jinja2.Template:
        try:
            return environment.get_template(name)
        except (jinja2.TemplateError, UsageError, OSError, ValueError) as error:
            raise TemplateFailed(f"{name}: {_line(error)}") from error

    def _of(self, html: bool) -> _Environment:
        return self._html if html else self._text

    def _compiled(self, what: str, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except jinja2.TemplateSyntaxError as error:
            raise UsageError(f"{what}: line {error.lineno}: {_line(error)}") from error
        except (jinja2.TemplateError, UsageError, UnicodeDecodeError, RecursionError) as error:
            raise UsageError(f"{what}: {_line(error)}") from error

    def _bounded(self, environment: _Environment, run: Callable[[], Any]) -> Any:
        environment.budget = _Budget()
        try:
            return run()
        except TemplateFailed:
            raise
        # Whatever a template and an event make of each other is this event's failure alone.
        except Exception as error:
            raise TemplateFailed(f"{type(error).__name__}: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
