"""The digest of a body: what makes two requests with one key the same."""

import hashlib
import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from mflux_api.jobs.idempotency import idempotency_key

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
BODIES = st.dictionaries(
    st.text(max_size=3),
    st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner), max_leaves=8),
)


@given(BODIES)
@example({"init_images": ['é\U0001f408"' * 200_000, ""], "prompt": "\ud800"})
def test_digest_is_that_of_the_sorted_json(body: dict[str, Any]) -> None:
    """Keys that an older version has stored are found again."""
    expected = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    assert idempotency_key("a", body, caller="").body == expected
