"""Mean rank variance (MRV)."""
