"""Measures of generated video: the maths alone, on features, probabilities, frames and boxes."""
