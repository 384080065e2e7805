"""How likely is it that a payment is fraud? Asks by the customer's number and the amount alone.

python ask.py CUSTOMER AMOUNT [URL]
"""

import sys

import numpy as np

from headrace.client import Client


def main(customer: int, amount: float, url: str = "http://127.0.0.1:8000") -> None:
    """Print the probability."""
    with Client(url) as client:
        answer = client.infer(
            "fraud",
            {
                "customer_id": np.array([customer], np.int64),
                "amount": np.array([amount], np.float32),
            },
        )
    print(f"{answer.outputs['probabilities'][0, 1]:.3f}")


if __name__ == "__main__":
    customer, amount, *url = sys.argv[1:]
    main(int(customer), float(amount), *url)
