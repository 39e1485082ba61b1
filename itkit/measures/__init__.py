"""Numbers about two masks, in NumPy and SciPy only: overlap, surface distances, components, statistics over cases."""
