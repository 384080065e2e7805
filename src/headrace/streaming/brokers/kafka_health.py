"""Is a cluster there? What its clients meet, told to people, and whether a member can go on."""

import json

from confluent_kafka import KafkaError

from headrace.core import HeadraceError
from headrace.streaming.brokers.kafka_errors import (
    ALL_BROKERS_DOWN,
    AUTHENTICATION,
    CONNECTION,
    failure,
)


class Health:
    """Hears of a member's clients, within their `poll`.

    `over`: why the member can go on no more.
    """

    def __init__(self, address: str) -> None:
        self.over: HeadraceError | None = None
        self._address = address
        self._is_away = False
        self._reason = ""

    @property
    def trouble(self) -> str:
        """Why nothing comes or goes, for people; empty if the cluster is there."""
        if not self._is_away:
            return ""
        return self._reason or f"Kafka at {self._address} does not answer"

    def answered(self) -> None:
        """Something came, or was kept: it is there."""
        self._is_away = False

    def ends(self, error: HeadraceError) -> None:
        """The member is over; the first reason counts."""
        if self.over is None:
            self.over = error

    def failed(self, error: KafkaError) -> None:
        """A client met an error; most pass by themselves."""
        code = error.code()
        if error.fatal():
            self.ends(failure(error, doing="go on as a member", address=self._address))
        elif code in CONNECTION:
            self._reason = f"Kafka at {self._address}: {error.str()}"
            self._is_away = self._is_away or code == AUTHENTICATION
        elif code == ALL_BROKERS_DOWN:
            self._is_away = True

    def counted(self, statistics: str) -> None:
        """The client's state of each second: nothing else says that a server is back."""
        if not self._is_away:
            return
        servers = json.loads(statistics)["brokers"].values()
        self._is_away = not any(one["state"] == "UP" for one in servers)
