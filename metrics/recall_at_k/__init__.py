"""Recall at k."""
