"""The program of a rendering child: `python -m processors.rendering.child ENGINE MEMORY_BYTES`.

It reads jobs from its standard input and writes documents to what was its standard output: a
length, a head in JSON, and the content. It ends with its input. Whatever an engine prints goes
nowhere.
"""

from __future__ import annotations

import json
import os
import re
import resource
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from processors.rendering.confinement import confine, limit_cpu
from processors.rendering.engines import ENGINES, Engine, Job, TemplateError

HEAD = struct.Struct(">II")
ERROR_CHARS_MAX = 400
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)


def serve(engine: Engine, jobs: BinaryIO, out: BinaryIO) -> None:
    """Render until the input ends."""
    while head := jobs.read(HEAD.size):
        told, _ = HEAD.unpack(head)
        answer(out, *perform(engine, json.loads(jobs.read(told))))


def perform(engine: Engine, told: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """One job: the head of the answer, and the document."""
    limit_cpu(told.pop("cpu_s"))
    try:
        document = engine.render(Job(**told))
    except TemplateError as error:
        return {"reason": "render_error", "error": str(error)[:ERROR_CHARS_MAX]}, b""
    except MemoryError:
        return {"reason": "render_memory", "error": "the document takes too much memory"}, b""
    except Exception as error:  # noqa: BLE001 (whatever an engine raises is about this document)
        text = f"{type(error).__name__}: {error}"
        return {"reason": "render_error", "error": text[:ERROR_CHARS_MAX]}, b""
    head = {
        "pages": document.pages,
        "template_version": document.template_version,
        "engine_version": engine.version,
        "rss_bytes": rss_bytes(),
    }
    return head, document.content


def answer(out: BinaryIO, head: dict[str, Any], content: bytes) -> None:
    """Write one answer."""
    text = json.dumps(head).encode()
    out.write(HEAD.pack(len(text), len(content)) + text)
    out.write(content)
    out.flush()


def rss_bytes() -> int:
    """The most memory that this process ever held. Linux counts what the process was forked from
    into `ru_maxrss`, also over exec: a child of a large worker would look worn from birth."""
    with suppress(OSError):
        found = _PEAK.search(Path("/proc/self/status").read_text(encoding="ascii"))
        if found:
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Confine this process, warm up, serve."""
    name, memory_bytes = sys.argv[1], int(sys.argv[2])
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    confined = confine(memory_bytes)
    try:
        engine = ENGINES[name]()
    except (ImportError, OSError) as error:  # OSError: a library of the system is missing
        answer(out, {"missing": f"{type(error).__name__}: {error}"[:ERROR_CHARS_MAX]}, b"")
        return
    answer(out, {"confined": confined, "engine_version": engine.version}, b"")
    serve(engine, sys.stdin.buffer, out)


if __name__ == "__main__":
    main()
