"""CIDRs, groups, names, services, ipBlocks and named ports: rows against the model, and the way there."""

from ipaddress import ip_address, ip_network
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.desired.derive import Deriver
from controlplane.desired.policy import PolicyCompiler
from controlplane.desired.policy_mesh import mesh_of
from controlplane.desired.prefixes import SCOPE, PrefixIdentities
from controlplane.model import (
    RESERVED_IDENTITIES,
    Backend,
    BackendSlice,
    CidrGroup,
    Device,
    Endpoint,
    EndpointKey,
    Identity,
    Node,
    NodeKey,
    ObjectKey,
    Policy,
    ResolvedName,
    Service,
    Workload,
)
from controlplane.policy.manifests import canonical
from controlplane.policy.mesh import Judge, Question
from controlplane.policy.requests import HttpRequest, Request
from controlplane.policy.verdict import ALLOW
from controlplane.projections.addresses import group_key, name_key
from controlplane.projections.change import Change
from controlplane.projections.state import State
from controlplane.projections.workloads import workload_key
from datapath.abi.types import POLICY_EGRESS, POLICY_INGRESS
from datapath.tables import PolicyKey, PolicyRow, PolicySubjectKey, PolicySubjectRow
from tests.controlplane.policy.worlds import CLUSTER, ICMP, TCP, UDP, look_up, workload_labels

NODE = "east-1"
PREFIXES = ("172.16.0.0/24", "172.16.0.2/32", "0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/24", "10.1.0.128/25", "192.0.2.0/24", "192.0.2.128/25", "192.0.2.7/32")
ADDRESSES = ("192.0.2.7", "192.0.2.200", "10.1.0.5", "10.1.0.200", "10.9.9.9", "203.0.113.9", "2001:db8::9")
NAMES = ("www.example.com", "api.shop.example.com")
ENTITIES = ("world", "world-ipv4", "world-ipv6", "remote-node", "all", "host", "cluster", "kube-apiserver", "none", "init")
GROUPS = (
    {"cidrGroupRef": "a"},
    {"cidrGroupRef": "b", "except": ["192.0.2.128/25"]},
    {"cidrGroupSelector": {"matchLabels": {"kind": "a"}}},
    {"cidrGroupSelector": {}},
)
API_SERVERS = ("192.0.2.7", "172.16.0.1", "172.16.0.2", "10.1.0.5", "203.0.113.9")
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"enable-policy": "always"},
    {"enable-policy": "never"},
    {"kube-apiserver-addresses": ["203.0.113.9"]},
    {"enable-k8s-networkpolicy": False},
    {"policy-default-local-cluster": False},
    {"enable-node-selector-labels": True},
    {"policy-cidr-match-mode": ["nodes"]},
    {"enable-node-selector-labels": True, "policy-cidr-match-mode": "nodes", "policy-default-local-cluster": False},
)
ZONE = "topology.kubernetes.io/zone"
NODES: tuple[dict[str, Any], ...] = (
    {},
    {"matchLabels": {"role": "gpu"}},
    {"matchLabels": {ZONE: "a"}},
    {"matchExpressions": [{"key": "role", "operator": "NotIn", "values": ["gpu"]}]},
    {"matchExpressions": [{"key": "io.cilium.k8s.policy.cluster", "operator": "In", "values": ["west"]}]},
)
NODE_LABELS = ((), ("k8s:role=gpu",), ("k8s:role=cpu", f"k8s:{ZONE}=a"), (f"k8s:{ZONE}=a",))
RESERVED: tuple[dict[str, Any], ...] = (
    {"matchLabels": {"reserved:remote-node": "", "role": "gpu"}},
    {"matchExpressions": [{"key": "reserved:host", "operator": "Exists"}, {"key": "role", "operator": "DoesNotExist"}]},
)
REMOTE_NODES = {"node:east-2": (CLUSTER, "east-2", "172.16.0.2"), "node:west:w-1": ("west", "w-1", "172.17.0.9")}
APPS = {"front": "10.1.0.5", "cart": "10.1.0.200", "db": "10.2.0.6"}
NUMBERS = {app: 65536 + 256 + place for place, app in enumerate(APPS)}


UNKNOWN_REQUEST = Request(HttpRequest(path="/unknown"))
"""One that a rule about requests does not allow: the kernel lets pass only what is allowed whatever it asks for."""


class World:
    """A state that is changed by hand, and the rows that a compiler's updates lead to."""

    def __init__(self) -> None:
        self.state = State()
        self.compiler = PolicyCompiler()
        self.changes: list[Change] = []
        self.subjects: dict[PolicySubjectKey, PolicySubjectRow] = {}
        self.rows: dict[PolicyKey, PolicyRow] = {}
        self.compiler.full(self.state, CLUSTER, NODE)
        self.put_node("node:east-1", ("k8s:role=cpu",))
        for name in REMOTE_NODES:
            self.put_node(name, ())
        for place, app in enumerate(APPS):
            self.put_endpoint(place + 1, app, APPS[app])

    def put(self, kind: Any, held: dict[Any, Any], key: Any, new: Any) -> None:
        old = held.pop(key, None)
        if new is not None:
            held[key] = new
        self.changes.append(Change(kind, key, old, new))

    def put_node(self, name: str, labels: tuple[str, ...], *more: str) -> None:
        cluster, node, address = REMOTE_NODES.get(name, (CLUSTER, NODE, "172.16.0.1"))
        new = Node(cluster, node, (address, *more), Device("", 0, ""), labels)
        self.put("node", self.state.nodes, NodeKey(cluster, node), new)

    def remove_node(self, name: str) -> None:
        self.put("node", self.state.nodes, NodeKey(*REMOTE_NODES[name][:2]), None)

    def put_endpoint(self, endpoint_id: int, app: str, address: str) -> None:
        number = NUMBERS[app]
        self.put("identity", self.state.identities, number, Identity(number, workload_labels(app), CLUSTER))
        name = f"{app}-{endpoint_id}"
        self.put_ports(name, 8080 if app != "db" else 5432)
        key = EndpointKey(CLUSTER, NODE, endpoint_id)
        self._forget(key)
        self.state.workload_endpoints[CLUSTER, "shop", name] = (key,)
        self.state.node_endpoints.setdefault(NodeKey(CLUSTER, NODE), {})[key] = None
        device = Device("", 0, "")
        found = Endpoint(*key, "shop", name, workload_labels(app), number, address, "", device, "", "")
        self.put("endpoint", self.state.endpoints, key, found)

    def remove_endpoint(self, endpoint_id: int) -> None:
        key = EndpointKey(CLUSTER, NODE, endpoint_id)
        self._forget(key)
        self.state.node_endpoints[NodeKey(CLUSTER, NODE)].pop(key, None)
        self.put("endpoint", self.state.endpoints, key, None)

    def _forget(self, key: EndpointKey) -> None:
        held = self.state.workload_endpoints
        for name in [name for name in held if key in held[name]]:
            del held[name]

    def put_ports(self, name: str, port: int) -> None:
        workload = Workload(CLUSTER, "shop", name, {}, ports={"web": (port, "TCP")})
        self.put("workload", self.state.workloads, workload_key(CLUSTER, "shop", name), workload)

    def put_policy(self, name: str, manifest: dict[str, Any] | None) -> None:
        for kind in ("NetworkPolicy", "CiliumNetworkPolicy"):
            key = ObjectKey(CLUSTER, kind, "shop", name)
            new = None
            if manifest is not None and manifest["kind"] == kind:
                metadata = {"name": name, "namespace": "shop"}
                new = Policy(CLUSTER, kind, "shop", name, canonical({**manifest, "metadata": metadata}))
            self.put("policy", self.state.policies, key, new)

    def put_group(self, name: str, prefixes: tuple[str, ...]) -> None:
        group = CidrGroup(CLUSTER, name, prefixes, {"kind": name})
        self.put("cidr_group", self.state.cidr_groups, group_key(CLUSTER, name), group)

    def put_name(self, name: str, addresses: tuple[str, ...]) -> None:
        found = ResolvedName(CLUSTER, name, addresses) if addresses else None
        self.put("name", self.state.resolved_names, name_key(CLUSTER, name), found)

    def put_service(self, name: str, selector: dict[str, str] | None, addresses: tuple[str, ...]) -> None:
        key, slice_key = ObjectKey(CLUSTER, "Service", "shop", name), ObjectKey(CLUSTER, "EndpointSlice", "shop", name)
        self.state.service_slices[key] = (slice_key,)
        backends = tuple(map(Backend, addresses))
        found = BackendSlice(CLUSTER, "shop", name, name, backends, ())
        self.put("backends", self.state.backend_slices, slice_key, found)
        self.put("service", self.state.services, key, Service(CLUSTER, "shop", name, (), (), selector))

    def put_api_servers(self, addresses: tuple[str, ...]) -> None:
        key = ObjectKey(CLUSTER, "EndpointSlice", "default", "kubernetes")
        self.state.service_slices[ObjectKey(CLUSTER, "Service", "default", "kubernetes")] = (key,)
        found = BackendSlice(CLUSTER, "default", "kubernetes", "kubernetes", tuple(map(Backend, addresses)), ())
        self.put("backends", self.state.backend_slices, key, found)

    def put_settings(self, settings: dict[str, Any]) -> None:
        self.put("settings", self.state.policy_settings, CLUSTER, canonical(settings))

    def update(self) -> None:
        for stage in self.compiler.stages(self.state, self.changes):
            for held, changed in ((self.subjects, stage.subjects), (self.rows, stage.rows)):
                for key, row in changed.items():
                    if row is None:
                        del held[key]
                    else:
                        held[key] = row
        self.changes = []

    def identity_of(self, address: str) -> int:
        """What the ipcache says: the longest prefix; "node:NAME" is its address."""
        if address.startswith("node:"):
            known = self.compiler.nodes.numbers
            return known[REMOTE_NODES[address][2]] if address in REMOTE_NODES else RESERVED_IDENTITIES["host"]
        for endpoint in self.state.endpoints.values():
            if address in (endpoint.ipv4, endpoint.ipv6):
                return endpoint.identity
        found = [each for each in self.compiler.prefixes.numbers if ip_address(address) in ip_network(each)]
        longest = max(found, key=lambda each: ip_network(each).prefixlen, default=None)
        return self.compiler.prefixes.numbers[longest] if longest else 2

    def passes(self, subject: str, remote: int, direction: int, protocol: int, port: int) -> bool:
        return look_up(self.subjects, self.rows, NUMBERS[subject], remote, direction, protocol, port)


def kubernetes(spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "spec": spec}


def cilium(spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "spec": spec}


@st.composite
def _blocks(draw: st.DrawFn) -> dict[str, Any]:
    outer = draw(st.sampled_from(PREFIXES))
    inner = [each for each in PREFIXES if each != outer and ip_network(each).subnet_of(ip_network(outer))]
    excepts = draw(st.lists(st.sampled_from(inner), max_size=2, unique=True)) if inner else []
    return {"cidr": outer, "except": excepts}


_ports = st.sampled_from(("80", "443", "web"))
_selectors = st.sampled_from([{}, *({"matchLabels": {"app": app}} for app in APPS)])


def _cilium_rules(egress: bool, deny: bool) -> st.SearchStrategy[list[dict[str, Any]]]:
    way = "to" if egress else "from"
    one = st.sampled_from
    peers = [
        st.fixed_dictionaries({f"{way}CIDR": st.lists(one((*PREFIXES, "192.0.2.7", "fd00::/8")), max_size=2)}),
        st.fixed_dictionaries({f"{way}CIDRSet": st.lists(_blocks(), max_size=2)}),
        st.fixed_dictionaries(
            {f"{way}CIDRSet": st.lists(one(GROUPS), max_size=2)}
        ),
        st.fixed_dictionaries({f"{way}Entities": st.lists(one(ENTITIES), max_size=2)}),
        st.fixed_dictionaries({f"{way}Endpoints": st.lists(_selectors | st.sampled_from(RESERVED), max_size=2)}),
        st.fixed_dictionaries({f"{way}Nodes": st.lists(one(NODES), max_size=2)}),
        st.just({}),
    ]
    if egress:
        services = one(("chosen", "listed")).map(
            lambda name: {"k8sService": {"serviceName": name, "namespace": "shop"}}
        )
        peers.append(st.fixed_dictionaries({"toServices": st.lists(services, max_size=2)}))
    if egress and not deny:
        patterns = one([{"matchName": NAMES[0]}, {"matchPattern": "**.example.com"}, {"matchPattern": "*.example.com"}])
        peers.append(st.fixed_dictionaries({"toFQDNs": st.lists(patterns, max_size=2)}))
    ranges = one([{"port": "75", "endPort": 90}, {"port": "0"}, {"port": "8000", "endPort": 65535, "protocol": "TCP"}])
    port = st.fixed_dictionaries({"port": _ports}, optional={"protocol": one(("TCP", "UDP"))}) | ranges
    entry = st.fixed_dictionaries({"ports": st.lists(port, min_size=1, max_size=2)})
    if not deny:
        entry |= st.just({"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"path": "/known"}]}})
    ports = st.lists(entry, max_size=1)
    types = st.just({"icmps": [{"fields": [{"type": 8}]}]})
    joined = st.tuples(st.one_of(peers), ports).map(
        lambda each: {**each[0], **({"toPorts": each[1]} if each[1] else {})}
    )
    return st.lists(joined | st.tuples(st.one_of(peers), types).map(lambda each: each[0] | each[1]), max_size=2)


SECTIONS = {
    "ingress": (False, False),
    "ingressDeny": (False, True),
    "egress": (True, False),
    "egressDeny": (True, True),
}
cilium_specs = st.fixed_dictionaries(
    {"endpointSelector": _selectors},
    optional={name: _cilium_rules(*section) for name, section in SECTIONS.items()}
    | {"enableDefaultDeny": st.fixed_dictionaries({}, optional={"ingress": st.booleans(), "egress": st.booleans()})},
).map(cilium)


def _kubernetes_rules(field: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    peers = st.fixed_dictionaries({"ipBlock": _blocks()}) | st.fixed_dictionaries({"podSelector": _selectors})
    port = st.fixed_dictionaries({"port": st.sampled_from((80, 443, "web"))})
    listed = {field: st.lists(peers, max_size=2), "ports": st.lists(port, max_size=2)}
    return st.lists(st.fixed_dictionaries({}, optional=listed), max_size=2)


kubernetes_specs = st.fixed_dictionaries(
    {"podSelector": _selectors}, optional={"ingress": _kubernetes_rules("from"), "egress": _kubernetes_rules("to")}
).map(kubernetes)

_some_addresses = st.lists(st.sampled_from(ADDRESSES), max_size=3, unique=True).map(tuple)
_some_prefixes = st.lists(st.sampled_from(PREFIXES), max_size=3, unique=True).map(tuple)
_policies = st.tuples(st.just("put_policy"), st.sampled_from("pqr"), cilium_specs | kubernetes_specs)
acts = st.lists(
    st.one_of(
        _policies,
        _policies,
        st.tuples(st.just("put_policy"), st.sampled_from("pqr"), st.none()),
        st.tuples(st.just("put_group"), st.sampled_from("ab"), _some_prefixes),
        st.tuples(st.just("put_name"), st.sampled_from(NAMES), _some_addresses),
        st.tuples(st.just("put_service"), st.just("listed"), st.none(), _some_addresses),
        st.tuples(
            st.just("put_service"),
            st.just("chosen"),
            _selectors.map(lambda each: each.get("matchLabels", {"app": "x"})),
            st.just(()),
        ),
        st.tuples(
            st.just("put_endpoint"),
            st.just(9),
            st.sampled_from(sorted(APPS)),
            st.sampled_from(("10.1.0.9", "10.3.0.9")),
        ),
        st.tuples(st.just("remove_endpoint"), st.just(9)),
        st.tuples(st.just("put_api_servers"), st.lists(st.sampled_from(API_SERVERS), max_size=2).map(tuple)),
        st.tuples(st.just("put_settings"), st.sampled_from(SETTINGS)),
        st.tuples(st.just("put_ports"), st.just("db-9"), st.sampled_from((80, 8080))),
        st.tuples(st.just("put_node"), st.sampled_from(("node:east-1", *REMOTE_NODES)), st.sampled_from(NODE_LABELS)),
        st.tuples(st.just("remove_node"), st.sampled_from(sorted(REMOTE_NODES))),
        st.just(("update",)),
    ),
    min_size=2,
    max_size=14,
)
questions = st.lists(
    st.tuples(
        st.sampled_from(sorted(APPS)),
        st.sampled_from((*ADDRESSES, *APPS, "node:east-1", *REMOTE_NODES)),
        st.sampled_from([*((TCP, port) for port in (80, 90, 443, 8080, 5432)), (UDP, 80), (UDP, 53), (ICMP, 8)]),
        st.sampled_from((POLICY_INGRESS, POLICY_EGRESS)),
    ),
    min_size=4,
    max_size=12,
)


def play(world: World, done: list[tuple[Any, ...]]) -> None:
    for name, *arguments in done:
        getattr(world, name)(*arguments)
    world.update()


@settings(max_examples=150, deadline=None)
@given(acts)
def test_incremental_equals_full(done: list[tuple[Any, ...]]) -> None:
    """Whatever happened in whatever batches, rows and numbers are those that a new compiler makes of the state."""
    world = World()
    play(world, done)
    fresh = PolicyCompiler()
    assert (world.subjects, world.rows) == fresh.full(world.state, CLUSTER, NODE)
    assert world.compiler.numbers == fresh.numbers


@settings(max_examples=200, deadline=None)
@given(acts, questions)
def test_rows_say_what_the_model_says(done: list[tuple[Any, ...]], asked: list[tuple[Any, ...]]) -> None:
    """For random policies about addresses: what passes by rows is allowed; where an identity is one endpoint, exactly."""
    world = World()
    play(world, done)
    compare(world, asked)


def compare(world: World, asked: list[tuple[Any, ...]]) -> None:
    """The rows with the model, flow by flow."""
    judge = Judge(mesh_of(world.state, CLUSTER))
    doubled = {each.identity for key, each in world.state.endpoints.items() if key.endpoint_id == 9}
    names = {app: f"shop/{app}-{place + 1}" for place, app in enumerate(APPS)}
    for subject, remote, (protocol, port), direction in asked:
        if remote in REMOTE_NODES and NodeKey(*REMOTE_NODES[remote][:2]) not in world.state.nodes:
            continue
        number = NUMBERS.get(remote) or world.identity_of(remote)
        other = names.get(remote) or (remote if remote.startswith("node:") else f"ip:{remote}")
        ends = (names[subject], other) if direction == POLICY_EGRESS else (other, names[subject])
        l4 = f"{ {TCP: 'TCP', UDP: 'UDP', ICMP: 'ICMP'}[protocol]}/{port}"
        verdict = judge.answer(Question(*ends, l4, UNKNOWN_REQUEST))
        side = verdict.egress if direction == POLICY_EGRESS else verdict.ingress
        assert side is not None
        allowed = side.verdict == ALLOW or side.requests == ALLOW
        passed = world.passes(subject, number, direction, protocol, port)
        assert not passed or allowed, (subject, remote, port, direction)
        if not doubled:
            assert passed == allowed, (subject, remote, port, direction)


@settings(max_examples=60, deadline=None)
@given(st.lists(cilium_specs | kubernetes_specs, min_size=2, max_size=3), st.permutations(range(3)))
def test_the_order_of_policies_does_not_matter(manifests: list[dict[str, Any]], order: list[int]) -> None:
    """The same policies applied in another order give the same rows and the same numbers."""
    there, back = World(), World()
    for place, manifest in enumerate(manifests):
        there.put_policy("pqr"[place], manifest)
        there.update()
    for place in (each for each in order if each < len(manifests)):
        back.put_policy("pqr"[place], manifests[place])
        back.update()
    assert (there.subjects, there.rows) == (back.subjects, back.rows)
    assert there.compiler.prefixes.numbers == back.compiler.prefixes.numbers


@settings(max_examples=60, deadline=None)
@given(cilium_specs | kubernetes_specs, cilium_specs, questions)
def test_an_allow_never_takes_one_away(
    manifest: dict[str, Any], other: dict[str, Any], asked: list[tuple[Any, ...]]
) -> None:
    """Where a policy enforces already, one more allow rule only adds: nothing that passed is dropped."""
    world = World()
    closed = cilium({"endpointSelector": {}, "ingress": [{}], "egress": [{}]})
    world.put_policy("closed", closed)
    world.put_policy("p", manifest)
    world.update()
    before = [_passes(world, each) for each in asked]
    spec = {name: value for name, value in other["spec"].items() if not name.endswith("Deny")}
    world.put_policy("q", cilium(spec))
    world.update()
    assert all(_passes(world, each) >= known for each, known in zip(asked, before, strict=True))


def _passes(world: World, asked: tuple[Any, ...]) -> bool:
    subject, remote, (protocol, port), direction = asked
    number = NUMBERS.get(remote) or world.identity_of(remote)
    return world.passes(subject, number, direction, protocol, port)


def test_a_deny_by_cidr_wins() -> None:
    """Over an allow of the same address by another policy; other addresses stay open."""
    world = World()
    world.put_policy("p", cilium({"endpointSelector": {}, "egress": [{"toEntities": ["world"]}]}))
    world.put_policy("q", cilium({"endpointSelector": {}, "egressDeny": [{"toCIDR": ["192.0.2.0/24"]}]}))
    world.update()
    assert not world.passes("db", world.identity_of("192.0.2.7"), POLICY_EGRESS, TCP, 80)
    assert world.passes("db", world.identity_of("203.0.113.9"), POLICY_EGRESS, TCP, 80)


def test_an_ip_block_is_about_endpoints_too_and_a_cidr_is_not() -> None:
    """A NetworkPolicy keeps Kubernetes' meaning, a CiliumNetworkPolicy Cilium's."""
    world = World()
    block = kubernetes({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.1.0.0/24"}}]}]})
    world.put_policy("p", block)
    world.update()
    assert world.passes("db", NUMBERS["front"], POLICY_INGRESS, TCP, 80)
    world.put_policy("p", cilium({"endpointSelector": {}, "ingress": [{"fromCIDR": ["10.1.0.0/24"]}]}))
    world.update()
    assert not world.passes("db", NUMBERS["front"], POLICY_INGRESS, TCP, 80)


def test_equal_labels_share_a_number_and_numbers_come_from_labels() -> None:
    """However many addresses a name has, and whatever else is named."""
    held = PrefixIdentities()
    shared = ("fqdn:*.example.com", "reserved:world")
    held.replace([("192.0.2.1/32", shared), ("192.0.2.2/32", shared)])
    number = held.numbers["192.0.2.1/32"]
    assert held.numbers == {"192.0.2.1/32": number, "192.0.2.2/32": number}
    assert number >> 24 == SCOPE >> 24
    held.replace([("10.0.0.0/8", ("cidr:10.0.0.0/8", "reserved:world")), ("192.0.2.1/32", shared)])
    assert held.numbers["192.0.2.1/32"] == number


def test_the_ipcache_follows_policies_and_gives_way_to_endpoints() -> None:
    """A prefix of a policy has a row; an endpoint's own address stays the endpoint's."""
    world = World()
    deriver = Deriver(CLUSTER, NODE)
    deriver.full(world.state)
    world.state.addresses["10.1.0.5"] = EndpointKey(CLUSTER, NODE, 1)
    world.changes.clear()
    world.put_policy("p", cilium({"endpointSelector": {}, "egress": [{"toCIDR": ["10.1.0.5/32", "192.0.2.0/24"]}]}))
    rows = deriver.update(world.state, [tuple(world.changes)]).tables["ipcache"]
    assert sorted(row.identity for row in rows.values())[0] == NUMBERS["front"]
    assert rows == {key: row for key, row in deriver.full(world.state).tables["ipcache"].items() if key in rows}
    world.changes.clear()
    world.put_policy("p", None)
    gone = deriver.update(world.state, [tuple(world.changes)]).tables["ipcache"]
    assert list(gone.values()).count(None) == 1


def test_the_api_server_is_whoever_has_its_address() -> None:
    """A prefix of its own outside the mesh, another node under its own number, the own node as its host; deny and allow."""
    world = World()
    world.put_policy("p", cilium({"endpointSelector": {}, "egress": [{"toEntities": ["kube-apiserver"]}]}))
    world.put_api_servers(("192.0.2.7", "172.16.0.2"))
    world.update()
    number, node = world.identity_of("192.0.2.7"), world.identity_of("node:east-2")
    assert (number >> 24, node) == (SCOPE >> 24, RESERVED_IDENTITIES["kube-apiserver"])
    assert world.passes("db", number, POLICY_EGRESS, TCP, 6443) and world.passes("db", node, POLICY_EGRESS, TCP, 6443)
    assert not world.passes("db", world.identity_of("node:east-1"), POLICY_EGRESS, TCP, 6443)
    spec = {"endpointSelector": {}, "egress": [{"toEntities": ["all"]}], "egressDeny": [{"toEntities": ["kube-apiserver"]}]}
    world.put_policy("p", cilium(spec))
    world.put_api_servers(("172.16.0.1",))
    world.update()
    assert not world.passes("db", world.identity_of("node:east-1"), POLICY_EGRESS, TCP, 6443)
    assert world.passes("db", world.identity_of("node:east-2"), POLICY_EGRESS, TCP, 6443)
    assert world.passes("db", world.identity_of("192.0.2.7"), POLICY_EGRESS, TCP, 6443)


def test_the_ipcache_follows_the_api_servers() -> None:
    """Rows of nodes and of the world change with the slice; the same as from scratch."""
    world = World()
    deriver = Deriver(CLUSTER, NODE)
    for key, node in world.state.nodes.items():
        world.state.addresses[node.addresses[0]] = key
    rows = dict(deriver.full(world.state).tables["ipcache"])
    for addresses in (("192.0.2.7", "172.16.0.2"), ("172.16.0.1",), ()):
        world.changes.clear()
        world.put_api_servers(addresses)
        rows |= deriver.update(world.state, [tuple(world.changes)]).tables.get("ipcache", {})
        rows = {key: row for key, row in rows.items() if row is not None}
        assert rows == Deriver(CLUSTER, NODE).full(world.state).tables["ipcache"]
