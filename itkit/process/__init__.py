"""Room `process`."""
