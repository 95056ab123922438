"""A port with TLS stands a crowd that knocks while its certificate changes: gRPC itself would crash."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.certificates import Authority

# Connections that never begin TLS: the cheapest handshakes there are, as any stranger can make them.
KNOCKING = """
import socket, sys, threading, time
from concurrent import futures
from pathlib import Path
import grpc
from gemline.rpc.server_certificates import ServerCertificates
from gemline.rpc.tls_files import TlsFiles

first, second = (TlsFiles(*map(Path, paths)).read() for paths in (sys.argv[2:5], sys.argv[5:8]))
end_s = time.monotonic() + 2.5
certificates = ServerCertificates(lambda: second if {how} else first)
server = grpc.server(futures.ThreadPoolExecutor(1))
port = server.add_secure_port("127.0.0.1:0", certificates.credentials())
server.start()
num_knocks = [0] * 8

def knock(index):
    while time.monotonic() < end_s:
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
            num_knocks[index] += 1

threads = [threading.Thread(target=knock, args=(index,)) for index in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
server.stop(None).wait()
print(sum(num_knocks))
"""
HOW = {"all the same": "False", "another every 5 ms": "int(min(time.monotonic(), end_s) * 200) % 2"}


@pytest.mark.parametrize("how", HOW)
def test_strangers_that_knock_while_certificates_change_crash_nothing(how: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ours")
    files = [str(file) for name in ("first", "second") for file in authority.issue(name)]
    script = KNOCKING.replace("{how}", HOW[how])
    ended = subprocess.run(
        [sys.executable, "-c", script, "-", *files], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert int(ended.stdout) > 300
