"""A run's rows as TensorBoard reads them: event files in the run folder, under tensorboard/.

Where the run goes back to a checkpoint, TensorBoard drops what lay behind it, as `metrics.jsonl` does.
"""

from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from emc2dist.metrics import Row, scalars


class TensorBoard:
    """A Recorder that writes scalars, each under its topic, as in `chains/acceptance_rate`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._writer: SummaryWriter | None = None
        self._files = 0

    def record(self, row: Row) -> None:
        """Write a row."""
        step = int(row["step"])
        if self._writer is None or "resumed" in row:
            self.close()
            # Numbered, for files are named by the second, and one of the same second would be overwritten.
            suffix = f".{self._files:03d}"
            self._writer = SummaryWriter(str(self._folder), purge_step=step + 1, filename_suffix=suffix)
            self._files += 1
        for name, value in scalars(row).items():
            self._writer.add_scalar(name, value, step)

    def __exit__(self, *end: Any) -> None:
        self.close()

    def close(self) -> None:
        """Write out what is held back, and close the file."""
        if self._writer is not None:
            self._writer.close()
