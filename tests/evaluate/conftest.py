"""The adapter's tests need the harness, which is an extra."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("lm_eval") else ["test_harness.py"]
