"""How Sphinx builds these pages: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

import vdnn

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "vdnn"
author = "the vdnn developers"
project_copyright = author
version = release = vdnn.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx_click",
    "mathml",
    "offline",
    "pictures",
    "plain_docstrings",
    "tutorials",
]
exclude_patterns = ["_build", "extensions"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
templates_path: list[str] = []

nitpicky = True
smartquotes = False  # "all" is a value that can be typed
nitpick_ignore_regex = [
    (
        "py:class",
        r"(collections|concurrent|contextlib|numpy|os|pathlib)\..*|Path",
    ),  # other projects' pages are elsewhere
    ("py:class", r"vdnn\.\w+\..*"),  # types that are not public: seen in signatures, some without a page
    ("py:class", r"Cost|Image|Labels|Images|Samples|WeightSource"),  # names of types, as the source has them
]

# Texts: MyST.  Notebooks are executed by make tutorials, never here.
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_inline", "attrs_block"]
myst_heading_anchors = 3
myst_update_mathjax = False
nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # they would come from the network
suppress_warnings = ["mystnb.unknown_mime_type"]

# Reference: as the docstrings have it.
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"exclude-members": "__init__, __new__"}
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False

# Look: everything that a page needs lies beside it.
html_theme = "furo"
html_title = f"vdnn {release}"
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["vdnn.css"]
html_copy_source = False
html_show_sphinx = False
