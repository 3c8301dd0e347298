"""The learning rate as a function of the step and of the present config alone."""

from __future__ import annotations

from typing import Any

from monai.optimizers import WarmupCosineSchedule


class ResumableWarmupCosine(WarmupCosineSchedule):
    """MONAI's linear warm-up and cosine decay, whose state is the step only.

    The stock schedule saves its length and its peak too, and loading them overrides what the config now says: a run
    continued with more epochs would reach zero where the shorter one ended, and then rise again.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return the steps done."""
        return {"last_epoch": self.last_epoch, "_step_count": self._step_count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the steps done, with the length and the peak that this object was made with."""
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate
