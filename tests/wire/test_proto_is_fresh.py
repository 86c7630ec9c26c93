"""The generated code says what the `.proto` files say."""

from __future__ import annotations

import re
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

NAMES = ("frame", "agent", "viewer")


def source(name: str) -> str:
    return resources.files("fulgurite.v1").joinpath(f"{name}.proto").read_text(encoding="utf-8")


def generated(name: str) -> Any:
    return import_module(f"fulgurite.v1.{name}_pb2").DESCRIPTOR


_MESSAGE = re.compile(r"^message (\w+) \{\n(.*?)^\}", re.DOTALL | re.MULTILINE)
_FIELD = re.compile(r"^\s*(?:optional )?(repeated )?(map<\w+, \w+>|[\w.]+) (\w+) = (\d+)", re.MULTILINE)
_RPC = re.compile(r"rpc (\w+)\((stream )?(\w+)\) returns \((stream )?(\w+)\)")


def written_fields(name: str) -> set[tuple[str, str, int, bool, str]]:
    text = re.sub(r"//.*", "", source(name))
    found = set()
    for message, body in _MESSAGE.findall(text):
        for repeated, kind, field, number in _FIELD.findall(body):
            many = bool(repeated) or kind.startswith("map<")
            found.add((message, field, int(number), many, "map" if kind.startswith("map<") else kind))
    return found


def generated_fields(name: str) -> set[tuple[str, str, int, bool, str]]:
    proto = descriptor_pb2.FileDescriptorProto()
    generated(name).CopyToProto(proto)
    found = set()
    for message in proto.message_type:
        maps = {nested.name for nested in message.nested_type if nested.options.map_entry}
        for field in message.field:
            kind = field.type_name.rsplit(".", 1)[-1] or field.Type.Name(field.type)[5:].lower()
            many = field.label == field.LABEL_REPEATED
            found.add((message.name, field.name, field.number, many, "map" if kind in maps else kind))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_field_of_the_source_is_generated_with_its_number_and_type(name: str) -> None:
    written = written_fields(name)
    assert len(written) > 10
    assert written == generated_fields(name)


@pytest.mark.parametrize("name", ["agent", "viewer"])
def test_every_call_of_the_source_is_generated(name: str) -> None:
    written = {(rpc[0], bool(rpc[1]), rpc[2], bool(rpc[3]), rpc[4]) for rpc in _RPC.findall(source(name))}
    proto = descriptor_pb2.FileDescriptorProto()
    generated(name).CopyToProto(proto)
    made = {
        (
            m.name,
            m.client_streaming,
            m.input_type.rsplit(".", 1)[-1],
            m.server_streaming,
            m.output_type.rsplit(".", 1)[-1],
        )
        for service in proto.service
        for m in service.method
    }
    assert written
    assert written == made


@pytest.mark.parametrize("name", NAMES)
def test_the_compiler_makes_the_committed_descriptor(name: str, tmp_path: Path) -> None:
    protoc = pytest.importorskip(
        "grpc_tools.protoc", reason="grpcio-tools is not installed: fields are compared above"
    )
    root = Path(str(resources.files("fulgurite.v1"))).parents[1]
    target = tmp_path / "set"
    arguments = ["protoc", f"-I{root}", f"--descriptor_set_out={target}", f"fulgurite/v1/{name}.proto"]
    assert protoc.main(arguments) == 0
    compiled = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes()).file[0]
    committed = descriptor_pb2.FileDescriptorProto()
    generated(name).CopyToProto(committed)
    assert plain(compiled) == plain(committed)


def plain(file: descriptor_pb2.FileDescriptorProto) -> bytes:
    """Without the JSON names, which one of the two leaves out."""
    for message in file.message_type:
        for part in (message, *message.nested_type):
            for field in part.field:
                field.ClearField("json_name")
    return file.SerializeToString(deterministic=True)
