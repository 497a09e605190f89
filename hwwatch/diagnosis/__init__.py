"""What this machine allows, and the command that would allow more.

machines: what there is; holders: who has what; trials: what works; remedies: what would help; findings: all
of it in words.
"""

from __future__ import annotations

from hwwatch.armory import release_signals
from hwwatch.backends.select import select
from hwwatch.diagnosis.findings import Diagnosis, Finding
from hwwatch.diagnosis.holders import Holders, read_holders
from hwwatch.diagnosis.machines import Machine, read_machine
from hwwatch.diagnosis.trials import BACKENDS, STEPS, Trial, run_here, run_trials
from hwwatch.errors import HwwatchError
from hwwatch.native import lib
from hwwatch.types import MODES, Backend

__all__ = ["Diagnosis", "Finding", "doctor"]


def doctor() -> Diagnosis:
    """Try everything that hwwatch needs on this machine, for real, and say what fails, why, and what helps.

    Test accesses of each kind are made in child processes. Watches that are armed stay so and are told of
    nothing; nothing is left behind. Takes about a second for each backend.

    Returns
    -------
    Diagnosis
        True where watching works; prints as text, shows as a table in a notebook, `to_dict` for JSON.
    """
    lib.hww_mute(1)  # calls of functions that are watched are not the program's
    try:
        return _examine()
    finally:
        lib.hww_mute(-1)


def _examine() -> Diagnosis:
    machine = read_machine()
    trials, choice = {}, Trial("choice", False, "there is no backend")
    for number, name in enumerate(BACKENDS):
        steps = STEPS if number else ("choice", *STEPS)
        trials[name] = run_trials(name, steps)
        choice = trials[name].pop("choice", choice)
    if choice.slug == "no-child":
        return _alone(machine, choice.problem)
    name = str(choice.found.get("backend", ""))
    backend, failed = _usable(name, choice, trials.get(name, {}))
    holders = read_holders(backend, failed.problem if failed else "")
    if failed is not None and failed.slug != "no-slot":
        return Diagnosis(machine, holders, choice, trials, failed)
    untried = _reason_not_to_try(holders)
    here = None if untried or backend is None else _first_failure(run_here(name, quiet=True))
    release_signals()
    return Diagnosis(machine, holders, choice, trials, here, untried)


def _alone(machine: Machine, problem: str) -> Diagnosis:
    """Where no Python can be started: what can be said without."""
    choice = _chosen_here()
    backend, failed = _usable(str(choice.found.get("backend", "")), choice, {})
    holders = read_holders(backend, failed.problem if failed else "")
    untried = _reason_not_to_try(holders)
    trials: dict[str, dict[str, Trial]] = {}
    for name in BACKENDS:
        if untried or backend is None or name != backend.name:
            trials[name] = {mode: Trial(mode, False, problem, "no-child") for mode in MODES}
            continue
        lib.hww_mute(-1)  # see `doctor`
        try:
            trials[name] = run_here(name, quiet=bool(holders.ours))
        finally:
            lib.hww_mute(1)
    release_signals()
    here = None if untried or backend is None else _first_failure(trials[backend.name])
    return Diagnosis(machine, holders, choice, trials, failed or here, untried, problem)


def _first_failure(trials: dict[str, Trial]) -> Trial:
    modes = [trials[mode] for mode in MODES if mode in trials]
    return next((trial for trial in modes if not trial.ok), modes[0])


def _chosen_here() -> Trial:
    try:
        chosen, reason = select("auto")
    except HwwatchError as error:
        return Trial("choice", False, str(error), error.slug, error.hint)
    return Trial("choice", True, found={"backend": chosen.name, "reason": reason})


def _usable(name: str, choice: Trial, trials: dict[str, Trial]) -> tuple[Backend | None, Trial | None]:
    """The chosen backend, if it is safe to use in this process; and the trial that it failed, if any."""
    if not choice.ok:
        return None, choice
    failed = next((trials[mode] for mode in MODES if mode in trials and not trials[mode].ok), None)
    if failed is None:
        return select(name).backend, None
    return (select(name).backend if failed.slug == "no-slot" else None), failed


def _reason_not_to_try(holders: Holders) -> str:
    """Why a test access in this process would disturb it; empty where it would not."""
    if holders.tracers:
        names = ", ".join(map(str, holders.tracers))
        return f"{names} is attached, gets SIGTRAP first, and may stop this process on it"
    return "it would take SIGTRAP from who has it now" if holders.stolen else ""
