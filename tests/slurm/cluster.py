"""A real SLURM on this host: munge, a controller and several nodes, with keys, sockets and ports of their own.

    with cluster() as slurm:
        job = slurm.submit("slurm/train.sbatch", ...)
        slurm.wait_until_empty()

Everything lies in one temporary directory, and SLURM_CONF in it is what tells its processes from all others: at the end
every process that has it in its environment is ended by its number, whatever happened before. The names n1, n2, ... are
in no /etc/hosts. There is no accounting unless it is asked for, so `sacct` fails. SLURM 22.05 and later; root, no
systemd.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.engine.faults.processes import environment, send, wait_until
from tests.support import ROOT

REQUIRED = "WID_REQUIRE_SLURM"
"""Environment variable: where it is 1, a test that would be skipped for want of SLURM fails."""
COMMANDS = ("slurmctld", "slurmd", "munged")
ACCOUNTING_COMMANDS = ("slurmdbd", "mariadbd", "mariadb-install-db")
CONFIGURATION = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
ReturnToService=2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SlurmctldPidFile={directory}/slurmctld.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdPidFile={directory}/slurmd.%n.pid
SlurmdLogFile={directory}/slurmd.%n.log
SlurmdSpoolDir={directory}/spool.%n
StateSaveLocation={directory}/state
SlurmdTimeout=6
MessageTimeout=5
KillWait={kill_wait}
MinJobAge={remembers}
SchedulerParameters=sched_interval=1,bf_interval=1
"""
"""Time-outs are seconds where a cluster has minutes. A requeued job waits for `cred_expire` and some seconds more."""
ACCOUNTING = """AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={directory}/munge.socket
AccountingStorageEnforce=associations
"""
DATABASE = """AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
LogFile={directory}/slurmdbd.log
PidFile={directory}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={storage}
StorageUser=root
StorageLoc=accounting
"""
FORBID_REQUEUE = """function slurm_job_submit(job, partitions, user)
    job.requeue = 0
    return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, user)
    return slurm.SUCCESS
end
return slurm.SUCCESS
"""
"""What a site does that forbids it: JobRequeue=0 alone is a default, which `sbatch --requeue` overrides."""


def require_slurm() -> None:
    """Skip the test where SLURM cannot run, or fail it where `REQUIRED` says that it must."""
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if os.geteuid() == 0 and not missing:
        return
    reason = "needs root, and Debian's slurm-wlm and munge" + (f" ({', '.join(missing)} missing)" if missing else "")
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{REQUIRED}=1, but {reason}")
    pytest.skip(reason)


def require_accounting() -> None:
    """Skip the test where SLURM has no accounting; also in CI, which does not install it."""
    if missing := [name for name in ACCOUNTING_COMMANDS if shutil.which(name) is None]:
        pytest.skip(f"needs Debian's slurmdbd and mariadb-server ({', '.join(missing)} missing)")


@dataclass
class Cluster:
    """A SLURM that runs.

    Attributes:
        directory: of its configuration, logs and state.
        variables: the environment of its commands and jobs: this Python first on PATH, CPUs only, nothing of a
            surrounding job.
    """

    directory: Path
    variables: dict[str, str]
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *command: str) -> None:
        """Start a daemon in the foreground, so that its number is known."""
        with open(self.directory / f"{name}.out", "ab") as output:
            self.daemons[name] = subprocess.Popen(
                # It ends with this process too, should that be killed.
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdout=output,
                stderr=output,
                env=self.variables,
                start_new_session=True,
            )

    def start_node(self, name: str) -> None:
        self.start(name, "slurmd", "-D", "-f", self.variables["SLURM_CONF"], "-N", name)

    def run(self, *command: object, cwd: Path = ROOT) -> str:
        """What a command of SLURM (or one that calls SLURM) prints; AssertionError if it fails."""
        done = subprocess.run(
            list(map(str, command)), cwd=cwd, env=self.variables, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *arguments: object, cwd: Path = ROOT) -> str:
        """The number of the job that `sbatch` makes."""
        return self.run("sbatch", "--parsable", *arguments, cwd=cwd).strip().partition(";")[0]

    def jobs(self) -> dict[str, str]:
        """State of every job that waits or runs, by its number: {"5": "RUNNING", "6_1": "PENDING"}."""
        lines = self.run("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` tells of a job, also for five minutes after its end: JobState, Reason, Restarts."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, number: str, state: str, seconds: float = 60) -> None:
        wait_until(lambda: self.job(number)["JobState"] == state, f"job {number} to be {state}", seconds, 0.2)

    def wait_until_empty(self, seconds: float = 120) -> None:
        """Return once no job waits or runs."""
        wait_until(lambda: not self.jobs(), "all jobs to end", seconds, 0.2)

    def kill_daemon(self, name: str) -> None:
        """As when a node is cut off from the controller: its jobs' processes live on, but SLURM takes it for dead."""
        self.daemons[name].kill()
        self.daemons[name].wait(30)

    def kill_node(self, name: str) -> None:
        """As when a machine loses its power: the daemon and every process of its jobs, at once."""
        own = f"{self.directory}/slurmd.{name}.log"
        victims = [p for p in self.processes() if _variable(p, "SLURMD_NODENAME") == name or own in _files(p)]
        send(signal.SIGKILL, [psutil.Process(self.daemons[name].pid), *victims])
        self.daemons[name].wait(30)

    def processes(self) -> list[psutil.Process]:
        """Every process of this SLURM and of its jobs. slurmstepd overwrites its environment, but keeps a log open."""
        mark, logs = self.variables["SLURM_CONF"], f"{self.directory}/"
        return [
            process
            for process in psutil.process_iter(["name"])
            if _variable(process, "SLURM_CONF") == mark
            or (process.info["name"].startswith("slurm") and any(path.startswith(logs) for path in _files(process)))
        ]

    def end(self) -> None:
        """Kill what is left, first what could start something new."""
        for process in self.daemons.values():
            process.kill()
            process.wait(30)
        while left := self.processes():
            send(signal.SIGKILL, left)
            psutil.wait_procs(left, 5)


def _variable(process: psutil.Process, name: str) -> str | None:
    with suppress(psutil.Error, OSError):
        return process.environ().get(name)
    return None


def _files(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error, OSError):
        return [file.path for file in process.open_files()]
    return []


@contextmanager
def cluster(
    nodes: int = 3,
    requeue: bool = True,
    preemption: bool = False,
    kill_wait: int = 20,
    accounting: bool = False,
    remembers: int = 300,
) -> Iterator[Cluster]:
    """A SLURM with nodes n1, n2, ... of 2 CPUs each and a partition `main`.

    Args:
        nodes: how many.
        requeue: whether jobs may be requeued.
        preemption: a second partition `urgent`, whose jobs pre-empt those of `main`: they get 30 s and are requeued.
        kill_wait: seconds between SIGTERM and SIGKILL of a job that is over its time or cancelled.
        accounting: whether there is a database, and `sacct` works.
        remembers: seconds for which the controller itself knows jobs that have ended.
    """
    require_slurm()
    if accounting:
        require_accounting()
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        directory.chmod(0o755)  # munge wants its socket where all may reach it
        seconds = {"kill_wait": kill_wait, "remembers": remembers}
        _configure(directory, [f"n{i}" for i in range(1, nodes + 1)], requeue, preemption, seconds)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        conf = {"SLURM_CONF": f"{directory}/slurm.conf", "PATH": path, "DS_ACCELERATOR": "cpu"}
        outer = ("SLURM", "SBATCH", "SQUEUE", "SRUN")
        inherited = {key: value for key, value in environment().items() if not key.startswith(outer)}
        running = Cluster(directory, {**inherited, **conf})
        try:
            _start_munge(running)
            if accounting:
                _start_accounting(running)
            _start(running, nodes)
            yield running
        except BaseException:
            for log in (*directory.glob("*.out"), *directory.glob("*.log")):
                print(f"== {log.name}\n{log.read_text(errors='replace')[-3000:]}")
            raise
        finally:
            running.end()


def _configure(directory: Path, nodes: list[str], requeue: bool, preemption: bool, seconds: dict[str, int]) -> None:
    controller, *ports = free_ports(1 + len(nodes))
    host = socket.gethostname()
    text = CONFIGURATION.format(host=host, controller=controller, directory=directory, **seconds)
    for node, port in zip(nodes, ports, strict=True):
        text += f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=4000\n"
    main, urgent = "PartitionName=main Nodes=ALL Default=YES State=UP", ""
    if preemption:
        text += "PreemptType=preempt/partition_prio\nPreemptMode=REQUEUE\n"
        text += "SlurmctldParameters=preempt_send_user_signal\n"
        main += " PriorityTier=1 GraceTime=30"
        urgent = "PartitionName=urgent Nodes=ALL State=UP PriorityTier=2 PreemptMode=OFF\n"
    if not requeue:
        text += "JobRequeue=0\nJobSubmitPlugins=lua\n"
        (directory / "job_submit.lua").write_text(FORBID_REQUEUE)
    (directory / "slurm.conf").write_text(f"{text}{main}\n{urgent}")
    (directory / "munge.key").write_bytes(os.urandom(1024))
    (directory / "munge.key").chmod(0o400)


def _start_accounting(slurm: Cluster) -> None:
    """A database server, the daemon between it and SLURM, and this cluster in it."""
    directory, data = slurm.directory, slurm.directory / "database"
    port, storage = free_ports(2)
    install = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db"]
    done = subprocess.run([*install, "--auth-root-authentication-method=normal"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    files = (f"--datadir={data}", f"--socket={directory}/database.socket", f"--pid-file={directory}/database.pid")
    server = ["mariadbd", "--no-defaults", "--user=root", *files, "--bind-address=127.0.0.1", f"--port={storage}"]
    slurm.start("mariadbd", *server, "--innodb-flush-log-at-trx-commit=0", "--skip-name-resolve")
    wait_until((directory / "database.socket").exists, "the database", 60)
    (directory / "slurmdbd.conf").write_text(DATABASE.format(directory=directory, port=port, storage=storage))
    (directory / "slurmdbd.conf").chmod(0o600)
    slurm.start("slurmdbd", "slurmdbd", "-D")
    with open(directory / "slurm.conf", "a", encoding="utf-8") as configuration:
        configuration.write(ACCOUNTING.format(directory=directory, port=port))
    add = ["sacctmgr", "--immediate", "add", "cluster", "test"]
    known = lambda: subprocess.run(add, env=slurm.variables, capture_output=True).returncode == 0  # noqa: E731
    wait_until(known, "accounting", 90, 0.5)


def _start_munge(slurm: Cluster) -> None:
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={slurm.directory}/munge.{ending}" for option, ending in files.items()]
    slurm.start("munged", "munged", "--foreground", *options)
    wait_until((slurm.directory / "munge.socket").exists, "munge", 30)


def _start(slurm: Cluster, nodes: int) -> None:
    slurm.start("slurmctld", "slurmctld", "-D", "-f", slurm.variables["SLURM_CONF"])
    for i in range(1, nodes + 1):
        slurm.start_node(f"n{i}")
    command = ["sinfo", "--noheader", "--partition=main", "--states=idle", "--format=%D"]

    def idle() -> bool:
        done = subprocess.run(command, env=slurm.variables, capture_output=True, text=True, timeout=60)
        return done.stdout.strip() == str(nodes)

    wait_until(idle, f"{nodes} nodes to be idle", 60, 0.2)


def free_ports(count: int) -> list[int]:
    """Ports nobody listens at, all different."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("", 0))
        return [probe.getsockname()[1] for probe in probes]
