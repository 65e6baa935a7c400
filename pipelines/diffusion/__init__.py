"""Diffusion maths: noise schedules, objectives, samplers, guidance."""
