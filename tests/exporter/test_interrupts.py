"""Ctrl-C is deferred to the end of a block."""

from __future__ import annotations

import signal

import pytest

from neuroglot_exporter.interrupts import ctrl_c_held_back


def test_ctrl_c_comes_at_the_end_of_the_block() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt):
        with ctrl_c_held_back():
            signal.raise_signal(signal.SIGINT)
            done.append("block")
        done.append("after it")
    assert done == ["block"]


def test_without_ctrl_c_nothing_happens() -> None:
    before = signal.getsignal(signal.SIGINT)
    with ctrl_c_held_back():
        pass
    assert signal.getsignal(signal.SIGINT) is before
