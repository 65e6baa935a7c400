from collections.abc import Callable

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from torch.testing import assert_close

from pipelines import stages
from pipelines.models.autoencoder import decode_latents, decode_windows, encode_moments, sample_latents
from pipelines.models.latent_space import LatentScaling, decode_images, latent_scaling
from pipelines.models.temporal_decoder import DecoderConfig, VideoDecoder

SIZES = {
    "block_out_channels": (32, 32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
}


def make_kl() -> AutoencoderKL:
    return AutoencoderKL(**SIZES, latent_channels=5, scaling_factor=0.4, shift_factor=0.3)


def make_vq() -> VQModel:
    return VQModel(**SIZES, latent_channels=5, num_vq_embeddings=11, scaling_factor=0.4)


@pytest.fixture(params=[make_kl, make_vq])
def vae(request: pytest.FixtureRequest) -> AutoencoderKL | VQModel:
    make: Callable[[], AutoencoderKL | VQModel] = request.param
    return make().eval()


def make_decoder(vae, trained=True, **changes) -> VideoDecoder:
    decoder = VideoDecoder(vae, DecoderConfig(**changes))
    if trained:
        with torch.no_grad():
            for name, parameter in decoder.temporal.named_parameters():
                if "conv" in name and name.endswith("weight"):
                    parameter.normal_(std=parameter[0].numel() ** -0.5)
    return decoder.eval()


@torch.no_grad()
def test_picture_is_decoded_by_the_autoencoder_and_a_clip_with_its_temporal_layers(vae):
    decoder, latents = make_decoder(vae), torch.randn(1, 2, 5, 4, 6)
    for count, equal in ((1, True), (2, False)):
        by_frame = decode_latents(vae, latents[:, :count]).clamp(-1, 1)
        [frames] = stages.decode(decoder, latents[:, :count])
        assert torch.allclose(frames, by_frame, atol=1e-5) == equal


def test_encode_moments_kl_equals_each_image_posterior():
    vae = make_kl()
    frames = torch.rand(2, 3, 3, 8, 12) * 2 - 1
    moments = encode_moments(vae, frames)
    assert moments.shape == (2, 3, 10, 2, 3)
    posterior = vae.encode(frames[1, 2][None]).latent_dist
    assert_close(moments[1, 2][None], torch.cat([posterior.mean, posterior.logvar], dim=1), rtol=1e-4, atol=1e-5)


def test_sample_latents_follows_the_posterior():
    mean, deviation = 1.5, 0.25
    moments = torch.stack([torch.full((2, 3, 40, 50), mean), torch.full((2, 3, 40, 50), 2 * deviation).log()], dim=2)
    moments[:, :, 1] = 2 * torch.tensor(deviation).log()
    scaling = LatentScaling(scale=0.4, shift=0.3)
    latents = sample_latents(moments, scaling, torch.Generator().manual_seed(1))
    assert latents.shape == (2, 3, 1, 40, 50)
    assert latents.mean().item() == pytest.approx((mean - 0.3) * 0.4, abs=5e-3)
    assert latents.std().item() == pytest.approx(deviation * 0.4, rel=2e-2)
    assert_close(scaling.restore(sample_latents(moments, scaling, None)), moments[:, :, :1])
    same = sample_latents(moments, scaling, torch.Generator().manual_seed(1))
    assert_close(same, latents, rtol=0, atol=0)


def test_vq_latents_are_quantised_at_decoding_only():
    vae = make_vq()
    with torch.no_grad():
        vae.quantize.embedding.weight.normal_()
    frames = torch.rand(1, 2, 3, 8, 12) * 2 - 1
    moments = encode_moments(vae, frames)
    assert_close(moments[0, :, :5], vae.encode(frames[0]).latents)
    latents = sample_latents(moments, latent_scaling(vae), torch.Generator().manual_seed(0))
    assert_close(latents, moments[:, :, :5] * 0.4, rtol=0, atol=1e-5)
    codes = vae.quantize(moments[0, :, :5])[0]
    assert_close(
        decode_images(vae, latents)[0], vae.decode(codes, force_not_quantize=True).sample, rtol=1e-4, atol=1e-4
    )


def test_encode_moments_refuses_sizes_that_do_not_divide():
    with pytest.raises(ValueError, match=r"width 14 do not divide by the autoencoder's factor 4; .* 12 or 16"):
        encode_moments(make_kl(), torch.zeros(1, 2, 3, 8, 14))


@pytest.mark.parametrize("config", [{}, {"spatial_kernel": 1, "convolves_frames": True}])
def test_video_decoder_untrained_equals_image_decoder(vae, config):
    latents = torch.randn(2, 3, 5, 4, 6)
    decoder = make_decoder(vae, trained=False, **config)
    assert_close(decoder(latents), decode_images(vae, latents), rtol=0, atol=0)
    before = decode_images(vae, latents)
    make_decoder(vae, **config)(latents)
    assert_close(decode_images(vae, latents), before, rtol=0, atol=0)


@pytest.mark.parametrize("config", [{}, {"spatial_kernel": 1, "convolves_frames": True}])
def test_video_decoder_gradient_reaches_every_temporal_parameter(vae, config):
    latents, target = torch.randn(2, 3, 5, 4, 6), torch.rand(2, 3, 3, 16, 24)
    decoder = make_decoder(vae, trained=False, **config).train()
    decoder.freeze_spatial()
    optimizer = torch.optim.Adam(decoder.temporal_parameters(), lr=1e-2)
    for step in range(3):
        optimizer.zero_grad()
        (decoder(latents) - target).abs().mean().backward()
        dead = {n for n, p in decoder.temporal.named_parameters() if p.grad is None or p.grad.abs().max() == 0}
        if step == 0:
            assert not {name for name in dead if ".conv2." in name}
        optimizer.step()
    assert not dead
    assert all(p.grad is None for p in vae.parameters())


def test_video_decoder_trains_on_latents_in_any_memory_order(vae):
    latents = torch.randn(1, 3, 5, 4, 6)
    channels_last = latents.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    decoder = make_decoder(vae)
    decoder.freeze_spatial()
    gradients = []
    for same in (latents, channels_last):
        decoder.zero_grad()
        decoder(same).square().mean().backward()
        gradients.append([parameter.grad for parameter in decoder.temporal_parameters()])
    assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)


def test_video_decoder_clips_of_a_batch_are_independent(vae):
    latents = torch.randn(2, 3, 5, 4, 6)
    decoder = make_decoder(vae)
    both = decoder(latents)
    for b in range(2):
        assert_close(decoder(latents[b][None])[0], both[b], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("num_frames", "window", "overlap"), [(3, 8, 2), (8, 8, 2), (9, 8, 2), (23, 8, 3), (17, 5, 0)])
def test_decode_windows_give_each_frame_once_in_order(num_frames, window, overlap):
    vae = make_kl()
    decoder = make_decoder(vae, trained=False)
    latents = torch.randn(1, num_frames, 5, 2, 3)
    with torch.no_grad():
        decoded = decode_latents(decoder, latents, window=window, overlap=overlap)
        expected = decode_images(vae, latents)
    assert_close(decoded, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_decode_windows_seam_error_is_bounded_and_falls_with_overlap():
    decoder = make_decoder(make_kl())
    # Smooth in time, as video is: the norms see like statistics in every window.
    phase = torch.linspace(0, 1, 24)[None, :, None, None, None]
    latents = torch.sin(phase + 6 * torch.rand(1, 1, 5, 12, 16))
    full = decoder(latents)
    errors = [
        (decode_latents(decoder, latents, window=12, overlap=overlap) - full).square().mean().sqrt().item()
        for overlap in (0, 2, 4)
    ]
    effect = (full - decode_images(decoder.vae, latents)).square().mean().sqrt().item()
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.3 * errors[0]
    assert errors[2] < 0.1 * effect


@torch.no_grad()
def test_decode_windows_memory_does_not_grow_with_the_clip(peak_memory):
    decoder = make_decoder(make_kl())
    peaks = []
    for num_frames in (16, 256):
        latents = torch.randn(1, num_frames, 5, 4, 6)
        with peak_memory() as memory:
            frames = sum(part.shape[1] for part in decode_windows(decoder, latents, window=8, overlap=2))
        assert frames == num_frames
        peaks.append(memory.peak)
    assert peaks[0] > 8 * 3 * 16 * 24 * 4
    assert peaks[1] <= 1.1 * peaks[0]


def test_decode_windows_refuses_an_overlap_that_leaves_nothing():
    with pytest.raises(ValueError, match="overlap=4 leaves nothing of window=8; use 0 to 3"):
        decode_latents(make_kl(), torch.zeros(1, 2, 5, 2, 2), window=8, overlap=4)


def test_video_decoder_refuses_another_family_and_other_weights():
    with pytest.raises(ValueError, match="Linear is no image autoencoder"):
        VideoDecoder(torch.nn.Linear(2, 3), DecoderConfig())
    paper, svd = make_decoder(make_kl()), make_decoder(make_kl(), spatial_kernel=1)
    with pytest.raises(ValueError, match=r"is \(64, 64, 3, 3, 3\), not \(64, 64, 3, 1, 1\)"):
        svd.load_temporal_state_dict(paper.temporal_state_dict())
