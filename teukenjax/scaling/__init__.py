"""Norm-guided scaling: sweeps, fits of optimal norm and rate, rules, plots, suggestions."""
