"""Messages of the gRPC services that profiles call or serve: .proto files, and what `tools/protos.py` makes of them."""
