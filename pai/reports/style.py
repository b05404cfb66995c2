"""Colours and lines of the figures: a scorer looks the same in all of them.

The palette is Okabe and Ito's, made for colour-blind readers (Color Universal Design, 2008). A
family of scorers shares a colour; line and marker say the formula.
"""

import zlib
from dataclasses import dataclass
from typing import Any

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)  # fmt: skip  (without the palette's yellow, which is hard to see on white)
GREY = "#7F7F7F"
_FAMILIES = {"f": BLUE, "h": VERMILLION, "g": GREEN, "m": PURPLE}
_FORMULAS = {"d": (":", "v"), "p": ("--", "s"), "ts": ("-", "o")}
_SINGLE = {
    "random": (GREY, "-", "x"), "magnitude": (BLACK, "-", "d"), "grad_norm": (ORANGE, ":", "<"),
    "snip": (ORANGE, "-", "^"), "grasp": (SKY, "-", ">"), "synflow": (BLACK, "--", "P"),
}  # fmt: skip
_MARKERS = "XpHD*8"


@dataclass(frozen=True)
class Style:
    """How a row is drawn."""

    color: str
    linestyle: str
    marker: str
    hollow: bool = False

    @property
    def line(self) -> dict[str, Any]:
        """Keywords of matplotlib's ``plot``."""
        return self.dots | {"linestyle": self.linestyle, "linewidth": 1.2}

    @property
    def dots(self) -> dict[str, Any]:
        """The same without the line."""
        return {
            "color": self.color, "marker": self.marker, "markersize": 4.5, "linestyle": "none",
            "markerfacecolor": "white" if self.hollow else self.color,
            "markeredgecolor": self.color, "markeredgewidth": 0.9,
        }  # fmt: skip


PRUNED_LATER = Style(GREY, "--", "X", hollow=True)


def style(scorer: str, *, variant: int = 0) -> Style:
    """Return the style of a scorer; ``variant`` counts rows of the same scorer (hollow markers).

    A name that is not built in has a colour and marker from its letters, so they never change.
    """
    if scorer in _SINGLE:
        color, line, marker = _SINGLE[scorer]
    elif scorer[:1] in _FAMILIES and scorer[1:] in _FORMULAS:
        color = _FAMILIES[scorer[0]]
        line, marker = _FORMULAS[scorer[1:]]
    else:
        number = zlib.crc32(scorer.encode())
        color = (SKY, GREEN, BLUE, VERMILLION, PURPLE)[number % 5]
        line, marker = "-.", _MARKERS[number // 5 % len(_MARKERS)]
    if variant >= 2:
        marker = _MARKERS[(_MARKERS.find(marker) + variant) % len(_MARKERS)]
    return Style(color, line, marker, hollow=variant % 2 == 1)
