"""Tests that run the harness need it, and it is an extra."""

import importlib.util

HARNESS = ["test_harness.py", "test_known_answers.py"]
collect_ignore = [] if importlib.util.find_spec("lm_eval") else HARNESS
