"""Opening an archive: everything is verified before anything is used."""

import hashlib
import math
import mmap
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from whalesong.core.archive import layout, legacy, plain_yaml
from whalesong.core.archive.json_member import check_json
from whalesong.core.archive.layout import CONFIG, LEGACY_WEIGHTS, MANIFEST, WEIGHTS, Member, blame
from whalesong.core.archive.manifest import read_manifest
from whalesong.core.archive.tar_reader import read_members
from whalesong.core.archive.tensors import header_length, map_tensors, read_header
from whalesong.core.errors import ArchiveError
from whalesong.core.instantiate import check_targets, refuse_remote_code

_CHUNK = 16 * 1024**2


class Archive:
    """A verified `.nemo`; a context manager. Reading is safe from several threads.

    Attributes:
        path: the file.
        config: content of `model_config.yaml`, plain data.
        metadata: what the writer was given as `metadata`; empty for a legacy archive.
        kind: "whole" or "slim".
        target: full name of the class of the model.
        writer: name and version of the package that wrote it.
        legacy: whether it is an archive of NeMo's own writer, without a manifest.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._descriptor = -1
        self._folders: list[str] = []
        try:
            # Without O_NONBLOCK, opening a named pipe would wait for ever.
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ArchiveError(f"{path}: cannot be opened ({error.strerror}).") from error
        try:
            with blame(self.path):
                self._read_head()
        except BaseException:
            self.close()
            raise

    @property
    def files(self) -> list[str]:
        """Names of the artifacts: all members but config, weights and manifest."""
        return [name for name in self._members if name not in layout.RESERVED]

    def verify(self, *, allowed: Collection[str] | None = None) -> None:
        """Check the content of every member; `open_archive` has done it.

        Args:
            allowed: see `open_archive`.

        Raises:
            ArchiveError: one line.
        """
        with blame(self.path):
            if self.legacy:
                legacy.check_weights(self._descriptor, self._members[LEGACY_WEIGHTS])
            else:
                self._tensor_entries()
            if allowed is not None:
                with blame(CONFIG):
                    check_targets(self.config, allowed)
            for name, member in self._members.items():
                if name != MANIFEST and not self.legacy:
                    self._verify_member(member, self._manifest["members"][name]["sha256"])
            for name in self.files:
                if name.endswith(".json"):
                    check_json(name, self._small(name, layout.MAX_JSON))

    def tensors(self) -> dict[str, Tensor]:
        """The weights on the CPU, tied ones as one tensor.

        They are views of a private memory map: pages are read when used, writing to them
        changes no file, and they stay valid after the archive is closed.
        """
        with blame(self.path):
            if self.legacy:
                member = self._members[LEGACY_WEIGHTS]
                return legacy.read_weights(self._descriptor, member)
            member, entries = self._members[WEIGHTS], self._tensor_entries()
            with blame(WEIGHTS):
                memory = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_COPY)
                tensors = map_tensors(memory, member.offset, entries)
        aliases = self._manifest["aliases"]
        return tensors | {name: tensors[stored] for name, stored in aliases.items()}

    def read_file(self, name: str) -> bytes:
        """Content of one artifact.

        Raises:
            ArchiveError: there is none of this name.
        """
        if name not in self.files:
            known = ", ".join(self.files[:10]) or "none"
            raise ArchiveError(f"{self.path}: {name}: is no file of this archive ({known}).")
        return self._content(name)

    def extract_files(self, folder: str | Path | None = None) -> dict[str, Path]:
        """Write the artifacts to `folder`, by default to a temporary one removed by `close`.

        Returns:
            The path of each artifact by its name. An existing file is never replaced.
        """
        if folder is None:
            folder = tempfile.mkdtemp(prefix="whalesong-")
            self._folders.append(folder)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.files:
            self._extract(name, folder / name)
        return {name: folder / name for name in self.files}

    def close(self) -> None:
        """Close the file and remove the temporary folder; may be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
        self._descriptor, self._folders = -1, []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def aliases(self) -> dict[str, str]:
        """Names that stand for the same tensor as a stored name."""
        return dict(self._manifest.get("aliases", {}))

    def size_of(self, name: str) -> int:
        """Bytes of one member."""
        return self._members[name].size

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every member."""
        return {name: member.size for name, member in self._members.items()}

    def tensor_entries(self) -> dict[str, dict[str, Any]]:
        """Type and shape of each stored tensor, without reading the data; not for legacy ones."""
        with blame(self.path):
            return self._tensor_entries()

    def _read_head(self) -> None:
        """Member list, manifest and configuration, all checked; not the content of the rest."""
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ArchiveError("is not a file")
        size = found.st_size
        members = read_members(self._descriptor, size)
        self._members: dict[str, Member] = {member.name: member for member in members}
        for member in members:
            if member.name not in layout.RESERVED:
                layout.check_name(member.name)
        self._manifest = self._read_manifest(size)
        self.legacy = not self._manifest
        self.config = self._read_config()
        if self.legacy:
            legacy.check_members(self.config, self._members)
        target = self.config.get("target")
        if not isinstance(target, str):
            raise ArchiveError(f"{CONFIG}: `target` must name the class of the model")
        if not self.legacy and self._manifest["target"] != target:
            raise ArchiveError(f"{MANIFEST}: target: is not the one of {CONFIG}")
        self.target = target
        self.kind: str = self._manifest.get("kind", "whole")
        self.writer: str = self._manifest.get("writer", "NeMo")
        self.metadata: dict[str, Any] = self._manifest.get("metadata", {})

    def _read_manifest(self, size: int) -> dict[str, Any]:
        """The manifest, or nothing for a legacy archive."""
        if MANIFEST not in self._members:
            if WEIGHTS in self._members or LEGACY_WEIGHTS not in self._members:
                raise ArchiveError(f"{MANIFEST}: is missing")
            return {}
        content = self._small(MANIFEST, layout.MAX_MANIFEST)
        with blame(MANIFEST):
            manifest = read_manifest(content)
            listed = {name: entry["size"] for name, entry in manifest["members"].items()}
        found = {m.name: m.size for m in self._members.values() if m.name != MANIFEST}
        for name in [*listed, *found]:
            if listed.get(name) != found.get(name):
                raise ArchiveError(f"{name}: member and {MANIFEST} do not agree")
        if WEIGHTS not in found or LEGACY_WEIGHTS in found:
            raise ArchiveError(f"{WEIGHTS}: must be the one file of weights")
        self._check_exact(size)
        self._verify_member(self._members[CONFIG], manifest["members"][CONFIG]["sha256"])
        return manifest

    def _check_exact(self, size: int) -> None:
        """Every header and gap must be what our writer makes, so that no bit can flip unseen."""
        position = 0
        for member in self._members.values():
            gap = os.pread(
                self._descriptor, layout.padding(member.size), member.offset + member.size
            )
            exact = member.header == layout.header(member.name, member.size)
            if not exact or any(gap) or member.offset != position + layout.BLOCK:
                raise ArchiveError(f"{member.name}: the tar header is not ours")
            position = member.offset + member.size + len(gap)
        if size != layout.archive_size(m.size for m in self._members.values()):
            raise ArchiveError("has bytes behind its end")

    def _read_config(self) -> dict[str, Any]:
        content = self._small(CONFIG, layout.MAX_CONFIG)
        with blame(CONFIG):
            config = plain_yaml.load(content)
            refuse_remote_code(config)
        return config

    def _tensor_entries(self) -> dict[str, dict[str, Any]]:
        member = self._members[WEIGHTS]
        with blame(WEIGHTS):
            head = os.pread(self._descriptor, min(8, member.size), member.offset)
            length = 8 + header_length(head, member.size)
            head = os.pread(self._descriptor, length, member.offset)
            entries = read_header(head, member.size)
        for name, stored in self._manifest["aliases"].items():
            if name in entries or stored not in entries:
                raise ArchiveError(
                    f"{MANIFEST}: aliases: '{name[:80]}' cannot stand for '{stored[:80]}'"
                )
        return entries

    def _verify_member(self, member: Member, expected: str) -> None:
        digest = hashlib.sha256()
        for chunk in self._chunks(member):
            digest.update(chunk)
        if digest.hexdigest() != expected:
            raise ArchiveError(f"{member.name}: does not have the checksum of the manifest")

    def _small(self, name: str, limit: int) -> bytes:
        if self._members[name].size > limit:
            size = self._members[name].size
            raise ArchiveError(f"{name}: is {size} bytes, more than {limit}")
        return self._content(name)

    def _content(self, name: str) -> bytes:
        return b"".join(self._chunks(self._members[name]))

    def _extract(self, name: str, path: Path) -> None:
        with open(path, "xb") as file:
            for chunk in self._chunks(self._members[name]):
                file.write(chunk)

    def _chunks(self, member: Member) -> Iterator[bytes]:
        for start in range(0, member.size, _CHUNK):
            count = min(_CHUNK, member.size - start)
            yield os.pread(self._descriptor, count, member.offset + start)


def open_archive(path: str | Path, *, allowed: Collection[str] | None = None) -> Archive:
    """Open and verify a `.nemo`; use it in a `with` statement.

    Checked before anything is given out: a plain tar of at most 1000 regular files with flat
    names and no duplicates, sizes and caps, the manifest (every member listed, every sha256
    right), the configuration (plain YAML without aliases, tags or `${`), no request for remote
    code in the configuration or a JSON file. A refusal leaves nothing behind.

    An archive without a manifest is read only when it is of NeMo's own writer: its weights are
    `model_weights.ckpt`, read without executing pickles, and every other file must be named by
    the configuration as `nemo:<file>`. Nothing vouches for such weights but the zip checksums.

    Args:
        path: the archive.
        allowed: exact names of the classes that the configuration may name (see
            `check_targets`), the model's own `target` included; None leaves that check to the
            caller.

    Raises:
        ArchiveError: one line, "archive: member or key: rule".
    """
    archive = Archive(path)
    try:
        archive.verify(allowed=allowed)
    except BaseException:
        archive.close()
        raise
    return archive


def inspect_archive(path: str | Path) -> dict[str, Any]:
    """What an archive holds, as plain data, without reading weights or verifying checksums.

    Returns:
        `path`, `target`, `kind`, `writer`, `legacy`, `metadata`, `files` (name to bytes),
        `weights` (name to type and shape; empty for a legacy archive), `aliases`,
        `num_parameters` and `config`.

    Raises:
        ArchiveError: as `open_archive`.
    """
    with Archive(path) as archive:
        entries = {} if archive.legacy else archive.tensor_entries()
        return {
            "path": str(archive.path),
            "target": archive.target,
            "kind": archive.kind,
            "writer": archive.writer,
            "legacy": archive.legacy,
            "metadata": archive.metadata,
            "files": {name: archive.size_of(name) for name in archive.files},
            "weights": {name: f"{e['dtype']} {e['shape']}" for name, e in entries.items()},
            "aliases": archive.aliases,
            "num_parameters": sum(math.prod(entry["shape"]) for entry in entries.values()),
            "config": archive.config,
        }
