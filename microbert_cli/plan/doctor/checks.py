"""All checks, in the order in which they run. A new one is a function from a context to findings, and its line here."""

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
    """Runs every check and yields its result. The network is not used, and nothing is kept.

    root     the folder that the stages write to
    offline  whether the run will be offline too: then everything from the Hub must be in its local cache
    """
    with no_network():
        context = DoctorContext(steps, root, catalog, offline=offline)
    failures: dict[str, int] = {}
    for number, (name, check) in enumerate(CHECKS.items(), 1):
        with no_network():
            findings = [_once(finding, number, failures) for finding in _findings(check, context)]
        yield Result(number, name, findings)


def _findings(check: Check, context: DoctorContext) -> Iterator[Finding]:
    try:
        yield from check(context)
    except Later as reason:
        yield Finding("later", f"later: {reason}")
    except MbertError as error:
        yield failed(error)


def _once(finding: Finding, number: int, failures: dict[str, int]) -> Finding:
    """Turns an error that an earlier check reported into `later`: it is shown once, and this check could not be made."""
    if finding.error is None or failures.setdefault(str(finding.error), number) == number:
        return finding
    return Finding("later", f"later: check {failures[str(finding.error)]} must pass first", finding.about)
