"""The guard that cuts lessons off from the network does cut, and leaves this machine reachable."""

import subprocess
import sys

import nbclient
import nbformat
import pytest

OUTSIDE = "192.0.2.1"  # reserved for documentation: nobody answers there


@pytest.mark.parametrize(
    "source",
    [
        f"import socket; socket.create_connection(('{OUTSIDE}', 80), timeout=5)",
        "import urllib.request as r; r.urlopen('https://example.org', timeout=5)",
        f"import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('{OUTSIDE}', 9))",
        "import socket; socket.gethostbyname('example.org')",
    ],
    ids=["connect", "urlopen", "datagram", "lookup"],
)
def test_what_leaves_the_machine_is_refused_and_written_down(offline, source):
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60
    )
    assert done.returncode and "the network is blocked" in done.stderr
    assert "socket." in offline.read_text()


def test_this_machine_stays_reachable(offline):
    source = (
        "import socket; s = socket.create_server(('127.0.0.1', 0));"
        "socket.create_connection(s.getsockname()); socket.create_connection("
        "('localhost', s.getsockname()[1])); a, b = socket.socketpair(); a.send(b'x')"
    )
    subprocess.run([sys.executable, "-c", source], check=True, timeout=60)
    assert offline.read_text() == ""


def test_a_kernel_is_cut_off_too(offline):
    source = "import urllib.request as r; r.urlopen('https://example.org', timeout=5)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="the network is blocked"):
        nbclient.NotebookClient(notebook, kernel_name="python3", timeout=60).execute()
    assert "example.org" in offline.read_text()
