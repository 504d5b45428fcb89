"""The table of what the service is compared with."""

from benchmarks.peers import MFLUX, MODEL_PER_REQUEST, SERVICE, table


def test_ratios_are_to_the_service_and_a_way_that_failed_is_said_to_have() -> None:
    ways = {SERVICE: {"256": {"seconds": 0.5}}, MFLUX: {"256": {"seconds": 1.0}}, MODEL_PER_REQUEST: None}
    rows = table({"sides": [256], "ways": ways}).rows
    assert list(map(list, rows)) == [
        [SERVICE, "0.50 s", "1.0 ×"],
        [MFLUX, "1.00 s", "2.0 ×"],
        [MODEL_PER_REQUEST, "failed", ""],
    ]
