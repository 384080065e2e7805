"""How much may come now, at a steady rate? A bucket of tokens; the caller brings the time."""

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Bucket:
    """Tokens come at `rate` a second until `size` are there; it begins full.

    What is known only afterwards may be taken too: then tokens are owed, and nothing is given until
    they came. Time never runs backwards here: an earlier `now` is the latest.
    """

    rate: float
    size: float
    at: float
    tokens: float = 0.0

    def __post_init__(self) -> None:
        self.tokens = self.size

    def refill(self, now: float) -> None:
        """Add what came until `now`."""
        if now > self.at:
            self.tokens = min(self.size, self.tokens + (now - self.at) * self.rate)
            self.at = now

    def change(self, *, rate: float, size: float) -> None:
        """Go on with other figures; what is there stays, as far as it fits."""
        self.rate, self.size = rate, size
        self.tokens = min(self.tokens, size)

    def wait_s(self, amount: float) -> float:
        """Seconds until `amount` tokens, `size` at most, are there; 0 if they are."""
        return max(min(amount, self.size) - self.tokens, 0.0) / self.rate

    def take(self, amount: float) -> None:
        """Take `amount`, owing what is not there; a negative amount gives back."""
        self.tokens = min(self.size, self.tokens - amount)
