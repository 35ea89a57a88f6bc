"""gRPC methods by name: where they are called, and the classes of their messages, from the compiled .proto files.

Descriptors say all that generated stubs would, and a profile needs no import to name a method. Rule: a name or a field
that does not exist is a mistake of who wrote the profile and raises plainly, not as UpstreamError.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from tidegate import protos


@dataclass(frozen=True, slots=True)
class Method:
    name: str
    path: str
    request: type[Message]
    response: type[Message]

    def message(self, fields: Mapping[str, Any]) -> Message:
        """A nested message is a mapping, an enum its number or name. ValueError or TypeError where one doesn't fit."""
        return self.request(**fields)


# as many as the .proto files have: an unknown name raises and is not kept
@cache
def method_named(full_name: str) -> Method:
    """`package.Service/Method`."""
    service, _, name = full_name.partition("/")
    try:
        found = _pool().FindServiceByName(service).methods_by_name[name]
    except KeyError:
        raise LookupError(f"no .proto file in tidegate/protos has the method {full_name!r}") from None
    return _method(found)


def methods_of(service: str) -> list[Method]:
    """All of `package.Service`. LookupError for a name that no file has."""
    try:
        found = _pool().FindServiceByName(service).methods
    except KeyError:
        raise LookupError(f"no .proto file in tidegate/protos has the service {service!r}") from None
    return [_method(each) for each in found]


def _method(found: MethodDescriptor) -> Method:
    path = f"/{found.containing_service.full_name}/{found.name}"
    request, response = (message_factory.GetMessageClass(kind) for kind in (found.input_type, found.output_type))
    return Method(found.name, path, request, response)


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    """Files are in the pool once they were imported."""
    for module in pkgutil.iter_modules(protos.__path__):
        if module.name.endswith("_pb2"):
            importlib.import_module(f"{protos.__name__}.{module.name}")
    return descriptor_pool.Default()
