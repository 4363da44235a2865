"""Numbers and times as text."""

SCALES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
"""SI prefixes and their factors, the largest first."""


def amount(number: float, unit: str = "") -> str:
    """Return a number with its unit and an SI prefix, as in 15.9 TFLOPs."""
    scale, prefix = next((pair for pair in SCALES if number >= pair[0]), (1.0, ""))
    scaled = number / scale
    text = f"{scaled:.0f}" if scaled >= 100 else f"{scaled:.3g}"
    return f"{text} {prefix}{unit}".rstrip()


def duration(seconds: float) -> str:
    """Return a time in its largest fitting unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{1 if seconds < 10 * length else 0}f} {unit}"
    return f"{seconds:.0f} s"
