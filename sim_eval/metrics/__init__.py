"""Metrics of a world-action model: pure functions from recordings to numbers with units."""
