"""Cleaning text with datatrove: rules for each language, exact and near duplicates.

Needs the extra ``clean``; nothing else in the package imports it.
"""
