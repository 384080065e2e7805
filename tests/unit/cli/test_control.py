"""`headrace control`: what is wrong on its command line is told before anything starts."""

from pathlib import Path

import pytest

from headrace.cli import main


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--kube-url", "nonsense"], "--kube-url: 'nonsense' is not http[s]://HOST[:PORT]"),
        (["--kube-url", "ftp://a"], "--kube-url: 'ftp://a' is not"),
        (["--kube-url", "http://"], "--kube-url: 'http://' is not"),
        (["--kube-url", "http://a:port"], "--kube-url: 'http://a:port' is not"),
        (["--owner", "mine"], "--owner: 'mine' is not Deployment/NAME, ConfigMap/NAME or"),
        (["--owner", "Pod/x"], "--owner: 'Pod/x' is not Deployment"),
        (["--namespace", "A B"], "--namespace: namespace 'A B'"),
        (["--instance", "-x"], "--instance: instance '-x'"),
    ],
)
def test_what_no_cluster_takes_is_refused_at_once(
    tmp_path: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    home = ["--home", str(tmp_path)]

    assert main(["control", "--driver", "kubernetes", *arguments, *home]) == 2

    assert told in capsys.readouterr().err
