"""Stop requests."""

import os
import signal
import threading

import pytest

from asgkit.errors import StopRequested, StopSignal


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT")])
def test_a_signal_stops_at_the_next_check_and_the_old_handler_comes_back(number, name):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(StopRequested, match=name):
            stop.check()
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts_at_once():
    before = signal.getsignal(signal.SIGINT)  # a shell's background job starts with SIGINT ignored
    with pytest.raises(KeyboardInterrupt), StopSignal():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second Ctrl-C did not interrupt")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_ctrl_c_after_sigterm_is_still_the_first_one():
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reason == "SIGTERM"


def test_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), StopSignal():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_another_thread_only_request_sets_the_flag():
    seen: list[str] = []
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        with StopSignal() as stop:
            assert signal.getsignal(signal.SIGTERM) is before
            stop.check()
            stop.request("enough")
            try:
                stop.check()
            except StopRequested as error:
                seen.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["enough"]
