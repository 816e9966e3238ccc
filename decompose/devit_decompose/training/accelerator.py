"""The machine that trains: one CPU, one GPU, or several of them under torchrun, all through Accelerate."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from devit_contract.errors import TrainError
from devit_contract.service.progress import Progress, no_progress
from devit_decompose.training.objectives import Objective

_PRECISIONS = {"bf16": "bf16", "fp16": "fp16", "fp32": "no"}


class Machine:
    """Places modules and batches, multiplies in the wanted precision, and knows its rank among all processes."""

    def __init__(self, precision: str, threads: int) -> None:
        """Join the other processes, if torchrun has started some.

        Raises:
            TrainError: The precision needs hardware that is not here.
        """
        try:
            self._accelerator = Accelerator(
                # Without a GPU, Accelerate joins torchrun's other processes only if it is told that CPUs train.
                cpu=not torch.accelerator.is_available(),
                mixed_precision=_PRECISIONS[precision],
            )
        except (ValueError, RuntimeError) as err:
            raise TrainError(f"precision: expected one that this machine has, found {precision!r}: {err}") from err
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if self.world != started:
            raise TrainError(f"torchrun: expected {started} processes to train together, found {self.world} that do")
        self.precision = precision
        torch.set_num_threads(threads)  # Accelerate sets it too

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return int(self._accelerator.process_index)

    @property
    def world(self) -> int:
        """How many processes train together."""
        return int(self._accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports progress."""
        return bool(self._accelerator.is_main_process)

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return torch.device(self._accelerator.device)

    def prepare(self, objective: Objective, optimizer: torch.optim.Optimizer, accumulate: int) -> Prepared:
        """Wrap an objective and its optimiser: in DDP if there are several processes."""
        self._accelerator.gradient_accumulation_steps = accumulate
        return Prepared(self._accelerator, objective, optimizer)

    def place(self, module: nn.Module) -> None:
        """Move a module to this process's device."""
        module.to(self.device)

    def autocast(self) -> AbstractContextManager[None]:
        """Multiply in the recipe's precision while the block runs."""
        context: AbstractContextManager[None] = self._accelerator.autocast()
        return context

    def sum(self, value: float) -> float:
        """Add a number up over all processes."""
        if self.world == 1:
            return value
        # Gloo and NCCL both take float64.
        summed: Tensor = self._accelerator.reduce(torch.tensor(value, dtype=torch.float64, device=self.device))
        return float(summed)

    def wait(self) -> None:
        """Wait until every process has come here."""
        self._accelerator.wait_for_everyone()

    def main_first(self) -> AbstractContextManager[None]:
        """Run the block in the main process first, then in all others, which read files that it makes."""
        context: AbstractContextManager[None] = self._accelerator.main_process_first()
        return context

    def progress(self, progress: Progress) -> Progress:
        """Report progress in the main process alone."""
        return progress if self.is_main else no_progress


class Prepared:
    """One stage's objective and optimiser, wrapped for this machine."""

    def __init__(self, accelerator: Accelerator, objective: Objective, optimizer: torch.optim.Optimizer) -> None:
        """Wrap both, and forget them again with :meth:`release`."""
        self._accelerator = accelerator
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)

    def step(self) -> AbstractContextManager[None]:
        """Run one batch; gradients are exchanged and applied in the last of those that are added up."""
        context: AbstractContextManager[None] = self._accelerator.accumulate(self.objective)
        return context

    def backward(self, loss: Tensor, clip_norm: float) -> None:
        """Add the loss's gradients, and move the weights where a step is due."""
        self._accelerator.backward(loss)
        if clip_norm and self._accelerator.sync_gradients:
            self._accelerator.clip_grad_norm_(self.objective.parameters(), clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def release(self) -> None:
        """Release the wrapped modules before the next stage."""
        self._accelerator.free_memory()
