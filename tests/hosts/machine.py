"""A machine of its own: Debian or Ubuntu with its kernel, systemd, AppArmor and control groups of version 2, in QEMU.

The processor is emulated, which needs nothing of the host, and is slower.
"""

import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from threading import Lock

from hosts.containers import CHECKOUT, OLD, PRIVILEGED, UBUNTU, Container, Job, Rootfs, call, captured, run

EMULATOR = "qemu-system-x86_64"
MACHINE = Container("virtual machine, control groups of version 2", (), "machine")
SLOWER = 30  # times, at the most
PACKAGES = "systemd-sysv dbus dbus-user-session libpam-systemd udev apparmor procps"
KERNELS = {OLD: "linux-image-cloud-amd64", UBUNTU["24.04"]: "linux-image-virtual initramfs-tools"}
# A job comes in on the second disk; what it prints goes out on the second serial line, its exit status last.
UNIT = f"""
[Unit]
After=multi-user.target user@1000.service
Wants=user@1000.service
[Service]
Type=oneshot
WorkingDirectory={CHECKOUT}
Environment=HOME=/root
ExecStartPre=stty -F /dev/ttyS1 raw
ExecStart=-/bin/bash -c 'tr -d "\\\\0" </dev/vdb >/run/job; bash /run/job >/dev/ttyS1 2>&1; echo "exit $?" >/dev/ttyS1'
ExecStopPost=systemctl poweroff
[Install]
WantedBy=multi-user.target
"""
NETWORK = "[Match]\nName=en* eth*\n[Network]\nDHCP=yes\n"
# An ordinary user gets a control group from their own systemd, as the remedy of --doctor says.
DELEGATED = (
    "runuser -u probe -- env HOME=/home/probe XDG_RUNTIME_DIR=/run/user/1000 "
    "systemd-run --quiet --user --scope -p Delegate=yes"
)


def missing() -> str:
    """Why there can be no machine here; empty where there can."""
    if platform.machine() != "x86_64":
        return "the emulated machine is an x86_64"
    return "" if shutil.which(EMULATOR) else f"needs {EMULATOR}: THOROUGH=1 tools/setup.sh hosts"


class Machine:
    """A disk image for each suite, made with its first job, and a boot for each job, which changes nothing on it."""

    def __init__(self, place: Path) -> None:
        self.place, self.lock = place / "machine", Lock()

    def run(self, job: Job, rootfs: Rootfs) -> "subprocess.CompletedProcess[str]":
        """Boot, run the job's script, power off."""
        top, image = self.place / rootfs.suite, self.place / f"{rootfs.suite}.image"
        with self.lock:
            if not image.exists():
                self.make(rootfs, top, image)
        script = job.script if job.who == "root" else f"{DELEGATED} bash <<'END'\n{job.script}\nEND"
        (kernel,), (initrd,) = top.glob("boot/vmlinuz-*"), top.glob("boot/initrd.img-*")
        with tempfile.TemporaryDirectory(dir=self.place) as folder:
            disk, console, out = (Path(folder) / name for name in ("disk", "console", "out"))
            disk.write_bytes(script.encode().ljust(64 << 10, b"\0"))
            booted = captured(boot_arguments(kernel, initrd, image, disk, console, out))
            text, _, status = out.read_text(errors="replace").rpartition("exit ")
            assert status.strip().isdigit(), booted.stderr + console.read_text(errors="replace")[-3000:]
        return subprocess.CompletedProcess(booted.args, int(status), text, "")

    def make(self, rootfs: Rootfs, top: Path, image: Path) -> None:
        """The root file system with a kernel and systemd, as an image."""
        shutil.rmtree(top, ignore_errors=True)
        self.place.mkdir(exist_ok=True)
        call("cp", "-a", str(rootfs.path), str(top))
        wanted = f"{PACKAGES} {KERNELS[rootfs.suite]}"
        install = f"apt-get update -qq && apt-get install -y -qq --no-install-recommends {wanted} && apt-get clean"
        done = run(Job(rootfs.suite, PRIVILEGED, "root", install), rootfs._replace(path=top), overlay=False)
        assert done.returncode == 0, done.stderr[-3000:]
        (top / "etc/systemd/system/job.service").write_text(UNIT)
        (top / "etc/systemd/network/all.network").write_text(NETWORK)
        shutil.copy("/etc/resolv.conf", top / "etc/resolv.conf")
        (top / "var/lib/systemd/linger").mkdir(parents=True, exist_ok=True)
        (top / "var/lib/systemd/linger/probe").touch()
        call("chroot", str(top), "systemctl", "enable", "--quiet", "job.service", "systemd-networkd.service")
        call("mke2fs", "-q", "-t", "ext4", "-d", str(top), str(image), "4G")

    def end(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)


def boot_arguments(kernel: Path, initrd: Path, image: Path, job: Path, console: Path, out: Path) -> list[str]:
    """QEMU's command line: two processors, the image as it is, and nothing of it kept. Pure."""
    return [
        EMULATOR, "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "3072",
        "-display", "none", "-no-reboot", "-kernel", str(kernel), "-initrd", str(initrd),
        "-append", "root=/dev/vda rw console=ttyS0 quiet",
        "-drive", f"file={image},if=virtio,format=raw,snapshot=on",
        "-drive", f"file={job},if=virtio,format=raw,readonly=on",
        "-nic", "user,model=virtio", "-serial", f"file:{console}", "-serial", f"file:{out}",
    ]  # fmt: skip
