"""Pictures of a folder in the order of their names, again and again: a camera for tests."""

from __future__ import annotations

import time
from pathlib import Path

from devit_contract.artefacts.manifest import Preprocess
from devit_contract.artefacts.preprocess import PICTURE_SUFFIXES, load_image
from devit_contract.errors import InputError
from devit_edge_agent.sources.source import Captured


class FolderSource:
    """Hands out the picture of a frame's number, from 1, round and round; the folder is listed again each round.

    So the folders of several devices stay in step, whatever frames one of them misses.
    """

    def __init__(self, folder: Path, preprocess: Preprocess) -> None:
        """List the folder.

        Raises:
            InputError: It cannot be listed, or holds no picture.
        """
        self._folder, self._preprocess = folder, preprocess
        self._names = _pictures(folder)
        self._next = 0
        self.problem = ""
        self.skipped = 0
        """How often a picture was skipped because it could not be decoded."""
        if not self._names:
            raise InputError(f"{folder}: expected pictures ({', '.join(PICTURE_SUFFIXES)}), found none: put some there")

    def fileno(self) -> int:
        """Give -1: there is no waiting for pictures."""
        return -1

    def pump(self) -> None:
        """Do nothing: pictures are read when they are asked for."""

    def newest(self, frame_id: int) -> Captured | None:
        """Decode the picture of a frame, or the next one that can be; ``None`` if a whole round has none."""
        if self._names:
            self._next = (frame_id - 1) % len(self._names)
        return self.take_new()

    def take_new(self) -> Captured | None:
        """Decode the next picture that can be: none is handed out twice in a round."""
        for _ in range(2):  # the rest of this round, then a whole one
            while self._next < len(self._names):
                path = self._names[self._next]
                self._next += 1
                try:
                    image = load_image(path, self._preprocess)
                except InputError as err:
                    self.skipped += 1
                    self.problem = str(err)
                    continue
                self.problem = ""
                return Captured(image, time.monotonic_ns())
            self._next = 0
            try:
                self._names = _pictures(self._folder)
            except InputError as err:
                self._names, self.problem = [], str(err)
            else:
                if not self._names:
                    self.problem = f"{self._folder}: expected pictures, found none"
        return None

    def close(self) -> None:
        """Do nothing: no file is open."""


def _pictures(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
    except OSError as err:
        raise InputError(f"{folder}: expected a folder of pictures, found {err.strerror}: correct agent.toml") from err
