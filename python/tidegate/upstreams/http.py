"""`http://host/path` and `https://`: a backend that is asked over HTTP/1.1, on connections kept between requests.

A slow backend is not buried: `backend.max_requests` at once, the others wait in order, and no longer than
`backend.timeout` from the call to the end of the answer. Rules: no POST is ever sent twice; no redirect, cookie, proxy
or compression changes what the profile asked or what the backend said; the log gets no path, header or body.
"""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

import tidegate
from tidegate.calls import HttpAnswer, HttpRequest
from tidegate.errors import ConfigError, UpstreamError
from tidegate.upstreams import UNAVAILABLE, BackendSettings, UpstreamSettings, UpstreamStats
from tidegate.upstreams._circuit import FAILURES_MAX, OPEN_S, Circuit
from tidegate.upstreams._meter import CIRCUIT_OPEN, NO_ANSWER, TIMEOUT, TOO_LARGE, Meter
from tidegate.upstreams._pool import Pool
from tidegate.upstreams._shared import Shared

log = logging.getLogger("tidegate.upstreams.http")

# A chat of some 5,000 members as the published backend describes them; messages are a hundredth of it
ANSWER_BYTES_MAX = 1024 * 1024
# The kernel repeats a lost SYN after 1 and after 3 s: both may still get through
CONNECT_S = 4.0
# After the calls were ended there is nothing to wait for but their callers' turns of the loop
ENDING_S = 1.0

PATH = re.compile(r"/[!-\"$-~]*")  # printable ASCII, no fragment
UNSENDABLE = re.compile("[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
URL_CURE = "Set backend.url to something like http://localhost:8000."


def open_upstream(url: str, settings: UpstreamSettings) -> "HttpUpstream":
    return HttpUpstream(checked_url(url), settings.backend)


def checked_url(url: str) -> str:
    """Without a trailing slash. An error doesn't show the URL, which may hold a password."""
    try:
        parts = urlsplit(url.strip())
        is_complete = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_complete = False
    if not is_complete or not PATH.fullmatch(parts.path or "/"):
        raise ConfigError("backend.url is no HTTP URL with a host", URL_CURE)
    if parts.username is not None or parts.password is not None:
        cure = "Take user and password out of backend.url: each request brings its own Authorization header."
        raise ConfigError("backend.url holds a user or a password", cure)
    if parts.query or parts.fragment:
        raise ConfigError("backend.url has a query or a fragment, to which no path can be appended", URL_CURE)
    return f"{parts.scheme.lower()}://{parts.netloc}{parts.path.rstrip('/')}"


class NoAnswerError(UpstreamError):
    """UpstreamError with the word that it is counted by."""

    def __init__(self, outcome: str, cure: str) -> None:
        super().__init__(UNAVAILABLE, cure)
        self.outcome = outcome


class HttpUpstream:
    def __init__(self, base: str, settings: BackendSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._base = base
        self._timeout = settings.timeout
        self._max_requests = settings.max_requests
        self._clock = clock
        self._meter = Meter()
        self._circuit = Circuit()
        self._shared = Shared(self._ask, self._meter, clock)
        self._slots = asyncio.Semaphore(settings.max_requests)
        self._session: aiohttp.ClientSession | None = None
        self._deadlines: set[asyncio.Timeout] = set()  # one of each call that has begun
        self._idle = asyncio.Event()
        self._in_flight = 0
        self._is_closed = False

    async def call(self, method: str, request: HttpRequest) -> HttpAnswer:
        return await self._shared.call(method, request)

    def stats(self) -> UpstreamStats:
        waiting = len(self._deadlines) - self._in_flight
        return self._meter.stats(self._in_flight, waiting, self._circuit.is_open())

    def is_ready(self) -> bool:
        return not self._is_closed and self._circuit.lets_through(self._clock())

    async def close(self, within_s: float) -> None:
        self._is_closed = True
        await self._end_calls(within_s)
        await self._shared.close()
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _end_calls(self, within_s: float) -> None:
        try:
            async with asyncio.timeout(within_s):
                await self._until_idle()
        except TimeoutError:
            now = asyncio.get_running_loop().time()
            for deadline in self._deadlines:
                if not deadline.expired():
                    deadline.reschedule(now)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ENDING_S):
                    await self._until_idle()

    async def _until_idle(self) -> None:
        self._idle.clear()
        if self._deadlines:
            await self._idle.wait()

    # --- one call ----------------------------------------------------------------------------------------------------

    async def _ask(self, method: str, request: HttpRequest) -> HttpAnswer:
        began = self._clock()
        outcome = NO_ANSWER
        try:
            answer = await self._answer(request)
            outcome = str(answer.status)
            return answer
        except NoAnswerError as error:
            outcome = error.outcome
            raise
        finally:
            self._meter.count(method, outcome, self._clock() - began)

    async def _answer(self, request: HttpRequest) -> HttpAnswer:
        """Waits for a place, sends, and tells the circuit how it went."""
        if not self._circuit.lets_through(self._clock()):
            raise self._left_alone()
        target, headers = self._target(request), _headers(request)
        ticket: int | None = None
        try:
            async with asyncio.timeout(self._timeout) as deadline:
                with self._begun(deadline):
                    async with self._slots:
                        ticket = self._admitted()
                        answer = await self._exchange(request, target, headers)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._failed(ticket, error) from None
        except BaseException:
            if ticket is not None:
                self._circuit.abandoned(ticket)
            raise
        if self._circuit.answered():
            log.info("the backend at %s answers again", self._base)
        if isinstance(answer, NoAnswerError):
            raise answer
        return answer

    def _admitted(self) -> int:
        ticket = None if self._is_closed else self._circuit.admit(self._clock())
        if ticket is None:
            raise self._left_alone()
        return ticket

    async def _exchange(self, request: HttpRequest, target: URL, headers: dict[str, str]) -> HttpAnswer | NoAnswerError:
        """An answer that cannot be used is returned, not raised: the backend is there."""
        self._in_flight += 1
        try:
            async with self._opened().request(
                request.verb, target, headers=headers, data=request.body, allow_redirects=False
            ) as response:
                answer = await _read(response)
                if isinstance(answer, NoAnswerError):
                    response.close()  # what is still to come is not worth keeping the connection
                return answer
        finally:
            self._in_flight -= 1

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            # Our own time-out is around the whole call: `total` would be the same, and `connect` includes the waiting
            limits = aiohttp.ClientTimeout(total=None, sock_connect=min(CONNECT_S, self._timeout))
            self._session = aiohttp.ClientSession(
                connector=Pool(self._max_requests),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=limits,
                auto_decompress=False,
                trust_env=False,
                headers={
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                    "User-Agent": f"tidegate/{tidegate.__version__}",
                },
            )
        return self._session

    @contextlib.contextmanager
    def _begun(self, deadline: asyncio.Timeout) -> Iterator[None]:
        """So that `close` can end it."""
        self._deadlines.add(deadline)
        try:
            yield
        finally:
            self._deadlines.discard(deadline)
            if not self._deadlines:
                self._idle.set()

    # --- what went wrong ---------------------------------------------------------------------------------------------

    def _left_alone(self) -> NoAnswerError:
        if self._is_closed:
            return NoAnswerError(NO_ANSWER, STOPPING)
        why = f"{FAILURES_MAX} calls to {self._base} failed in a row; one is tried every {OPEN_S:.0f} s."
        return NoAnswerError(CIRCUIT_OPEN, why)

    def _failed(self, ticket: int | None, error: Exception) -> NoAnswerError:
        """Without a ticket it was still waiting, which says nothing that those on their way don't say."""
        if self._is_closed:
            return NoAnswerError(NO_ANSWER, STOPPING)
        was_open = self._circuit.is_open()
        why = self._reason(ticket, error)
        if ticket is not None and self._circuit.failed(ticket, self._clock()):
            level = logging.DEBUG if was_open else logging.WARNING
            log.log(level, "calls to the backend at %s fail at once for %.0f s: %s", self._base, OPEN_S, why)
        return NoAnswerError(TIMEOUT if isinstance(error, TimeoutError) else NO_ANSWER, why)

    def _reason(self, ticket: int | None, error: Exception) -> str:
        cures = [cure for kind, cure in CURES if isinstance(error, kind)]
        if isinstance(error, TimeoutError) and not cures:
            waited = " (it waited for a place all the time: backend.max_requests)" if ticket is None else ""
            return f"{self._base} did not answer within {self._timeout:g} s{waited}; see why it is slow."
        return f"{self._base}: {cures[0] if cures else f'{type(error).__name__}; look in its log.'}"

    def _target(self, request: HttpRequest) -> URL:
        if not PATH.fullmatch(request.path):
            raise NoAnswerError(NO_ANSWER, "The profile asked for a path that is not percent-encoded.")
        return URL(self._base + request.path, encoded=True)


def _headers(request: HttpRequest) -> dict[str, str]:
    """A value may hold what a client sent: one with a line break would be a header of the client's choice."""
    if any(UNSENDABLE.search(value) for value in request.headers.values()):
        raise NoAnswerError(NO_ANSWER, "A header value holds control characters; was a token accepted that has them?")
    kind = {} if request.body is None else {"Content-Type": "application/json"}
    return kind | dict(request.headers)


async def _read(response: aiohttp.ClientResponse) -> HttpAnswer | NoAnswerError:
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        return NoAnswerError(NO_ANSWER, "The backend compresses what was asked for uncompressed: turn that off in it.")
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > ANSWER_BYTES_MAX:
            return NoAnswerError(TOO_LARGE, f"An answer of the backend has more than {ANSWER_BYTES_MAX} bytes.")
        chunks.append(chunk)
    return HttpAnswer(response.status, b"".join(chunks))


STOPPING = "The gateway is stopping."
# The first that fits
CURES: tuple[tuple[type[Exception], str], ...] = (
    (aiohttp.ConnectionTimeoutError, f"no connection within {CONNECT_S:g} s; is it the right address, and reachable?"),
    (aiohttp.ClientConnectorCertificateError, "its certificate is not trusted; install its CA, or renew it."),
    (aiohttp.ClientConnectorSSLError, "no TLS handshake; does it speak https on this port?"),
    (aiohttp.ClientConnectorDNSError, "its name cannot be resolved; put backend.url right."),
    (aiohttp.ClientConnectorError, "cannot be reached; start it, or put backend.url right."),
    (aiohttp.ServerDisconnectedError, "it closed the connection instead of answering; look in its log."),
    (aiohttp.ClientPayloadError, "it broke off in the middle of an answer; look in its log."),
    (aiohttp.ClientResponseError, "what it sent is not HTTP/1.1; put backend.url right."),
    (aiohttp.ClientOSError, "the connection was lost; look in its log."),
)
