"""One worker's restart: `training_restart.py {save,ours,stock,convert} FOLDER` prints CPU seconds of its process."""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK="0", RANK="0", WORLD_SIZE="1")


def main(kind: str, folder: Path) -> None:
    """Save both kinds of checkpoints, or resume from one of them and take a step."""
    os.environ["GROUP"] = tempfile.mktemp(prefix="group")
    if kind == "convert":
        line = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
        places = ["--input_folder", str(folder / "stock" / "s"), "--output_folder", tempfile.mkdtemp(dir=folder)]
        subprocess.run([*line, *places], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    else:
        resume(kind, folder)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({"cpu_s": sum(one.ru_utime + one.ru_stime for one in used)}))


def resume(kind: str, folder: Path) -> None:
    """Build the network, load, take a step; or, to save, take a step and save."""
    import torch  # noqa: PLC0415

    from tests.benchmarks.training_networks import OPTIMIZER, Clips, Video, one_worker, stock_engine, trained  # noqa: PLC0415
    from training.checkpoints import CheckpointStore  # noqa: PLC0415
    from training.config import CheckpointConfig, ZeroConfig  # noqa: PLC0415
    from training.presets import make_preset  # noqa: PLC0415
    from training.torch_engine import OptimizerState  # noqa: PLC0415

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = Video(make_preset("tiny-keyframes"))
    batch = Clips(1, 4, (8, 16))
    store = CheckpointStore(str(folder / "ours"), CheckpointConfig())
    if kind in ("save", "ours"):
        one_worker()
        from training.engine import DeepSpeedEngine  # noqa: PLC0415

        state = None
        if kind == "ours":
            found = store.newest()
            assert found is not None
            tensors = found.load()
            with torch.no_grad():
                for name, parameter in trained(network).items():
                    parameter.copy_(tensors["weights"][name])
            state = OptimizerState(updates=1, moments=tensors["moments"])
        engine = DeepSpeedEngine(network, trained(network), OPTIMIZER, ZeroConfig(stage=2), state)
        engine.step(engine.gradient(engine.network(batch).mean()), 1e-4)
        if kind == "save":
            weights = {name: value.clone() for name, value in engine.weights().items()}
            moments = dict(engine.state().moments)
            store.save(1, {"weights": weights, "moments": moments}, identity={}, progress={})
            store.wait()
    if kind in ("save", "stock"):
        fresh = network if kind == "stock" else Video(make_preset("tiny-keyframes"))
        stock = stock_engine(fresh, bf16=False)
        if kind == "stock":
            stock.load_checkpoint(str(folder / "stock"), tag="s")
        stock.backward(stock(batch).mean())
        stock.step()
        if kind == "save":
            stock.save_checkpoint(str(folder / "stock"), tag="s")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
