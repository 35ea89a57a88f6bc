"""Loads settings for tests: a sample profile, a good secret, and the text of a refusal."""

import pytest
from tidegate.config import load
from tidegate.errors import ConfigError
from tidegate.profile import ProfileSpec

SECRET = "s3cr3t-" * 6


def spec(**changes):
    values = {
        "name": "sample",
        "summary": "",
        "ws_paths": ("/ws",),
        "headers": (),
        "env_prefix": "GATEWAY_",
        "env_names": {"LOG_LEVEL": "log.level", "APP_ENV": "log.production", "GATEWAY_NODE_ID": "node_id"},
        "defaults": {},
        "bus": "nats.url",
        "needs_token": True,
        "metrics": None,
        "build": lambda settings: None,
    }
    return ProfileSpec(**(values | changes))


def loaded(file="", *, env=None, overrides=None, folder=None, **changes):
    """With a secret, unless `env` says otherwise."""
    environ = {"GATEWAY_JWT_SECRET_KEY": SECRET} | (env or {})
    path = None
    if file:
        path = folder / "config.yaml"
        path.write_bytes(file if isinstance(file, bytes) else file.encode())
    return load(spec(**changes), config_file=path, overrides=overrides or {}, environ=environ, search=())


def refusal(*args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        loaded(*args, **kwargs)
    assert SECRET not in str(caught.value)
    return str(caught.value)
