"""Write those files of the Helm chart that come from the code: alert rules and dashboards.

    python -m scripts.gen_chart

They are committed, so that the chart is whole in a checkout; a test fails when they are stale.
"""

from headrace.deploy.helm_values import chart_files, chart_folder


def main() -> None:
    """Write them over what is there."""
    for name, text in chart_files().items():
        path = chart_folder() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
