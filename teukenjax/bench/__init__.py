"""Measuring the train step: how fast it is, and where its time goes."""
