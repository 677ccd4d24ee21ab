"""Small Kubernetes documents for tests. Belongs here: builders; not tests."""

from typing import Any

import yaml

from controlplane.fields import Refusal

CLUSTER = "east"


def document(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def namespace(rest: str = "") -> dict[str, Any]:
    return document(f"{{apiVersion: v1, kind: Namespace, metadata: {{name: shop{rest}}}}}")


def pod(spec: str = "{}", status: str = "{}") -> dict[str, Any]:
    head = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, labels: {app: web}}\n"
    return document(f"{head}spec: {spec}\nstatus: {status}")


def service(spec: str = "{ports: [{port: 80}]}", annotations: str = "{}") -> dict[str, Any]:
    head = f"apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop, annotations: {annotations}}}\n"
    return document(f"{head}spec: {spec}")


def endpoint_slice(rest: str = "addressType: IPv4", label: str = "kubernetes.io/service-name: web") -> dict[str, Any]:
    head = f"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-1, labels: {{{label}}}}}\n"
    return document(head + rest)


def policy(spec: str = "{podSelector: {}}") -> dict[str, Any]:
    head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: closed, namespace: shop}\n"
    return document(f"{head}spec: {spec}")


def refusals(found: Any) -> list[tuple[str, str]]:
    assert isinstance(found, tuple), found
    assert all(isinstance(each, Refusal) for each in found)
    return [(each.field, each.reason) for each in found]
