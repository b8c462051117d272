"""Exits 0 if the service at the address of the first argument says that it is SERVING."""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

try:
    with grpc.insecure_channel(sys.argv[1]) as channel:
        request = health_pb2.HealthCheckRequest()
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=2)
except grpc.RpcError as error:
    sys.exit(f"{sys.argv[1]}: {error.code().name}")
sys.exit(answer.status != health_pb2.HealthCheckResponse.SERVING)
