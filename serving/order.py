"""Whose turn it is: one order over waiting tasks, used to lease, to preempt and to tell queue positions.

Higher priority first; then the tenant that has received the least service for its weight; then the task that arrived
earliest, where each second of a job's own work counts as a few seconds of later arrival. Short jobs overtake long
ones, and no job waits for ever.
"""

from typing import Any

from sqlalchemy import ColumnElement, FromClause, Integer, and_, cast, or_

from serving.tables import tasks, tenants

# Tenants whose service differs by less than this take turns by arrival: finer turns would only swap jobs in and out.
_QUANTUM_S = 10.0


def queue() -> FromClause:
    """Tasks with their tenants."""
    return tasks.join(tenants, tasks.c.tenant == tenants.c.name)


def turn() -> tuple[ColumnElement[Any], ...]:
    """The columns that `comes_before` compares: priority, service and rank."""
    return (
        tasks.c.priority.label("priority"),
        cast(tenants.c.virtual_time / _QUANTUM_S, Integer).label("service"),
        tasks.c.rank.label("rank"),
    )


def by_turn() -> tuple[ColumnElement[Any], ...]:
    """ORDER BY: the task to run first comes first."""
    priority, service, rank = turn()
    return (priority.desc(), service.asc(), rank.asc())


def comes_before(mine: Any) -> ColumnElement[bool]:
    """Whether a task has its turn before the one whose `turn()` columns are in the row `mine`."""
    priority, service, rank = turn()
    return or_(
        priority > mine.priority,
        and_(priority == mine.priority, service < mine.service),
        and_(priority == mine.priority, service == mine.service, rank < mine.rank),
    )
