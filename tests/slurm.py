"""A Slurm of its own for a test, with two nodes on this machine, started from the system's packages.

    python -m tests.slurm    # starts one, opens a shell in which sbatch and squeue reach it, and stops it afterwards

Debian and Ubuntu: apt install slurm-wlm munge. It listens on free ports and on a socket in its own folder. There are
two partitions over the same nodes: jobs of `urgent` preempt those of `main`, which go back to the queue.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
SEARCHED = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

SETTINGS = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=100000,sched_interval=1,bf_interval=1,batch_sched_delay=0,requeue_delay=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
EnforcePartLimits=ALL
KillWait=20
MinJobAge=300
ReturnToService=2
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=main Nodes=n0,n1 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 OverSubscribe=NO
PartitionName=urgent Nodes=n0,n1 MaxTime=INFINITE State=UP PriorityTier=2 OverSubscribe=NO
"""


def reason_to_skip() -> str | None:
    """Why no Slurm can be started here, in words; None where one can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=SEARCHED) is None]
    if missing:
        return f"Slurm is not installed ({', '.join(missing)} was not found); apt install slurm-wlm munge"
    return None if os.geteuid() == 0 else "a Slurm with nodes of its own is started by root only"


@contextlib.contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """Yields the variables of the environment in which Slurm's commands reach the cluster."""
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))  # the path of a socket has at most 107 characters
    folder.chmod(0o755)
    daemons: list[subprocess.Popen] = []
    try:
        _start_munge(folder, daemons)
        environment = _start_slurm(folder, daemons)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()
            daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, daemons: list[subprocess.Popen], name: str, *arguments: str, **more: object) -> None:
    program = shutil.which(name, path=SEARCHED)
    assert program is not None
    log = (folder / f"{name}-output.log").open("ab")
    command = [program, *arguments]
    daemons.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, **more))  # type: ignore


def _start_munge(folder: Path, daemons: list[subprocess.Popen]) -> None:
    """As the user that the package made: munged refuses files that others can write, and does not want to be root."""
    user = "munge" if "munge" in {entry.pw_name for entry in pwd.getpwall()} else "root"
    place = folder / "munge"
    place.mkdir(mode=0o711)
    (place / "key").write_bytes(os.urandom(1024))
    (place / "key").chmod(0o400)
    for path in (place, place / "key"):
        shutil.chown(path, user)
    names = {"key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed", "socket": "socket"}
    options = [f"--{option}={place / name}" for option, name in names.items()]
    _start(folder, daemons, "munged", "--foreground", "--force", *options, user=user)
    _wait(lambda: (place / "socket").exists(), daemons, folder)
    (folder / "munge.socket").symlink_to(place / "socket")


def _start_slurm(folder: Path, daemons: list[subprocess.Popen]) -> dict[str, str]:
    with contextlib.ExitStack() as sockets:
        free = [sockets.enter_context(socket.socket()) for _ in range(3)]
        for each in free:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in free]
    host, user = socket.gethostname().partition(".")[0], pwd.getpwuid(os.geteuid()).pw_name
    (folder / "slurm.conf").write_text(SETTINGS.format(host=host, ports=ports, folder=folder, user=user))
    for name in ("state", "spool-n0", "spool-n1"):
        (folder / name).mkdir()
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    _start(folder, daemons, "slurmctld", "-D", "-f", str(folder / "slurm.conf"), env=environment)
    for node in ("n0", "n1"):
        _start(folder, daemons, "slurmd", "-D", "-N", node, "-f", str(folder / "slurm.conf"), env=environment)
    answer = lambda: subprocess.run(
        ["sinfo", "--noheader", "--format=%D %T", "--partition=main"], env=environment, capture_output=True, text=True
    ).stdout.split()
    _wait(lambda: answer() == ["2", "idle"], daemons, folder)
    return {"SLURM_CONF": str(folder / "slurm.conf")}


def _wait(ready, daemons: list[subprocess.Popen], folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        ended = [daemon for daemon in daemons if daemon.poll() is not None]
        if ended or time.monotonic() > deadline:
            said = "".join(
                path.read_text(errors="replace")[-2000:] for path in [*folder.glob("*.out"), *folder.glob("*.log")]
            )
            raise RuntimeError(f"the cluster did not start ({[daemon.args for daemon in ended]}): {said}")
        time.sleep(0.1)


if __name__ == "__main__":
    if reason := reason_to_skip():
        raise SystemExit(reason)
    with cluster() as variables:
        subprocess.run([os.environ.get("SHELL", "/bin/sh")], env={**os.environ, **variables})
