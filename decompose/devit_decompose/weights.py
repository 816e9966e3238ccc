"""Model weights as safetensors files, which hold numbers and nothing that runs."""

from __future__ import annotations

from pathlib import Path

import torch

from devit_contract.errors import ManifestError
from devit_contract.files import read_tensors, write_tensors
from devit_decompose.model import Model, ModelConfig

_HINT = "make the models again with devit decompose"


def save_weights(path: Path, model: Model) -> None:
    """Write every tensor of the model's state."""
    write_tensors(path, {name: value.detach().cpu().numpy() for name, value in model.state_dict().items()})


def load_model(path: Path, config: ModelConfig) -> Model:
    """Build a model and fill it from a file, ready for inference.

    Raises:
        InputError: The file cannot be read.
        ManifestError: Its tensors are not those of the configuration.
    """
    tensors, _ = read_tensors(path, _HINT)
    model = Model(config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ManifestError(
                f"{path}: tensor {name}: expected shape {expected.get(name)}, found {found.get(name)}: {_HINT}"
            )
    model.load_state_dict({name: torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()})
    return model.eval()
