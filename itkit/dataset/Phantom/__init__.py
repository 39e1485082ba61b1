"""A dataset that the package makes itself: small CT-like phantoms for demonstrations and tests."""
