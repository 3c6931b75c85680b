"""What an attacker tries from inside a task, one record each, and the driver that tries them all in one run.

The code of a probe sets `verdict` to "ok" where it managed what its name says, else to the errno (or another
word) that stopped it. The same code outside the sandbox is the probe's control: there it must say "ok".
"""

import textwrap
from typing import NamedTuple

# Runs each probe in a process of its own, so that one that crashes or changes its process disturbs no other.
DRIVER = '''
import ctypes, errno, fcntl, json, mmap, os, resource, select, signal, socket, stat, struct, sys, time

libc = ctypes.CDLL(None, use_errno=True)

def tried(action):
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno, type(error).__name__)
    return "ok"

def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(value) for value in arguments])
    return "ok" if result != -1 else errno.errorcode.get(ctypes.get_errno(), "?")

def reads(path):
    """Read a byte of a file, or find something in a folder but the way to the interpreter."""
    def act():
        way = {part for place in (sys.base_prefix, sys.prefix) for part in place.split("/")}
        if not os.path.isdir(path):
            open(path, "rb").read(1)
        elif not set(os.listdir(path)) - way:
            raise OSError(errno.ENODATA, "nothing there")
    return tried(act)

def makes(folder):
    """Make a file, and take it away again where that worked."""
    path = os.path.join(folder, ".probe-" + str(os.getpid()))
    def act():
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.unlink(path)
    return tried(act)

def writes(path):
    """Open an existing file for writing, and write nothing."""
    return tried(lambda: os.close(os.open(path, os.O_WRONLY)))

def connects(address, family=socket.AF_INET, kind=socket.SOCK_STREAM):
    def act():
        with socket.socket(family, kind) as s:
            s.settimeout(2)
            s.connect(address)  # of a datagram socket: a look at the routes, no packet leaves
    return tried(act)

def everywhere(needle):
    """Whether the needle is in the environment or command line of any process that can be seen."""
    for pid in [entry for entry in os.listdir("/proc") if entry.isdigit()]:
        for name in ("environ", "cmdline"):
            try:
                if needle in open("/proc/" + pid + "/" + name, "rb").read():
                    return "ok"
            except OSError:
                pass
    return "not found"

def attempt(code, context):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        scope = dict(globals(), context=context, channel=write)
        try:
            exec(code, scope)
            answer = scope["verdict"]
        except BaseException as error:
            answer = "raised " + type(error).__name__ + ": " + str(error)[:200]
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    ready, _, _ = select.select([read], [], [], 5)
    data = os.read(read, 65536) if ready else b'"hangs"'
    os.close(read)
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        pass
    _, status = os.waitpid(pid, 0)
    return json.loads(data) if data else "died of " + str(status)

def attempt_all(table, context):
    return {name: attempt(code, context) for name, code in table.items()}
'''

# As a bundle's module: the table is in the task's parameters.
WIRE = (
    DRIVER
    + """
def wire(entrypoint, params, seed):
    os.chdir("/bundle")  # and not its shadow, where a task may write
    return {"verdicts": json.dumps(attempt_all(json.loads(params["table"]), json.loads(params["context"])))}
"""
)

# As a program of its own, for the controls.
PROGRAM = (
    DRIVER
    + """
request = json.load(open(sys.argv[1]))
os.chdir(request["cwd"]) if request["cwd"] else None
print(json.dumps(attempt_all(request["table"], request["context"])))
"""
)


class Probe(NamedTuple):
    """`control`: "host" (an ordinary process outside), or bwrap with the runner's own arguments but without
    the named options and the filter ("box --unshare-pid"); "box masked" covers nothing of /proc.
    `optional`: a control that does not succeed on this host is listed with this reason instead of failing."""

    family: str
    name: str
    code: str
    control: str = "host"
    optional: str = ""


def probe(family: str, name: str, code: str, control: str = "host", optional: str = "") -> Probe:
    return Probe(family, name, textwrap.dedent(code).strip(), control, optional)


ABSENT = "this host has no such file, or does not let us"
SECRETS = [
    "/etc/shadow", "/etc/gshadow", "/etc/ssh", "/etc/machine-id", "/root", "/home", "/var", "/var/log",
    "/run", "/sys", "/boot", "/srv", "/mnt", "/media", "/dev/mem", "/dev/kmsg", "/dev/vda",
    "/dev/fuse", "/dev/net/tun", "/dev/kvm", "/dev/loop-control", "/dev/hwrng", "/dev/mapper",
    "/dev/disk", "/etc/pip.conf", "/etc/apt", "/var/run",
]  # fmt: skip
PACKAGES = ["/var/lib/dpkg", "/var/lib/rpm", "/var/lib/apt", "/usr/lib/apt", "/usr/lib/dpkg", "/usr/share/dpkg"]
NOT_THERE = ["/oldroot", "/newroot", "/.dockerenv", "/proc/1/root/oldroot", "/proc/1/root/newroot"]
KERNEL_FILES = [
    "/proc/kallsyms", "/proc/keys", "/proc/key-users", "/proc/kcore", "/proc/cmdline", "/proc/timer_list",
    "/proc/slabinfo", "/proc/sched_debug", "/proc/sys/kernel/random/boot_id", "/proc/sys/kernel/hostname",
    "/proc/bus/input", "/proc/fs/ext4", "/proc/irq/0", "/proc/acpi/wakeup", "/proc/scsi/scsi",
    "/proc/kpageflags", "/proc/latency_stats",
]  # fmt: skip

FILES = [
    *(probe("files", f"reads {path}", f'verdict = reads("{path}")', optional=ABSENT) for path in SECRETS),
    *(probe("files", f"finds {path}", f'verdict = reads("{path}")', optional=ABSENT) for path in NOT_THERE),
    *(probe("files", f"reads {path}", f'verdict = reads("{path}")', optional=ABSENT) for path in PACKAGES),
    probe(
        "files",
        "finds a file with set-uid, set-gid or capabilities",
        """
        def privileged(top):
            for folder, folders, names in os.walk(top):
                for name in names:
                    status = os.lstat(folder + "/" + name)
                    if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
                        continue
                    if status.st_mode & 0o6000 or "security.capability" in os.listxattr(folder + "/" + name):
                        return folder + "/" + name
        tops = ["/usr/bin"] + ["/" + name for name in sorted(os.listdir("/"), reverse=True) if name != "proc"]
        verdict = "ok" if any(privileged(top) for top in tops) else "none"
        """,
    ),
    probe(
        "files",
        "finds a compiler, an assembler or a linker",
        """
        names = {"cc", "gcc", "g++", "c++", "cpp", "clang", "tcc", "cc1", "collect2", "as", "ld", "gold", "rustc", "go"}
        found = [name for top in ("/usr/bin", "/usr/lib", "/usr/libexec") for _, _, files in os.walk(top)
                 for name in files if name in names or name.endswith(("-gcc", "-ld", "-as"))]
        verdict = "ok" if found else "none"
        """,
        optional="this host has no compiler",
    ),
    probe(
        "files",
        "finds something of /usr/local but the interpreter",
        """
        found = {folder + "/" + name for folder, _, names in os.walk("/usr/local") for name in names}
        own = ("/usr/local/bin/python", "/usr/local/lib/python", "/usr/local/lib/libpython")
        verdict = "ok" if [path for path in found if not path.startswith(own)] else "none"
        """,
        optional="this host has nothing there",
    ),
    probe(
        "files",
        "opens a file of the bundle for writing by its link in the working directory",
        'verdict = writes("/tmp/bundle/probe.py")',
        "none",
        "there is no such link outside",
    ),
    probe(
        "files",
        "makes a file beside the target of a link in the working directory",
        'verdict = makes(os.path.dirname(os.path.realpath("/tmp/bundle/probe.py")))',
        "none",
        "there is no such link outside",
    ),
    *(
        probe(
            "kernel",
            f"reads {path}",
            f'verdict = "ok" if open("{path}", "rb").read(1) else "empty"'
            if "." in path or (path.count("/") > 2 and path.startswith("/proc/sys"))
            else f'''
              def act():
                  data = os.listdir("{path}") if os.path.isdir("{path}") else open("{path}", "rb").read(1)
                  if not data: raise OSError(errno.ENODATA, "empty")
              verdict = tried(act)
              ''',
            optional=ABSENT,
        )
        for path in KERNEL_FILES
        if not path.startswith("/proc/sys/")
    ),
    *(
        probe(
            "kernel",
            f"reads {path}",
            f'verdict = tried(lambda: open("{path}", "rb").read(1))',
            optional=ABSENT,
        )
        for path in KERNEL_FILES
        if path.startswith("/proc/sys/")
    ),
    probe(
        "files",
        "reads the secret file by /proc/1/root",
        'verdict = reads("/proc/1/root" + context["secret_file"])',
        optional="nobody may look into this host's pid 1",
    ),
    probe(
        "files",
        "reads the secret file by the parent's /proc/*/root",
        'verdict = reads("/proc/%d/root" % os.getppid() + context["secret_file"])',
    ),
    probe("files", "reads the secret file by path", 'verdict = reads(context["secret_file"])'),
    probe(
        "files",
        "reads the secret file by /proc/self/root/..",
        'verdict = reads("/proc/self/root/.." + context["secret_file"])',
    ),
    probe(
        "files",
        "reads /proc/1/cwd of the host",
        """
        verdict = tried(lambda: os.stat("/proc/1/cwd" + context["secret_file"]))
        """,
        optional="nobody may look into this host's pid 1",
    ),
    probe(
        "files",
        "finds the caller's secret in os.environ",
        'verdict = "ok" if context["secret"] in os.environ.values() else "no"',
    ),
    probe(
        "files",
        "finds the caller's secret in an environment or command line of /proc",
        """
        verdict = everywhere(context["secret"].encode()) if os.path.isdir("/proc/1") else "no /proc"
        """,
    ),
    probe(
        "files",
        "finds the store's path in an environment or command line of /proc",
        """
        verdict = everywhere(context["folder"].encode()) if os.path.isdir("/proc/1") else "no /proc"
        """,
    ),
    probe("files", "writes to the bundle", "verdict = makes(os.getcwd())"),
    probe(
        "files",
        "opens a file of the bundle for writing",
        'verdict = writes(os.path.join(os.getcwd(), "probe.py"))',
    ),
    probe(
        "files",
        "changes the mode of a file of the bundle",
        """
        verdict = tried(lambda: os.chmod("probe.py", os.stat("probe.py").st_mode))
        """,
    ),
    probe("files", "changes the time of a file of the bundle", 'verdict = tried(lambda: os.utime("probe.py"))'),
    probe(
        "files",
        "sets an attribute on a file of the bundle",
        """
        verdict = tried(lambda: os.setxattr("probe.py", "user.probe", b"x"))
        """,
        optional="the file system has no user attributes",
    ),
    probe(
        "files",
        "renames a file of the bundle",
        """
        def act():
            os.rename("probe.py", "probe.moved")
            os.rename("probe.moved", "probe.py")
        verdict = tried(act)
        """,
    ),
    probe(
        "files",
        "hard-links a file of the bundle",
        """
        def act():
            os.link("probe.py", context["scratch"] + "/link" + str(os.getpid()))
            os.unlink(context["scratch"] + "/link" + str(os.getpid()))
        verdict = tried(act)
        """,
    ),
    probe("files", "writes to the environment", "verdict = makes(sys.prefix)"),
    probe(
        "files",
        "writes to site-packages",
        """
        verdict = makes(next(p for p in sys.path if p.endswith("site-packages") and p.startswith(sys.prefix)))
        """,
    ),
    probe(
        "files",
        "replaces the environment's interpreter",
        """
        path = os.path.join(sys.prefix, "bin")
        verdict = makes(path)
        """,
    ),
    probe(
        "files",
        "writes to the interpreter's standard library",
        "verdict = makes(os.path.dirname(os.__file__))",
        optional="the interpreter belongs to root",
    ),
    probe(
        "files",
        "opens a module of the interpreter for writing",
        "verdict = writes(os.__file__)",
        optional="the interpreter belongs to root",
    ),
    probe(
        "files",
        "opens the interpreter for writing",
        """
        verdict = writes(os.path.realpath(sys.executable))
        """,
        optional="a running program is busy (ETXTBSY)",
    ),
    *(
        probe("files", f"makes a file in {path}", f'verdict = makes("{path}")', optional="only root may")
        for path in (
            "/",
            "/etc",
            "/usr/lib",
            "/lib",
            "/dev",
            "/proc",
            "/usr",
            "/bin",
            "/var",
            "/run",
            "/root",
            "/home",
            "/opt",
        )
    ),
    *(
        probe("files", f"opens {path} for writing", f'verdict = writes("{path}")', optional=ABSENT)
        for path in (
            "/etc/passwd",
            "/etc/ld.so.cache",
            "/etc/hosts",
            "/proc/sys/kernel/core_pattern",
            "/proc/sys/vm/drop_caches",
            "/proc/sys/user/max_user_namespaces",
            "/proc/sys/kernel/modprobe",
            "/proc/sysrq-trigger",
            "/proc/self/setgroups",
        )
    ),
    probe(
        "files",
        "makes a character device",
        """
        path = context["scratch"] + "/null" + str(os.getpid())
        def act():
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
            os.unlink(path)
        verdict = tried(act)
        """,
        optional="only root may make devices",
    ),
    probe(
        "files",
        "makes a block device",
        """
        path = context["scratch"] + "/disk" + str(os.getpid())
        def act():
            os.mknod(path, 0o666 | stat.S_IFBLK, os.makedev(254, 0))
            os.unlink(path)
        verdict = tried(act)
        """,
        optional="only root may make devices",
    ),
    probe(
        "files",
        "may gain privileges by a set-uid file (no_new_privs is off)",
        """
        verdict = "ok" if libc.prctl(39, 0, 0, 0, 0) == 0 else "no_new_privs"
        """,
    ),
    probe(
        "files",
        "has a /tmp where set-uid files work",
        """
        verdict = "nosuid" if os.statvfs("/tmp").f_flag & os.ST_NOSUID else "ok"
        """,
    ),
    probe(
        "files",
        "has a /dev/shm where set-uid files work",
        """
        verdict = "nosuid" if os.statvfs("/dev/shm").f_flag & os.ST_NOSUID else "ok"
        """,
        optional="this host's own /dev/shm is nosuid",
    ),
    probe(
        "files",
        "has a capability",
        """
        # capget(2), version 3: effective, permitted and inheritable, twice.
        sets = (ctypes.c_uint32 * 6)()
        libc.capget((ctypes.c_uint32 * 2)(0x20080522, 0), sets)
        verdict = "ok" if any(sets) else "none"
        """,
        optional="an ordinary user has none",
    ),
    probe(
        "files",
        "has a capability in its bounding set",
        """
        verdict = "ok" if any(libc.prctl(23, n, 0, 0, 0) > 0 for n in range(64)) else "none"
        """,
    ),
    probe(
        "files",
        "inherits a descriptor that is no pipe",
        """
        found = []
        for fd in range(3, 4096):
            try:
                kind = os.fstat(fd).st_mode
            except OSError:
                continue
            if not stat.S_ISFIFO(kind) and fd != channel:
                found.append(fd)
        verdict = "ok" if found else "none"
        """,
        control="none",
        optional="Python itself closes descriptors when the test starts a process",
    ),
    probe(
        "files",
        "reads something from standard input",
        """
        null = os.fstat(0).st_rdev == os.makedev(1, 3) and os.read(0, 1) == b""
        verdict = "/dev/null" if null else "ok"
        """,
        control="none",
        optional="a control's standard input is as the test makes it",
    ),
    probe(
        "files",
        "dumps core",
        """
        verdict = "ok" if resource.getrlimit(resource.RLIMIT_CORE)[1] != 0 else "no"
        """,
    ),
    probe(
        "files",
        "has a controlling terminal",
        'verdict = tried(lambda: os.close(os.open("/dev/tty", os.O_RDWR)))',
        optional="the test itself has no terminal",
    ),
    probe(
        "files",
        "writes to a file system with room for more than the profile's",
        """
        size = os.statvfs("/tmp")
        verdict = "ok" if size.f_blocks * size.f_frsize > (2 << 30) + 8192 else "sized"
        """,
    ),
    probe(
        "files",
        "fills /dev/shm beyond the profile's",
        """
        size = os.statvfs("/dev/shm")
        verdict = "ok" if size.f_blocks * size.f_frsize > (1 << 30) + 8192 else "sized"
        """,
    ),
]

PROCESSES = [
    probe("processes", "signals a process of the host", 'verdict = tried(lambda: os.kill(context["pid"], 0))'),
    probe(
        "processes",
        "opens a pidfd of a process of the host",
        """
        verdict = tried(lambda: os.close(os.pidfd_open(context["pid"])))
        """,
    ),
    probe(
        "processes",
        "sees a process of the host in /proc",
        'verdict = reads("/proc/%d/status" % context["pid"])',
    ),
    probe(
        "processes",
        "reads the environment of a process of the host",
        """
        verdict = reads("/proc/%d/environ" % context["pid"])
        """,
    ),
    probe(
        "processes",
        "reads the limits of a process of the host",
        """
        verdict = tried(lambda: resource.prlimit(context["pid"], resource.RLIMIT_NOFILE))
        """,
    ),
    probe(
        "processes",
        "asks for the CPUs of a process of the host",
        'verdict = tried(lambda: os.sched_getaffinity(context["pid"]))',
    ),
    probe(
        "processes",
        "asks for the session of a process of the host",
        'verdict = tried(lambda: os.getsid(context["pid"]))',
    ),
    probe(
        "processes",
        "renices a process of the host",
        """
        pid = context["pid"]
        verdict = tried(lambda: os.setpriority(0, pid, os.getpriority(0, pid)))
        """,
    ),
    probe(
        "processes",
        "raises its own priority",
        "verdict = tried(lambda: os.nice(-1))",
        optional="only root may",
    ),
    probe(
        "processes",
        "becomes a real-time process",
        """
        verdict = tried(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
        """,
        optional="only root may",
    ),
    probe(
        "processes",
        "lowers its OOM score",
        """
        def act():
            with open("/proc/self/oom_score_adj", "w") as file: file.write("-500")
        verdict = tried(act)
        """,
        optional="only root may",
    ),
    probe(
        "processes",
        "sees more than its own namespace's processes",
        """
        pids = [int(e) for e in os.listdir("/proc") if e.isdigit()] if os.path.isdir("/proc/1") else []
        verdict = "ok" if any(pid >= 1000 for pid in pids) else "no"
        """,
        control="box --unshare-pid",
    ),
    probe(
        "processes",
        "traces a child of its own",
        """
        pid = os.fork()
        if pid == 0:
            time.sleep(3); os._exit(0)
        verdict = call(context["ptrace"], 16, pid, 0, 0)
        os.kill(pid, 9)
        """,
    ),
    probe(
        "processes",
        "attaches to pid 1",
        'verdict = call(context["ptrace"], 16, 1, 0, 0)',
        control="none",
        optional="tracing the init of this machine is no experiment to make",
    ),
    probe(
        "processes",
        "opens the memory of the sandbox's init",
        'verdict = tried(lambda: os.close(os.open("/proc/1/mem", os.O_RDWR)))',
        control="box masked",
        optional="Yama keeps processes from it (kernel.yama.ptrace_scope)",
    ),
    probe(
        "processes",
        "reads where the sandbox's init waits",
        'verdict = reads("/proc/1/syscall")',
        control="box masked",
        optional="Yama keeps processes from it (kernel.yama.ptrace_scope)",
    ),
    probe(
        "processes",
        "opens a descriptor of the sandbox's init",
        'verdict = tried(lambda: os.close(os.open("/proc/1/fd/1", os.O_WRONLY)))',
        control="box masked",
        optional="Yama keeps processes from it (kernel.yama.ptrace_scope)",
    ),
    probe(
        "processes",
        "takes its death signal away",
        'verdict = call(context["prctl"], 1, 0, 0, 0, 0)',
    ),
    probe(
        "processes",
        "chooses a death signal that can be ignored, with a high bit set",
        'verdict = call(context["prctl"], (1 << 32) + 1, 17, 0, 0, 0)',
    ),
    probe(
        "processes",
        "sees the host's name",
        'verdict = "ok" if socket.gethostname() == context["hostname"] else "no"',
    ),
    probe(
        "processes",
        "changes the host's name",
        "verdict = tried(lambda: socket.sethostname(socket.gethostname()))",
        optional="only root may",
    ),
    probe(
        "processes",
        "finds System V shared memory of the host",
        """
        verdict = call(context["shmget"], context["shm_key"], 0, 0)
        """,
    ),
    probe(
        "processes",
        "finds a message queue of the host",
        """
        libc.mq_open.restype = ctypes.c_int
        ctypes.set_errno(0)
        found = libc.mq_open(context["queue"].encode(), 0)
        verdict = "ok" if found >= 0 else errno.errorcode[ctypes.get_errno()]
        """,
    ),
    probe(
        "processes",
        "reads the keyring of the session",
        """
        verdict = call(context["keyctl"], 0, -3, 0)
        """,
        optional="the kernel has no keyrings",
    ),
]

NETWORK = [
    probe("network", "connects to the host's loopback", 'verdict = connects(("127.0.0.1", context["port"]))'),
    probe(
        "network",
        "connects to the host's loopback by 0.0.0.0",
        'verdict = connects(("0.0.0.0", context["port"]))',
    ),
    probe(
        "network",
        "connects to the host's IPv6 loopback",
        """
        verdict = connects(("::1", context["port6"]), socket.AF_INET6)
        """,
        optional="no IPv6 here",
    ),
    probe(
        "network",
        "has a route to the outside",
        'verdict = connects(("192.0.2.1", 53), kind=socket.SOCK_DGRAM)',
        optional="no route to the outside",
    ),
    probe(
        "network",
        "has a route to the metadata address",
        'verdict = connects(("169.254.169.254", 80), kind=socket.SOCK_DGRAM)',
        optional="no route to it",
    ),
    probe(
        "network",
        "has an IPv6 route to the outside",
        """
        verdict = connects(("2001:db8::1", 53), socket.AF_INET6, socket.SOCK_DGRAM)
        """,
        optional="no IPv6 route",
    ),
    probe(
        "network",
        "has a route for broadcasts",
        """
        def act():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                s.connect(("255.255.255.255", 9))
        verdict = tried(act)
        """,
        optional="no interface that broadcasts",
    ),
    probe(
        "network",
        "has a route for multicast",
        """
        def act():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                s.connect(("224.0.0.1", 9))
        verdict = tried(act)
        """,
        optional="no route for it",
    ),
    probe(
        "network",
        "has an interface other than lo",
        """
        verdict = "ok" if {name for _, name in socket.if_nameindex()} - {"lo"} else "only lo"
        """,
        optional="the host has none either",
    ),
    probe(
        "network",
        "finds an abstract socket of the host",
        'verdict = connects("\\0" + context["abstract"], socket.AF_UNIX)',
    ),
    probe(
        "network",
        "finds a socket of the host by path",
        'verdict = connects(context["socket"], socket.AF_UNIX)',
    ),
    probe(
        "network",
        "resolves a name",
        """
        try:
            socket.getaddrinfo("localhost.localdomain.example", 80)
            verdict = "ok"
        except OSError as error:
            verdict = "gaierror"
        """,
        control="none",
        optional="a control would ask a name server on the network",
    ),
    probe("network", "has a resolv.conf", 'verdict = reads("/etc/resolv.conf")'),
    probe(
        "network",
        "opens a raw socket",
        """
        verdict = tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close())
        """,
        optional="only root may",
    ),
    probe(
        "network",
        "opens a ping socket that leaves",
        """
        def act():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as s:
                s.sendto(b"\\x08\\0\\0\\0\\0\\0\\0\\0", ("192.0.2.1", 1))
        verdict = tried(act)
        """,
        optional="ping_group_range does not let us",
    ),
    probe(
        "network",
        "changes an interface",
        """
        def act():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                flags = fcntl.ioctl(s, 0x8913, struct.pack("16sH14x", b"lo", 0))
                fcntl.ioctl(s, 0x8914, flags)
        verdict = tried(act)
        """,
        optional="only root may",
    ),
    probe(
        "network",
        "opens an old packet socket (AF_INET, SOCK_PACKET)",
        """
        verdict = tried(lambda: socket.socket(socket.AF_INET, 10, 0x300).close())
        """,
        optional="only root may",
    ),
    probe(
        "network",
        "opens a packet socket hidden in high bits",
        """
        verdict = call(context["socket_call"], (1 << 32) | 17, 3, 0)
        """,
        optional="only root may",
    ),
    probe(
        "network",
        "opens a netlink socket hidden in high bits",
        """
        verdict = call(context["socket_call"], (1 << 32) | 16, 3, 9)
        """,
    ),
    probe(
        "network",
        "opens a netlink audit socket with a protocol in high bits",
        """
        verdict = call(context["socket_call"], 16, 3, (1 << 32) | 9)
        """,
    ),
    # The filter's own answer is what counts: most of these are not in every kernel.
    *(
        probe(
            "network",
            f"gets past the filter with a netlink socket of protocol {number}",
            f"""
            answer = tried(lambda: socket.socket(16, socket.SOCK_RAW, {number}).close())
            verdict = "EPERM" if answer == "EPERM" else "ok"
            """,
        )
        for number in range(1, 23)
    ),
    *(
        probe(
            "network",
            f"gets past the filter with a socket of family {number}",
            f"""
            kinds = [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET]
            answers = {{tried(lambda: socket.socket({number}, kind).close()) for kind in kinds}}
            answers |= {{tried(lambda: socket.socketpair({number}, kind)) for kind in kinds}}
            verdict = "EPERM" if answers == {{"EPERM"}} else "ok"
            """,
        )
        for number in range(46)
        if number not in (1, 2, 10, 16)
    ),
]

_CLONE = """
    ctypes.set_errno(0)
    flags = ctypes.c_long({flags} | 17)
    result = libc.syscall(ctypes.c_long(context["clone"]), flags, *[ctypes.c_long(0)] * 4)
    if result == 0:
        os._exit(0)
    verdict = "ok" if result > 0 else errno.errorcode[ctypes.get_errno()]
"""
_NAMESPACES = {
    "mount": 0x20000, "cgroup": 0x2000000, "UTS": 0x4000000, "IPC": 0x8000000, "user": 0x10000000,
    "pid": 0x20000000, "network": 0x40000000,
}  # fmt: skip

KERNEL = [
    *(
        probe(
            "kernel",
            f"makes a {name} namespace by clone",
            _CLONE.format(flags=flag),
            optional="only root may",
        )
        for name, flag in _NAMESPACES.items()
    ),
    *(
        probe(
            "kernel",
            f"makes a {name} namespace by clone, with a user namespace",
            _CLONE.format(flags=flag | 0x10000000),
        )
        for name, flag in _NAMESPACES.items()
    ),
    *(
        probe(
            "kernel",
            f"makes a {name} namespace by unshare",
            f'verdict = call(context["unshare"], {flag})',
            optional="only root may",
        )
        for name, flag in {**_NAMESPACES, "time": 0x80}.items()
    ),
    probe(
        "kernel",
        "makes a user namespace by clone3",
        """
        arguments = (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17)
        ctypes.set_errno(0)
        result = libc.syscall(ctypes.c_long(435), ctypes.byref(arguments), ctypes.c_long(88))
        if result == 0:
            os._exit(0)
        verdict = "ok" if result > 0 else errno.errorcode[ctypes.get_errno()]
        """,
    ),
    probe(
        "kernel",
        "makes a user namespace by clone with flags in high bits too",
        _CLONE.format(flags=(1 << 40) | 0x10000000),
        optional="this kernel refuses unknown bits",
    ),
    probe(
        "kernel",
        "pushes input into a terminal (TIOCSTI)",
        """
        verdict = "ok" if call(context["ioctl"], 0, 0x5412, 0) != "EPERM" else "EPERM"
        """,
    ),
    probe(
        "kernel",
        "pushes input into a terminal (TIOCSTI with high bits)",
        """
        verdict = "ok" if call(context["ioctl"], 0, (1 << 32) | 0x5412, 0) != "EPERM" else "EPERM"
        """,
    ),
    probe(
        "kernel",
        "pastes into a console (TIOCLINUX)",
        """
        verdict = "ok" if call(context["ioctl"], 0, 0x541c, 0) != "EPERM" else "EPERM"
        """,
    ),
    probe(
        "kernel",
        "pastes into a console (TIOCLINUX with high bits)",
        """
        verdict = "ok" if call(context["ioctl"], 0, (7 << 33) | 0x541c, 0) != "EPERM" else "EPERM"
        """,
    ),
    probe("kernel", "makes an x32 call", "verdict = call(0x40000000 | 39)", optional="this kernel has no x32"),
    probe(
        "kernel",
        "makes an i386 call (int 0x80)",
        """
        # mov eax, 20 (getpid); int 0x80; ret
        code = b"\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3"
        if os.uname().machine != "x86_64":
            verdict = "another machine"
        else:
            page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            page.write(code)
            function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
            result = function()
            verdict = "ok" if result == os.getpid() else errno.errorcode.get(-result, str(result))
        """,
        optional="this kernel has no i386 calls",
    ),
    probe(
        "kernel",
        "makes an i386 unshare of the user namespace (int 0x80)",
        """
        # mov ebx, 0x10000000; mov eax, 310 (unshare); int 0x80; ret. rbx is callee-saved: push and pop it.
        code = b"\\x53\\xbb\\0\\0\\0\\x10\\xb8\\x36\\x01\\0\\0\\xcd\\x80\\x5b\\xc3"
        if os.uname().machine != "x86_64":
            verdict = "another machine"
        else:
            page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            page.write(code)
            result = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
            verdict = "ok" if result == 0 else errno.errorcode.get(-result, str(result))
        """,
        optional="this kernel has no i386 calls",
    ),
    probe(
        "kernel",
        "finds a device in /dev that is not of the harmless few",
        """
        known = {"console", "core", "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
                 "stdout", "tty", "urandom", "zero"}
        verdict = "ok" if set(os.listdir("/dev")) - known else "none"
        """,
    ),
    probe(
        "kernel",
        "maps the lowest page",
        """
        libc.mmap.restype = ctypes.c_void_p
        result = libc.mmap(ctypes.c_void_p(0), 4096, 3, 0x32, -1, 0)
        verdict = "ok" if result == 0 else "refused"
        """,
        control="none",
        optional="vm.mmap_min_addr holds it for all but root",
    ),
    probe("kernel", "switches address randomisation off", 'verdict = call(context["personality"], 0x40000)'),
    probe(
        "kernel",
        "loads a filter that lifts the filter",
        """
        # A second program that allows all: the kernel must still take the stricter answer.
        class Program(ctypes.Structure):
            _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
        allow = struct.pack("HBBI", 6, 0, 0, 0x7fff0000)
        libc.prctl(22, 2, ctypes.byref(Program(1, allow)), 0, 0)
        verdict = call(context["unshare"], 0x10000000)
        """,
    ),
]

IN_TASK = [*FILES, *PROCESSES, *NETWORK, *KERNEL]
assert len({p.name for p in IN_TASK}) == len(IN_TASK), "two probes of one name"
