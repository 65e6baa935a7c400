"""The model, its diffusion maths and the stages from noise to frames, in pure PyTorch."""
