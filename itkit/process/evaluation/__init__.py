"""Predictions held against truths: measured case by case, put into tables, and methods compared on the same cases."""
