"""The image model on every frame of a clip, by itself."""

import torch


def image_model(unet, noisy, timestep, text):
    """The image model applied to every frame by itself."""
    frames = [
        unet(noisy[b, t][None], timestep[b][None], text[b][None]).sample[0]
        for b in range(noisy.shape[0])
        for t in range(noisy.shape[1])
    ]
    return torch.stack(frames).unflatten(0, noisy.shape[:2])


def image_batch(unet, noisy, timestep, text):
    """The image model applied to all frames as one batch."""
    b, t = noisy.shape[:2]
    out = unet(noisy.flatten(0, 1), timestep.repeat_interleave(t), text.repeat_interleave(t, 0)).sample
    return out.unflatten(0, (b, t))
