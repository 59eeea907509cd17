"""Recall at k and mean rank variance, as `evaluate` modules and as the NumPy functions that they call."""
