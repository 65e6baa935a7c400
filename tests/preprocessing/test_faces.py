"""Faces are blurred by a detector given by path; this one, drawn here as ONNX, takes white cells for faces."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from pipelines.video_decode import probe
from pipelines.video_encode import encode_mp4
from preprocessing import looks
from preprocessing.faces import blur_faces, find_faces

CELL = 32


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, content: bytes | str) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return varint(field << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def tensor(name: str, values: np.ndarray) -> bytes:
    kind = {"float32": 1, "int64": 7}[str(values.dtype)]
    dims = b"".join(number(1, dim) for dim in values.shape)
    return message(5, dims + number(2, kind) + message(8, name) + message(9, values.tobytes()))


def node(op: str, inputs: Sequence[str], output: str, **ints: list[int]) -> bytes:
    attributes = b"".join(
        message(5, message(1, name) + b"".join(number(8, i) for i in values) + number(20, 7))
        for name, values in ints.items()
    )
    return message(1, b"".join(message(1, name) for name in inputs) + message(2, output) + message(4, op) + attributes)


def value(field: int, name: str, shape: Sequence[int]) -> bytes:
    dims = b"".join(message(1, number(1, dim)) for dim in shape)
    return message(field, message(1, name) + message(2, message(1, number(1, 1) + message(2, dims))))


def detector(path: Path) -> Path:
    """YuNet's inputs and outputs; its score at stride 32 is the brightness of the cell, its box the cell."""
    parts = [value(11, "input", (1, 3, 64, 64))]
    for stride in (8, 16, 32):
        for name, channels in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
            out = f"{name}_{stride}"
            weight = np.zeros((channels, 3, stride, stride), np.float32)
            bias = np.zeros(channels, np.float32)
            if stride == CELL and channels == 1:
                weight += 1 / (3 * CELL * CELL * 255)
            if name == "bbox":
                bias[:2] = 0.5
            parts += [tensor(f"{out}_w", weight), tensor(f"{out}_b", bias)]
            parts.append(tensor(f"{out}_s", np.array([1, channels, -1], np.int64)))
            parts.append(
                node(
                    "Conv",
                    ["input", f"{out}_w", f"{out}_b"],
                    f"{out}_c",
                    kernel_shape=[stride] * 2,
                    strides=[stride] * 2,
                )
            )
            parts.append(node("Reshape", [f"{out}_c", f"{out}_s"], f"{out}_r"))
            parts.append(node("Transpose", [f"{out}_r"], out, perm=[0, 2, 1]))
            parts.append(value(12, out, (1, (64 // stride) ** 2, channels)))
    graph = message(7, message(2, "faces") + b"".join(parts))
    path.write_bytes(number(1, 8) + graph + message(8, number(2, 13)))
    return path


def picture() -> np.ndarray:
    """Grey stripes, and a striped 'face' that is bright all over in the cell of row 1, column 2."""
    image = np.full((128, 192, 3), 60, np.uint8)
    image[::2] = 40
    image[32:64, 64:96] = 255
    image[32:64:4, 64:96] = 215
    return image


def roughness(image: np.ndarray) -> float:
    """Mean difference of neighbouring rows."""
    return float(np.abs(np.diff(image.astype(float), axis=0)).mean())


def test_faces_become_soft_cells_and_the_rest_stays(tmp_path: Path) -> None:
    path = str(detector(tmp_path / "faces.onnx"))
    image = picture()
    [(left, top, right, bottom)] = find_faces(image, path)
    assert (left, top) == (56, 24)
    assert (right, bottom) == (105, 73)
    blurred = blur_faces(image, path)
    assert roughness(blurred[34:62, 66:94]) < 0.5 * roughness(image[34:62, 66:94])
    outside = np.ones(image.shape[:2], bool)
    outside[top:bottom, left:right] = False
    np.testing.assert_array_equal(blurred[outside], image[outside])
    nobody = np.full((64, 64, 3), 30, np.uint8)
    assert blur_faces(nobody, path) is nobody


def test_every_decoded_clip_is_blurred(tmp_path: Path) -> None:
    path = str(detector(tmp_path / "faces.onnx"))
    encode_mp4(tmp_path / "a.mp4", np.stack([picture()] * 6), Fraction(8), quality=10)
    info = probe(str(tmp_path / "a.mp4"))
    requests = [(0, info.pts[:3], (128, 192)), (1, info.pts[2:5], (64, 96))]
    sharp = dict(looks.decode_clips(str(tmp_path / "a.mp4"), info, requests))
    soft = dict(looks.decode_clips(str(tmp_path / "a.mp4"), info, requests, path))
    for k in range(3):
        assert roughness(soft[0][k, 36:60, 68:92]) < 0.5 * roughness(sharp[0][k, 36:60, 68:92])
    np.testing.assert_array_equal(soft[0][:, :20], sharp[0][:, :20])
    assert soft[1].shape == (3, 64, 96, 3)


def test_a_file_that_is_no_detector_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"x\.onnx is no YuNet"):
        find_faces(picture(), str(tmp_path / "x.onnx"))
