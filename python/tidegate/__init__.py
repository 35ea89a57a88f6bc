"""A realtime gateway: backends publish, a million WebSocket clients listen."""

__version__: str


def __getattr__(name: str) -> str:
    # looked up when asked for: reading the configuration or a profile needs no native extension
    if name == "__version__":
        from tidegate._core import __version__ as version  # noqa: PLC0415

        return version
    raise AttributeError(f"module 'tidegate' has no attribute {name!r}")
