"""Self-contained HTML pages; their content may be hostile and is always escaped."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template

# Unicode embeddings, overrides and isolates, which reorder the text around them (CVE-2021-42574).
REORDERING = re.compile("[\u202a-\u202e\u2066-\u2069]")


def template(package: str, name: str, functions: list[Callable[..., Any]]) -> Template:
    """A page's template, in which every value is escaped.

    Args:
        package: the package that contains the template.
        functions: functions that the template may call by name.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    def finalized(value: Any) -> Any:
        return visible(value) if type(value) is str else value

    # finalize runs on every value that the template prints, so none can be missed.
    environment = Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        finalize=finalized,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {function.__name__: function for function in functions}
    return environment.get_template(name)


def visible(text: str) -> str:
    """`text` with control characters, lone surrogates and reordering marks as escapes such as \\x1b."""

    def escaped(character: str) -> str:
        hidden = character not in "\n\t" and unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        if not hidden and not REORDERING.match(character):
            return character
        code = ord(character)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"

    return "".join(map(escaped, text.replace("\r\n", "\n")))
