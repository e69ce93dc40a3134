"""The demo: train a confidence head on some people, and test it on others, clean and degraded."""

from spherecf.demo.run import Demo as Demo, demo, show_tables as show_tables

__all__ = ["demo"]
