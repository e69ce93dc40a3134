"""Shared by the tests in Chromium: its path, and the contrast of text on a page."""

import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]

CONTRAST = """
const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
  .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b; };
const behind = node => { for (; node; node = node.parentElement) {
  const colour = getComputedStyle(node).backgroundColor;
  if (!/^rgba\\(.*, 0\\)$|transparent/.test(colour)) return colour; } return "rgb(255, 255, 255)"; };
const contrast = node => { const style = getComputedStyle(node);
  const ink = light(node.closest("svg") ? style.fill : style.color), paper = light(behind(node));
  return (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05); };
"""
"""JavaScript: ``contrast(node)`` is the WCAG 2 contrast of a text and its background, from 1 to 21."""
