"""Endpoints and the meaning of failed calls."""

import grpc
import pytest

from kvstore.errors import Fenced, LogFull, LogUnavailable
from kvstore.etcd_client import Client, Limits, explain, target


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("unix:/run/etcd.sock", ("unix:/run/etcd.sock", False)),
        ("unix:///run/etcd.sock", ("unix:/run/etcd.sock", False)),
        ("127.0.0.1:2379", ("127.0.0.1:2379", False)),
        ("http://etcd.example:2379/", ("etcd.example:2379", False)),
        ("https://etcd.example:2379", ("etcd.example:2379", True)),
        ("[::1]:2379", ("[::1]:2379", False)),
    ],
)
def test_every_form_of_endpoint(endpoint, expected):
    """Each form gives gRPC's target and whether it asks for TLS."""
    assert target(endpoint) == expected


@pytest.mark.parametrize("endpoint", ["", "host", "host:", ":2379", "ftp://host:1", "host:port"])
def test_a_malformed_endpoint_is_named(endpoint):
    """The error holds the endpoint and what it should look like."""
    with pytest.raises(ValueError, match=r"endpoint .*"):
        target(endpoint)


def test_no_endpoint_is_refused():
    """An empty list is a mistake of the caller."""
    with pytest.raises(ValueError, match="at least one"):
        Client((), None, Limits())


@pytest.mark.parametrize(
    ("code", "details", "expected"),
    [
        (grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader", LogUnavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", LogUnavailable),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", LogFull),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests", LogUnavailable),
        (grpc.StatusCode.NOT_FOUND, "etcdserver: requested lease not found", Fenced),
    ],
)
def test_a_failed_call_becomes_an_error_of_this_room(code, details, expected):
    """The type says what a caller can do about it, the text names the endpoint."""
    error = explain(code, details, "127.0.0.1:2379")
    assert isinstance(error, expected) and "127.0.0.1:2379" in str(error)


@pytest.mark.parametrize("code", [grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT])
def test_a_refusal_is_not_taken_for_an_outage(code):
    """etcd answered: trying again would not help."""
    assert not isinstance(explain(code, "refused", "e"), LogUnavailable)


@pytest.mark.parametrize(("code", "details", "words"), [
    (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", "etcd at e:1: no answer in time"),
    (grpc.StatusCode.UNAVAILABLE,
     "failed to connect to all addresses; last error: UNKNOWN: unix:/e: connect: No such file or directory (2)",
     "etcd at e:1: cannot be reached: unix:/e: connect: No such file or directory (2)"),
    (grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader", "etcd at e:1: unavailable: etcdserver: no leader"),
])
def test_a_failure_is_told_once(code, details, words):
    """What a person reads at night says what happened, without gRPC's own words around it."""
    found = explain(code, details, "e:1")
    assert (type(found), str(found)) == (LogUnavailable, words)
