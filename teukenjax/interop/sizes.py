"""Sizes of files as people write them."""

import re

from teukenjax.errors import UserError

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """Bytes of "5GB", "500MB", "64MiB" or "1000"; a UserError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B)?", text.strip().upper())
    size = int(float(match[1]) * UNITS[match[2] or "B"]) if match and match[2] != "IB" else 0
    if not size:
        raise UserError(f"size '{text}': allowed: a number and one of B, KB, MB, GB, MiB, GiB")
    return size
