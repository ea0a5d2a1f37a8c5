"""Formats numbers for people, with the digits that their standard errors justify."""

import math


def with_error(value: float, error: float) -> str:
    """A value and its standard error, both rounded to the error's first digit (two digits if the first is 1)."""
    if not (math.isfinite(value) and math.isfinite(error)) or error <= 0:
        return f"{rounded(value)} ± {rounded(error)}"
    exponent = math.floor(math.log10(error))
    digits = 1 if error / 10**exponent < 1.95 else 0
    places = digits - exponent
    if places <= 0:
        return f"{round(value, places):,.0f} ± {round(error, places):,.0f}"
    return f"{value:,.{places}f} ± {error:,.{places}f}"


def rounded(value: float, digits: int = 3) -> str:
    """A value with this number of significant digits; whole numbers are written in full."""
    if not math.isfinite(value):
        return str(value)
    if value == round(value) and abs(value) < 1e15:
        return f"{value:,.0f}"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(places, 0)}f}" if -8 < places < 8 else f"{value:.{digits - 1}e}"
