"""Long texts are put together piece by piece."""

import threading
import tracemalloc

from mflux_api.system.long_texts import join_between_threads


def test_pieces_become_one_text_in_their_order() -> None:
    assert join_between_threads([lambda: "{a}", lambda: "", lambda: "b\N{CAT}"]) == "{a}b\N{CAT}"
    assert join_between_threads([]) == ""


def test_other_threads_run_between_two_pieces() -> None:
    begun, ran = threading.Event(), threading.Event()

    def first() -> str:
        begun.set()
        return "a"

    def second() -> str:
        return "b" if ran.wait(10) else "nothing ran"

    def other() -> None:
        begun.wait(10)
        ran.set()

    thread = threading.Thread(target=other)
    thread.start()
    text = join_between_threads([first, second])
    thread.join()
    assert text == "ab"


def test_text_grows_without_a_copy() -> None:
    """A join of the pieces would have everything twice."""
    piece = 64 * 1024
    tracemalloc.start()
    try:
        text = join_between_threads([lambda: "x" * piece] * 64)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(text) == 64 * piece
    assert peak < 1.3 * len(text)
