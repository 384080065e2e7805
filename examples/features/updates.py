"""What changes about customers, one line of JSON each: as a stream would bring it.

python updates.py CUSTOMER AVERAGE_AMOUNT [COUNT] | headrace features push purchases -
"""

import json
import sys
import time
from datetime import UTC, datetime


def main(customer: int, average: float, count: int = 3) -> None:
    """Print `count` updates, one each tenth of a second."""
    for purchases in range(1, count + 1):
        row = {
            "customer_id": customer,
            "event_timestamp": datetime.now(UTC).isoformat(),
            "average_amount": average,
            "purchases_30d": purchases,
        }
        print(json.dumps(row), flush=True)
        time.sleep(0.1)


if __name__ == "__main__":
    customer, average, *count = sys.argv[1:]
    main(int(customer), float(average), *map(int, count))
