"""An app of numpy alone whose sites behave as the first column of their data says, in the second round of training."""

from __future__ import annotations

import sys
import time

import numpy as np

from fedscale.learner import Phase, Result, Work

WELL, SLEEP, RAISE = 0, 1, 2
EPOCH_SECONDS = 0.1


class Trial:
    """Moves a model half the way to the mean of a site's rows; an epoch takes a tenth of a second."""

    def run(self, work: Work) -> Result:
        if work.arrays is None:
            return Result({"w": np.zeros(3, np.float32)}, 0)
        model, rows = work.arrays["w"], work.data.x[:, 1:]
        loss = {"loss": np.array([float(np.square(rows - model).sum())])}
        if work.phase is Phase.EVALUATE:
            return Result(None, len(rows), loss)
        behave(int(work.data.x[0, 0]) if work.number == 2 else WELL, str(work.data.groups[0]))
        time.sleep(EPOCH_SECONDS * work.training.epochs)
        return Result({"w": model + np.float32(0.5) * (rows.mean(axis=0) - model)}, len(rows), loss)


def behave(how: int, patient: str) -> None:
    """Answer never, or raise something that quotes a patient."""
    if how == SLEEP:
        time.sleep(3600)
    if how == RAISE:
        sys.stdout.write(f"{patient} is the first patient\n")
        letter = {"to": patient, "rows": [patient] * 3}
        raise ValueError(f"patient {patient} has no record in {letter}")


app = Trial()
