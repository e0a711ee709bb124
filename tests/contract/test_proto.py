"""The .proto files keep the rules that the frame, foreign clients and later versions stand on."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, MethodDescriptor

import modscope.v1
from modscope.reasons import REASONS
from modscope.wire import BULK_FIELD
from tests.contract.messages import files

FOLDER = Path(next(iter(modscope.v1.__path__)))
SOURCES = sorted(FOLDER.glob("*.proto"))
DECLARATION = re.compile(
    r"\s*(service|rpc|message|enum|oneof|optional|repeated|map<|[\w.]+ \w+ = \d|[A-Z_\d]+ = \d)"
)
STATUSES = {*REASONS.values(), "OK"}

messages: list[Descriptor] = [kind for file in files() for kind in file.message_types_by_name.values()]
enums: list[EnumDescriptor] = [kind for file in files() for kind in file.enum_types_by_name.values()]
methods: list[MethodDescriptor] = [
    method for file in files() for service in file.services_by_name.values() for method in service.methods
]


def comments(path: Path) -> dict[str, str]:
    """The comment right above each declaration of a .proto file, by the declaration's line."""
    found: dict[str, str] = {}
    above: list[str] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.lstrip().startswith("//"):
            above.append(line.strip().removeprefix("//").strip())
            continue
        if DECLARATION.match(line):
            found[f"{path.name}:{number}: {line.strip()}"] = " ".join(above).strip()
        above = []
    return found


def rpc_comments() -> dict[str, str]:
    """The comment of each rpc by its name."""
    declared = {line: text for path in SOURCES for line, text in comments(path).items() if " rpc " in line}
    return {re.sub(r".* rpc (\w+)\(.*", r"\1", line): text for line, text in declared.items()}


def test_every_source_has_its_generated_module() -> None:
    assert [path.stem for path in SOURCES] == sorted(Path(file.name).stem for file in files())
    assert {file.package for file in files()} == {"modscope.v1"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.name))
def test_everything_is_documented(path: Path) -> None:
    declared = comments(path)
    assert [line for line, text in declared.items() if not text] == []
    assert declared


def test_the_reader_of_comments_sees_every_declaration() -> None:
    declared = sum(len(comments(path)) for path in SOURCES)
    services = sum(len(file.services_by_name) for file in files())
    fields = sum(len(kind.fields) for kind in messages)
    choices = sum(sum(1 for choice in kind.oneofs if not choice.name.startswith("_")) for kind in messages)
    values = sum(len(kind.values) for kind in enums)
    assert declared == services + len(methods) + len(messages) + fields + choices + len(enums) + values


def test_every_rpc_says_whether_it_waits_for_a_step_boundary() -> None:
    told = rpc_comments()
    assert set(told) == {method.name for method in methods}
    assert [name for name, text in told.items() if not re.search(r"[Ww]aits|step boundary", text)] == []


def test_services_say_what_holds_for_every_call() -> None:
    declared = {
        line: text for path in SOURCES for line, text in comments(path).items() if ": service " in line
    }
    assert len(declared) == sum(len(file.services_by_name) for file in files())
    assert [line for line, text in declared.items() if "UNAUTHENTICATED BAD_TOKEN" not in text] == []


@pytest.mark.parametrize("name", [method.name for method in methods])
def test_codes_that_a_comment_names_are_those_of_the_table(name: str) -> None:
    named = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b|\bLIMIT\b", rpc_comments()[name]))
    assert named <= STATUSES | set(REASONS)


@pytest.mark.parametrize("kind", messages, ids=lambda kind: str(kind.name))
def test_bulk_is_the_last_field(kind: Descriptor) -> None:
    bulk = [field for field in kind.fields if field.name == "data" or field.number == BULK_FIELD]
    if bulk:
        assert [(field.name, field.number) for field in bulk] == [("data", BULK_FIELD)]
        assert max(field.number for field in kind.fields) == BULK_FIELD
        assert bulk[0].type == FieldDescriptor.TYPE_BYTES
        assert bulk[0].containing_oneof is None


@pytest.mark.parametrize("kind", messages, ids=lambda kind: str(kind.name))
def test_bytes_travel_in_the_bulk_field_alone(kind: Descriptor) -> None:
    plain = [field.name for field in kind.fields if field.type == FieldDescriptor.TYPE_BYTES]
    assert plain in ([], ["data"])


@pytest.mark.parametrize("kind", enums, ids=lambda kind: str(kind.name))
def test_zero_is_unspecified(kind: EnumDescriptor) -> None:
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", kind.name).upper()
    assert kind.values_by_number[0].name == f"{prefix}_UNSPECIFIED"
    assert [value.name for value in kind.values if not value.name.startswith(f"{prefix}_")] == []


def test_each_rpc_has_a_request_and_a_response_of_its_own() -> None:
    assert {method.name: (method.input_type.name, method.output_type.name) for method in methods} == {
        method.name: (f"{method.name}Request", f"{method.name}Response") for method in methods
    }
    assert len({method.name for method in methods}) == len(methods)


def test_lists_are_paged_or_streamed() -> None:
    # Few by their nature: what people have put there by hand, and an optimizer's groups, told whole.
    exempt = {"ListHooks", "ListInterventions", "ListOptimizers", "ListSnapshots", "ListBreaks"}
    for method in methods:
        if method.name.startswith("List") and method.name not in exempt:
            paged = {"page_size", "page_token"} <= set(method.input_type.fields_by_name)
            assert paged or method.server_streaming, method.full_name
            assert paged == ("next_page_token" in method.output_type.fields_by_name), method.full_name


def test_generated_modules_import_without_a_warning_and_without_grpc() -> None:
    names = ", ".join(f"modscope.v1.{path.stem}_pb2" for path in SOURCES)
    code = f"import sys, {names}; sys.exit('grpc' in sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_generated_modules_ask_for_no_newer_protobuf_than_we_do() -> None:
    wanted = r"Protobuf Python Version: 6\.31\.1\n"
    assert [path.name for path in FOLDER.glob("*_pb2.py") if not re.search(wanted, path.read_text())] == []
