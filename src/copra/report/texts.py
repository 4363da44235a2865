"""The texts of tables, figures and report, which are files beside the code."""

from pathlib import Path

CAPTIONS = Path(__file__).parent / "captions"
"""Folder of the captions in reStructuredText: one file per table, figure, or both of one name."""
PAGE = Path(__file__).parent / "page.html"
"""Template of the report (Jinja)."""
