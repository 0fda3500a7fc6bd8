"""How the documentation becomes pages: ``make docs``."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

import fedscale  # noqa: E402 - the path comes first

project = "fedscale"
author = "the fedscale contributors"
copyright = author  # noqa: A001 - sphinx's name
version = release = fedscale.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "machines"]
exclude_patterns = ["_build", "extensions"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nitpicky = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
html_theme = "furo"
html_title = f"fedscale {release}"
html_show_sphinx = False
html_copy_source = False
html_static_path: list[str] = []
