"""The commands: one table from which shell commands and the pages about them come."""
