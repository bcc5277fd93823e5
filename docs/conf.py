"""The documentation as a site: `make docs`. Warnings are errors there, so a dead link or anchor fails it."""

project = "llm-tuning"
author = "the llm-tuning authors"
extensions = ["myst_parser"]
exclude_patterns = ["tools"]
myst_heading_anchors = 4
"""Headings down to #### get GitHub's anchors, so that the same links work in both places."""
highlight_language = "none"
html_theme = "furo"
html_title = "LLM tuning platform"
html_copy_source = False
html_show_sphinx = False
