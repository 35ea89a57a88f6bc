"""Autobahn's own cases against the echo profile: all 517 of them, and every verdict strict."""

import kosoku
import pytest
from kosoku._kosoku import CaseResult

from tests.gateways import Gateway

CASES = 517
STRICT = {"OK", "INFORMATIONAL"}
CLOSED_WELL = {"OK", "INFORMATIONAL"}


def complaint(result: CaseResult) -> str:
    verdict = f"{result.behavior.value}, close {result.behavior_close.value}"
    return f"{result.case_id}: {verdict}: {result.result} {result.result_close}"


async def results_of(url: str, cases: list[str] | None = None, *, at_once: int) -> list[CaseResult]:
    try:
        return list(await kosoku.run_fuzzingclient(url, cases, concurrency=at_once))
    except kosoku.FailureError as failed:
        return list(failed.results)


def is_unfinished(result: CaseResult) -> bool:
    """The suite's clock ran out, which on a busy machine says nothing of the gateway."""
    return "did not finish within" in result.result


def is_wrong(result: CaseResult) -> bool:
    return result.behavior.value not in STRICT or result.behavior_close.value not in CLOSED_WELL


@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the suite's own open files
@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_every_autobahn_case_passes_strictly(echo: Gateway) -> None:
    results = await results_of(echo.url, at_once=2)
    assert len(results) == CASES
    if unfinished := [result.case_id for result in results if is_unfinished(result)]:
        print("again, alone:", *unfinished)
        results = [result for result in results if not is_unfinished(result)]
        results += await results_of(echo.url, unfinished, at_once=1)
    assert not [complaint(result) for result in results if is_wrong(result)]
    assert len(results) == CASES
