"""The promises that every broker keeps: derive from it, with a fixture `rig`."""

from tests.contract.brokers.suite_asking import Asking
from tests.contract.brokers.suite_members import Members
from tests.contract.brokers.suite_records import Records


class BrokerContract(Records, Members, Asking):
    """All of them.

    `Rig.cannot` names the tests (without what stands in brackets) that a server cannot pass, and
    why; they are skipped.
    """
