"""The commands of `tidegate`: each parses, calls one function and turns its end into an exit code.

Rule: no decision here, and no import that `--help` does not need: what a command uses is imported when it runs.
Exit codes are those of `errors.py`; a person sees one line with the cure, never a traceback, for what is not our bug.
"""

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tidegate import errors
from tidegate.profiles import DEFAULT

if TYPE_CHECKING:
    from tidegate.config import Loaded
    from tidegate.profile import ProfileSpec


EXIT_CODES = """\b
Exit codes:
  0    it did what was asked; a server drained and stopped
  1    it failed, or one of the things it checked did
  2    the command line or the configuration is wrong: nothing was started
  3    the machine refuses: port in use, no descriptors, no permission
  130  interrupted (Ctrl-C); for serve: by a second one, before the drain was over
  143  terminated by a second SIGTERM, before the drain was over
"""


class Commands(click.Group):
    """What a command returns is the exit code; what it raises on purpose becomes one line and its code."""

    def invoke(self, ctx: click.Context) -> None:
        try:
            code = super().invoke(ctx)
        except errors.TidegateError as error:
            _say(str(error))
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            ctx.exit(errors.INTERRUPTED)
        ctx.exit(code if isinstance(code, int) else errors.OK)


def _say(text: str) -> None:
    click.echo(f"tidegate: {text}", err=True)


def _version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        import tidegate  # noqa: PLC0415

        click.echo(f"tidegate {tidegate.__version__}")
        context.exit()


@click.group(cls=Commands, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def main() -> None:
    """A realtime gateway: backends publish, a million WebSocket clients listen.

    \b
    Try it, nothing else needed:    tidegate demo
    Then, in another terminal:      tidegate connect --help
    Replace an existing gateway:    tidegate serve --profile attchat-gateway
    """


# --- settings, the same options for every command that reads them -----------------------------------------------------


def _settings_options(command: Any) -> Any:
    for option in (
        click.option(
            "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting, e.g. ws.max_rooms=10."
        ),
        click.option(
            "--config", "config_file", type=click.Path(path_type=Path), help="Default: ./config.yaml if there."
        ),
        click.option(
            "--profile",
            "profile_name",
            default=DEFAULT,
            envvar="TIDEGATE_PROFILE",
            show_default=True,
            help="Which gateway to be.",
        ),
    ):
        command = option(command)
    return command


def _profile(name: str) -> "ProfileSpec":
    from tidegate.profiles import find  # noqa: PLC0415

    return find(name)


def _load(spec: "ProfileSpec", config_file: Path | None, assignments: tuple[str, ...], **named: object) -> "Loaded":
    """`named` are settings that have an option of their own; None = not given."""
    from tidegate.config import load  # noqa: PLC0415

    overrides: dict[str, object] = dict(_assignment(text) for text in assignments)
    overrides |= {key.replace("__", "."): value for key, value in named.items() if value is not None}
    return load(spec, config_file=config_file, overrides=overrides, environ=os.environ)


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise errors.ConfigError(f"--set {text} assigns nothing", "Write it like --set ws.max_rooms=10.")
    return key.strip(), value


def _bus_url(spec: "ProfileSpec", loaded: "Loaded") -> str | None:
    return _url(spec.bus, loaded)


def _url(key: str | None, loaded: "Loaded") -> str | None:
    """None where the profile has none, or none is set."""
    from tidegate.config.checks import value_of  # noqa: PLC0415

    return str(value_of(loaded.settings, key)) or None if key else None


# --- serve ------------------------------------------------------------------------------------------------------------


@main.command()
@_settings_options
@click.option("--host", help="Address to listen on. [server.host]")
@click.option("--port", help="Port for WebSocket and HTTP, 0 = any free one. [server.port]")
@click.option("--metrics-port", help="Port for Prometheus. [metrics.port]")
@click.option("--bus", help="Where backends publish: nats://host:4222, or memory: for a try. [nats.url]")
@click.option("--tls-cert", help="PEM certificate chain. [server.tls_cert]")
@click.option("--tls-key", help="PEM private key. [server.tls_key]")
@click.option("--print-config", is_flag=True, help="Show every setting with its source, secrets masked, and exit.")
def serve(
    *,
    profile_name: str,
    config_file: Path | None,
    assignments: tuple[str, ...],
    bus: str | None,
    print_config: bool,
    **options: str | None,
) -> int:
    """Runs the gateway until SIGTERM or Ctrl-C, then drains.

    SIGHUP reloads certificate, keys and log level. A setting comes from the first of: option, environment, config.yaml,
    profile.

    \b
    Examples:
      GATEWAY_JWT_SECRET_KEY=$(openssl rand -hex 32) tidegate serve --bus nats://localhost:4222
      tidegate serve --profile echo --port 9001
      tidegate serve --set ws.max_connections=1000000 --print-config
    """
    spec = _profile(profile_name)
    named = {_OPTION_KEYS[name]: value for name, value in options.items()}
    if bus is not None:
        named[_bus_key(spec)] = bus
    loaded = _load(spec, config_file, assignments, **named)
    if print_config:
        _print_config(loaded)
        return errors.OK
    from tidegate.app import run  # noqa: PLC0415

    return run(spec, loaded, reload=lambda: _load(spec, config_file, assignments, **named))


_OPTION_KEYS = {
    "host": "server.host",
    "port": "server.port",
    "metrics_port": "metrics.port",
    "tls_cert": "server.tls_cert",
    "tls_key": "server.tls_key",
}


def _bus_key(spec: "ProfileSpec") -> str:
    if spec.bus is None:
        raise errors.ConfigError(f"the profile {spec.name} has no bus", "Leave --bus out.")
    return spec.bus


def _print_config(loaded: "Loaded") -> None:
    from tidegate.config import describe  # noqa: PLC0415

    rows = [(row.key, row.value or '""', row.source) for row in describe(loaded)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for key, value, source in rows:
        click.echo(f"{key:<{widths[0]}}  {value:<{min(widths[1], 40)}}  # {source}")
    for warning in loaded.warnings:
        click.echo(f"# warning: {warning}")


# --- demo -------------------------------------------------------------------------------------------------------------


@main.command()
@click.option("--profile", "profile_name", default=DEFAULT, show_default=True, help="This one, gogate or im-gateway.")
@click.option("--once", is_flag=True, help="Send a burst, check that every message arrived in order, print one line.")
@click.option("--port", type=click.IntRange(0, 65535), help="Default: the profile's if it is free, else any.")
@click.option("--messages", type=click.IntRange(1, 1_000_000), default=2_000, show_default=True, help="For --once.")
def demo(*, profile_name: str, once: bool, port: int | None, messages: int) -> int:
    """Shows a gateway at work: real clients, a publisher and what flows, live. Needs nothing else.

    \b
    Examples:
      tidegate demo
      tidegate demo --profile gogate
      tidegate demo --once && echo every message arrived
    """
    from tidegate.demo import run  # noqa: PLC0415

    return run(profile=profile_name, once=once, port=port, messages=messages)


# --- token ------------------------------------------------------------------------------------------------------------


@main.command()
@_settings_options
@click.option("--user-id", default="1", show_default=True)
@click.option("--brand", default="", help="Claim brand_id.")
@click.option("--type", "kind", default="", help="Claim type: cskh or customer.")
@click.option("--role", default="", help="Claim role.")
@click.option("--room", "rooms", multiple=True, help="A room that the token admits to; may be repeated.")
@click.option("--expires", default="1h", show_default=True, help="Lifetime, such as 10m or 24h.")
def token(
    *,
    profile_name: str,
    config_file: Path | None,
    assignments: tuple[str, ...],
    expires: str,
    **person: Any,
) -> None:
    """Mints a token with the configured secret, for development.

    \b
    Examples:
      GATEWAY_JWT_SECRET_KEY=... tidegate token --user-id 12345 --brand brand-1 --type cskh
      tidegate connect "ws://localhost:8086/ws?token=$(tidegate token)"
    """
    from tidegate.tokens import mint  # noqa: PLC0415

    jwt = _load(_profile(profile_name), config_file, assignments).settings.jwt
    click.echo(mint(_person(**person), jwt, lifetime_s=_lifetime(expires)))


def _person(user_id: str, brand: str, kind: str, role: str, rooms: tuple[str, ...]) -> Any:
    from tidegate.tokens import Person  # noqa: PLC0415

    if not user_id:
        raise errors.ConfigError("--user-id is empty", "A token without a user is refused by every gateway.")
    return Person(user_id, brand, kind, role, rooms)


def _lifetime(text: str) -> float:
    from tidegate.config.units import parse_duration  # noqa: PLC0415

    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise errors.ConfigError(f"--expires {text}: {error}") from None
    if seconds < 1:
        raise errors.ConfigError(f"--expires {text} has passed before the token is used", "Write it like 1h.")
    return seconds


# --- publish ----------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("target", metavar="[ROOM]", required=False)
@click.argument("text", metavar="[TEXT]", required=False)
@_settings_options
@click.option("--json", "json_text", metavar="EVENT", help="A whole event object instead of a text.")
@click.option("--user", "to_user", is_flag=True, help="ROOM is a user id: to all connections of that user.")
@click.option("--url", help="Through a running gateway's HTTP API, e.g. http://localhost:8086.")
@click.option("--key", envvar="GATEWAY_PUBLISH_KEY", help="That gateway's publish.key.")
@click.option("--bus", help="Another bus than the configured one.")
def publish(
    *,
    target: str | None,
    text: str | None,
    profile_name: str,
    config_file: Path | None,
    assignments: tuple[str, ...],
    json_text: str | None,
    to_user: bool,
    url: str | None,
    key: str | None,
    bus: str | None,
) -> None:
    """Sends one message as a backend would. TEXT is a chat message, or its payload if it is a JSON object.

    \b
    Examples:
      tidegate publish chat:1 "hello"
      tidegate publish --user 12345 "only for you"
      tidegate publish chat:1 --json '{"type":"message","payload":{"text":"hi"}}' --url http://localhost:8086 --key KEY
    """
    from tidegate import publish as publishing  # noqa: PLC0415

    event = publishing.event_of(target, text, json_text, to_user=to_user)
    if url is not None:
        publishing.over_http(url, key or "", event)
    else:
        spec = _profile(profile_name)
        loaded = _load(spec, config_file, assignments)
        asyncio.run(publishing.over_bus(bus or _bus_url(spec, loaded) or "memory:", loaded.settings, event))
    click.echo("published")


# --- connect ----------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("url", default="ws://localhost:8086/ws")
@_settings_options
@click.option("--token", "given", help="The token; it replaces one in the URL.")
@click.option(
    "--mint", metavar="[USER_ID]", is_flag=False, flag_value="1", help="Mint one with the configured secret. [user 1]"
)
def connect(
    *,
    url: str,
    profile_name: str,
    config_file: Path | None,
    assignments: tuple[str, ...],
    given: str | None,
    mint: str | None,
) -> int:
    """An interactive client: prints frames with the time, sends the lines you type.

    /join ROOM, /leave ROOM, /typing ROOM, /ping and /quit are short for their frames; any other line is sent as it is.

    \b
    Examples:
      tidegate connect --mint 12345
      tidegate connect ws://localhost:8086/ws --token "$TOKEN"
      echo /ping | tidegate connect --mint
    """
    from tidegate import connect as client  # noqa: PLC0415

    if mint is not None:
        from tidegate import tokens  # noqa: PLC0415

        if "://" in mint:
            raise errors.ConfigError(f"--mint took the URL {mint} for a user id", "Write the URL before --mint.")
        jwt = _load(_profile(profile_name), config_file, assignments).settings.jwt
        given = tokens.mint(tokens.Person(mint), jwt)
    code, reason = client.run(client.with_token(url, given))
    if code in (1000, 1001, 1005):
        return errors.OK
    _say(f"closed with code {code}{f' ({reason})' if reason else ''}")
    return errors.FAILED


# --- doctor -----------------------------------------------------------------------------------------------------------


@main.command()
@_settings_options
@click.option("--load-test", is_flag=True, help="Also what a machine needs to generate load.")
def doctor(*, profile_name: str, config_file: Path | None, assignments: tuple[str, ...], load_test: bool) -> int:
    """Checks whether this machine holds what the settings promise; says the cure for each thing it does not.

    \b
    Examples:
      tidegate doctor
      tidegate doctor --set ws.max_connections=1000000
      tidegate doctor --profile gogate
    """
    from tidegate.config import Settings  # noqa: PLC0415
    from tidegate.doctor import report  # noqa: PLC0415

    spec = _profile(profile_name)
    try:
        loaded = _load(spec, config_file, assignments)
    except errors.ConfigError as fault:  # the machine can be looked at all the same
        return report(Settings(), None, load_test=load_test, config_fault=fault)
    return report(loaded.settings, spec, load_test=load_test)


# --- bench ------------------------------------------------------------------------------------------------------------

BENCH_ROWS = ("connections", "handshakes", "fanout", "latency")


@main.command()
@click.argument("row", metavar="[ROW]", type=click.Choice([*BENCH_ROWS, "all"]), default="all")
@click.option("--connections", type=click.IntRange(100, 1_000_000), help="To hold, and handshakes a run.  [10,000]")
@click.option("--members", type=click.IntRange(1, 1_000_000), help="Of the room that gets the messages.  [1,000]")
@click.option("--seconds", type=click.IntRange(1, 600), help="Of messages for each latency.  [3]")
@click.option("--runs", type=click.IntRange(1, 99), help="The median of so many is shown.  [3]")
@click.option("--nats", metavar="URL", help="Latency over this nats-server instead of POST /api/publish.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures there too."
)
@click.option("--quick", is_flag=True, help="Tiny, in seconds: shows that it works, not how fast.")
def bench(*, row: str, quick: bool, json_file: Path | None, nats: str | None, **sizes: int | None) -> int:
    """Measures tidegate on this machine beside the least that a WebSocket server can do here, and judges it.

    \b
    ROW is one of
      connections  holds N authenticated clients, none lost; memory for each
      handshakes   as many as it can, with a fresh token each; CPU for each
      fanout       one message to each member of a room; CPU for a delivery
      latency      from a publish to the client's read, 100 messages a second
      all          the four of them, about a minute

    The limit program sends the same messages to as many clients from raw epoll, with no tokens and no rules: its CPU is
    the kernel's own price, and a ratio of 1.1 says that tidegate adds a tenth to it. Clients, gateway and limit
    program are all on this machine and use no setting of yours. Exit code 1: a figure is worse than its goal, or a
    connection or message was lost. 2: this machine can't run it; the message says the cure.

    \b
    Examples:
      tidegate bench
      tidegate bench connections --connections 100000 --runs 1
      tidegate bench latency --nats nats://localhost:4222
      tidegate bench --json before.json && echo every goal is reached
    """
    from tidegate.bench.command import Asked, run  # noqa: PLC0415

    defaults = BENCH_QUICK if quick else BENCH_SIZES
    chosen = {name: size if size is not None else defaults[name] for name, size in sizes.items()}
    rows = BENCH_ROWS if row == "all" else (row,)
    return run(Asked(rows=rows, quick=quick, nats=nats, json=json_file, **chosen))


BENCH_SIZES = {"connections": 10_000, "members": 1_000, "seconds": 3, "runs": 3}
BENCH_QUICK = {"connections": 500, "members": 100, "seconds": 1, "runs": 1}


if __name__ == "__main__":
    main()
