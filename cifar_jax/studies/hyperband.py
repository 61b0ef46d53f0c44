"""Hyperband (Li et al. 2018, JMLR 18-185) of Optuna, for trials of several attempts."""

from typing import Any

from optuna.pruners import HyperbandPruner


class HyperbandByTrial(HyperbandPruner):
    """A trial stays in the bracket of its first attempt, where Optuna draws one for each attempt. Attempts that others
    continue are in no bracket: their figures are those of their successors, and would count twice."""

    def _get_bracket_id(self, study: Any, trial: Any) -> int:
        if trial.state.name == "FAIL" and "reason" not in trial.user_attrs:
            return -1
        first = _Numbered(int(trial.user_attrs.get("original", trial.number)))
        return super()._get_bracket_id(study, first)  # type: ignore[arg-type]


class _Numbered:
    """All that the choice of a bracket reads of a trial."""

    def __init__(self, number: int) -> None:
        self.number = number
