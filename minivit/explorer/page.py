"""Write the explorer's page: one HTML file with its style, script and data, which loads nothing from the network.

The sources are in the folder page/: a template, style sheets, and plain ES modules. The modules are joined in the order
of their imports into one script, each in a function of its own; so a name may be exported once in all of them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from minivit.files import atomic_write

SOURCES = Path(__file__).parent / "page"
_FIRST = "main.js"
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./(\w+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async function|function|const|class) (\w+))", re.MULTILINE)


def write_page(data: Mapping[str, Any], path: str | os.PathLike[str]) -> int:
    """Write the page of `explore`'s data, atomically.

    Parameters
    ----------
    data : mapping
        What `minivit.explorer.explore` returned; schema.json describes it.
    path : path
        The HTML file; a missing folder is created.

    Returns
    -------
    int
        The size of the file in bytes.

    Raises
    ------
    RunError
        The system refuses the write.
    """
    # Names of files that are no UTF-8 are in Python's strings as lone surrogates, which JSON writes like "\\udcff" too.
    content = page(data).encode(errors="backslashreplace")
    atomic_write(path, lambda file: file.write(content))
    return len(content)


def page(data: Mapping[str, Any]) -> str:
    """Return the page as text."""
    script, style = joined_modules(), _styles()
    parts = {
        "policy": f"default-src 'none'; script-src '{_hash(script)}'; style-src 'unsafe-inline'; img-src data:",
        "version": escape(data["version"]),
        "title": escape(data["title"]),
        "about": escape(_about(data)),
        "images": "\n".join(_figure(image) for image in data["images"]),
        "style": style,
        "data": _inert(json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))),
        "script": script,
    }
    template = (SOURCES / "template.html").read_text(encoding="utf-8")
    return re.sub(r"@(\w+)@", lambda match: parts[match[1]], template)


def modules() -> dict[str, str]:
    """Return the sources of the modules by file name, each after those that it imports."""
    found: dict[str, str] = {}

    def add(name: str) -> None:
        if name not in found:
            source = (SOURCES / name).read_text(encoding="utf-8")
            for needed in _IMPORT.findall(source):
                add(needed)
            found[name] = source

    add(_FIRST)
    return found


def joined_modules() -> str:
    """Return all modules as one script: the names that a module exports are constants of the script."""
    return "\n".join(_as_function(source) for source in modules().values())


def _as_function(source: str) -> str:
    exported = ", ".join(_EXPORT.findall(source))
    body = _EXPORT.sub("", _IMPORT.sub("", source))
    return f"const {{ {exported} }} = (() => {{\n{body}\nreturn {{ {exported} }};\n}})();"


def _styles() -> str:
    files = sorted(SOURCES.glob("*.css"), key=lambda path: (path.name != "style.css", path.name))
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def _hash(text: str) -> str:
    """Return the hash by which a policy of content allows one script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _inert(text: str) -> str:
    """Return JSON that cannot end the script element in which it stands."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _about(data: Mapping[str, Any]) -> str:
    model = data["model"]
    return f"{model['name']}: {model['class']} with {model['parameters']:,} parameters in {model['dtype']}."


def _figure(image: Mapping[str, Any]) -> str:
    source, name = escape(image["png"]), escape(image["name"])
    return f'<figure><img src="{source}" alt="{name}" width="256"><figcaption>{name}</figcaption></figure>'
