"""A process whose PYTHONPATH leads here finds the simulated driver and packages, as Python runs this when it starts.

``FAKE_CUDA_FAULTS``   what the driver does wrong, comma separated
``FAKE_CUDA_WITHOUT``  packages that are not installed, comma separated
``FAKE_CUDA_MISUSE``   file to which what was wrong in its use is added
"""

import atexit
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[4]))
from tests.engines.fakes.driver import FakeDriver

driver = FakeDriver().install(pytest.MonkeyPatch())
driver.faults.update(filter(None, os.environ.get("FAKE_CUDA_FAULTS", "").split(",")))  # type: ignore[arg-type]
for name in filter(None, os.environ.get("FAKE_CUDA_WITHOUT", "").split(",")):
    sys.modules[name] = None  # type: ignore[assignment]


@atexit.register
def tell_misuse() -> None:
    if "FAKE_CUDA_MISUSE" in os.environ:
        with Path(os.environ["FAKE_CUDA_MISUSE"]).open("a") as file:
            file.writelines(f"{sys.argv}: {text}\n" for text in [*driver.misuse, *map(repr, driver._bugs)])
