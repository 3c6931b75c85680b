#!/usr/bin/env python3
"""The seccomp profile of `../seccomp.json` as Kubernetes takes it with `localhostProfile`.

    tools/deploy/kubernetes/seccomp.py < tools/deploy/seccomp.json > tools/deploy/kubernetes/seccomp.json

Docker's rules have conditions (`includes`, `excludes`) on the container's capabilities and machine. containerd reads
the form of the OCI runtime specification, which knows none, and would take every rule for everyone. So this is what
Docker's rules come to for a container without capabilities on x86-64 or aarch64.
"""

import json
import sys
from typing import Any

MACHINES = {"amd64": ["X86_64", "X86", "X32"], "arm64": ["AARCH64", "ARM"]}


def applies(rule: dict[str, Any]) -> bool:
    """Whether a rule of Docker's is meant for a container without capabilities on one of MACHINES. Pure.

    A condition on the kernel's version is one that every kernel with this sandbox's needs fulfils.
    """
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    here = MACHINES.keys() & set(includes.get("arches") or MACHINES)
    return not includes.get("caps") and bool(here) and not MACHINES.keys() & set(excludes.get("arches") or ())


def plain(docker: dict[str, Any]) -> dict[str, Any]:
    """The same profile as the OCI runtime specification has it. Pure."""
    kept = ("names", "action", "args", "errnoRet")
    return {
        "defaultAction": docker["defaultAction"],
        "defaultErrnoRet": docker["defaultErrnoRet"],
        "architectures": [f"SCMP_ARCH_{name}" for names in MACHINES.values() for name in names],
        "syscalls": [
            {key: rule[key] for key in kept if rule.get(key) is not None}
            for rule in docker["syscalls"]
            if applies(rule)
        ],
    }


if __name__ == "__main__":
    print(json.dumps(plain(json.load(sys.stdin)), indent="\t"))
