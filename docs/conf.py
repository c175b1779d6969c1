"""Sphinx configuration of the manual: ``sphinx-build -W docs docs/_build/html``. Needs no network."""

from __future__ import annotations

import importlib.metadata

project = "unihetero_jax"
author = "the unihetero_jax authors"
release = importlib.metadata.version("unihetero_jax")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]

# Notebooks are stored with their outputs, and a test executes them.
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
# ``Attributes:`` of a dataclass become a list, not a second description of each field.
napoleon_use_ivar = True

html_theme = "sphinx_book_theme"
html_title = "unihetero_jax"
html_theme_options = {"home_page_in_toc": True, "navbar_persistent": [], "show_navbar_depth": 1, "show_toc_level": 2}
html_static_path = ["_static"]
html_css_files = ["manual.css"]
html_show_sourcelink = False
