"""The application as `serve deploy` and KubeRay start it: `import_path: serving.deploy:build`, settings as `args`."""

from typing import Any

from ray.serve import Application

from pipelines.configs import from_json
from serving.app import build_app
from serving.backend import open_backend
from serving.config import ServeConfig
from serving.database import migrate
from serving.pipeline_stages import PipelineStages


def build(args: dict[str, Any]) -> Application:
    """Make the tables, propose the checkpoint and bind the deployments.

    Args:
        args: fields of ServeConfig; the address to listen on is Serve's own setting.

    Raises:
        ValueError: a field that does not exist or fit, or no checkpoint.
    """
    config = from_json(ServeConfig, args, where="args of the application")
    stage_set = PipelineStages(device=config.device, backbones=config.backbones)
    digest, description = stage_set.describe(config.checkpoint)
    migrate(config.database_url)
    open_backend(config, stage_set, durable=True).releases.propose(digest, config.checkpoint, description)
    return build_app(config, stage_set, description)
