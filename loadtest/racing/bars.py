"""Bars: required values beside measured ones."""

from dataclasses import dataclass


@dataclass
class Bar:
    """A figure with its upper or lower bound. The figure is None if it was not measured."""

    text: str
    figure: float | None
    bar: float
    at_least: bool = False

    def verdict(self):
        if self.figure is None:
            return ""
        if self.figure >= self.bar if self.at_least else self.figure <= self.bar:
            return "met"
        if not self.bar:
            return f"missed by {self.figure}"
        percent = 100 * abs(self.figure / self.bar - 1)
        return f"missed by {percent:.0f} %" if percent >= 10 else f"missed by {percent:.1f} %"

    def row(self):
        sign = "≥" if self.at_least else "≤"
        measured = "not measured" if self.figure is None else shown(self.figure)
        return f"| {self.text} | {measured} | {sign} {self.bar:g} | {self.verdict()} |"


def bar_rows(bars):
    return ["| | measured | bar | |", "|---|---|---|---|", *(bar.row() for bar in bars)]


def shown(figure):
    """Formats a figure; counts keep all digits."""
    return str(figure) if isinstance(figure, int) else number(figure)


def number(value):
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
