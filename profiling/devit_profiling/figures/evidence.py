"""What a report is made of: a run's raw data, each device's samples parsed once, and one time axis for all clocks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from devit_profiling.figures.power import Power, power_of
from devit_profiling.record.clocks import TimeAxis
from devit_profiling.record.record import Phase, Recording, Run
from devit_profiling.record.run_folder import read_recording


@dataclass(frozen=True)
class Evidence:
    """Made once per report, and handed to all that computes or draws."""

    recording: Recording
    powers: tuple[Power, ...]
    """Of the named devices, in the order of the run."""
    node: Power | None
    """Of the node's machine; absent where it was not sampled."""
    axis: TimeAxis

    @classmethod
    def of(cls, recording: Recording) -> Evidence:
        """Parse the samples of a run and fit its clocks."""
        run = recording.run
        node = power_of(recording, run.node) if run.node is not None and run.node in run.machines else None
        powers = tuple(power_of(recording, device) for device in run.devices)
        return cls(recording, powers, node, TimeAxis.of(recording))

    @classmethod
    def read(cls, folder: Path) -> Evidence:
        """Read a run's folder; raises as :func:`~devit_profiling.record.run_folder.read_recording` does."""
        return cls.of(read_recording(folder))

    @property
    def run(self) -> Run:
        """What was measured and how."""
        return self.recording.run

    @property
    def machines(self) -> tuple[Power, ...]:
        """The devices, and the node's machine where it was sampled."""
        return self.powers if self.node is None else (*self.powers, self.node)

    def phases(self, scenario: str) -> list[Phase]:
        """List the phases of a scenario, in their order."""
        return [phase for phase in self.run.phases if phase.scenario == scenario]
