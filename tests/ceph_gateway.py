"""A real Ceph object gateway as processes of its own: one monitor, one store in memory, the gateway.

It checks signatures and decides conditional writes as a cluster does. Needs the programs of a Ceph installation;
started only where STORYREC_TEST_S3=ceph asks for it.
"""

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s3_server import CREDENTIALS, S3Server, await_answer, credentials, free_port

ASKED = os.environ.get("STORYREC_TEST_S3") == "ceph"
PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
SETTINGS = """
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{mon_port}
mon initial members = a
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
keyring = {folder}/keyring
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
public addr = 127.0.0.1
cluster addr = 127.0.0.1
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd crush chooseleaf type = 0
osd crush initial weight = 1
osd objectstore = memstore
memstore device bytes = 1073741824
mon allow pool size one = true
mon data = {folder}/mon
osd data = {folder}/osd
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
"""
CAPABILITIES = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *", "mds": "allow *"},
    "client.rgw": {"mon": "allow rw", "osd": "allow rwx"},
    "osd.0": {"mon": "allow profile osd", "osd": "allow *"},
}


@contextmanager
def ceph_gateway() -> Iterator[S3Server]:
    """Start the three processes, make the user, set her credentials, stop all at the end."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        raise RuntimeError(f"STORYREC_TEST_S3=ceph needs {', '.join(missing)}: install ceph-mon, ceph-osd and radosgw")
    folder = Path(tempfile.mkdtemp(prefix="ceph-", dir="/tmp"))  # sockets want short paths
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        with credentials():
            yield S3Server(_start(folder, daemons))
    finally:
        for daemon in reversed(daemons):
            daemon.kill()
            daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, daemons: list[subprocess.Popen[bytes]]) -> str:
    port, mon_port, fsid, osd_id = free_port(), free_port(), uuid.uuid4(), uuid.uuid4()
    conf = folder / "ceph.conf"
    conf.write_text(SETTINGS.format(folder=folder, port=port, mon_port=mon_port, fsid=fsid))

    def call(program: str, *arguments: str) -> None:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, f"{program} {' '.join(arguments)}: {done.stderr}"

    def start(program: str, *arguments: str) -> None:
        with (folder / f"{program}.out").open("wb") as out:
            command = [program, "-c", str(conf), *arguments, "-f"]
            daemons.append(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT))

    keyring, monmap = str(folder / "keyring"), str(folder / "monmap")
    call("ceph-authtool", keyring, "--create-keyring")
    for name, caps in CAPABILITIES.items():
        allowed = [part for kind, cap in caps.items() for part in ("--cap", kind, cap)]
        call("ceph-authtool", keyring, "--gen-key", "-n", name, *allowed)
    call("monmaptool", "--create", "--addv", "a", f"[v1:127.0.0.1:{mon_port}]", "--fsid", str(fsid), monmap)
    call("ceph-mon", "-c", str(conf), "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
    start("ceph-mon", "-i", "a")
    call("ceph", "-c", str(conf), "--connect-timeout", "30", "osd", "new", str(osd_id), "0")
    (folder / "osd").mkdir()
    call("ceph-osd", "-c", str(conf), "--mkfs", "-i", "0", "--osd-uuid", str(osd_id))
    start("ceph-osd", "-i", "0")
    user = ["user", "create", "--uid", "tests", "--display-name", "tests"]
    keys = ["--access-key", CREDENTIALS["AWS_ACCESS_KEY_ID"], "--secret-key", CREDENTIALS["AWS_SECRET_ACCESS_KEY"]]
    call("radosgw-admin", "-c", str(conf), "-n", "client.rgw", *user, *keys)
    start("radosgw", "-n", "client.rgw")
    endpoint = f"http://127.0.0.1:{port}"
    await_answer(endpoint, daemons[-1])
    return endpoint
