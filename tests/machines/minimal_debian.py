"""Runs commands of this project in a fresh, minimal Debian: what somebody has who has just cloned it, and no more.

    sudo python3 tests/machines/minimal_debian.py trixie
    sudo python3 tests/machines/minimal_debian.py bookworm --command 'bash launch/test.sh tests/unit'
    sudo python3 tests/machines/minimal_debian.py trixie --image RANKMIXER_DEVICE=cuda

Needs root, debootstrap, git and the network. The system holds Python, its venv module, git and certificates: no
compiler. The last commit is cloned for a user without rights, whose packages come from pip's index alone. With --image
the steps of the Dockerfile are taken in the place of a clone, where no docker is at hand, and its default command is
run. Mounts belong to a namespace of their own, and so are gone whatever happens; the system is removed at the end.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from dockerfile import Dockerfile, Step

ROOT = Path(__file__).resolve().parents[2]
README_COMMANDS = ("bash launch/quickstart.sh", "bash launch/test.sh")
USER = "guest"
PACKAGES = "python3,python3-venv,git,ca-certificates"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
# How a machine reaches the network at all is its own affair; which packages there are is not, so PIP_FIND_LINKS and
# pip's configuration files stay outside.
NETWORK = ("http_proxy", "https_proxy", "no_proxy", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")
CERTIFICATES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Variables that name a file, which is copied into the system."""


class System:
    """A folder that holds a system, with what its processes need mounted below it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, release: str, mirror: str, packages: str) -> None:
        """Makes the system from the packages of a Debian mirror."""
        command = ["debootstrap", "--variant=minbase", f"--include={packages}", release, str(self.folder), mirror]
        made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if made.returncode:
            sys.exit(f"{made.stdout}\ndebootstrap {release} ended with {made.returncode}")

    def mount(self) -> None:
        """Gives it /proc, /sys and a /dev with shared memory; and the machine's names and certificates."""
        dev = self.folder / "dev"
        _run("mount", "-t", "proc", "proc", self.folder / "proc")
        _run("mount", "--bind", "/sys", self.folder / "sys")
        _run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", dev)
        for name in DEVICES:
            (dev / name).touch()
            _run("mount", "--bind", f"/dev/{name}", dev / name)
        (dev / "fd").symlink_to("/proc/self/fd")
        (dev / "shm").mkdir()
        _run("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", dev / "shm")
        for path in ("/etc/resolv.conf", "/etc/hosts", *certificates().values()):
            self.copy_in(Path(path))

    def copy_in(self, path: Path) -> None:
        """Copies a file of this machine to the same place in the system."""
        inside = self.folder / path.relative_to("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.unlink(missing_ok=True)
        shutil.copyfile(path, inside)

    def run(self, command: str, *, folder: str, user: str, variables: Mapping[str, str]) -> int:
        """The exit code of a shell's command in it, whose output is shown."""
        words = [f"{name}={value}" for name, value in {"PATH": PATH, "HOME": self.home(user), **variables}.items()]
        script = f"cd {folder} && {command}"
        chroot = ["chroot", f"--userspec={user}", str(self.folder), "env", "-i", *words, "bash", "-c", script]
        return subprocess.run(chroot, stdin=subprocess.DEVNULL, check=False).returncode

    def home(self, user: str) -> str:
        """Where a user, by name or number, is at home inside."""
        everybody = [line.split(":") for line in (self.folder / "etc" / "passwd").read_text().splitlines()]
        return next(entry[5] for entry in everybody if user.partition(":")[0] in (entry[0], entry[2]))

    def give(self, clone: Path) -> str:
        """Makes the user, with a clone of this repository; where that is inside."""
        _run("chroot", self.folder, "useradd", "--create-home", "--shell", "/bin/bash", USER)
        inside = f"{self.home(USER)}/rankmixer_dist"
        shutil.copytree(clone, f"{self.folder}{inside}", symlinks=True)
        _run("chroot", self.folder, "chown", "--recursive", f"{USER}:{USER}", inside)
        return inside


def network() -> dict[str, str]:
    """The variables of this process by which a machine reaches the network."""
    names = (*NETWORK, *(name.upper() for name in NETWORK))
    return {name: os.environ[name] for name in names if name in os.environ} | certificates()


def certificates() -> dict[str, str]:
    """The variables of this process that name a file of certificates."""
    return {name: os.environ[name] for name in CERTIFICATES if Path(os.environ.get(name, "/")).is_file()}


def run_commands(system: System, clone: Path, commands: Sequence[str]) -> list[tuple[str, int, float]]:
    """Runs commands in a clone, one after the other: each with its exit code and seconds."""
    inside, results = system.give(clone), []
    for command in commands:
        print(f"\n#### {command}", flush=True)
        start = time.monotonic()
        code = system.run(command, folder=inside, user=f"{USER}:{USER}", variables=network())
        results.append((command, code, time.monotonic() - start))
    return results


def build_image(system: System, clone: Path, arguments: Sequence[str]) -> list[tuple[str, int, float]]:
    """Takes the steps of the Dockerfile and runs its default command: each with its exit code and seconds."""
    given, results = dict(argument.split("=", 1) for argument in arguments), []
    for step in Dockerfile(clone / "Dockerfile").steps(given):
        print(f"\n#### {step.line}", flush=True)
        start = time.monotonic()
        code = take_step(system, clone, step)
        results.append((step.line, code, time.monotonic() - start))
        if code:
            break
    return results


def take_step(system: System, clone: Path, step: Step) -> int:
    """Does what docker does for a step; its exit code."""
    if step.kind != "COPY":
        return system.run(step.line, folder=step.folder, user=step.user, variables=network() | dict(step.variables))
    owner, *sources, target = step.words
    inside = Path(f"{system.folder}{step.folder}/{target}")
    inside.mkdir(parents=True, exist_ok=True)
    for source in sources:
        if source == ".":  # .dockerignore leaves out what a fresh clone does not have, and .git
            shutil.copytree(clone, inside, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".git"))
        else:
            shutil.copy(clone / source, inside)
    _run("chown", "--recursive", owner, f"{system.folder}{step.folder}")
    return 0


def reap_orphans() -> None:
    """Leaves the work to a child, and does what the first process of a system does: it inherits processes whose parents
    are gone, and asks how they ended. Else these are seen for ever."""
    child = os.fork()
    while child:
        process, status = os.wait()
        if process == child:
            sys.exit(os.waitstatus_to_exitcode(status))


def main() -> None:
    """Starts itself anew in namespaces of its own, and removes the system when that is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", help="of Debian, as bookworm or trixie")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian", help="where its packages come from")
    parser.add_argument("--command", action="append", help="what to run; by default both commands of the README")
    parser.add_argument("--image", nargs="*", metavar="NAME=VALUE", help="take the Dockerfile's steps, with arguments")
    parser.add_argument("--base", type=Path, help="folder of a fresh system to begin with; made where it is not there")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder is None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        with tempfile.TemporaryDirectory(prefix=f"minimal-{options.release}-") as folder:
            unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
            with subprocess.Popen([*unshare, sys.executable, *sys.argv, "--folder", folder]) as inside:
                try:
                    sys.exit(inside.wait())
                finally:
                    inside.kill()  # and with it all that was started inside
    reap_orphans()
    clone = options.folder / "clone"
    # By its protocol, not by copying files, which another git may be packing.
    _run("git", "clone", "--quiet", "--single-branch", ROOT.as_uri(), clone)
    system = System(options.folder / "system")
    if options.base is not None and options.base.exists():
        _run("cp", "--archive", options.base, system.folder)
    else:
        system.install(options.release, options.mirror, "ca-certificates" if options.image is not None else PACKAGES)
        if options.base is not None:
            whole = options.base.with_name(options.base.name + ".partial")
            _run("cp", "--archive", system.folder, whole)
            whole.rename(options.base)
    system.mount()
    if options.image is not None:
        results = build_image(system, clone, options.image)
    else:
        results = run_commands(system, clone, options.command or README_COMMANDS)
    print(f"\n#### {options.release}")
    for line, code, seconds in results:
        print(f"exit code {code:3}  {seconds:6.0f} s  {line}")
    sys.exit(any(code for _, code, _ in results))


def _run(*command: str | Path) -> None:
    subprocess.run([str(word) for word in command], check=True)


if __name__ == "__main__":
    main()
