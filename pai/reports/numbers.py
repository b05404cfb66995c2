"""Numbers as text that does not say more or less than the number."""

_MOST_DIGITS = 12


def share(value: float, digits: int, whole: float = 1.0) -> str:
    """Return a part of ``whole`` with ``digits`` digits after the point, or with more.

    Namely with as many as it takes to be neither 0 nor ``whole``, unless it is one of the two.

    Example:
        >>> share(0.98, 4), share(0.99997, 4), share(1.0, 4), share(0.0023, 2, whole=100)
        ('0.9800', '0.99997', '1.0000', '0.002')
    """
    while 0 < value < whole and round(value, digits) in (0, whole) and digits < _MOST_DIGITS:
        digits += 1
    return f"{value:.{digits}f}"


def signed(value: float, digits: int) -> str:
    """Return a difference with its sign; what is rounded to zero is ``+0.0``.

    Example:
        >>> signed(-1.25, 1), signed(-0.01, 1)
        ('-1.2', '+0.0')
    """
    return f"{value:+z.{digits}f}"
