"""The table of method handlers of a service, built from its descriptor and a servicer.

A servicer is a plain object with one method per rpc, in snake_case: `method(request, call)`, where
a streamed request is an iterator, a streamed response a generator, and a message that carries bulk
in its field `data` is a `wire.Frame`. One wrapper around it counts, authenticates and maps errors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor

from modscope import wire
from modscope_server.errors import BadRequest
from modscope_server.services.auth import Guard, Role, is_change
from modscope_server.services.call import Call
from modscope_server.services.error_mapping import fail
from modscope_server.services.gate import Gate

__all__ = ["Entrance", "open_stream_handler", "service_handlers"]


class Entrance(NamedTuple):
    """What every call passes before its servicer sees it."""

    guard: Guard
    gate: Gate


class _Malformed(NamedTuple):
    """A request whose bytes are no message of its type; carried on, so that the refusal can say so."""

    message: str


def service_handlers(
    service: ServiceDescriptor, servicer: object, entrance: Entrance
) -> grpc.GenericRpcHandler:
    """Handlers for all methods of a service. Raises AttributeError for one that the servicer lacks."""
    table = {method.name: _handler(method, servicer, entrance) for method in service.methods}
    return grpc.method_handlers_generic_handler(service.full_name, table)


def open_stream_handler(
    service: ServiceDescriptor, behaviour: Callable[[Iterator[Any], Any], Iterator[Any]], gate: Gate
) -> grpc.GenericRpcHandler:
    """Handlers for a foreign service with one bidirectional rpc that needs no token, such as reflection."""

    def counted(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        try:
            gate.enter(stream=True)
        except Exception as error:
            fail(context, error)
        try:
            yield from behaviour(requests, context)
        finally:
            gate.leave(stream=True)

    (method,) = service.methods
    handler = grpc.stream_stream_rpc_method_handler(
        counted,
        request_deserializer=message_factory.GetMessageClass(method.input_type).FromString,
        response_serializer=message_factory.GetMessageClass(method.output_type).SerializeToString,
    )
    return grpc.method_handlers_generic_handler(service.full_name, {method.name: handler})


def _handler(
    method: MethodDescriptor, servicer: object, entrance: Entrance
) -> grpc.RpcMethodHandler[Any, Any]:
    serve = getattr(servicer, re.sub(r"(?<=[a-z])(?=[A-Z])", "_", method.name).lower())
    stream = method.client_streaming or method.server_streaming
    wrap = _streaming if method.server_streaming else _single
    behaviour = wrap(
        serve, entrance, stream=stream, incoming=_stream_of if method.client_streaming else _single_of
    )
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[method.client_streaming, method.server_streaming]
    return make(
        behaviour,
        request_deserializer=_decoder(method.input_type),
        response_serializer=_encoder(method.output_type),
    )


def _single(
    serve: Callable[[Any, Call], Any], entrance: Entrance, *, stream: bool, incoming: Callable[[Any], Any]
) -> Callable[[Any, Any], Any]:
    guard, gate = entrance
    change = is_change(serve)

    def behaviour(request: Any, context: Any) -> Any:
        try:
            role = guard.admit(context.invocation_metadata(), change=change)
            gate.enter(stream=stream)
            try:
                return serve(incoming(request), Call(context, role))
            finally:
                gate.leave(stream=stream)
        except BaseException as error:
            fail(context, error)

    return behaviour


def _streaming(
    serve: Callable[[Any, Call], Any], entrance: Entrance, *, stream: bool, incoming: Callable[[Any], Any]
) -> Callable[[Any, Any], Iterator[Any]]:
    guard, gate = entrance
    change = is_change(serve)

    def behaviour(request: Any, context: Any) -> Iterator[Any]:
        try:
            role: Role = guard.admit(context.invocation_metadata(), change=change)
            gate.enter(stream=stream)
            try:
                yield from serve(incoming(request), Call(context, role))
            finally:
                gate.leave(stream=stream)
        except GeneratorExit:
            raise
        except BaseException as error:
            fail(context, error)

    return behaviour


def _single_of(request: Any) -> Any:
    if type(request) is _Malformed:
        raise BadRequest(request.message, hint="send a message of the type that the .proto file names")
    return request


def _stream_of(requests: Iterator[Any]) -> Iterator[Any]:
    return map(_single_of, requests)


def _decoder(message: Descriptor) -> Callable[[bytes], Any]:
    parse: Callable[[bytes], Any] = message_factory.GetMessageClass(message).FromString
    read = wire.decoder(parse) if _carries_bulk(message) else parse

    def decode(data: bytes) -> Any:
        try:
            return read(data)
        except Exception as error:
            return _Malformed(f"the request is no {message.full_name}: {error}")

    return decode


def _encoder(message: Descriptor) -> Callable[[Any], bytes]:
    if _carries_bulk(message):
        return wire.encode
    serialize: Callable[[Any], bytes] = message_factory.GetMessageClass(message).SerializeToString
    return serialize


def _carries_bulk(message: Descriptor) -> bool:
    field = message.fields_by_number.get(wire.BULK_FIELD)
    return field is not None and field.name == "data"
