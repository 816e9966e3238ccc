"""``python -m devit_decompose``: ``devit decompose`` for torchrun, which starts a module in every process."""

from devit_contract.service.terminal import run
from devit_decompose.cli import app

if __name__ == "__main__":
    run(app, "python -m devit_decompose")
