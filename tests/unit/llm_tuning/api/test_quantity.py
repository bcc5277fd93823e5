from __future__ import annotations

from decimal import Decimal

import pytest

from llm_tuning.api.quantity import parse_quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500m", Decimal("0.5")),
        ("0.5", Decimal("0.5")),
        ("2", Decimal(2)),
        (2, Decimal(2)),
        ("250u", Decimal("0.00025")),
        ("100n", Decimal("0.0000001")),
        ("1k", Decimal(1000)),
        ("1Ki", Decimal(1024)),
        ("1.5Gi", Decimal(3 * 2**29)),
        ("4G", Decimal(4 * 10**9)),
        ("1E", Decimal(10**18)),
        ("1Ei", Decimal(2**60)),
    ],
)
def test_every_unit_of_kubernetes_is_read_exactly(text: object, value: Decimal) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize("text", ["", "Gi", "1 Gi", "1gi", "-1", "1K", "nan", "1e", None])
def test_what_is_no_quantity_is_named(text: object) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        parse_quantity(text)
