import pytest

from headrace.core import InvalidArgumentError, check_name, check_version


@pytest.mark.parametrize("name", ["a", "7", "fraud-v2_x.y", "A" * 128])
def test_a_name_that_fits_a_path_is_returned(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "-a", "a/b", "a b", "a\n", "ä", "A" * 129])
def test_any_other_name_is_refused_and_quoted(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^endpoint name '.*' is not allowed: use 1 to"):
        check_name(name, kind="endpoint")


def test_a_long_name_is_not_repeated_whole() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_name("x" * 10_000)

    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("version", ["0", "1", "007", "9" * 18])
def test_a_whole_number_is_a_version(version: str) -> None:
    assert check_version(version) == version


@pytest.mark.parametrize("version", ["", "v1", "1.0", "-1", " 1", "1\n", "٣", "9" * 19])
def test_anything_else_is_no_version(version: str) -> None:
    with pytest.raises(InvalidArgumentError, match="use a whole number"):
        check_version(version)
