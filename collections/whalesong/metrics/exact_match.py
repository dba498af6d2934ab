"""Generated token ids beside the true ones: whole rows, and position by position."""

from typing import Any


class ExactMatch:
    """Share of rows whose `ids` equal `target_ids` at every position, ends and padding included."""

    def __init__(self) -> None:
        self.reset()

    def update(self, rows: list[dict[str, Any]]) -> None:
        """Count rows that have `ids` and `target_ids`."""
        for row in _with_truth(rows):
            self._num_rows += 1
            self._num_right += row["ids"] == row["target_ids"]

    def totals(self) -> list[float]:
        """Right rows, all rows."""
        return [float(self._num_right), float(self._num_rows)]

    def compute(self, totals: list[float]) -> dict[str, float]:
        """`exact_match`; nothing without a row."""
        right, rows = totals
        return {"exact_match": right / rows} if rows else {}

    def reset(self) -> None:
        """Forget all counts."""
        self._num_right = self._num_rows = 0


class TokenAccuracy:
    """Mean over rows of the share of positions of `target_ids` at which `ids` has the same."""

    def __init__(self) -> None:
        self.reset()

    def update(self, rows: list[dict[str, Any]]) -> None:
        """Count rows that have `ids` and `target_ids`."""
        for row in _with_truth(rows):
            pairs = zip(row["ids"], row["target_ids"], strict=False)
            self._num_rows += 1
            self._shares += sum(a == b for a, b in pairs) / max(len(row["target_ids"]), 1)

    def totals(self) -> list[float]:
        """Sum of the shares, rows."""
        return [self._shares, float(self._num_rows)]

    def compute(self, totals: list[float]) -> dict[str, float]:
        """`token_accuracy`; nothing without a row."""
        shares, rows = totals
        return {"token_accuracy": shares / rows} if rows else {}

    def reset(self) -> None:
        """Forget all counts."""
        self._num_rows, self._shares = 0, 0.0


def _with_truth(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if "target_ids" in row]
