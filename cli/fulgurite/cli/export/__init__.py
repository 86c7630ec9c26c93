"""Frames as files: what a collector tells a viewer, in the formats that analysis tools read."""
