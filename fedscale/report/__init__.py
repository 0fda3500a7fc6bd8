"""A run as one self-contained HTML page, and the folder of files that every run leaves."""

from fedscale.report.page import html, write

__all__ = ["html", "write"]
