"""Archives of NeMo's own writer: weights in a `torch.save` file, no manifest."""

import io
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from whalesong.core.archive.layout import LEGACY_WEIGHTS, RESERVED, Member, blame
from whalesong.core.errors import ArchiveError
from whalesong.core.instantiate import walk
from whalesong.core.torch_file import TorchFileError, check_torch_file, load_torch_file

_ARTIFACT = "nemo:"


class MemberFile(io.RawIOBase):
    """One member of an archive as a read-only file with a position of its own."""

    def __init__(self, descriptor: int, member: Member) -> None:
        super().__init__()
        self._descriptor, self._member, self._position = descriptor, member, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Position in the member."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move within the member, not before its begin."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._member.size}
        self._position = max(0, base[whence] + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer` from the position, never beyond the end of the member."""
        count = max(0, min(len(buffer), self._member.size - self._position))
        data = os.pread(self._descriptor, count, self._member.offset + self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def check_members(config: Mapping[str, Any], members: Mapping[str, Member]) -> None:
    """Refuse files that the configuration does not name as `nemo:<file>`, and the reverse.

    Raises:
        ArchiveError: "member: rule".
    """
    values = (value for _, _, value in walk(config) if isinstance(value, str))
    named = {v.removeprefix(_ARTIFACT) for v in values if v.startswith(_ARTIFACT)}
    files = {name for name in members if name not in RESERVED}
    if unnamed := sorted(files - named):
        raise ArchiveError(f"{unnamed[0]}: is not named by the configuration")
    if missing := sorted(named - files):
        raise ArchiveError(f"{missing[0][:80]}: is named by the configuration, but is missing")


def check_weights(descriptor: int, member: Member) -> None:
    """Test the zip checksums of the weights; nothing is unpickled.

    Raises:
        ArchiveError: "member: rule".
    """
    with blame(LEGACY_WEIGHTS):
        try:
            check_torch_file(io.BufferedReader(MemberFile(descriptor, member)))
        except TorchFileError as error:
            raise ArchiveError(str(error)) from error


def read_weights(descriptor: int, member: Member) -> dict[str, Tensor]:
    """The state of a `torch.save` member: a dict of tensors and nothing else.

    Raises:
        ArchiveError: "member: rule".
    """
    with blame(LEGACY_WEIGHTS):
        try:
            content = load_torch_file(io.BufferedReader(MemberFile(descriptor, member)))
        except TorchFileError as error:
            raise ArchiveError(str(error)) from error
        if not isinstance(content, dict):
            raise ArchiveError(f"holds a {type(content).__name__}, not a dict of tensors")
        for name, tensor in content.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise ArchiveError(f"{name!r:.80}: is not a tensor")
        return dict(content)
