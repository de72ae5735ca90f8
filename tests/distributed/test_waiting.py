"""Peers that do not take what is sent to them are found in the kernel's tables."""

import socket
import time

from rankmixer_dist.parallel.waiting import collective_waited_for, silent_peers


def test_a_peer_that_does_not_answer_is_named():
    with socket.create_server(("127.0.0.3", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with socket.create_connection(server.getsockname(), source_address=("127.0.0.1", 0)) as client:
            other, _ = server.accept()
            assert silent_peers() == []
            client.setblocking(False)
            try:
                while True:
                    client.send(bytes(1 << 20))
            except BlockingIOError:
                pass
            time.sleep(0.1)
            assert silent_peers() == ["127.0.0.3"]
            other.close()
    assert collective_waited_for() is None
