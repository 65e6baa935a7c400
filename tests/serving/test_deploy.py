from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serving.deploy import build
from tests.serving.tiny import make_tiny

CONFIG = Path(__file__).resolve().parents[2] / "infra" / "serve.yaml"


def test_checked_in_config_is_one_that_serve_takes_and_builds(tmp_path):
    values = yaml.safe_load(CONFIG.read_text())
    (application,) = ServeDeploySchema.model_validate(values).applications
    assert application.import_path == "serving.deploy:build"
    here = {"checkpoint": make_tiny(tmp_path / "tiny"), "database": f"sqlite:///{tmp_path}/jobs.db", "device": "cpu"}
    bound = build({**application.args, **here, "files": str(tmp_path / "files")})
    assert bound._bound_deployment.name == "ingress"
    pools = {part._bound_deployment.name: part._bound_deployment for part in bound._bound_deployment.init_args[2:]}
    assert sorted(pools) == ["conductor", "decode", "denoise", "interpolate", "upsample"]
    scaling = {name: pool._deployment_config.autoscaling_config for name, pool in pools.items()}
    assert scaling["decode"].min_replicas == 0
    # The tiny checkpoint has no upsampler: that pool sleeps until one that has comes along.
    assert (scaling["denoise"].initial_replicas, scaling["upsample"].initial_replicas) == (1, 0)
    assert pools["denoise"].ray_actor_options["num_gpus"] == 1


def test_unknown_setting_is_named():
    with pytest.raises(ValueError, match=r"max_unfinishd.*max_unfinished"):
        build({"checkpoint": "x", "max_unfinishd": 3})
