"""Tensors in, tensors out: operations that know nothing of files, samples or engines."""

from itkit._support.large_memory import prefer_large_pages

prefer_large_pages()  # before torch makes its first tensor
