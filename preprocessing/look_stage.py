"""The planning stage as a plain class over Arrow tables: look at sources inside the sandbox. No Ray here."""

import pickle
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from preprocessing import looks
from preprocessing.config import PreprocessConfig
from preprocessing.plan import Looked
from preprocessing.rejection import Rejection
from preprocessing.sandbox import Sandbox, SandboxError
from preprocessing.sources import Source, local_copy


class LookAtSources:
    """Look at sources.

    Args:
        config: what is looked for.
        sandbox: where decoding runs.
    """

    def __init__(self, config: PreprocessConfig, sandbox: Sandbox) -> None:
        self._config, self._sandbox = config, sandbox

    def __call__(self, sources: pa.Table) -> pa.Table:
        """Turn packed sources into packed looks."""
        return pack(self.look(source) for source in unpack(sources))

    def look(self, source: Source) -> Looked:
        """Look at one source; what goes wrong becomes a rejection."""
        try:
            with local_copy(source.uri) as path:
                [sight] = self._sandbox.stream(looks.look, str(path), self._config)
        except SandboxError as err:
            return _refused(source, "probe", err.reason, err)
        except OSError as err:
            return _refused(source, "fetch", "io", err)
        return Looked(source=source, sight=sight)


def pack(objects: Iterable[object]) -> pa.Table:
    """Put plain objects into a table, to travel between processes."""
    return pa.table({"packed": pa.array([pickle.dumps(one) for one in objects], pa.large_binary())})


def unpack(table: pa.Table) -> Iterator[Any]:
    """Take the objects out again."""
    return map(pickle.loads, table["packed"].to_pylist())


def _refused(source: Source, stage: str, reason: str, err: Exception) -> Looked:
    message = " ".join(str(err).split())
    return Looked(
        source=source, rejection=Rejection(source=source.name, clip_id="", stage=stage, reason=reason, message=message)
    )
