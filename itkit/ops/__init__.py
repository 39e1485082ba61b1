"""Tensors in, tensors out: operations that know nothing of files, samples or engines."""
