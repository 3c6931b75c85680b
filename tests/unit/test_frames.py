"""The result pipe: frames come out as they went in however they are cut, and noise is an error."""

import itertools
import json
import os
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

LIMIT = 1 << 20


def frame(kind: bytes, name: str = "", body: bytes = b"") -> bytes:
    label = name.encode()
    return kind + struct.pack(">IQ", len(label), len(body)) + label + body


def error_body(**changes: Any) -> bytes:
    report = {
        "type": "task_exception",
        "exception": {"type": "E", "message": "m"},
        "traceback": "t",
        **changes,
    }
    return json.dumps(report).encode()


class Recorder:
    """A receiver that keeps everything."""

    def __init__(self) -> None:
        self.found: list[tuple[bytes, str, bytes]] = []

    def note(self, name: str, body: bytes) -> None:
        self.found.append((b"N", name, body))

    def opened(self, name: str, size: int) -> None:
        self.name, self.size, self.body = name, size, b""

    def data(self, chunk: bytes) -> None:
        self.body += chunk

    def closed(self) -> None:
        assert len(self.body) == self.size
        self.found.append((b"O", self.name, self.body))


def feed(module: Any, stream: bytes, cuts: list[int] | None = None, limit: int = LIMIT) -> tuple[Any, Recorder]:
    receiver = Recorder()
    frames = module.Frames(receiver, limit)
    places = [0, *sorted(cuts or []), len(stream)]
    for start, end in itertools.pairwise(places):
        frames.feed(stream[start:end])
    return frames, receiver


payloads = st.lists(st.tuples(st.sampled_from([b"O", b"N"]), st.text(max_size=20), st.binary(max_size=50)), max_size=5)


@given(payloads, st.binary(max_size=50), st.data())
def test_any_cutting_of_a_stream_gives_the_same(
    runner_module: Any, items: list[tuple[bytes, str, bytes]], done: bytes, data: st.DataObject
) -> None:
    stream = frame(b"S") + b"".join(frame(*item) for item in items) + frame(b"D", "last", done)
    cuts = data.draw(st.lists(st.integers(0, len(stream))))
    frames, receiver = feed(runner_module, stream, cuts)
    assert receiver.found == items
    assert (frames.done, frames.name, frames.error) == (done, "last", None)
    assert frames.started > 0 and frames.total == len(stream)


def test_byte_by_byte(runner_module: Any) -> None:
    stream = frame(b"O", "näme", b"body") + frame(b"O", "empty") + frame(b"D")
    frames, receiver = feed(runner_module, stream, list(range(len(stream))))
    assert receiver.found == [(b"O", "näme", b"body"), (b"O", "empty", b"")]
    assert frames.done == b""


@given(st.binary(), st.lists(st.integers(0, 300)))
def test_noise_raises_nothing_but_its_two_errors(runner_module: Any, noise: bytes, cuts: list[int]) -> None:
    try:
        frames, _ = feed(runner_module, noise, [cut for cut in cuts if cut <= len(noise)])
    except (runner_module.Failure, runner_module.OutputLimit) as error:
        assert getattr(error, "phase", "result") == "result"
    else:
        assert frames.done is None or noise[:1] in b"ONSD"


@given(st.sampled_from([b"O", b"N", b"E", b"S", b"D"]), st.binary(max_size=30), st.binary(max_size=30))
def test_noise_in_a_frame_raises_nothing_but_its_two_errors(
    runner_module: Any, kind: bytes, name: bytes, body: bytes
) -> None:
    stream = kind + struct.pack(">IQ", len(name), len(body)) + name + body
    try:
        feed(runner_module, stream)
    except (runner_module.Failure, runner_module.OutputLimit) as error:
        assert getattr(error, "phase", "result") == "result"


def test_what_follows_the_end_is_not_read(runner_module: Any) -> None:
    stream = frame(b"O", "a", b"1") + frame(b"D") + frame(b"O", "b", b"2") + b"noise" * 100
    _, receiver = feed(runner_module, stream)
    assert receiver.found == [(b"O", "a", b"1")]


def test_an_output_over_the_limit_is_refused_by_its_announced_size(runner_module: Any) -> None:
    header = b"O" + struct.pack(">IQ", 1, 101) + b"x"
    with pytest.raises(runner_module.OutputLimit) as caught:
        feed(runner_module, header, limit=100)
    assert caught.value.seen == 101
    feed(runner_module, b"O" + struct.pack(">IQ", 1, 100) + b"x", limit=100)


@pytest.mark.parametrize("size", [2**64 - 1, 1 << 40])
@pytest.mark.parametrize("kind", [b"E", b"N", b"D", b"S"])
def test_a_control_message_is_refused_by_its_announced_size(runner_module: Any, kind: bytes, size: int) -> None:
    with pytest.raises(runner_module.Failure, match=str(size)):
        feed(runner_module, kind + struct.pack(">IQ", 0, size))


@pytest.mark.parametrize("length", [4097, 2**32 - 1])
def test_a_name_is_refused_by_its_announced_size(runner_module: Any, length: int) -> None:
    with pytest.raises(runner_module.Failure, match="4096"):
        feed(runner_module, b"O" + struct.pack(">IQ", length, 0))


def test_a_name_that_is_not_utf8_is_refused(runner_module: Any) -> None:
    with pytest.raises(runner_module.Failure, match="UTF-8"):
        feed(runner_module, b"O" + struct.pack(">IQ", 1, 0) + b"\xff")


@pytest.mark.parametrize("kind", [b"X", b"\0", b"o"])
def test_an_unknown_kind_is_refused(runner_module: Any, kind: bytes) -> None:
    with pytest.raises(runner_module.Failure, match="not a frame"):
        feed(runner_module, frame(kind))


def test_an_error_is_kept_with_the_fields_of_the_contract_alone(runner_module: Any) -> None:
    frames, _ = feed(runner_module, frame(b"E", "", error_body(extra=1)))
    assert frames.error == {
        "type": "task_exception", "exception": {"type": "E", "message": "m"}, "traceback": "t",
    }  # fmt: skip


REPORTS = {
    "noise": b"\xff\xff",
    "list": b"[]",
    "deep": b"[" * 100_000,
    "foreign type": error_body(type="timeout"),
    "type is a list": error_body(type=[]),
    "no exception": error_body(exception=None),
    "exception is a string": error_body(exception="E"),
    "message is a number": error_body(exception={"type": "E", "message": 1}),
    "traceback is missing": b'{"type": "task_exception", "exception": {"type": "E", "message": "m"}}',
}


@pytest.mark.parametrize("body", REPORTS.values(), ids=REPORTS.keys())
def test_an_error_report_that_is_none_is_refused(runner_module: Any, body: bytes) -> None:
    with pytest.raises(runner_module.Failure) as caught:
        feed(runner_module, frame(b"E", "", body))
    assert (caught.value.phase, caught.value.type) == ("result", "bad_result")


def test_the_texts_of_an_error_are_bounded_and_can_be_encoded(runner_module: Any) -> None:
    body = error_body(exception={"type": "E" * 5000, "message": "\ud800" + "m" * 100_000}, traceback="t" * 100_000)
    frames, _ = feed(runner_module, frame(b"E", "", body))
    assert len(frames.error["exception"]["type"]) == 256
    for text in (frames.error["exception"]["message"], frames.error["traceback"]):
        assert len(text.encode()) < 70_000


def test_the_childs_end_and_the_hosts_end_agree(runner_module: Any, tmp_path: Any) -> None:
    (tmp_path / "file").write_bytes(b"from a file")
    reading, writing = os.pipe()
    pipe = runner_module.ResultPipe(writing)
    pipe.send(runner_module.STARTED)
    pipe.send(runner_module.OUTPUT, "näme", b"body")
    pipe.send_file("file", str(tmp_path / "file"))
    pipe.send(runner_module.NOTE, "note", b"text")
    pipe.send(runner_module.DONE, "end", b"{}")
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        frames, receiver = feed(runner_module, file.read())
    assert receiver.found == [
        (b"O", "näme", b"body"),
        (b"O", "file", b"from a file"),
        (b"N", "note", b"text"),
    ]
    assert (frames.done, frames.name) == (b"{}", "end")


def no_caches(module: Any) -> Any:
    return module.CachePolicy([], 0, 0)


def outputs(module: Any, names: list[str], out_dir: str | None = None, inline_max: int = 10) -> Any:
    receiver = module.Outputs(out_dir, inline_max, no_caches(module))
    frames = module.Frames(receiver, LIMIT)
    for name in names:
        frames.feed(frame(b"O", name, b"data of " + name.encode()))
    return receiver


@pytest.mark.parametrize("name", ["a", "a.b c", "ü", "..a", "a" * 255, "a:b", "-x", ".hidden", "\U0001f600"])
def test_good_output_names(runner_module: Any, name: str) -> None:
    assert list(outputs(runner_module, [name]).found) == [name]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/", "../x", "a\\b", "a\0", "a\nb", "\x1b", "a" * 256, "\u202e"]
)
def test_bad_output_names(runner_module: Any, name: str) -> None:
    with pytest.raises(runner_module.Failure) as caught:
        outputs(runner_module, [name])
    assert (caught.value.phase, caught.value.type) == ("result", "bad_output_name")


def test_an_output_may_come_once(runner_module: Any) -> None:
    with pytest.raises(runner_module.Failure, match="twice"):
        outputs(runner_module, ["a", "a"])


def test_large_outputs_go_to_files_named_by_their_checksum(runner_module: Any, tmp_path: Any) -> None:
    found = outputs(runner_module, ["x", "long name"], str(tmp_path)).found
    assert "inline" in found["x"] and "path" not in found["x"]
    path = tmp_path / found["long name"]["checksum"]
    assert found["long name"]["path"] == str(path) and "inline" not in found["long name"]
    assert path.read_bytes() == b"data of long name"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_partial_file_is_removed(runner_module: Any, tmp_path: Any) -> None:
    receiver = runner_module.Outputs(str(tmp_path), 0, no_caches(runner_module))
    frames = runner_module.Frames(receiver, LIMIT)
    frames.feed(frame(b"O", "a", b"0123456789")[:-3])
    assert len(list(tmp_path.iterdir())) == 1
    receiver.remove_partial()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_can_not_be_made_is_told(runner_module: Any, tmp_path: Any) -> None:
    receiver = runner_module.Outputs(str(tmp_path / "gone"), 0, no_caches(runner_module))
    with pytest.raises(runner_module.Failure) as raised:
        runner_module.Frames(receiver, LIMIT).feed(frame(b"O", "a", b"0123456789"))
    receiver.remove_partial()
    assert raised.value.type == "output_unwritable"


@pytest.mark.parametrize("kind", [b"N"])
def test_a_task_may_send_outputs_only(runner_module: Any, kind: bytes) -> None:
    with pytest.raises(runner_module.Failure):
        runner_module.Frames(runner_module.Outputs(None, 0, no_caches(runner_module)), LIMIT).feed(
            frame(kind, "a", b"b")
        )


AGGREGATIONS = [
    b"",
    b"{}",
    b"[]",
    b'{"loss": NaN}',
    b'{"loss": 1e999}',
    b'{"loss": "1"}',
    b'{"loss": true}',
    b'{"loss": null}',
    b'{"loss": 1, "metrics": {}}',
    b'{"loss": 1, "_fatal_error": {}}',
    b'{"loss": 1, "a": "\\ud800"}',
    b"\xff",
    b"[" * 100_000,
]


@pytest.mark.parametrize("body", AGGREGATIONS, ids=[ascii(body)[:30] for body in AGGREGATIONS])
def test_an_aggregation_result_is_checked_again_on_the_host(runner_module: Any, body: bytes) -> None:
    with pytest.raises(runner_module.Failure) as caught:
        runner_module.parse_aggregation(body)
    assert (caught.value.phase, caught.value.type) == ("result", "bad_result")


def test_the_loss_of_an_aggregation_is_a_float(runner_module: Any) -> None:
    result = runner_module.parse_aggregation(b'{"loss": 2, "more": [1]}')
    assert result == {"loss": 2.0, "more": [1]} and isinstance(result["loss"], float)


def test_an_output_that_breaks_off_keeps_no_descriptor(runner_module: Any, tmp_path: Any) -> None:
    """A server goes on after such a task: what each one held would add up."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        outputs = runner_module.Outputs(str(tmp_path), 4, no_caches(runner_module))
        runner_module.Frames(outputs, LIMIT).feed(b"O" + struct.pack(">IQ", 1, 100) + b"abeginning")
        outputs.remove_partial()
    assert len(os.listdir("/proc/self/fd")) == before and not os.listdir(tmp_path)
