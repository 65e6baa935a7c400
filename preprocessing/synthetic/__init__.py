"""Synthetic driving: a procedural renderer (numpy and OpenCV) that knows the label of every pixel it draws."""
