"""JSON headers: an accepted one can be written again."""

import json

from tests.fuzz.harness import fuzz

from spherecf.common.parsing import parse_json


@fuzz(
    {"header": b'{"format": "x", "radius": 64.0, "record": {"a": [1, null, true, "\\u00e9"]}}'}, name="JSON"
)
def test_json(data: bytes) -> None:
    json.dumps(parse_json(data, "x.json", "a header"), allow_nan=False)
