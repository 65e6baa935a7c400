"""Files of jobs: stage outputs, saved states, uploads and results, named by their content in one folder per job."""

from typing import Any

import safetensors.torch
import torch
import xxhash
from torch import Tensor

from infra import storage

Tensors = dict[str, Tensor]


def pack(tensors: Tensors) -> bytes:
    """Write named tensors as safetensors, which wants each in memory of its own."""
    own = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    return safetensors.torch.save(own)


class LostFileError(Exception):
    """A file is gone, or its content is not what its name says."""

    def __init__(self, reference: str, what: str) -> None:
        super().__init__(f"file {reference} {what}")
        self.reference = reference


class ArtifactStore:
    """Files below a local folder or an s3:// prefix. A reference is `job/digest.suffix`.

    The digest (XXH3, 128 bits) finds damage at the speed of memory; nothing rests on its being hard to forge.
    """

    def __init__(self, root: str) -> None:
        self.root = root

    def put(self, job: str, data: bytes, suffix: str, *, durable: bool = True) -> str:
        """Store a file of a job; writing it again is harmless.

        Args:
            job: its id.
            data: the content.
            suffix: how its name ends.
            durable: whether it must outlive a power cut; what can be made again need not.

        Returns:
            Its reference, which identifies the content.
        """
        reference = f"{job}/{xxhash.xxh3_128_hexdigest(data)}{suffix}"
        storage.write_atomic(self.uri(reference), data, durable=durable)
        return reference

    def get(self, reference: str) -> bytes:
        """Read a file back, checking its content.

        Raises:
            LostFileError: the file is gone, or the content is not what the reference names.
        """
        try:
            data = storage.read_bytes(self.uri(reference))
        except FileNotFoundError as err:
            raise LostFileError(reference, "is gone") from err
        digest = reference.rsplit("/", 1)[-1].split(".", 1)[0]
        if xxhash.xxh3_128_hexdigest(data) != digest:
            raise LostFileError(reference, "is damaged: its content has another digest than its name")
        return data

    def put_tensors(self, job: str, tensors: Tensors) -> str:
        """Store named tensors that can be made again."""
        return self.put(job, pack(tensors), ".safetensors", durable=False)

    def get_tensors(self, reference: str) -> Tensors:
        """Read named tensors back."""
        return safetensors.torch.load(self.get(reference))

    def remove(self, reference: str) -> None:
        """Delete one file."""
        storage.delete(self.uri(reference))

    def remove_job(self, job: str) -> None:
        """Delete all files of a job."""
        storage.delete(storage.join(self.root, job), recursive=True)

    def uri(self, reference: str) -> str:
        """Where a file lies."""
        return storage.join(self.root, reference)

    def signed_url(self, reference: str, valid_s: int) -> str | None:
        """Make a URL from which anyone may fetch a file for a while; None in a local folder."""
        if not storage.is_remote(self.root):
            return None
        files, path = storage.filesystem(self.uri(reference))
        signed: Any = files.sign(path, expiration=valid_s)
        return str(signed)
