"""What sizes, rates and times are counted in."""

GIB = 2**30  # bytes
GIGA, TERA = 1e9, 1e12
DAY = 86_400  # seconds
