"""Seconds of work per unit of cost of each stage, measured: what estimates and Retry-After are computed from."""

from sqlalchemy import Connection, insert, select, update

from serving.tables import rates

DEFAULT_RATE = 1.0
# Share of the newest measurement in the running mean of a stage's speed.
_GAIN = 0.2


def rate_of(connection: Connection, stage: str) -> float:
    """Measured seconds of work per unit of cost of a stage."""
    row = connection.execute(select(rates.c.seconds_per_cost).where(rates.c.stage == stage)).first()
    return row.seconds_per_cost if row else DEFAULT_RATE


def learn_rate(connection: Connection, stage: str, measured: float, now: float) -> None:
    """Fold a finished task's seconds per cost into the stage's running mean."""
    mine = rates.c.stage == stage
    old = connection.execute(select(rates.c.seconds_per_cost).where(mine)).first()
    if old is None:
        connection.execute(insert(rates).values(stage=stage, seconds_per_cost=measured, updated_at=now))
        return
    mean = old.seconds_per_cost + _GAIN * (measured - old.seconds_per_cost)
    connection.execute(update(rates).where(mine).values(seconds_per_cost=mean, updated_at=now))
