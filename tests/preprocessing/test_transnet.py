"""TransNetV2 with random weights: its parts against plain loops; with the published weights it equals the original."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from preprocessing import transnet
from preprocessing.transnet import TransNet


@pytest.fixture(scope="module")
def network() -> TransNet:
    torch.manual_seed(0)
    return TransNet().train(False)


def films(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 255, (count, transnet.ROWS, transnet.COLUMNS, 3), np.uint8)


def test_the_weights_have_the_published_names_and_sizes(network: TransNet) -> None:
    sizes = {name: tuple(value.shape) for name, value in network.state_dict().items() if "num_batches" not in name}
    assert sizes["SDDCNN.0.DDCNN.0.Conv3D_1.layers.0.weight"] == (32, 3, 1, 3, 3)
    assert sizes["SDDCNN.2.DDCNN.1.Conv3D_8.layers.1.weight"] == (64, 128, 3, 1, 1)
    assert sizes["SDDCNN.1.DDCNN.1.bn.running_var"] == (128,)
    assert sizes["frame_sim_layer.projection.weight"] == (128, 448)
    assert sizes["color_hist_layer.fc.weight"] == (128, 101)
    assert sizes["fc1.weight"] == (1024, 4864)
    assert len(sizes) == 84


def test_similarities_and_histograms_equal_plain_loops() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(2, 60, 5), dim=2)
    found = transnet._similarities(vectors)
    for b, t, k in ((0, 0, 50), (1, 59, 0), (0, 30, 100), (1, 7, 20), (0, 3, 2)):
        other = t + k - 50
        expected = float(vectors[b, t] @ vectors[b, other]) if 0 <= other < 60 else 0.0
        assert float(found[b, t, k]) == pytest.approx(expected, abs=1e-6)
    frames = films(2)
    histogram = np.zeros((2, 512))
    for t in range(2):
        for red, green, blue in frames[t].reshape(-1, 3).astype(int) // 32:
            histogram[t, red * 64 + green * 8 + blue] += 1
    histogram /= np.linalg.norm(histogram, axis=1, keepdims=True)
    np.testing.assert_allclose(transnet._histograms(torch.from_numpy(frames)[None])[0], histogram, rtol=1e-5)


def test_windows_give_each_frame_one_chance(network: TransNet) -> None:
    frames = films(70)
    chances = transnet.cut_chances(network, frames)
    assert chances.shape == (70,)
    # Frame 60 lies in the second window, which starts 25 frames before frame 50.
    padded = np.concatenate([frames[25:], frames[-1:].repeat(100, 0)])[:100]
    with torch.inference_mode():
        own = network(torch.from_numpy(padded)[None]).sigmoid()[0]
    assert chances[60] == pytest.approx(float(own[35]), abs=1e-6)


def test_chances_become_transitions() -> None:
    chances = np.zeros(20)
    chances[[4, 9, 10, 11, 19]] = 0.9
    # One marked frame is a hard cut after it; a cut after the last frame is none.
    assert transnet.transitions_of(chances, 0.5) == [(5, 5), (10, 12)]
    assert transnet.transitions_of(chances, 0.95) == []


def test_only_its_own_weights_load(network: TransNet, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("weights")
    save_file(network.state_dict(), folder / "net.safetensors")
    assert len(transnet.find_transitions(films(3), str(folder / "net.safetensors"))) <= 2
    save_file({"a": torch.zeros(1)}, folder / "other.safetensors")
    (folder / "pickle.pth").write_bytes(b"x")
    for name in ("other.safetensors", "pickle.pth", "gone.safetensors"):
        with pytest.raises(ValueError, match="TransNetV2"):
            transnet.load_network(str(folder / name))
