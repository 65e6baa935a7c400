"""What an operator can set. Every value has a default but the checkpoint."""

from dataclasses import dataclass, field
from pathlib import Path

from infra.storage import join


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a single request may ask for."""

    max_prompt_chars: int = 4000
    max_steps: int = 250
    max_frames: int = 20_000
    max_upload_bytes: int = 64 * 2**20
    max_upload_pixels: int = 4096 * 4096
    max_upload_frames: int = 600
    max_cost: float = 1e9
    max_deadline_s: float = 7 * 86400.0


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """How workers hold and save their work."""

    lease_s: float = 10.0
    """A worker that was not heard of for so long has lost its task."""
    save_every_s: float = 0.5
    """At most so much denoising is done again after a kill, or fifty times as much as saving takes."""
    preview_every_s: float = 1.0
    report_every_s: float = 0.3
    step_timeout_s: float = 600.0
    """A step that takes longer is taken for stuck: the worker ends itself."""
    max_attempts: int = 5
    """Losses of a worker without progress in between after which a job fails."""
    num_threads: int = 1
    """CPU threads of a worker; part of what results depend on, so the same everywhere."""


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """Replicas of one worker pool and what each reserves."""

    min_replicas: int = 1
    max_replicas: int = 1
    num_cpus: float = 0.4
    num_gpus: float = 0.0
    idle_s: float = 300.0
    """A replica without work for so long is given up, down to min_replicas, which may be 0."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise ValueError(
                f"replicas {self.min_replicas} to {self.max_replicas}; use 0 <= min <= max, max at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The whole service.

    Attributes:
        checkpoint: checkpoint folder or s3:// URI to serve.
        host: address to listen on.
        port: port to listen on.
        state: folder of the job database and the files, unless these are named.
        database: SQLAlchemy URL of the job database.
        files: folder or s3:// URI of job files.
        device: where the networks run, such as cpu or cuda.
        backbones: further image backbones (diffusers folders) that callers may choose by name.
        keys_required: refuse callers without an API key (`python -m serving keys add NAME` makes one).
        public_metrics: answer /metrics without a key.
        max_unfinished: jobs that may wait or run at once; more are answered 429.
        retention_s: how long results are kept.
        callback_hosts: hosts that webhooks may be sent to; none by default.
        url_valid_s: how long a signed result URL works.
        traces: folder for OpenTelemetry spans, one JSON object a line; none by default.
        logs: folder for a line on every request, job and task; by default warnings go to Ray's own logs.
    """

    checkpoint: str
    host: str = "127.0.0.1"
    port: int = 8000
    state: Path = Path("serving-state")
    database: str | None = None
    files: str | None = None
    device: str = "cpu"
    backbones: dict[str, str] = field(default_factory=dict)
    keys_required: bool = False
    public_metrics: bool = True
    max_unfinished: int = 64
    retention_s: float = 7 * 86400.0
    callback_hosts: tuple[str, ...] = ()
    url_valid_s: int = 3600
    traces: Path | None = None
    logs: Path | None = None
    limits: Limits = field(default_factory=Limits)
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    ingress: PoolConfig = field(default_factory=lambda: PoolConfig(num_cpus=0.1))
    conductor: PoolConfig = field(default_factory=lambda: PoolConfig(num_cpus=0.05))
    denoise: PoolConfig = field(default_factory=PoolConfig)
    interpolate: PoolConfig = field(default_factory=PoolConfig)
    upsample: PoolConfig = field(default_factory=PoolConfig)
    decode: PoolConfig = field(default_factory=PoolConfig)

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port={self.port}; use a number from 1 to 65535")
        if self.max_unfinished < 1:
            raise ValueError(f"max_unfinished={self.max_unfinished}; at least one job must be let in")

    def pool(self, name: str) -> PoolConfig:
        """Settings of a worker pool; pools that have none of their own take those of `denoise`."""
        own = {"interpolate": self.interpolate, "upsample": self.upsample, "decode": self.decode}
        return own.get(name, self.denoise)

    @property
    def database_url(self) -> str:
        """URL of the job database."""
        return self.database or f"sqlite:///{self.state.absolute()}/jobs.db"

    @property
    def files_uri(self) -> str:
        """Where job files lie."""
        return self.files or join(str(self.state.absolute()), "files")
