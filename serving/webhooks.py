"""Telling callers that a video is done: signed events, sent until they are taken or a day has passed.

Signature and headers follow Standard Webhooks, so `client.webhooks.unwrap` of the OpenAI clients accepts them.
"""

import base64
import hashlib
import hmac
import http.client
import json
import logging
import time
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import select, update

from serving.backend import Backend
from serving.database import read, write
from serving.tables import deliveries

logger = logging.getLogger(__name__)

_TIMEOUT_S = 5.0
_GIVE_UP_AFTER_S = 86400.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 3600.0


def sign(secret: str, event_id: str, timestamp: int, body: bytes) -> str:
    """Sign an event: `v1,` and the base64 HMAC-SHA256 of "id.timestamp.body"."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    message = f"{event_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, message, hashlib.sha256).digest()).decode()


class Courier:
    """Sends the events that are queued in the database."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def deliver_due(self, limit: int = 8) -> None:
        """Send the events that are due, each once; one that is not taken is due again later."""
        now = time.time()
        due = select(deliveries).where(deliveries.c.next_at <= now).order_by(deliveries.c.next_at).limit(limit)
        with read(self.backend.jobs.engine) as connection:
            events = connection.execute(due).all()
        for event in events:
            pause_s = min(_FIRST_PAUSE_S * 2.0**event.attempts, _LONGEST_PAUSE_S)
            is_last = now + pause_s > event.created_at + _GIVE_UP_AFTER_S
            # Claimed before it is sent: of two conductors one sends it.
            mine = (deliveries.c.id == event.id) & (deliveries.c.next_at == event.next_at)
            claim = {"attempts": event.attempts + 1, "next_at": None if is_last else now + pause_s + _TIMEOUT_S}
            with write(self.backend.jobs.engine) as connection:
                if connection.execute(update(deliveries).where(mine).values(claim)).rowcount == 0:
                    continue
            if self._send(event):
                with write(self.backend.jobs.engine) as connection:
                    done = update(deliveries).where(deliveries.c.id == event.id)
                    connection.execute(done.values(delivered=True, next_at=None))

    def _send(self, event: Any) -> bool:
        url = urlsplit(event.url)
        secret = self.backend.tenants.webhook_secret(event.tenant)
        if url.netloc not in self.backend.config.callback_hosts or secret is None:
            return False
        data = {"id": event.job}
        created_at = int(event.created_at)
        body = json.dumps(
            {"id": event.id, "object": "event", "created_at": created_at, "type": event.type, "data": data}
        )
        timestamp = int(time.time())
        headers = {
            "content-type": "application/json",
            "webhook-id": event.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(secret, event.id, timestamp, body.encode()),
        }
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        try:
            connection = kind(url.netloc, timeout=_TIMEOUT_S)
            try:
                # No redirect is followed: it could lead to a host that is not on the list.
                connection.request("POST", path, body=body.encode(), headers=headers)
                status = connection.getresponse().status
            finally:
                connection.close()
        except (OSError, http.client.HTTPException) as err:
            logger.warning("webhook not sent event=%s error=%s", event.id, err)
            return False
        logger.info("webhook sent event=%s status=%d", event.id, status)
        return 200 <= status < 300
