"""The demo: train a confidence head on some people, and test it on others, clean and degraded."""

from spherecf.demo.run import Demo, demo, show_tables

__all__ = ["Demo", "demo", "show_tables"]
