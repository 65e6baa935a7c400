"""Gates of the service around a real (random, small) network: cost of serving, long videos, backbones, encoding.

`python tests/benchmarks/bench_serving_model.py --gates S1,S8,S9,S13 --jobs 12`
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import av
import httpx2 as httpx
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from pipelines.video_encode import encode_mp4
from pipelines.video_io import read_clip
from serving.backbones import WEIGHTS, Backbones
from serving.media import PRESET, QUALITY
from serving.pipeline_stages import PipelineStages
from tests.serving.bare import make
from tests.serving.bench import Rows
from tests.serving.house import House, serving, wait_for, working
from tests.serving.peers import queue_service
from tests.serving.tiny import make_tiny

STEPS = 10


def request(seed: int, frames: int = 8, backbone: str | None = None) -> dict[str, Any]:
    return {
        "prompt": "a road",
        "negative_prompt": "",
        "scene": "day",
        "boxes": None,
        "stages": ["keyframes", "prediction"],
        "seed": seed,
        "num_inference_steps": STEPS,
        "num_frames": frames,
        "guidance_scale": 2.0,
        "fps": 4.0,
        "width": 128,
        "height": 64,
        "backbone": backbone,
        "mode": "create",
        "inputs": {},
    }


def cost(rows: Rows, folder: Path, jobs: int) -> None:
    """S1: CPU time of the bare loop over CPU time of the same jobs through API, database and workers, interleaved."""
    stages = PipelineStages()
    checkpoint = make_tiny(folder / "tiny", frames=8)
    models = {pool: stages.load(checkpoint, pool) for pool in stages.pools}
    house = House(folder / "state", stages=stages, checkpoint=checkpoint)
    pause = threading.Event()
    wanted = {"prompt": "a road", "scene": "day", "num_inference_steps": STEPS, "num_frames": 8, "guidance_scale": 2.0}
    bare_s = served_s = 0.0
    with serving(house) as url, httpx.Client(base_url=url, timeout=120) as client:
        for round_ in range(jobs + 1):
            began = time.process_time()
            make(stages, models, request(round_))
            middle = time.process_time()
            job = client.post("/v1/videos", json={**wanted, "seed": round_}).json()["id"]
            while (answer := client.get(f"/v1/videos/{job}")).json()["status"] != "completed":
                # As the stock clients do.
                pause.wait(int(answer.headers["openai-poll-after-ms"]) / 1000)
            ended = time.process_time()
            if round_:  # the first round warms up
                bare_s, served_s = bare_s + middle - began, served_s + ended - middle
    note = f"{jobs} jobs of {bare_s / jobs:.2f} CPU-s; stages in threads of one process"
    rows.add("S1 served / bare", bare_s / served_s, 0.90, 0.97, note=note)
    peer_s = 0.0
    with (
        queue_service(lambda _, wanted: make(stages, models, request(wanted["seed"]))) as url,
        httpx.Client() as client,
    ):
        for round_ in range(1, jobs + 1):
            began = time.process_time()
            job = client.post(f"{url}/jobs", json={"seed": round_}).json()["id"]
            while client.get(f"{url}/jobs/{job}").json()["status"] != "completed":
                pause.wait(0.5)
            peer_s += time.process_time() - began
    rows.peer("S1 served / bare", bare_s / peer_s, "", "queue in FastAPI: nothing is stored, checked or cancelled")


def peak_of(code: str) -> float:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def length(rows: Rows, folder: Path, _: int) -> None:
    """S8: peak memory of the stages of a long video against a short one, and the wait for the first segment."""
    checkpoint = make_tiny(folder / "tiny", frames=8, steps=2)
    code = (
        "import sys; sys.path.insert(0, {root!r}); sys.path.insert(0, {root!r} + '/tests/benchmarks');"
        "import bench_serving_model as b; from tests.peak import peak_bytes; b.STEPS = 2; s = b.PipelineStages();"
        "m = {{p: s.load({checkpoint!r}, p) for p in s.pools}}; b.torch.set_num_threads(1);"
        "b.make(s, m, b.request(1, {frames}));"
        "print(peak_bytes())"
    )
    root = str(Path(__file__).resolve().parents[2])
    short, long = (peak_of(code.format(root=root, checkpoint=checkpoint, frames=n)) for n in (16, 256))
    note = f"{long / 2**20:.0f} against {short / 2**20:.0f} MiB"
    rows.add("S8 memory 256 / 16 frames", long / short, 1.3, 1.1, note=note)
    house = House(folder / "state", stages=PipelineStages(), checkpoint=checkpoint)
    with working(house.worker("denoise"), house.worker("decode")):
        wait_for(lambda: is_ready(house))
        single = seconds_until(house, 8, "video")
        first = seconds_until(house, 256, "segment-0")
    rows.add("S8 first segment / clip", first / single, 1.3, 1.1, note=f"{first:.2f} against {single:.2f} s")


def is_ready(house: House) -> bool:
    from serving.conductor import Conductor  # noqa: PLC0415

    Conductor(house.backend).look()
    return house.backend.releases.active() is not None


def seconds_until(house: House, frames: int, variant: str) -> float:
    """Time from submission until a variant can be fetched: the median of three, each cancelled afterwards."""
    times = []
    for seed in range(3):
        began = time.monotonic()
        job = house.submit_request(request(seed, frames))
        wait_for(lambda job=job: variant in house.backend.jobs.get(job).results)
        times.append(time.monotonic() - began)
        house.backend.jobs.cancel(job)
        wait_for(lambda job=job: not house.backend.jobs.is_running(job))
    return sorted(times)[1]


def backbones(rows: Rows, folder: Path, jobs: int) -> None:
    """S9: memory of 20 backbones over base and differences; time of mixed jobs against jobs of one backbone."""
    checkpoint = make_tiny(folder / "tiny", frames=8)
    base = load_file(Path(checkpoint) / "backbone" / WEIGHTS)
    folders = {}
    for number in range(20):
        changed = dict(base)
        for key in [key for key in base if "attn2.to_v" in key or "attn1.to_q" in key]:
            noise = torch.randn(base[key].shape, generator=torch.Generator().manual_seed(number))
            changed[key] = base[key] + 0.01 * noise
        folders[f"b{number}"] = str(folder / f"b{number}")
        (folder / f"b{number}" / "unet").mkdir(parents=True)
        save_file(changed, folder / f"b{number}" / WEIGHTS)
    stages = PipelineStages(backbones=folders)
    models = {pool: stages.load(checkpoint, pool) for pool in stages.pools}
    variants: Backbones = models["denoise"].variants
    for name in folders:
        variants.use(name)
    parameters = sum(p.nbytes for p in models["denoise"].networks.unet.parameters())
    held = sum(t.nbytes for kept in variants._differences.values() for t in kept.values())
    weights = [load_file(Path(each) / WEIGHTS) for each in folders.values()]
    true = sum(v.nbytes for each in weights for key, v in each.items() if not torch.equal(v, base[key]))
    note = f"20 backbones, {held / 2**20:.1f} MB of differences over {parameters / 2**20:.1f} MB"
    rows.add("S9 memory / base + diffs", (parameters + held) / (parameters + true), 1.10, 1.05, note=note)

    def run(names: list[str | None]) -> float:
        began = time.process_time()
        for seed, name in enumerate(names):
            make(stages, models, request(seed, backbone=name))
        return time.process_time() - began

    run([None])
    single = mixed = 0.0
    for number in range(max(2, jobs // 2)):
        single += run(["b0", "b0"])
        mixed += run([f"b{2 * number % 20}", f"b{(2 * number + 1) % 20}"])
    rows.add("S9 mixed / single speed", single / mixed, 0.90, 0.97, note="CPU time, interleaved")


def encoding(rows: Rows, folder: Path, jobs: int) -> None:
    """S13: CPU time of our encoder over x264 medium's at 38 dB (luma) or better, on real driving at 320 x 512."""
    source = sorted((Path(__file__).parents[1] / "data" / "driving").glob("*.mp4"))[0]
    frames = read_clip(str(source), num_frames=24, size=(320, 512)).numpy()

    def timed(encode: Callable[[Path], None]) -> tuple[float, float]:
        path = folder / "clip.mp4"
        began = time.process_time()
        encode(path)
        spent = time.process_time() - began
        with av.open(str(path)) as clip:
            back = np.stack([frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)])
        error = np.mean(((back.astype(float) - frames) @ (0.299, 0.587, 0.114)) ** 2)
        return spent, float(10 * np.log10(255**2 / error))

    def medium(path: Path) -> None:
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=8, options={"preset": "medium", "threads": "1", "crf": "18"})
            stream.height, stream.width, stream.pix_fmt = 320, 512, "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))

    ours = theirs = 0.0
    for _ in range(max(3, jobs // 2)):
        spent, psnr = timed(lambda path: encode_mp4(path, frames, Fraction(8), quality=QUALITY, preset=PRESET))
        ours += spent
        theirs += timed(medium)[0]
    rows.add("S13 CPU / x264 medium", ours / theirs, 0.5, 0.25, note=f"PSNR {psnr:.1f} dB")
    if psnr < 38:
        rows.missed.append("S13 PSNR")


def conformance(rows: Rows, folder: Path, _: int) -> None:
    """S11: stock clients of both major versions through every method, and requests made up from the document."""
    root = Path(__file__).resolve().parents[2]
    tests = [root / "tests" / "serving" / name for name in ("test_conformance.py", "test_schema.py")]
    report = folder / "report.xml"
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *map(str, tests)]
    subprocess.run(line, cwd=root, check=False, stdout=subprocess.DEVNULL)
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    count = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    note = f"{count['tests']} checks, {count['skipped']} skipped; openai 2.x and 3.x, schemathesis"
    rows.add("S11 failed checks", count["failures"] + count["errors"], 0, 0, note=note)


GATES = {"S1": cost, "S8": length, "S9": backbones, "S11": conformance, "S13": encoding}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gates", default=",".join(GATES))
    parser.add_argument("--jobs", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = Rows(command=f"bench_serving_model.py --gates {arguments.gates} --jobs {arguments.jobs}")
    for name in arguments.gates.split(","):
        folder = Path(tempfile.mkdtemp(prefix="vldm-bench", dir="/tmp"))
        try:
            GATES[name](rows, folder, arguments.jobs)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return 1 if rows.missed else 0


if __name__ == "__main__":
    sys.exit(main())
