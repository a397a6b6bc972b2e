"""Numbers for people."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(8), duration(80), duration(4000), duration(200000)
    ('8 s', '1 min', '1 h 7 min', '2 d 7 h')
    """
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def size(number: float) -> str:
    """Bytes as people say them.

    >>> size(1200), size(34_500_000), size(2.34e12)
    ('1 kB', '34 MB', '2.3 TB')
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 999.5 or unit == "TB":
            return f"{number:.1f} {unit}" if unit in ("GB", "TB") and number < 100 else f"{number:.0f} {unit}"
        number /= 1000
    raise AssertionError
