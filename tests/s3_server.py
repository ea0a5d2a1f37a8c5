"""A real S3 server on loopback for tests: Ceph's gateway with one monitor and one store, data in memory.

Needs the Debian packages radosgw, ceph-mon, ceph-osd and ceph-mgr. Key `test`, secret `testtest`.
"""

import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

from tests.ports import free_port

PROGRAMS = ("radosgw", "ceph-mon", "ceph-osd", "ceph", "monmaptool", "radosgw-admin")
KEY, SECRET = "test", "testtest"
START_S = 90

CONF = """
[global]
fsid={fsid}
mon host=v1:127.0.0.1:{mon_port}
mon initial members=a
auth cluster required=none
auth service required=none
auth client required=none
osd pool default size=1
osd pool default min size=1
mon allow pool size one=true
mon warn on pool no redundancy=false
osd crush chooseleaf type=0
osd objectstore=memstore
memstore device bytes={store_bytes}
osd pool default pg num=8
mon max pg per osd=2000
run dir={folder}/run
log file={folder}/log/$name.log
admin socket={folder}/run/$name.asok
pid file={folder}/run/$name.pid
public addr=127.0.0.1
cluster addr=127.0.0.1
ms bind ipv6=false
[mon.a]
mon data={folder}/mon
mon data avail crit=0
mon data avail warn=0
[osd.0]
osd data={folder}/osd
[client.rgw]
rgw frontends=beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw enable usage log=false
rgw gc obj min wait=5
rgw gc processor period=5
rgw gc processor max time=5
rgw data={folder}/rgw
"""


def missing_programs() -> list[str]:
    """What would have to be installed."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


class S3Server:
    """Starts with `start`; the gateway alone can be killed and started again, its data stay.

    Args:
        folder: for the daemons' files; made by this.
        store_bytes: what the store holds, in memory; deleted objects are freed after some seconds.
    """

    def __init__(self, folder: Path, store_bytes: int = 4 << 30):
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        for name in ("mon", "osd", "rgw", "run", "log"):
            (folder / name).mkdir(parents=True)
        self._fsid = str(uuid.uuid4())
        self._mon_port = free_port()
        text = CONF.format(
            fsid=self._fsid, folder=folder, port=self.port, mon_port=self._mon_port, store_bytes=store_bytes
        )
        (folder / "ceph.conf").write_text(text)

    def start(self) -> None:
        monmap = self.folder / "monmap"
        self._run(
            "monmaptool", "--create", "--addv", "a", f"v1:127.0.0.1:{self._mon_port}", "--fsid", self._fsid, monmap
        )
        self._run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap)
        self._run("ceph-mon", "-i", "a")
        store = str(uuid.uuid4())
        self._patiently("ceph", "osd", "new", store)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", store)
        self._patiently("ceph-osd", "-i", "0")
        self.start_gateway()
        self._patiently(
            "radosgw-admin", "user", "create", "--uid=test", "--display-name=test",
            f"--access-key={KEY}", f"--secret={SECRET}",
        )  # fmt: skip

    def _patiently(self, *command: object) -> None:
        """Again where a program asked the monitor before it was ready or knew the cluster's id ("wrong fsid")."""
        for _ in range(20):
            try:
                self._run(*command)
                return
            except subprocess.CalledProcessError:
                time.sleep(0.5)
        raise TimeoutError(f"{command[0]} fails again and again; see {self.folder / 'log'}")

    def start_gateway(self) -> None:
        self._run("radosgw", "-n", "client.rgw")
        deadline = time.monotonic() + START_S
        while not self._answers():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the S3 gateway did not answer within {START_S} s; see {self.folder / 'log'}")
            time.sleep(0.2)

    def kill_gateway(self) -> None:
        self._kill(self.folder / "run" / "client.rgw.pid")

    def stop(self) -> None:
        for pid_file in (self.folder / "run").glob("*.pid"):
            self._kill(pid_file)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.url, timeout=2).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def _run(self, *command: object) -> None:
        # the daemons outlive the call, so their output must not be a pipe that someone waits for
        with (self.folder / "log" / "up.log").open("ab") as log:
            program, *arguments = map(str, command)
            config = [] if program == "monmaptool" else ["-c", str(self.folder / "ceph.conf")]
            subprocess.run([program, *config, *arguments], stdout=log, stderr=log, check=True, timeout=START_S)

    @staticmethod
    def _kill(pid_file: Path) -> None:
        try:
            pid = int(pid_file.read_text())
            os.kill(pid, signal.SIGKILL)
        except (OSError, ValueError):
            return
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and _runs(pid):
            time.sleep(0.05)
        pid_file.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
