"""Serve a checkpoint over HTTP: `python -m serving --checkpoint CHECKPOINT --port 8000`.

Further commands, on the same `--state` or `--database`:

    python -m serving keys add NAME        make an API key; it is shown once
    python -m serving keys revoke NAME     refuse it from now on
    python -m serving rollout CHECKPOINT   serve another checkpoint without a pause; the old one stays if it fails
"""

import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from infra.cli import ExitCode, parse, run_command
from serving.config import ServeConfig
from serving.database import check_database, migrate, open_database
from serving.preflight import check_checkpoint, check_port
from serving.tenants import Quota, TenantStore

_READY_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Make or revoke an API key."""

    action: tyro.conf.Positional[Literal["add", "revoke"]]
    name: tyro.conf.Positional[str]
    state: Path = Path("serving-state")
    database: str | None = None
    quota: Quota = field(default_factory=Quota)


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Serve another checkpoint; jobs accepted before end on the old one."""

    checkpoint: tyro.conf.Positional[str]
    state: Path = Path("serving-state")
    database: str | None = None
    patience_s: Annotated[float, tyro.conf.arg(help="how long to wait for it to be loaded")] = _READY_S


def main(arguments: Sequence[str]) -> ExitCode:
    """Run the command that the first argument names; without a name, serve."""
    if arguments[:1] == ["keys"]:
        return _keys(parse(Keys, arguments[1:], program="python -m serving keys"))
    if arguments[:1] == ["rollout"]:
        return _rollout(parse(Rollout, arguments[1:], program="python -m serving rollout"))
    # The pools have settings of the same name, so here the prefixes stay: --denoise.max-replicas.
    return _serve(tyro.cli(ServeConfig, args=arguments, prog="python -m serving", description=__doc__))


def _serve(config: ServeConfig) -> ExitCode:
    check_port(config.host, config.port)
    check_database(config.database_url)
    check_checkpoint(config.checkpoint)
    # Ray, torch and diffusers are slow to import: bad arguments are answered before.
    from serving.pipeline_stages import PipelineStages  # noqa: PLC0415
    from serving.service import running  # noqa: PLC0415

    ending = threading.Event()
    stages = PipelineStages(device=config.device, backbones=config.backbones)
    with running(config, stages):
        # Only now: Ray sets a handler of its own when it starts.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ending.set())
        print(f"ready on http://{config.host}:{config.port} (page: /, API: /v1, description: /docs)", flush=True)
        ending.wait()
    return ExitCode.DONE


def _keys(keys: Keys) -> ExitCode:
    url = ServeConfig(checkpoint="", state=keys.state, database=keys.database).database_url
    migrate(url)
    store = TenantStore(open_database(url, durable=True))
    if keys.action == "revoke":
        store.revoke(keys.name)
        print(f"revoked {keys.name}")
        return ExitCode.DONE
    key, secret = store.add(keys.name, keys.quota)
    print(f"API key of {keys.name} (shown once): {key}\nsecret of its webhooks: {secret}")
    return ExitCode.DONE


def _rollout(rollout: Rollout) -> ExitCode:
    config = ServeConfig(checkpoint=rollout.checkpoint, state=rollout.state, database=rollout.database)
    check_database(config.database_url)
    check_checkpoint(config.checkpoint)
    from serving.pipeline_stages import PipelineStages  # noqa: PLC0415
    from serving.rollout import roll_out  # noqa: PLC0415

    release = roll_out(config, PipelineStages(), rollout.patience_s)
    print(f"serving {rollout.checkpoint} (release {release.digest[:12]})")
    return ExitCode.DONE


if __name__ == "__main__":
    run_command(partial(main, sys.argv[1:]))
