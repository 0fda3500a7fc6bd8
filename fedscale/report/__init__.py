"""A run as one self-contained HTML page, and the folder of files that every run leaves.

The page is imported when it is asked for: the units beside it serve commands that nobody wants to wait for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedscale.report.card import card_beside, card_files, card_page, model_card
    from fedscale.report.page import curves, html, write

PLACES = {"curves": "page", "html": "page", "write": "page", "card_page": "card", "card_beside": "card", "card_files": "card", "model_card": "card"}
__all__ = ["card_beside", "card_files", "card_page", "curves", "html", "model_card", "write"]


def __getattr__(name: str) -> Any:
    """What ``__all__`` names, from its module."""
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"fedscale.report.{PLACES[name]}"), name)
