"""Roles and users in etcd itself.

Belongs here: the calls. Does not belong here: which roles there are (roles.py).
"""

from collections.abc import Sequence
from typing import Any

from kvstore import rpc_pb2 as rpc
from kvstore.errors import LogError
from kvstore.etcd_client import Client, Method
from kvstore.roles import READ, Role

_AUTH = "/etcdserverpb.Auth/"
ROLE_ADD = Method(f"{_AUTH}RoleAdd", rpc.AuthRoleAddRequest, rpc.AuthRoleAddResponse)
ROLE_GRANT = Method(
    f"{_AUTH}RoleGrantPermission", rpc.AuthRoleGrantPermissionRequest, rpc.AuthRoleGrantPermissionResponse
)
USER_ADD = Method(f"{_AUTH}UserAdd", rpc.AuthUserAddRequest, rpc.AuthUserAddResponse)
USER_GRANT = Method(f"{_AUTH}UserGrantRole", rpc.AuthUserGrantRoleRequest, rpc.AuthUserGrantRoleResponse)
AUTH_ENABLE = Method(f"{_AUTH}AuthEnable", rpc.AuthEnableRequest, rpc.AuthEnableResponse)
EXISTS = ("already exists", "already granted")


async def apply_roles(client: Client, roles: Sequence[Role], password: str = "") -> None:
    """Make each role and a user of its name who holds it; what is there already stays. Without a password a user comes
    in by the common name of a client certificate only. Raises LogError."""
    for role in roles:
        await _make(client, ROLE_ADD, rpc.AuthRoleAddRequest(name=role.name))
        for grant in role.grants:
            kind = rpc.Permission.READ if grant.kind == READ else rpc.Permission.READWRITE
            permission = rpc.Permission(permType=kind, key=grant.key, range_end=grant.range_end)
            await client.call(ROLE_GRANT, rpc.AuthRoleGrantPermissionRequest(name=role.name, perm=permission))
        options = rpc.UserAddOptions(no_password=not password)
        await _make(client, USER_ADD, rpc.AuthUserAddRequest(name=role.name, password=password, options=options))
        await client.call(USER_GRANT, rpc.AuthUserGrantRoleRequest(user=role.name, role=role.name))


async def enable(client: Client, root_password: str) -> None:
    """Make the user root and ask everybody for a login from now on. Raises LogError."""
    await _make(client, USER_ADD, rpc.AuthUserAddRequest(name="root", password=root_password))
    await _make(client, ROLE_ADD, rpc.AuthRoleAddRequest(name="root"))
    await client.call(USER_GRANT, rpc.AuthUserGrantRoleRequest(user="root", role="root"))
    await client.call(AUTH_ENABLE, rpc.AuthEnableRequest())


async def _make(client: Client, method: Method, request: Any) -> None:
    try:
        await client.call(method, request)
    except LogError as error:
        if not any(word in str(error) for word in EXISTS):
            raise
