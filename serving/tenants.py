"""Who may call: API keys, stored as digests only, and what each may use."""

import hashlib
import secrets
import time
from dataclasses import dataclass

from sqlalchemy import Engine, insert, select, update

from serving.database import read, write
from serving.records import Clock
from serving.tables import tenants

ANONYMOUS = "anonymous"


@dataclass(frozen=True, kw_only=True)
class Quota:
    """What one key may use: its share of the machine, jobs at a time, highest priority, cost units in 24 hours."""

    weight: float = 1.0
    max_unfinished: int = 1000
    max_priority: int = 0
    daily_cost: float = 1e12


@dataclass(frozen=True, kw_only=True)
class Tenant:
    """A caller."""

    name: str
    max_priority: int
    webhook_secret: str | None


class TenantStore:
    """API keys in the job database."""

    def __init__(self, engine: Engine, clock: Clock = time.time) -> None:
        self.engine, self.clock = engine, clock
        # It has no key that could be revoked.
        self._anonymous: Tenant | None = None

    def add(self, name: str, quota: Quota) -> tuple[str, str]:
        """Make a key.

        Returns:
            The API key and the secret that signs its webhooks; the key is not stored and cannot be shown again.

        Raises:
            ValueError: the name is taken.
        """
        key, secret = f"sk-{secrets.token_urlsafe(32)}", _webhook_secret()
        with write(self.engine) as connection:
            if connection.execute(select(tenants.c.name).where(tenants.c.name == name)).first():
                raise ValueError(f"there is a key named {name!r} already; revoke it or choose another name")
            connection.execute(insert(tenants).values(**_row(name, quota, self.clock(), _digest(key), secret)))
        return key, secret

    def revoke(self, name: str) -> None:
        """Refuse a key from now on; its jobs stay.

        Raises:
            ValueError: no such key.
        """
        with write(self.engine) as connection:
            mine = (tenants.c.name == name) & tenants.c.key_hash.is_not(None)
            revoked = update(tenants).where(mine).values(revoked_at=self.clock(), key_hash=None)
            if connection.execute(revoked).rowcount == 0:
                raise ValueError(f"there is no key named {name!r}")

    def find(self, key: str) -> Tenant | None:
        """Find the caller of a key; None if the key is unknown or revoked."""
        # The digest of a 256-bit random key needs no salt, and looking it up compares in constant time for the caller.
        return self._one(tenants.c.key_hash == _digest(key))

    def anonymous(self, quota: Quota) -> Tenant:
        """Get the caller that stands for everybody on a service without keys, making it if need be."""
        if self._anonymous is None:
            self._anonymous = self._one(tenants.c.name == ANONYMOUS) or self._make_anonymous(quota)
        return self._anonymous

    def webhook_secret(self, name: str) -> str | None:
        """Get the secret that signs a caller's webhooks."""
        with read(self.engine) as connection:
            return connection.execute(
                select(tenants.c.webhook_secret).where(tenants.c.name == name)
            ).scalar_one_or_none()

    def _make_anonymous(self, quota: Quota) -> Tenant:
        with write(self.engine) as connection:
            if connection.execute(select(tenants.c.name).where(tenants.c.name == ANONYMOUS)).first() is None:
                row = _row(ANONYMOUS, quota, self.clock(), None, _webhook_secret())
                connection.execute(insert(tenants).values(**row))
        made = self._one(tenants.c.name == ANONYMOUS)
        assert made is not None
        return made

    def _one(self, condition: object) -> Tenant | None:
        query = select(tenants.c.name, tenants.c.max_priority, tenants.c.webhook_secret)
        with read(self.engine) as connection:
            row = connection.execute(query.where(condition, tenants.c.revoked_at.is_(None))).mappings().first()  # type: ignore[arg-type]
        return Tenant(**row) if row else None


def _row(name: str, quota: Quota, now: float, key_hash: str | None, secret: str) -> dict[str, object]:
    return {
        "name": name,
        "key_hash": key_hash,
        "weight": quota.weight,
        "max_unfinished": quota.max_unfinished,
        "max_priority": quota.max_priority,
        "daily_cost": quota.daily_cost,
        "webhook_secret": secret,
        "virtual_time": 0.0,
        "created_at": now,
    }


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _webhook_secret() -> str:
    # The form that Standard Webhooks clients expect: a prefix and base64.
    return "whsec_" + secrets.token_urlsafe(24).replace("-", "A").replace("_", "B")
