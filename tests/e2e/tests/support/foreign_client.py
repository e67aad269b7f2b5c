"""A gRPC client that knows nothing of e2llm: it learns services and messages by reflection, as grpcurl does.

Lists the services at ADDRESS (one line each), then calls METHOD (pkg.Service/Method) with REQUEST, in JSON, and prints
each answer as one line of JSON.

    python foreign_client.py ADDRESS METHOD REQUEST
"""

import sys

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


def main() -> None:
    address, method, request = sys.argv[1:]
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        for service in sorted(database.get_services()):
            print(service)
        pool = descriptor_pool.DescriptorPool(database)
        service, name = method.split("/")
        described = pool.FindServiceByName(service).FindMethodByName(name)
        question = json_format.Parse(request, message_factory.GetMessageClass(described.input_type)())
        call = channel.unary_stream if described.server_streaming else channel.unary_unary
        answer = call(
            f"/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(described.output_type).FromString,
        )(question, timeout=120)
        for message in answer if described.server_streaming else [answer]:
            print(json_format.MessageToJson(message, indent=None, preserving_proto_field_name=True))


if __name__ == "__main__":
    main()
