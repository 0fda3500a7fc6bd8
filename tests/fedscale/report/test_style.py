"""The style sheet: two themes and paper, readable contrast, colours that stay apart for colour-blind eyes."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest

from fedscale.report import html
from tests.fedscale.report.outline import outline
from tests.fedscale.sample_run import full_run

THEMES = ("light", "dark")
# Dichromatic vision on linear RGB, severity 1.0 (Machado, Oliveira, Fernandes 2009).
EYES = {
    "normal": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = np.array([0.9505, 1.0, 1.089])

Colour = npt.NDArray[np.float64]


def style() -> str:
    return outline(html(full_run())).one("style").text


def palette(theme: str) -> dict[str, str]:
    block = re.findall(r":root \{(.*?)\}", style(), re.DOTALL)[THEMES.index(theme)]
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block))


def linear(colour: str) -> Colour:
    """``#rrggbb`` as linear RGB (IEC 61966-2-1)."""
    parts = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    return float(TO_XYZ[1] @ linear(colour))


def lab(rgb: Colour) -> Colour:
    """CIE 1976 L*a*b* of linear RGB under D65."""
    ratio = TO_XYZ @ np.clip(rgb, 0, 1) / WHITE
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_the_style_serves_dark_screens_and_paper() -> None:
    assert "@media screen and (prefers-color-scheme: dark)" in style()
    assert "@media print" in style()
    assert "break-inside: avoid" in style()
    assert style().count("{") == style().count("}")


def test_dark_defines_every_colour_anew() -> None:
    light, dark = (palette(theme) for theme in THEMES)
    assert set(light) == set(dark) == set(re.findall(r"var\(--(\w+)\)", style()))
    assert all(light[name] != dark[name] for name in light)


@pytest.mark.parametrize("colour", ["ink", "soft", "accent", "good", "bad", *(f"c{number}" for number in range(6))])
@pytest.mark.parametrize("theme", THEMES)
def test_text_and_lines_stand_out(theme: str, colour: str) -> None:
    colours = palette(theme)
    least = {"ink": 12.0, "c": 3.0}.get(colour.rstrip("012345"), 4.5)
    for ground in ("paper", "card"):
        dark, light = sorted((luminance(colours[ground]), luminance(colours[colour])))
        assert (light + 0.05) / (dark + 0.05) >= least


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("theme", THEMES)
def test_line_colours_stay_apart_for_every_eye(theme: str, eye: str) -> None:
    colours = palette(theme)
    seen = {name: lab(np.array(EYES[eye]) @ linear(colours[name])) for name in ("ink", *(f"c{number}" for number in range(6)))}
    assert min(float(np.linalg.norm(seen[one] - seen[other])) for one, other in combinations(seen, 2)) > 22
