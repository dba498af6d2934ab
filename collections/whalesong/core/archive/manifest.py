"""The manifest: what an archive is, and size and sha256 of each of its members."""

import hashlib
import json
import re
from importlib import metadata
from typing import Any

from whalesong.core.errors import ArchiveError

FORMAT = "whalesong-archive"
FORMAT_VERSION = 1
KINDS = ("whole", "slim")

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_TYPES = {
    "format": str,
    "format_version": int,
    "writer": str,
    "target": str,
    "kind": str,
    "metadata": dict,
    "aliases": dict,
    "members": dict,
    "digest": str,
}


def manifest_bytes(content: dict[str, Any]) -> bytes:
    """The manifest as it is stored: canonical JSON with a digest of itself."""
    body = {key: value for key, value in content.items() if key != "digest"}
    digest = hashlib.sha256(_json(body)).hexdigest()
    return _json({**body, "digest": digest})


def writer_version() -> str:
    """Name and version of this package, as the manifest tells it."""
    try:
        return f"whalesong {metadata.version('whalesong')}"
    except metadata.PackageNotFoundError:
        return "whalesong"


def read_manifest(content: bytes) -> dict[str, Any]:
    """Parse and check a stored manifest; it must be byte for byte what its content gives.

    Raises:
        ArchiveError: "key: rule" or a rule, without the name of the archive.
    """
    try:
        manifest = json.loads(content.decode("ascii"))
        version = manifest["format_version"]
        if manifest["format"] != FORMAT or type(version) is not int:
            raise ArchiveError("format: is not the one of this package")
        if version > FORMAT_VERSION:
            raise ArchiveError(f"format_version: {version} needs a newer version of this package")
        whole = content == manifest_bytes(manifest)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        if isinstance(error, ArchiveError):
            raise
        raise ArchiveError("is no valid manifest") from error
    if not whole:
        raise ArchiveError("digest: does not fit the content")
    _check_fields(manifest)
    return manifest


def _check_fields(manifest: dict[str, Any]) -> None:
    if set(manifest) != set(_TYPES):
        raise ArchiveError(f"must have exactly the keys {', '.join(_TYPES)}")
    for key, kind in _TYPES.items():
        if not isinstance(manifest[key], kind):
            raise ArchiveError(f"{key}: must be a {kind.__name__}")
    if manifest["kind"] not in KINDS:
        raise ArchiveError(f"kind: must be one of {', '.join(KINDS)}")
    if not all(isinstance(stored, str) for stored in manifest["aliases"].values()):
        raise ArchiveError("aliases: must map names to names")
    for name, entry in manifest["members"].items():
        _check_entry(name, entry)


def _check_entry(name: str, entry: Any) -> None:
    fits = isinstance(entry, dict) and set(entry) == {"sha256", "size"}
    if not fits or type(entry["size"]) is not int or not _DIGEST.match(str(entry["sha256"])):
        raise ArchiveError(f"members: '{name[:80]}' must have a `sha256` and a `size`")


def _json(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False)
    return text.encode("ascii") + b"\n"
