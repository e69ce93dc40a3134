"""Helpers shared by all sub-packages: files, parsing of untrusted text, names, arrays, progress."""
