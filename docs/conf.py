"""Settings of the documentation site: Markdown pages, one theme, nothing loaded from elsewhere."""

from __future__ import annotations

import logging
import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))  # for extensions/

project = "celrec"
author = "the celrec authors"
version = release = version_of("celrec")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "extensions.plain_docstrings",
    "extensions.mathml",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = f"celrec {version}"
html_show_sourcelink = False
html_show_copyright = False

# design/ and results/ list whatever pages they hold, which may be none.
logging.getLogger("sphinx.sphinx.directives.other").addFilter(
    lambda record: getattr(record, "subtype", None) != "empty_glob"
)


def without_last_empty_line(app: Sphinx, page: str, source: list[str]) -> None:
    """Doctest wants an empty line after the last output; the reader does not."""
    source[0] = re.sub(r"\n\n```$", "\n```", source[0], flags=re.MULTILINE)


def setup(app: Sphinx) -> None:
    app.connect("source-read", without_last_empty_line)
