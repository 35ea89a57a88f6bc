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


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the suite's own open files
@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_every_autobahn_case_passes_strictly(echo: Gateway) -> None:
    try:
        results = await kosoku.run_fuzzingclient(echo.url, concurrency=4)
    except kosoku.FailureError as failed:
        results = failed.results
    wrong = [
        complaint(result)
        for result in results
        if result.behavior.value not in STRICT or result.behavior_close.value not in CLOSED_WELL
    ]
    assert not wrong, "\n".join(wrong)
    assert len(results) == CASES
