import os
import signal
import threading

import pytest

from shrinkage.cli.signals import Stopped, stoppable


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signals_become_an_exception_that_nothing_swallows(signum: signal.Signals) -> None:
    with pytest.raises(Stopped) as caught, stoppable():
        try:
            os.kill(os.getpid(), signum)
            signal.pause()
        except Exception:  # what cleanup code does
            pytest.fail("taken for an ordinary error")
    assert caught.value.signum == signum


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stoppable():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_leave_the_handlers_alone() -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with stoppable():
                pass
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []
