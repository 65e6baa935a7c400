"""The tables behind the service: who may call, which checkpoints answer, what was asked, and what is left to run.

A job is what a caller asked for; a task is one stage of one segment of it, the unit that a worker leases. All times are
seconds since 1970 (UTC); hosts that share a database keep their clocks within a second of each other.
"""

from sqlalchemy import JSON, Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text
from sqlalchemy import UniqueConstraint as Unique

metadata = MetaData()

tenants = Table(
    "tenants",
    metadata,
    Column("name", String(64), primary_key=True),
    # SHA-256 of the API key; the key itself is shown once and never stored.
    Column("key_hash", String(64), unique=True),
    Column("weight", Float, nullable=False),
    Column("max_unfinished", Integer, nullable=False),
    Column("max_priority", Integer, nullable=False),
    Column("daily_cost", Float, nullable=False),
    Column("webhook_secret", String(64)),
    # Seconds of service received, divided by the weight: whoever has received least goes first.
    Column("virtual_time", Float, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("revoked_at", Float),
)

releases = Table(
    "releases",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("uri", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("error", Text),
    Column("description", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
)

# Which worker holds which release, or is loading it: a crash while loading leaves its row behind as evidence.
loads = Table(
    "loads",
    metadata,
    Column("release", String(64), ForeignKey("releases.digest"), primary_key=True),
    Column("owner", String(96), primary_key=True),
    Column("stages", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("error", Text),
    Column("seen_at", Float, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant", String(64), ForeignKey("tenants.name"), nullable=False),
    Column("release", String(64), ForeignKey("releases.digest"), nullable=False),
    Column("status", String(16), nullable=False),
    Column("request", JSON, nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("idempotency_key", String(255)),
    Column("parent", String(40)),
    Column("priority", Integer, nullable=False),
    Column("cost", Float, nullable=False),
    Column("num_steps", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("completed_at", Float),
    Column("deadline_at", Float),
    Column("error_code", String(64)),
    Column("error_message", Text),
    Column("preview", Text),
    Column("results", JSON, nullable=False),
    Column("callback_url", Text),
    Unique("tenant", "idempotency_key", name="uq_jobs_tenant_idempotency_key"),
    Index("ix_jobs_tenant_created_at", "tenant", "created_at"),
    Index("ix_jobs_status", "status"),
    Index("ix_jobs_completed_at", "completed_at"),
)

tasks = Table(
    "tasks",
    metadata,
    Column("job", String(40), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("stage", String(32), nullable=False),
    Column("segment", Integer, nullable=False),
    Column("needs", JSON, nullable=False),
    Column("status", String(16), nullable=False),
    Column("tenant", String(64), ForeignKey("tenants.name"), nullable=False),
    Column("release", String(64), nullable=False),
    Column("priority", Integer, nullable=False),
    # The smaller, the sooner, within a tenant: time of arrival plus a multiple of the job's own work.
    Column("rank", Float, nullable=False),
    Column("num_steps", Integer, nullable=False),
    Column("steps_done", Integer, nullable=False),
    Column("cost", Float, nullable=False),
    Column("attempts", Integer, nullable=False),
    # Fencing token: grows with every lease, so that a worker that was given up can no longer write.
    Column("token", Integer, nullable=False),
    Column("owner", String(96)),
    Column("lease_expires_at", Float),
    Column("leased_at", Float),
    Column("duration_s", Float, nullable=False),
    # A saved state and the step it was taken at; `steps_done` may be ahead of it.
    Column("state", Text),
    Column("saved_steps", Integer, nullable=False),
    Column("output", Text),
    Index("ix_tasks_queue", "status", "stage", "priority", "rank"),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("job", String(40), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("type", String(32), nullable=False),
    Column("url", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_at", Float),
    Column("delivered", Boolean, nullable=False),
    Index("ix_deliveries_next_at", "next_at"),
)

# Seconds of work per unit of cost, measured: what estimates and Retry-After are computed from.
rates = Table(
    "rates",
    metadata,
    Column("stage", String(32), primary_key=True),
    Column("seconds_per_cost", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
)

# Figures for Prometheus, summed over all processes and restarts.
counters = Table(
    "counters",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("stage", String(32), primary_key=True),
    Column("count", Integer, nullable=False),
    Column("total", Float, nullable=False),
)
