"""A run's rows for a person, on stderr: a progress bar in a terminal, plain lines in a log."""

import sys
import time

from tqdm import tqdm
from typing_extensions import override

from emc2dist.metrics import Row
from emc2dist.run.listeners import Listener
from emc2dist.terminal import say

_SHOWN = {
    "loss": "loss {:.3f}",
    "acceptance_rate": "acceptance {:.3f}",
    "images_per_second": "{:.0f} images/s",
    "knn_accuracy": "kNN {:.3f}",
    "ndcg_at_10": "nDCG@10 {:.3f}",
}


class Display(Listener):
    """A terminal's listener; `steps` are those of the whole run, None until `expect` tells."""

    def __init__(self, steps: int | None, *, terminal: bool | None = None) -> None:
        terminal = sys.stderr.isatty() if terminal is None else terminal
        self._bar = tqdm(total=steps, unit="step", dynamic_ncols=True) if terminal else None
        self._steps = steps
        self._newest: Row = {}
        """The newest evaluation's accuracy, if there was one."""
        self.start_at(0)

    def expect(self, steps: int) -> None:
        """The run has so many steps."""
        self._steps = steps
        if self._bar is not None:
            self._bar.total = steps

    def start_at(self, step: int) -> None:
        """So many steps are taken; rate and time left are those of what comes now."""
        self._first, self._began = step, time.monotonic()
        if self._bar is not None:
            self._bar.reset()
            self._bar.initial = self._bar.n = self._bar.last_print_n = step
            self._bar.refresh()

    @override
    def show(self, row: Row) -> None:
        if "passed_over" in row:
            self.say(f"passed over, as not whole: {row['passed_over']}")
        elif row.get("resumed") is not None:
            if row["resumed"]:
                self.say(f"resumed from the checkpoint at step {row['step']}")
            if "loading" in row:
                self.say(str(row["loading"]))
            self.start_at(int(row["step"]))
        elif "knn_accuracy" in row:
            pixels = f", raw pixels {row['knn_pixels']:.3f}" if "knn_pixels" in row else ""
            probe = f", linear probe {row['probe_accuracy']:.3f}" if "probe_accuracy" in row else ""
            self.say(f"epoch {row['epoch']:g}: kNN accuracy {row['knn_accuracy']:.3f}{pixels}{probe}")
            self._newest = {"knn_accuracy": row["knn_accuracy"]}
            self._evaluated(row)
        elif "ndcg_at_10" in row:
            beside = f", BM25 {row['bm25_ndcg_at_10']:.3f}" if "bm25_ndcg_at_10" in row else ""
            self.say(f"epoch {row['epoch']:g}: nDCG@10 {row['ndcg_at_10']:.3f}{beside}")
            self._newest = {"ndcg_at_10": row["ndcg_at_10"]}
            self._evaluated(row)
        elif "loss" not in row:  # a checkpoint was kept: nothing that a person waits for
            return
        elif self._bar is not None:
            self._bar.update(int(row["step"]) - self._bar.n)
            self._bar.set_postfix_str(_summary({**row, **self._newest}))
        else:
            summary = _summary({**row, **self._newest})
            self.say(f"step {row['step']}/{self._steps} epoch {row['epoch']:.2f} {summary}{self._left(row)}")

    def _evaluated(self, row: Row) -> None:
        if row["step"] == self._first:  # steps begin now
            self.start_at(self._first)

    def _left(self, row: Row) -> str:
        """How long the rest of the run takes at the rate so far; empty where there is none yet, or no rest."""
        taken = int(row["step"]) - self._first
        if self._steps is None or taken <= 0 or row["step"] == self._steps:
            return ""
        seconds = (time.monotonic() - self._began) / taken * (self._steps - int(row["step"]))
        return f", {tqdm.format_interval(seconds)} to go"

    @override
    def say(self, text: str) -> None:
        say(text)

    @override
    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _summary(row: Row) -> str:
    return ", ".join(text.format(row[name]) for name, text in _SHOWN.items() if name in row)
