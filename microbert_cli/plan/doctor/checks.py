"""All checks, in the order in which they are made. One more is a function from a case to findings, and its line here."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from microbert_cli.errors import MbertError
from microbert_cli.hub import no_network
from microbert_cli.plan.doctor.context import DoctorContext
from microbert_cli.plan.doctor.data_checks import duplicates, labels, truncation
from microbert_cli.plan.doctor.findings import Finding, Later, Result, failed
from microbert_cli.plan.doctor.first_step import first_step
from microbert_cli.plan.doctor.machine_checks import device, disk, saving, versions
from microbert_cli.plan.doctor.model_checks import inputs, tokenizers
from microbert_cli.recipe.registry import Catalog
from microbert_cli.runs.stage_inputs import Step

Check = Callable[[DoctorContext], Iterator[Finding]]

CHECKS: dict[str, Check] = {
    "versions": versions,
    "device": device,
    "inputs": inputs,
    "tokenizers": tokenizers,
    "labels": labels,
    "duplicates": duplicates,
    "truncation": truncation,
    "first step": first_step,
    "checkpoint": saving,
    "disk": disk,
}


def examine(steps: Sequence[Step], root: Path, *, catalog: Catalog, offline: bool) -> Iterator[Result]:
    """Makes every check and hands out its result as soon as it is there. Nothing is asked of the network, nothing kept.

    root     the folder that the stages write to
    offline  whether the run will be offline too: then everything from the Hub must be in its local cache
    """
    with no_network():
        case = DoctorContext(steps, root, catalog, offline=offline)
    told: dict[str, int] = {}
    for number, (name, check) in enumerate(CHECKS.items(), 1):
        with no_network():
            findings = [_once(finding, number, told) for finding in _findings(check, case)]
        yield Result(number, name, findings)


def _findings(check: Check, case: DoctorContext) -> Iterator[Finding]:
    try:
        yield from check(case)
    except Later as reason:
        yield Finding("later", f"later: {reason}")
    except MbertError as error:
        yield failed(error)


def _once(finding: Finding, number: int, told: dict[str, int]) -> Finding:
    """An error that an earlier check told is no second cross, but the reason why this one could not be made."""
    if finding.error is None or told.setdefault(str(finding.error), number) == number:
        return finding
    return Finding("later", f"later: check {told[str(finding.error)]} must pass first", finding.about)
