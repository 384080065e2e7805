"""Make customers and their payments, join what was known at each, and train on that.

Usage: python train.py [FOLDER]

It writes purchases.parquet (what became known of customers, and when), payments.parquet (what was
paid, and whether it was fraud), and fraud.json, a model of XGBoost.
"""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import xgboost

from headrace.features import join_as_of, read_definitions

CUSTOMERS, DAYS, PAYMENTS = 300, 60, 6000
FRAUD_RATIO, LIKELY = 0.1, 0.5
COLUMNS = ["average_amount", "purchases_30d", "amount"]


def main(folder: Path) -> None:
    """Write the data, train, and say how well it went on the last fifth of the payments."""
    random = np.random.default_rng(7)
    now = datetime.now(UTC)
    usual = random.lognormal(3.0, 1.0, CUSTOMERS)  # what each of them spends at a time
    write_purchases(folder / "purchases.parquet", random, usual, now)
    payments = make_payments(random, usual, now)
    payments.write_parquet(folder / "payments.parquet")

    # The same definitions that serving uses: no value that was not known yet gets in.
    service = read_definitions(folder / "features.yaml").service("fraud")
    known = join_as_of(payments, service, fill_defaults=True)
    table = known.sort("event_timestamp").select(*COLUMNS, "fraud")
    split = len(table) * 4 // 5
    train, test = table[:split], table[split:]
    booster = xgboost.train(
        {"objective": "binary:logistic", "max_depth": 4, "seed": 7},
        matrix(train),
        num_boost_round=40,
    )
    booster.save_model(folder / "fraud.json")
    right = (booster.predict(matrix(test)) > LIKELY) == test["fraud"].to_numpy().astype(bool)
    print(f"fraud.json: {right.mean():.1%} of {len(test)} later payments are told right")


def write_purchases(
    path: Path, random: np.random.Generator, usual: np.ndarray, now: datetime
) -> None:
    """What was known of each customer at the end of each day."""
    days = np.repeat(np.arange(DAYS), CUSTOMERS)
    customers = np.tile(np.arange(CUSTOMERS), DAYS)
    wobble = random.normal(1.0, 0.05, len(days))
    pl.DataFrame(
        {
            "customer_id": customers,
            "event_timestamp": [now - timedelta(days=float(DAYS - day - 1)) for day in days],
            "average_amount": (usual[customers] * wobble).astype(np.float32),
            "purchases_30d": random.poisson(12, len(days)),
        }
    ).write_parquet(path)


def make_payments(random: np.random.Generator, usual: np.ndarray, now: datetime) -> pl.DataFrame:
    """Payments at any time; a tenth are fraud: far above what the customer spends."""
    customers = random.integers(0, CUSTOMERS, PAYMENTS)
    fraud = random.random(PAYMENTS) < FRAUD_RATIO
    times = np.where(fraud, random.uniform(4, 12, PAYMENTS), random.lognormal(0, 0.4, PAYMENTS))
    ages = random.uniform(0, DAYS - 1, PAYMENTS)
    return pl.DataFrame(
        {
            "customer_id": customers,
            "event_timestamp": [now - timedelta(days=float(age)) for age in ages],
            "amount": (usual[customers] * times).astype(np.float32),
            "fraud": fraud.astype(np.int64),
        }
    )


def matrix(table: pl.DataFrame) -> xgboost.DMatrix:
    """The columns in the model's order, which its file keeps."""
    rows = table.select(COLUMNS).to_numpy().astype(np.float32)
    return xgboost.DMatrix(rows, table["fraud"].to_numpy(), feature_names=COLUMNS)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
