"""Small helpers without torch that any room may use: names, paths, files, optional imports."""
