"""A Ctrl-C that Python swallows in a finalizer is still noticed."""

from __future__ import annotations

import signal
import weakref

import pytest

from wamserve.sim_eval.interrupt import noticed


class Thing: ...


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupt_swallowed_by_a_finalizer_is_raised_at_the_next_look():
    usual = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with noticed() as check:
            check()
            thing = Thing()
            finalizer = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
            del thing
            assert finalizer() is None
            with pytest.raises(KeyboardInterrupt):
                check()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, usual)
