"""Figures in Prometheus' text form, read from the job tables: equal on every replica, and kept over restarts."""

from sqlalchemy import Engine, func, select

from serving.database import read
from serving.tables import counters, jobs, rates, tasks


def exposition(engine: Engine) -> str:
    """Write out all figures."""
    lines: list[str] = []
    with read(engine) as connection:
        by_status = connection.execute(select(jobs.c.status, func.count()).group_by(jobs.c.status)).all()
        _family(lines, "videoldm_jobs", "gauge", "Jobs that are kept, by status.", [("status", *r) for r in by_status])
        waiting = select(tasks.c.stage, func.count()).where(tasks.c.status == "ready").group_by(tasks.c.stage)
        rows = connection.execute(waiting).all()
        _family(lines, "videoldm_tasks_ready", "gauge", "Tasks that wait for a worker.", [("stage", *r) for r in rows])
        running = select(tasks.c.stage, func.count()).where(tasks.c.status == "leased").group_by(tasks.c.stage)
        rows = connection.execute(running).all()
        _family(lines, "videoldm_tasks_running", "gauge", "Tasks in workers' hands.", [("stage", *r) for r in rows])
        rows = connection.execute(select(rates.c.stage, rates.c.seconds_per_cost)).all()
        help_ = "Seconds of work per unit of cost."
        _family(lines, "videoldm_seconds_per_cost", "gauge", help_, [("stage", *r) for r in rows])
        totals = connection.execute(select(counters).order_by(counters.c.name, counters.c.stage)).all()
    for name in dict.fromkeys(row.name for row in totals):
        mine = [row for row in totals if row.name == name]
        full = f"videoldm_{name}"
        if name.endswith("_s"):
            full = f"videoldm_{name[:-2]}_seconds"
            lines += [f"# HELP {full} Time, as count and sum.", f"# TYPE {full} summary"]
            lines += [f'{full}_count{{stage="{row.stage}"}} {row.count}' for row in mine]
            lines += [f'{full}_sum{{stage="{row.stage}"}} {row.total:.9g}' for row in mine]
        else:
            _family(lines, f"{full}_total", "counter", "Events.", [("stage", row.stage, row.total) for row in mine])
    return "\n".join(lines) + "\n"


def _family(lines: list[str], name: str, kind: str, text: str, rows: list[tuple[str, str, float]]) -> None:
    lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    lines += [f'{name}{{{label}="{value}"}} {figure:.9g}' for label, value, figure in rows]
