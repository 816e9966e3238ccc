"""The fleet file of a running node: read again when it has changed."""

from __future__ import annotations

import hashlib
from pathlib import Path

from devit_contract.artefacts.files import decode_toml, read_bytes
from devit_contract.artefacts.fleet import Fleet, to_fleet
from devit_contract.artefacts.revoked import stamp_of
from devit_contract.descriptors import in_reserve
from devit_contract.errors import DevitError

_HINT = "see examples/fleet.toml"


class WatchedFleet:
    """What a fleet file says; a change counts once the file has stayed the same between two looks."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            InputError: It cannot be read, or a name or key is not usable.
            ManifestError: The format is broken.
        """
        self.path = path
        self._seen = self._read = stamp_of(path)
        self.sha256 = ""
        """Of the file as it was read last."""
        self.problem = ""
        """Why what was read last cannot be used, in one line."""
        self.fleet = self._load()
        """As it was read last without a problem."""

    def refresh(self, *, at_once: bool = False) -> bool:
        """Look at the file, and read it if it has changed; tell whether it was read, without a problem or with one.

        An editor may write a file in parts, so a change waits for the next look, unless it is to be read at once.
        """
        before, self._seen = self._seen, stamp_of(self.path)
        if not at_once and (self._seen == self._read or self._seen != before):
            return False
        self._read = self._seen
        try:
            self.fleet, self.problem = self._load(), ""
        except DevitError as err:
            self.problem = str(err)
        return True

    def _load(self) -> Fleet:
        with in_reserve():
            content = read_bytes(self.path, _HINT)
        self.sha256 = hashlib.sha256(content).hexdigest()
        return to_fleet(self.path, decode_toml(self.path, content, _HINT))
