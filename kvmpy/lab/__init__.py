"""Measuring what exits cost: honestly, as ratios to a floor measured in the same run."""
