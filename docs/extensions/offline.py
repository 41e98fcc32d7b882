"""Sphinx extension: warn of whatever a built page would fetch from the network, so that all can be read offline.

Links that a reader follows are no such thing; scripts, styles, pictures, fonts and frames are.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.util import logging

ADDRESS = r"(?:https?:)?//[^\"'\s)>]+"
FETCHES = re.compile(
    rf"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\ssrc=[\"']({ADDRESS})"
    rf"|<link\b(?![^>]*rel=[\"'](?:canonical|next|prev|search|index)[\"'])[^>]*?\shref=[\"']({ADDRESS})"
    rf"|@import\s+(?:url\()?[\"']?({ADDRESS})|\burl\([\"']?({ADDRESS})"
)


def fetched(text: str) -> list[str]:
    """The addresses that a browser would fetch for a page or a style sheet, each once, in order."""
    found = (next(filter(None, match.groups())) for match in FETCHES.finditer(text))
    return list(dict.fromkeys(found))


def _check(app: Any, error: Exception | None) -> None:
    if error is not None or app.builder.name != "html":
        return
    for path in sorted(p for kind in ("html", "css") for p in Path(app.outdir).rglob(f"*.{kind}")):
        for address in fetched(path.read_text(encoding="utf-8")):
            logging.getLogger(__name__).warning("%s would fetch %s", path.relative_to(app.outdir), address)


def setup(app: Any) -> dict[str, Any]:
    """Look when all is written."""
    app.connect("build-finished", _check)
    return {"parallel_read_safe": True}
