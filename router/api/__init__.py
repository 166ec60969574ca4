"""F4, gRPC in, engine out: the only import of grpc.

Here: servers, one wrapper around every RPC (calls.py), a file per service, translation between messages and model
values, errors as status and details. Not here: any decision about routing, retries, holds or fairness. May import:
engine, ports, model, the generated stubs, grpc.
To add an RPC: a method of the service class named as in the .proto (in snake case), and its pair in translate.py; the
wrapper and the test over all methods find it by the service descriptor.
"""
