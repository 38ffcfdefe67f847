"""Tensors there and back."""

from __future__ import annotations

import gc
import threading
import time

import genie
import numpy as np
import pytest


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "int32", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4)])
def test_what_is_put_is_got(session: genie.Session, dtype: str, shape: tuple[int, ...]) -> None:
    data = (np.random.default_rng(1).random(shape) * 100).astype(dtype)
    tensor = session.put(data)
    assert tensor.shape == shape
    back = session.get(tensor)
    assert back.shape == shape and back.dtype == tensor.dtype
    array = np.asarray(back)
    assert array.dtype == data.dtype
    np.testing.assert_array_equal(array, data)


def test_large_ones_travel_in_slices(session: genie.Session) -> None:
    data = np.random.default_rng(2).standard_normal((3000, 1001), dtype=np.float32)
    seen: list[tuple[int, int]] = []
    tensor = session.put(data, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (data.nbytes, data.nbytes)
    up, _ = session.traffic()
    assert up >= data.nbytes
    for _ in range(3):
        np.testing.assert_array_equal(session.get(tensor).numpy(), data)


def test_an_array_shares_its_memory(session: genie.Session) -> None:
    back = session.get(session.put(np.arange(6, dtype=np.float32).reshape(2, 3)))
    first, second = np.asarray(back), np.from_dlpack(back)
    first[0, 0] = 42
    assert second[0, 0] == 42 and memoryview(back)[0, 0] == 42
    del back
    gc.collect()
    assert first[0, 0] == 42


def test_the_memory_of_an_array_is_not_copied() -> None:
    data = np.arange(10, dtype=np.int32)
    seen = genie.asarray(data)
    data[3] = 99
    assert np.asarray(seen)[3] == 99
    bits = genie.asarray(data, "f32")
    assert bits.dtype == "f32" and bits.shape == (10,)
    assert genie.asarray(data, "u8").shape == (40,)
    assert genie.asarray(data, shape=[2, 5]).shape == (2, 5)


def test_what_cannot_be_sent_says_why(session: genie.Session) -> None:
    for data, word in [
        (np.zeros(3), "astype"),
        (np.zeros((4, 4), np.float32)[:, ::2], "ascontiguousarray"),
        (np.zeros((4, 4), np.float32).T[1:], "ascontiguousarray"),
        (np.zeros(0, np.float32), "0"),
        (np.zeros(3, ">f4"), "little-endian"),
        (np.zeros(3, np.uint32), "cannot be sent"),
        (object(), "buffer protocol"),
        (np.zeros((1,) * 9, np.float32), "rank"),
    ]:
        with pytest.raises(genie.BadInput, match=word):
            session.put(data)
    with pytest.raises(genie.BadInput, match="bytes"):
        genie.asarray(b"12345", "i32")


def test_numbers_and_lists_of_them(session: genie.Session) -> None:
    assert session.get(session.put([[1, 2], [3, 4]])).tolist() == [[1, 2], [3, 4]]
    assert session.get(session.put([1.5, 2.5])).dtype == "f32"
    assert session.get(session.put(7)).shape == ()
    assert session.get(session.put([True, False])).tolist() == [True, False]
    with pytest.raises(genie.BadInput, match="equal length"):
        session.put([[1], [2, 3]])


def test_bf16_goes_by_bits(session: genie.Session) -> None:
    bits = np.array([0x3F80, 0x4000], np.uint16)
    back = session.get(session.put(bits, dtype="bf16"))
    assert back.dtype == "bf16" and back.tobytes() == bits.tobytes()
    with pytest.raises(BufferError, match="bf16"):
        memoryview(back)


def test_names_and_weights(session: genie.Session, server: object) -> None:
    data = np.random.default_rng(3).standard_normal(500_000).astype(np.float32)
    session.put(data, weight=True, name="a-weight")
    with genie.connect(session.uri) as other:
        np.testing.assert_array_equal(other.get(other.lookup("a-weight")).numpy(), data)
        before = other.traffic()[0]
        other.put(data, weight=True)
        assert other.traffic()[0] - before < 10_000, "the server has it"
        with pytest.raises(genie.NotFound) as caught:
            other.lookup("no such name")
        assert caught.value.code == "NoSuchName" and caught.value.took_effect is False


def test_tensors_are_freed_with_their_last_reference(session: genie.Session) -> None:
    free = lambda: session.devices()[0].free_bytes
    session.ping()
    before = free()
    tensor = session.put(np.zeros(1 << 22, np.float32))
    assert free() <= before - (1 << 24)
    del tensor
    session.ping()
    until = time.monotonic() + 30
    while free() < before and time.monotonic() < until:
        time.sleep(0.01)
    assert free() >= before
    tensor = session.put([1.0])
    tensor.free()
    with pytest.raises(genie.BadInput, match="freed"):
        session.get(tensor)


def test_threads_share_a_session(session: genie.Session) -> None:
    failed: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            rng = np.random.default_rng(seed)
            for _ in range(20):
                data = rng.standard_normal(int(rng.integers(1, 300_000))).astype(np.float32)
                np.testing.assert_array_equal(session.get(session.put(data)).numpy(), data)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_a_closed_session_says_so(server: object) -> None:
    session = genie.connect(server.uri)  # type: ignore[attr-defined]
    tensor = session.put([1.0])
    session.close()
    assert session.closed
    session.close()
    with pytest.raises(genie.SessionLost, match="closed"):
        session.get(tensor)


def test_another_sessions_tensor_is_refused(session: genie.Session) -> None:
    tensor = session.put([1.0])
    with genie.connect(session.uri) as other, pytest.raises(genie.BadInput, match="another session"):
        other.get(tensor)
