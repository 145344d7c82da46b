"""Figures of an evaluation as text."""

from __future__ import annotations

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


def number(value: float | None, digits: int = 3) -> str:
    return DASH if value is None else f"{value:,.{digits}f}".replace("-", MINUS)


def signed(value: float, digits: int = 3) -> str:
    text = f"{value:+,.{digits}f}"
    return text.replace("-", MINUS) if text.strip("+-0.,") else f"{0:.{digits}f}"


def interval(ci95: tuple[float, float] | None, digits: int = 3) -> str:
    return DASH if ci95 is None else f"{signed(ci95[0], digits)} to {signed(ci95[1], digits)}"


def probability(p_value: float | None) -> str:
    if p_value is None:
        return DASH
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def prompts(count: int) -> str:
    return "1 prompt" if count == 1 else f"{count:,} prompts"
