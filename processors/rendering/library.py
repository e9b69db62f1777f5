"""Where templates lie: in the operator's folder, or shipped with this package as `outbox:NAME`."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from outbox.errors import ConfigurationError, UsageError

SHIPPED = "outbox:"
SUFFIXES = {"typst": ".typ", "weasyprint": ".html"}
_HERE = Path(__file__).with_name("templates")


def find_template(folder: str | None, name: str, engine: str) -> tuple[str, str]:
    """The folder that a template may read, and its file in there. The suffix of the engine may be
    left out. Raises UsageError where the name cannot be one or nothing lies there,
    ConfigurationError where no folder is set."""
    shipped = name.startswith(SHIPPED)
    file = PurePosixPath(name.removeprefix(SHIPPED))
    if file.is_absolute() or ".." in file.parts or not file.name or "\\" in name or "\0" in name:
        raise UsageError(f"template {name!r} must be a file below the folder of templates")
    if file.suffix != SUFFIXES[engine]:
        file = file.with_name(file.name + SUFFIXES[engine])
    if not shipped and folder is None:
        raise ConfigurationError(
            f"the template {name!r} lies in no folder: set OUTBOX_TEMPLATES, or use outbox:invoice"
        )
    root = _HERE if shipped or folder is None else Path(folder)
    if not (root / file).is_file():
        where = "shipped" if shipped else f"in {root}"
        raise UsageError(f"there is no template {str(file)!r} {where}")
    return str(root), str(file)
