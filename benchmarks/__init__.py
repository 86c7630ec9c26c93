"""Ours beside peers, in one run, as ratios with their spread; results are kept with their conditions."""
