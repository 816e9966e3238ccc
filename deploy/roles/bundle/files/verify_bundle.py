"""Verify a bundle's signature and every digest, by devit itself; print who signed it.

No serial is remembered here, as the agent does when it starts on the bundle: a device whose turn never comes must still
be able to start on the one that it has.

    python verify_bundle.py BUNDLE ALLOWED_SIGNERS [RUNNING_BUNDLE]

Where there is a RUNNING_BUNDLE, the submodels of both have to be the same.
"""

from __future__ import annotations

import sys
from pathlib import Path

from devit_contract.artefacts.manifest import Bundle
from devit_contract.artefacts.signing import verify_bundle
from devit_contract.errors import DevitError, ManifestError


def main(bundle: Path, allowed_signers: Path, running: Path | None) -> str:
    """Verify one bundle.

    Raises:
        DevitError: It is not signed, not whole, or not of the running submodels.
    """
    found, signer = verify_bundle(bundle, allowed_signers)
    if running is not None and running.exists() and _graphs(found) != _graphs(Bundle(running)):
        raise ManifestError(
            f"{bundle}: expected the submodels that run now, found others, which the node would refuse one by one: "
            "run upgrade_cell.yml, which changes all of a cell at once"
        )
    return signer


def _graphs(bundle: Bundle) -> set[tuple[int | None, str]]:
    return {(file.device, file.sha256) for file in bundle.manifest.files if file.role == "submodel"}


if __name__ == "__main__":
    paths = [Path(word) for word in sys.argv[1:]]
    try:
        sys.stdout.write(main(paths[0], paths[1], paths[2] if len(paths) > 2 else None) + "\n")
    except DevitError as err:
        sys.exit(str(err))
