#!/usr/bin/env python3
"""The Docker seccomp profile in which bubblewrap can start: Docker's published default, plus the rules below.

    tools/deploy/seccomp.py DEFAULT.json > tools/deploy/seccomp.json

DEFAULT.json is profiles/seccomp/default.json of github.com/moby/moby; in Debian it is in the package
golang-github-docker-docker-dev. The profile beside this script was made from Debian 13's (Docker 26.1.5).

Each rule was found by trying: tests/hosts/test_seccomp.py takes one away and sees a start fail.
"""

import json
import sys
from typing import Any

CLONE_NEWUSER = 0x10000000
# A namespace may only be made together with a user namespace of its own: the kernel then asks for no capability, and
# gives none over the container's other namespaces.
WITH_NEW_USER = {"index": 0, "value": CLONE_NEWUSER, "valueTwo": CLONE_NEWUSER, "op": "SCMP_CMP_MASKED_EQ"}
# On s390 the flags of clone are its second argument. Nobody has run this there.
NOT_S390 = {"excludes": {"arches": ["s390", "s390x"]}}
ADDED: list[dict[str, Any]] = [
    {"names": ["clone"], "args": [WITH_NEW_USER], **NOT_S390, "comment": "the sandbox's namespaces"},
    {
        "names": ["unshare"],
        "args": [WITH_NEW_USER],
        "comment": "a second user namespace, in which no third can be made",
    },
    # Of these the kernel asks CAP_SYS_ADMIN in the user namespace that owns the mounts or the name: a process of the
    # container has it in a sandbox's only.
    {"names": ["mount"], "comment": "the sandbox's file system"},
    {"names": ["umount2"], "comment": "the container's file system leaves the sandbox"},
    {"names": ["pivot_root"], "comment": "the sandbox's root"},
    {"names": ["sethostname"], "comment": "the sandbox's own name; the profile `container` does without"},
]


def for_bubblewrap(default: dict[str, Any], added: list[dict[str, Any]] = ADDED) -> dict[str, Any]:
    """Docker's default profile with rules that allow more. Pure."""
    rules = [{**rule, "action": "SCMP_ACT_ALLOW"} for rule in added]
    return {**default, "syscalls": [*default["syscalls"], *rules]}


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        print(json.dumps(for_bubblewrap(json.load(file)), indent="\t"))
