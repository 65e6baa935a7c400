from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from pipelines.metrics import extractors
from pipelines.metrics.extractors import EXTRACTORS, MissingNetworkError, available, load_extractor
from pipelines.metrics.frechet import distance_between
from pipelines.metrics.i3d import I3D, NORM_EPS, pool_same
from pipelines.metrics.inception import InceptionV3, average
from pipelines.metrics.kernel import polynomial_mmd
from pipelines.metrics.perceptual import PerceptualDistance, blurred_half
from pipelines.pixels import to_float
from pipelines.randomness import generator
from pipelines.video_decode import probe
from pipelines.video_io import read_clip
from preprocessing.synthetic.light import is_night
from preprocessing.synthetic.render import Drive
from preprocessing.synthetic.scene import draw_scene

DRIVING = Path(__file__).parents[2] / "data" / "driving"
DRIVING_CAR, MOTORCYCLING = 103, 199
"""Positions of the two classes in the alphabetical list of Kinetics-400."""


def noise(*shape):
    return torch.rand(shape, generator=generator(*shape)) * 2 - 1


def driving_clips(name, count, num_frames=16, fps=8):
    path = str(DRIVING / f"{name}.mp4")
    info = probe(path)
    clips = [
        read_clip(path, num_frames=num_frames, fps=fps, start_s=start * num_frames / fps, info=info)
        for start in range(count)
    ]
    return torch.stack([to_float(clip) for clip in clips])


def test_i3d_has_the_published_number_of_parameters_and_keeps_padding_of_same():
    network = I3D()
    assert sum(value.numel() for value in network.state_dict().values()) == 12_704_544
    x = noise(1, 2, 5, 7, 8).abs()
    pooled = pool_same(x, (3, 3, 3), (2, 2, 2))
    # SAME over an odd size pads one on both sides, over an even size one at the end.
    assert pooled.shape == (1, 2, 3, 4, 4)
    assert pooled[0, 1, 0, 0, 0] == x[0, 1, :2, :2, :3].max()
    assert pooled[0, 1, 2, 3, 3] == x[0, 1, 3:, 5:, 6:].max()


def test_i3d_unit_equals_torch_batch_norm_over_a_convolution():
    unit = I3D().Mixed_3b.branch_1[1].eval()
    torch.nn.init.normal_(unit.bias)
    unit.mean.uniform_(-1, 1)
    unit.variance.uniform_(0.5, 2)
    x = noise(1, 96, 3, 5, 6)
    normal = torch.nn.BatchNorm3d(128, eps=NORM_EPS).eval()
    normal.load_state_dict(
        {
            "weight": torch.ones(128),
            "bias": unit.bias,
            "running_mean": unit.mean,
            "running_var": unit.variance,
            "num_batches_tracked": torch.tensor(0),
        }
    )
    assert_close(unit(x), normal(functional.conv3d(x, unit.weight, padding=1)).relu())


def test_real_driving_is_driving_to_i3d(weights):
    extractor = load_extractor("i3d-kinetics400", weights)
    scores = torch.cat([extractor.features(driving_clips(name, 1)) for name in ("highway_cars_1",)])
    likeliest = scores.softmax(dim=1)[0].topk(2).indices.tolist()
    assert sorted(likeliest) == [DRIVING_CAR, MOTORCYCLING]


@pytest.mark.slow
def test_distances_put_real_video_before_frozen_and_noisy_video(weights):
    extractor = load_extractor("i3d-kinetics400", weights)
    real = driving_clips("highway_long", 3, num_frames=10)
    frozen = real[:, :1].expand_as(real)
    noisy = (real + noise(*real.shape)).clamp(-1, 1)
    reference = extractor.features(driving_clips("highway_cars_2", 3, num_frames=10))
    to_real, to_frozen, to_noisy = (
        distance_between(reference, extractor.features(clips)) for clips in (real, frozen, noisy)
    )
    assert to_frozen > 1.15 * to_real
    assert to_noisy > 1.5 * to_real


def test_perceptual_distance_grows_with_time_and_blur(weights):
    extractor = load_extractor("stlpips-alex", weights)
    clip = driving_clips("highway_cars_1", 1, num_frames=5)
    same = extractor.distances(clip, clip)
    assert same.shape == (1, 5)
    assert same.max() == 0
    first = clip[:, :1].expand(1, 4, -1, -1, -1)
    apart = extractor.distances(first, clip[:, 1:])[0]
    assert apart.min() > 0
    small = functional.avg_pool2d(clip[0], 8)
    blurred = functional.interpolate(small, clip.shape[3:], mode="bilinear")[None]
    assert extractor.distances(blurred, clip).mean() > apart.max()


def test_perceptual_blur_is_a_binomial_mean_of_every_second_pixel():
    x = noise(1, 2, 6, 8)
    half = blurred_half(x)
    assert half.shape == (1, 2, 4, 5)
    weights = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    assert_close(half[0, 1, 1, 2], (x[0, 1, 0:3, 2:5] * weights).sum())
    assert_close(half[0, 1, 2, 3], (x[0, 1, 2:5, 4:7] * weights).sum())


def test_perceptual_distance_refuses_small_images():
    with pytest.raises(ValueError, match="16x48"):
        PerceptualDistance("vgg")(noise(1, 3, 16, 48), noise(1, 3, 16, 48))


def test_inception_has_the_published_number_of_parameters_and_averages_inside_the_image():
    network = InceptionV3().eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == 23_850_960
    x = noise(1, 1, 3, 4)
    assert_close(average(x)[0, 0, 0, 0], x[0, 0, :2, :2].mean())
    with torch.no_grad():
        features = network(noise(2, 3, 299, 299))
    assert features.shape == (2, 2048)
    assert_close(network.classify(features).sum(dim=1), torch.ones(2))


def rendered_frames(wants_night, count):
    """One frame each of some synthetic drives by day or by night."""
    frames = []
    for clip in range(200):
        scene = draw_scene(0, clip)
        if is_night(scene.time_of_day) == wants_night:
            frames.append(Drive(scene, 1.0, 64, 128, 0.0).frame(0.5).image)
        if len(frames) == count:
            break
    return to_float(torch.from_numpy(np.stack(frames)))[:, None]


@pytest.mark.slow
def test_day_and_night_are_further_apart_than_day_and_day(weights):
    extractor = load_extractor("efficientnet-lite0", weights)
    day, night = rendered_frames(False, 24), rendered_frames(True, 12)
    rows = extractor.features(day)
    assert rows.shape == (24, 1280)
    first, second = rows[:12], rows[12:]
    to_night = polynomial_mmd(first, extractor.features(night))
    assert to_night > 3 * abs(polynomial_mmd(first, second))
    assert distance_between(first, extractor.features(night)) > 1.3 * distance_between(first, second)


def test_missing_and_wrong_networks_are_errors_that_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(MissingNetworkError, match=r"FVD need i3d-kinetics400.*make weights"):
        load_extractor("i3d-kinetics400", tmp_path)
    with pytest.raises(ValueError, match="no feature network 'fid'"):
        load_extractor("fid", tmp_path)
    (tmp_path / "stlpips-alex.safetensors").write_bytes(b"something else")
    with pytest.raises(ValueError, match="has sha256"):
        load_extractor("stlpips-alex", tmp_path)
    loaded, missing = available(["i3d-kinetics400", "efficientnet-lite0"], tmp_path)
    assert loaded == {}
    assert sorted(missing) == ["FD-EffLite0", "FVD", "KD-EffLite0"]
    torch.save({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, tmp_path / "tiny.pth")
    spec = replace(EXTRACTORS["inception-v3-fid"], file="tiny.pth", sha256="", build=lambda: torch.nn.Linear(3, 2))
    monkeypatch.setattr(extractors, "EXTRACTORS", {"tiny": spec})
    assert load_extractor("tiny", tmp_path).network.weight.sum() == 6


def test_clips_too_short_for_a_network_are_refused(tmp_path):
    extractor = extractors.LoadedExtractor(EXTRACTORS["i3d-kinetics400"], I3D(), "digest")
    with pytest.raises(ValueError, match="8 frames"):
        extractor.features(noise(1, 8, 3, 16, 24))
    assert extractor.spec.resize_rule == "whole frame to 224x224, bilinear, not antialiased"
