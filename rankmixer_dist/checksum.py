"""Checksums of files and texts that must come back from disk as they were written."""

import hashlib
import json
from pathlib import Path
from typing import Any

_BYTES = 16


def file_checksum(path: Path) -> str:
    """BLAKE2b-128 of a file's bytes, in hex; raises `OSError` where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_BYTES)).hexdigest()


def text_checksum(text: bytes) -> str:
    """BLAKE2b-128 of an encoded text, in hex; equal to `file_checksum` of a file that holds it."""
    return hashlib.blake2b(text, digest_size=_BYTES).hexdigest()


def json_checksum(content: dict[str, Any]) -> str:
    """Of what a JSON text says: neither the order of its keys nor its white space counts."""
    return text_checksum(json.dumps(content, sort_keys=True).encode())
