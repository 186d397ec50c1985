"""The hot paths, one folder each: what users call, the reference, the fast forms."""
