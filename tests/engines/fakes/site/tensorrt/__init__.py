"""What ``import tensorrt`` finds in a process whose PYTHONPATH leads here: the double of ``FAKE_TRT_VERSION``."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
import fake_tensorrt

globals().update(
    {
        key: value
        for key, value in vars(fake_tensorrt.make_module(os.environ["FAKE_TRT_VERSION"])).items()
        if key != "__name__"
    }
)
