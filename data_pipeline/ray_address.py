"""Whether a Ray cluster answers at an address: seconds here instead of the quarter of an hour that Ray tries it for."""

import socket

from rankmixer_dist.errors import UserError, one_line

_PATIENCE_S = 5.0
# What a client of HTTP/2, and so of gRPC, begins with, and the kind of frame that a server answers with.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_SETTINGS_FRAME = 4
_FORM = "give HOST:PORT, the one that `ray start --head --port` was given (6379 by default)"


def require_cluster(address: str) -> None:
    """Makes sure that something like the head of a Ray cluster answers at `address`: `host:port` or `auto`.

    Raises:
        UserError: the address is malformed, or nobody answers there as the head of a cluster does.
    """
    if address == "auto":
        address = _found()
    if "://" in address:
        raise UserError(
            f"RAY_ADDRESS {address}: Ray's client is not used here; start on a host of the cluster and {_FORM}"
        )
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise UserError(f"RAY_ADDRESS {address}: is no address; {_FORM}")
    try:
        with socket.create_connection((host, int(port)), timeout=_PATIENCE_S) as connection:
            connection.settimeout(_PATIENCE_S)
            connection.sendall(_HELLO)
            answer = connection.recv(9)
    except (OSError, UnicodeError) as error:
        raise UserError(f"RAY_ADDRESS {address}: no Ray cluster answers there ({one_line(error)}); {_FORM}") from error
    if len(answer) < 4 or answer[3] != _SETTINGS_FRAME:
        raise UserError(f"RAY_ADDRESS {address}: what answers there is not the head of a Ray cluster; {_FORM}")


def _found() -> str:
    """The address of the cluster that was last started on this machine."""
    from ray._private import services

    try:
        return services.canonicalize_bootstrap_address_or_die("auto")
    except ConnectionError as error:
        raise UserError("RAY_ADDRESS auto: no Ray cluster runs on this machine; start one, or unset it") from error


def require_loopback() -> None:
    """Makes sure that this machine can talk to itself, as Ray's processes do.

    Raises:
        UserError: it cannot, as in a network namespace whose loopback interface is down.
    """
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), timeout=_PATIENCE_S),
        ):
            return
    except OSError as error:
        mend = "`ip link set lo up`, or set data.job=serial"
        raise UserError(f"Ray cannot be started: 127.0.0.1 does not answer ({one_line(error)}); {mend}") from error
