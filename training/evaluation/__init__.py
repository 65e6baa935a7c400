"""Measuring a checkpoint: real and generated clips to features, features to figures, figures to a report."""
