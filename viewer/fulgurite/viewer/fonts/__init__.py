"""Fonts that the viewer writes with (SIL Open Font License, see LICENSE.txt)."""
