"""How is a metric drawn on an axis? Where no difference is, which way is worse, the marks."""

from dataclasses import dataclass

from headrace.core.text import number_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruler:
    """How metrics of one unit are drawn; `name` says what stands on the axis."""

    unit: str

    @property
    def neutral(self) -> float:
        """Where the versions do not differ."""
        return 1.0 if self.unit == "times" else 0.0

    @property
    def is_less_worse(self) -> bool:
        """Whether what is tolerated lies below: more reward is better, of all else less is."""
        return self.unit == "reward"

    @property
    def name(self) -> str:
        """What stands on the axis, with its unit."""
        match self.unit:
            case "ratio difference":
                return "difference in percentage points"
            case "ratio":
                return "share in %"
            case "times":
                return "times the old version's"
            case _:
                return f"difference in {self.unit}" if self.unit else "difference"

    def tolerated(self, margin: float | None) -> float | None:
        """Where on the axis a margin ends."""
        return -margin if self.is_less_worse and margin is not None else margin

    def mark(self, value: float) -> str:
        """The label of a mark."""
        scaled = 100 * value if self.unit.startswith("ratio") else value
        text = number_text(scaled)
        return f"{text}\u00d7" if self.unit == "times" else text
