"""Copies of the metrics in other trackers."""
