"""What we say about settings: what is allowed, how a value is shown, the README's table, the JSON schema.

Rule: everything is derived from `settings.py`, and no secret is ever shown: neither a value nor its length.
"""

import difflib
import re
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from tidegate.config.settings import DEFINITIONS, Settings
from tidegate.config.units import DURATION_EXAMPLES, SIZE_EXAMPLES, format_duration, format_size

# What a machine's ecosystem says rather than a gateway's settings: every profile listens to these
COMMON_NAMES = {"LOG_LEVEL": "log.level", "APP_ENV": "log.production"}

MASK = "********"
# A longer value in a message or a table hides the sentence around it
SHOWN_MAX = 120


def unit(key: str) -> str:
    extra = DEFINITIONS[key].json_schema_extra
    return str(extra["unit"]) if isinstance(extra, dict) else ""


def reason(key: str) -> str:
    return DEFINITIONS[key].description or ""


def default(key: str) -> object:
    """As `settings.py` has it; the machine's own for the one that depends on it."""
    return DEFINITIONS[key].get_default(call_default_factory=True)


def allowed(key: str) -> str:
    """What may be written, as the end of a sentence."""
    field = DEFINITIONS[key]
    if get_origin(field.annotation) is Literal:
        return "one of " + ", ".join(get_args(field.annotation))
    if field.annotation is bool:
        return "true or false"
    kinds = {
        "time": "a duration",
        "size": "a size",
        "list": "a list of texts",
        "path": "the path of a file",
        "address": "an address to listen on",
        "PEM": "a PEM public key or certificate",
    }
    kind = kinds.get(unit(key), "a whole number" if field.annotation is int else "a text")
    return kind + _bounds(key, field)


def example(key: str) -> str:
    """How to write what `allowed` says, where that is not plain."""
    examples = {"time": f", written like {DURATION_EXAMPLES}", "size": f", written like {SIZE_EXAMPLES}"}
    return examples.get(unit(key), "")


def _bounds(key: str, field: FieldInfo) -> str:
    low = next((item.ge for item in field.metadata if isinstance(item, Ge)), None)
    high = next((item.le for item in field.metadata if isinstance(item, Le)), None)
    if low is not None and high is not None:
        return f", from {_written(key, low)} to {_written(key, high)}"
    return f", at least {_written(key, low)}" if low is not None else ""


def _written(key: str, number: Any) -> str:
    if unit(key) == "time":
        return format_duration(number)
    return format_size(number) if unit(key) == "size" else str(number)


def shown(key: str, value: object) -> str:
    """A value as somebody wrote it, for a message; secrets masked, passwords in URLs too."""
    if key not in DEFINITIONS:
        return MASK if SECRET_LOOKING.search(key) else _clipped(value)
    if unit(key) == "secret":
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        return "" if text is None or text == "" else MASK
    if unit(key) == "PEM":
        return "(a PEM text)" if value else ""
    return re.sub(r"//[^@/,\s]*@", f"//{MASK}@", _clipped(value))


def effective(key: str, value: object) -> str:
    """A value as it was understood, in the form in which people write it."""
    if isinstance(value, (int, float)) and unit(key) in {"time", "size"}:
        return _written(key, value)
    return shown(key, value)


def _clipped(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        text = ", ".join(str(item) for item in value[:20] if isinstance(item, (str, int, float)))
    elif isinstance(value, dict):
        text = "(a section)"
    else:
        text = str(value)
    text = "".join(char if char.isprintable() else "?" for char in text[: SHOWN_MAX + 1])
    return text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "..."


def nearest(name: str, valid: list[str]) -> str:
    """The valid name that was probably meant, or ''. Also finds a key whose section was left out or is another."""
    same = [key for key in valid if key.split(".")[-1] == name.rsplit(".", maxsplit=1)[-1]]
    close = difflib.get_close_matches(name[:SHOWN_MAX], valid, n=1)
    if close and ("." in name or not same):
        return close[0]
    return " or ".join(same[:3])


def environment_name(prefix: str, key: str) -> str:
    return prefix + key.upper().replace(".", "_")


def flag(key: str) -> str:
    """The command line's name of a setting: the section is left out where it says nothing."""
    return "--" + key.removeprefix("server.").replace(".", "-").replace("_", "-")


def settings_table(prefix: str = "GATEWAY_") -> str:
    """The README's table, in Markdown."""
    rows = ["| key | environment | default | allowed | why |", "|---|---|---|---|---|"]
    for key in DEFINITIONS:
        written = "the host name" if key == "node_id" else shown(key, default(key))
        names = [name for name, of in COMMON_NAMES.items() if of == key] or [environment_name(prefix, key)]
        cells = (f"`{key}`", f"`{names[0]}`", f"`{written}`" if written else "empty", allowed(key))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in (*cells, reason(key))) + " |")
    return "\n".join(rows) + "\n"


def settings_schema() -> dict[str, Any]:
    """JSON schema of config.yaml, for editors."""
    return Settings.model_json_schema()


# An unknown key may be a misspelt secret
SECRET_LOOKING = re.compile(r"secret|key|token|pass|cred|auth|url", re.IGNORECASE)
