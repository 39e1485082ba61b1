"""Experiments as they lie on the disk: names, run folders, states, locks, comparisons. No torch here."""
