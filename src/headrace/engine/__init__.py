"""Engine of one replica: admit, queue, batch, run, split. Imports `runtimes` and below."""

from headrace.engine.accounts import Accounts
from headrace.engine.collate import PaddingPlan, padding_plan
from headrace.engine.engine import Engine, usable_cores
from headrace.engine.queue import BatchQueue
from headrace.engine.row_check import RowChecker
from headrace.engine.run import Batch
from headrace.engine.service_time import ServiceTimes
from headrace.engine.ticket import Outcome, Ticket, TicketState
from headrace.engine.warmup import warm_up

__all__ = [
    "Accounts",
    "Batch",
    "BatchQueue",
    "Engine",
    "Outcome",
    "PaddingPlan",
    "RowChecker",
    "ServiceTimes",
    "Ticket",
    "TicketState",
    "padding_plan",
    "usable_cores",
    "warm_up",
]
