"""Reading traces: what strace writes becomes events, and nothing that a traced process writes becomes one."""

import io

from hypothesis import given
from hypothesis import strategies as st

from modelops.review.strace import LINE_BYTES, Event, Reader, lines_of, split_arguments, strings, unquote


def read(text: bytes | str) -> tuple[list[Event], Reader]:
    reader = Reader()
    data = text if isinstance(text, bytes) else text.encode()
    return list(reader.events(lines_of(io.BytesIO(data)))), reader


def test_a_call_its_arguments_result_and_time() -> None:
    line = '7     1795616721.606717 openat(AT_FDCWD</work>, "data.csv", O_RDONLY|O_CLOEXEC) = 3</work/data.csv> '
    line += "<0.000021>\n"
    [event], _ = read(line)
    assert (event.pid, event.time, event.kind, event.name) == (7, 1795616721.606717, "call", "openat")
    assert (event.result, event.error, event.seconds) == (3, "", 0.000021)
    assert split_arguments(event.arguments) == ["AT_FDCWD</work>", '"data.csv"', "O_RDONLY|O_CLOEXEC"]


def test_a_refusal_has_the_name_of_its_errno() -> None:
    [event], _ = read("7 1.5 unshare(CLONE_NEWUSER) = -1 EPERM (Operation not permitted) <0.000001>\n")
    assert (event.result, event.error) == (-1, "EPERM")


def test_a_call_that_others_interrupted_is_put_together() -> None:
    text = "7 1.0 vfork( <unfinished ...>\n8 1.1 getuid() = 0\n"
    text += "7 1.2 <... vfork resumed>) = 3 /* 8 in strace's PID NS */ <0.2>\n"
    events, reader = read(text)
    assert [(event.pid, event.name, event.time, event.child) for event in events] == [
        (8, "getuid", 1.1, 0), (7, "vfork", 1.0, 8),
    ]  # fmt: skip
    assert reader.counts.unread == 0 and not reader.begun


def test_ends_and_signals() -> None:
    events, _ = read(
        "7 1.0 +++ exited with 3 +++\n8 1.0 +++ killed by SIGKILL +++\n9 1.0 --- SIGCHLD {si_signo=SIGCHLD} ---\n"
    )
    assert [(event.kind, event.name, event.result) for event in events] == [
        ("exit", "", 3), ("killed", "SIGKILL", None), ("signal", "SIGCHLD", None),
    ]  # fmt: skip


def test_what_a_process_writes_is_no_syntax() -> None:
    """A path with a whole line of strace in it, as strace quotes it."""
    line = r'7 1.0 openat(AT_FDCWD</a) = 0>, "x\") = -1 EPERM (no)\n8 1.0 connect(3, \"", O_RDONLY) '
    line += "= 4</b) = -1 EPERM> <0.1>"
    [event], _ = read(line)
    assert (event.result, event.error) == (4, "")
    assert strings(event.arguments) == [b'x") = -1 EPERM (no)\n8 1.0 connect(3, "']
    assert len(split_arguments(event.arguments)) == 3


def test_an_endless_line_is_cut_and_the_next_one_is_read() -> None:
    data = b"7 1.0 write(1, " + b"x" * (3 * LINE_BYTES) + b"\n7 2.0 getuid() = 0\n"
    events, reader = read(data)
    assert [event.name for event in events] == ["getuid"] and reader.counts.unread == 1


def test_what_is_no_line_is_counted() -> None:
    events, reader = read("\n???\n7 x y\n7 1.0 \n7 1.0 <... read resumed>) = 0\n7 1.0 open(\n\xff\n")
    assert events == [] and reader.counts.unread == reader.counts.lines == 7


@given(st.binary(max_size=400))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    read(data)
    read(b"7 1.0 " + data)
    read(b"7 1.0 open(" + data + b") = 3\n")


@given(st.binary(max_size=60))
def test_a_string_is_given_back_as_it_was(data: bytes) -> None:
    """Octal escapes, as strace writes them where the next character is a digit as well."""
    quoted = "".join(f"\\{byte:03o}" if byte < 32 or byte > 126 or byte in b'"\\' else chr(byte) for byte in data)
    assert unquote(quoted) == data
