"""`http://host/path` and `https://`: a backend that is asked over HTTP/1.1, on connections kept between requests.

A slow backend is not buried: `backend.max_requests` at once, the others wait in order, and no longer than
`backend.timeout` from the call to the end of the answer. Rules: no POST is ever sent twice; no redirect, cookie, proxy
or compression changes what the profile asked or what the backend said; the log gets no path, header or body.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

import tidegate
from tidegate.calls import HttpAnswer, HttpRequest
from tidegate.errors import ConfigError, UpstreamError
from tidegate.upstreams import BackendSettings, UpstreamSettings, UpstreamStats
from tidegate.upstreams._circuit import Circuit
from tidegate.upstreams._lane import Lane, NoSignError, no_answer
from tidegate.upstreams._meter import NO_ANSWER, TIMEOUT, TOO_LARGE, Meter
from tidegate.upstreams._pool import Pool
from tidegate.upstreams._shared import Shared

log = logging.getLogger("tidegate.upstreams.http")

# A chat of some 5,000 members as the published backend describes them; messages are a hundredth of it
ANSWER_BYTES_MAX = 1024 * 1024
# The kernel repeats a lost SYN after 1 and after 3 s: both may still get through
CONNECT_S = 4.0

PATH = re.compile(r"/[!-\"$-~]*")  # printable ASCII, no fragment
UNSENDABLE = re.compile("[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
URL_CURE = "Set backend.url to something like http://localhost:8000."


def open_upstream(url: str, settings: UpstreamSettings, _name: str) -> "HttpUpstream":
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


class HttpUpstream:
    def __init__(self, base: str, settings: BackendSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._base = base
        self._timeout = settings.timeout
        self._max_requests = settings.max_requests
        self._clock = clock
        self._meter = Meter()
        self._shared = Shared(self._ask, self._meter, clock)
        self._slots = asyncio.Semaphore(settings.max_requests)
        self._lane = Lane(
            "the backend",
            base,
            slots=self._slots,
            circuit=Circuit(),
            clock=clock,
            log=log,
            bound="backend.max_requests",
        )
        self._session: aiohttp.ClientSession | None = None

    async def call(self, method: str, request: HttpRequest) -> HttpAnswer:
        return await self._shared.call(method, request)

    def stats(self) -> UpstreamStats:
        return self._meter.stats(self._lane.in_flight, self._lane.waiting, self._lane.is_open())

    def is_ready(self) -> bool:
        return self._lane.is_ready()

    async def close(self, within_s: float) -> None:
        await self._lane.close(within_s)
        await self._shared.close()
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # --- one call ----------------------------------------------------------------------------------------------------

    async def _ask(self, method: str, request: HttpRequest) -> HttpAnswer:
        return await self._meter.timed(method, self._clock, self._answer(request), lambda answer: str(answer.status))

    async def _answer(self, request: HttpRequest) -> HttpAnswer:
        target, headers = self._target(request), _headers(request)
        return await self._lane.call(lambda: self._exchange(request, target, headers), self._timeout)

    async def _exchange(self, request: HttpRequest, target: URL, headers: dict[str, str]) -> HttpAnswer | UpstreamError:
        try:
            async with self._opened().request(
                request.verb, target, headers=headers, data=request.body, allow_redirects=False
            ) as response:
                answer = await _read(response)
                if isinstance(answer, UpstreamError):
                    response.close()  # what is still to come is not worth keeping the connection
                return answer
        except (aiohttp.ClientError, OSError) as error:
            raise self._no_sign(error) from None

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

    def _no_sign(self, error: aiohttp.ClientError | OSError) -> NoSignError:
        """A time-out that is none of a socket goes on as it is: it is the whole call's."""
        cures = [cure for kind, cure in CURES if isinstance(error, kind)]
        if isinstance(error, TimeoutError) and not cures:
            raise error
        why = f"{self._base}: {cures[0] if cures else f'{type(error).__name__}; look in its log.'}"
        return NoSignError(TIMEOUT if isinstance(error, TimeoutError) else NO_ANSWER, why)

    def _target(self, request: HttpRequest) -> URL:
        if not PATH.fullmatch(request.path):
            raise no_answer(NO_ANSWER, "The profile asked for a path that is not percent-encoded.")
        return URL(self._base + request.path, encoded=True)


def _headers(request: HttpRequest) -> dict[str, str]:
    """A value may hold what a client sent: one with a line break would be a header of the client's choice."""
    if any(UNSENDABLE.search(value) for value in request.headers.values()):
        raise no_answer(NO_ANSWER, "A header value holds control characters; was a token accepted that has them?")
    kind = {} if request.body is None else {"Content-Type": "application/json"}
    return kind | dict(request.headers)


async def _read(response: aiohttp.ClientResponse) -> HttpAnswer | UpstreamError:
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        return no_answer(NO_ANSWER, "The backend compresses what was asked for uncompressed: turn that off in it.")
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > ANSWER_BYTES_MAX:
            return no_answer(TOO_LARGE, f"An answer of the backend has more than {ANSWER_BYTES_MAX} bytes.")
        chunks.append(chunk)
    return HttpAnswer(response.status, b"".join(chunks))


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
