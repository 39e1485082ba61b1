"""Room `io`: a volume and its place in space; NumPy and SimpleITK, no torch."""
