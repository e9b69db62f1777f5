"""What renders: Typst, and WeasyPrint for HTML. Used in a rendering child alone.

Promises: what an event holds goes in as data, never as source; the same template, event and time
give the same bytes; only fonts of the engine and of the operator's folder are used by Typst.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

FONTS = "fonts"
PACKAGES = "packages"
"""Folders beside the operator's templates: further fonts, and packages of Typst."""

FILES_MAX = 1000
NAMED_BYTES_MAX = 32 * 1024 * 1024


class TemplateError(Exception):
    """The template cannot be rendered with this event; the message says why."""


@dataclass(frozen=True, slots=True)
class Job:
    """One document: `template` below the folder `root`, `event` as JSON text, `at` as unix time,
    PDF `standards` to meet."""

    root: str
    template: str
    event: str
    at: int
    standards: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """A rendered document. `template_version` is a hash over every file that was used."""

    content: bytes
    pages: int
    template_version: str


class Engine(Protocol):
    """What a child renders with."""

    version: str

    def render(self, job: Job) -> Document:
        """Raises TemplateError."""


class TypstEngine:
    """Typst, with one warm compiler a folder."""

    def __init__(self) -> None:
        import typst

        self.version = version("typst")
        self._typst = typst
        self._compilers: dict[str, tuple[Any, str]] = {}
        self._files = Files()

    def render(self, job: Job) -> Document:
        """Render; the event is `sys.inputs.event`, JSON text."""
        compiler, fonts = self._compiler(job.root)
        try:
            content = compiler.compile(
                str(Path(job.root, job.template)),
                format="pdf",
                sys_inputs={"event": job.event},
                timestamp=job.at,
                pdf_standards=list(job.standards),
            )
        except self._typst.TypstError as error:
            raise TemplateError(_first_lines(error)) from error
        except (RuntimeError, ValueError) as error:  # no such file, no such standard
            raise TemplateError(str(error)) from error
        return Document(content, _pages(content), self._files.digest(job.root, job.template, fonts))

    def _compiler(self, root: str) -> tuple[Any, str]:
        if root not in self._compilers:
            folder = Path(root)
            paths = [folder / FONTS] if (folder / FONTS).is_dir() else []
            fonts = self._typst.Fonts(include_system_fonts=False, font_paths=paths)
            packages = folder / PACKAGES
            compiler = self._typst.Compiler(
                root=folder,
                font_paths=fonts,
                ignore_system_fonts=True,
                package_path=packages,
                package_cache_path=packages,
            )
            names = [path for base in paths for path in sorted(base.rglob("*")) if path.is_file()]
            digests = b"".join(hashlib.sha256(path.read_bytes()).digest() for path in names)
            self._compilers[root] = compiler, hashlib.sha256(digests).hexdigest()
        return self._compilers[root]


class WeasyPrintEngine:
    """WeasyPrint over a template of Jinja2 in its sandbox. It fetches nothing but `data:` URLs."""

    def __init__(self) -> None:
        import weasyprint
        from jinja2 import FileSystemLoader, StrictUndefined
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        from weasyprint.urls import URLFetcher

        self.version = version("weasyprint")
        self._weasyprint = weasyprint
        self._fetcher = URLFetcher(allowed_protocols=["data"], allow_redirects=False)
        self._loader = FileSystemLoader
        self._undefined = StrictUndefined
        self._environment = ImmutableSandboxedEnvironment
        self._files = Files()

    def render(self, job: Job) -> Document:
        """Render; the event is the variable `event`."""
        from jinja2 import TemplateError as JinjaError

        # Fonts are embedded with a time of their own, which is read from here.
        os.environ["SOURCE_DATE_EPOCH"] = str(job.at)
        environment = self._environment(
            loader=self._loader(job.root), autoescape=True, undefined=self._undefined
        )
        try:
            text = environment.get_template(job.template).render(event=json.loads(job.event))
        except (JinjaError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise TemplateError(f"{type(error).__name__}: {error}") from error
        html = self._weasyprint.HTML(string=text, url_fetcher=self._fetcher)
        options: Mapping[str, Any] = {"pdf_tags": True}
        if job.standards:
            options = {"pdf_variant": f"pdf/{job.standards[0]}"}
        rendered = html.render(**options)
        digest = self._files.digest(job.root, job.template, "")
        return Document(rendered.write_pdf(**options), len(rendered.pages), digest)


ENGINES: Mapping[str, type[TypstEngine | WeasyPrintEngine]] = {
    "typst": TypstEngine,
    "weasyprint": WeasyPrintEngine,
}


# -- which files were used ------------------------------------------------------------------------

_LITERAL = re.compile(rb"\"([^\"\\\n]{1,300})\"|'([^'\\\n]{1,300})'")


class Files:
    """Hashes a template with every file that it names, directly or through another one; a file is
    read again when it has changed."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, int, int], bytes, list[str]]] = {}

    def digest(self, root: str, template: str, more: str) -> str:
        """The hash, over names and contents and `more`."""
        base = Path(root).resolve()
        found: dict[str, bytes] = {}
        waiting = [Path(template)]
        while waiting and len(found) < FILES_MAX:
            name = waiting.pop()
            if str(name) in found:
                continue
            found[str(name)], names = self._read(base / name)
            waiting += [one for text in names if (one := _inside(base, name, text)) is not None]
        total = hashlib.sha256(more.encode())
        for text in sorted(found):
            total.update(text.encode() + b"\0" + found[text])
        return total.hexdigest()

    def _read(self, path: Path) -> tuple[bytes, list[str]]:
        status = path.stat()
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            content = path.read_bytes()
            pairs = _LITERAL.findall(content) if len(content) <= NAMED_BYTES_MAX else []
            names = sorted({(one or other).decode("utf-8", "replace") for one, other in pairs})
            known = self._known[path] = (stamp, hashlib.sha256(content).digest(), names)
        return known[1], known[2]


def _inside(base: Path, origin: Path, text: str) -> Path | None:
    """The file below `base` that a text in the file `origin` names, if it does: relative to that
    file or, as in Jinja2 or with a slash, to the folder."""
    for folder in (Path(), origin.parent):
        name = Path(os.path.normpath(folder / text.lstrip("/")))
        if ".." not in name.parts and "\0" not in text and (base / name).is_file():
            return name
    return None


# -- what engines say -----------------------------------------------------------------------------

_COUNTS = (re.compile(rb"<xmpTPg:NPages>(\d+)<"), re.compile(rb"/Type\s*/Pages\s*/Count (\d+)"))


def _pages(content: bytes) -> int:
    for pattern in _COUNTS:
        if match := pattern.search(content):
            return int(match[1])
    raise TemplateError("the engine does not say how many pages it made")


def _first_lines(error: Any) -> str:
    """What is wrong, where, and the first hint."""
    place = re.search(r"┌─ (\S+)", error.diagnostic or "")
    hint = next(iter(error.hints), None)
    parts = [error.message, f"at {place[1]}" if place else None, f"hint: {hint}" if hint else None]
    return "; ".join(part for part in parts if part)
