"""The generated messages are those of the description."""

from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc

from kvstore import rpc_pb2

ROOM = Path(rpc_pb2.__file__).parent


def test_the_generated_module_is_of_this_description(tmp_path):
    """What rpc.proto says now is what rpc_pb2.py was generated from, under its own name."""
    described = tmp_path / "meshlog" / "kvstore" / "rpc.proto"
    described.parent.mkdir(parents=True)
    described.write_bytes((ROOM / "rpc.proto").read_bytes())
    out = tmp_path / "set"
    assert protoc.main(["protoc", f"-I{tmp_path}", f"--descriptor_set_out={out}", str(described)]) == 0
    generated = descriptor_pb2.FileDescriptorProto()
    rpc_pb2.DESCRIPTOR.CopyToProto(generated)
    fresh = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file[0]
    fresh.ClearField("syntax")
    generated.ClearField("syntax")
    for message in (fresh, generated):
        for each in message.message_type:
            _drop_json_names(each)
    assert fresh == generated
    assert generated.name == "meshlog/kvstore/rpc.proto"


def test_the_generated_module_pins_no_runtime():
    """The check that refuses older protobuf runtimes is left out, as the description says."""
    assert "ValidateProtobufRuntimeVersion" not in (ROOM / "rpc_pb2.py").read_text()


def _drop_json_names(message: descriptor_pb2.DescriptorProto) -> None:
    for field in message.field:
        field.ClearField("json_name")
    for nested in message.nested_type:
        _drop_json_names(nested)
