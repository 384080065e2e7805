import io

from headrace.cli.base.output import TransferView


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def told(stream: io.StringIO, *, times: list[float], total: int = 1000) -> str:
    view = TransferView(stream)
    for step, now in enumerate(times):
        view.update("uploading m", total * (step + 1) // len(times), total, now=now)
    return stream.getvalue()


def test_what_takes_less_than_two_seconds_is_not_shown() -> None:
    assert told(Terminal(), times=[0.0, 1.0, 1.9]) == ""


def test_a_terminal_sees_one_line_that_changes() -> None:
    text = told(Terminal(), times=[0.0, 1.0, 2.0, 2.1, 3.0])

    assert text.count("\n") == 1
    assert text.endswith("uploading m: 1 kB of 1 kB, 333 B/s\n")
    assert text.count("\r") == 2


def test_a_log_gets_a_line_each_ten_seconds() -> None:
    text = told(io.StringIO(), times=[float(second) for second in range(31)])

    assert len(text.splitlines()) == 4
    assert "\r" not in text


def test_each_transfer_has_its_own_two_seconds() -> None:
    stream = Terminal()
    view = TransferView(stream)
    view.update("uploading a", 5, 10, now=0.0)
    view.update("uploading b", 5, 10, now=3.0)

    assert stream.getvalue() == ""


def test_transfer_of_unknown_size_shows_what_is_done() -> None:
    stream = Terminal()
    view = TransferView(stream)
    for now in (0.0, 2.0, 4.0):
        view.update("downloading m", 2000, None, now=now)

    assert stream.getvalue().endswith("downloading m: 2 kB, 500 B/s")
