"""Fixtures of tests of whole runs."""

import pytest
from service.command import end_all_started


@pytest.fixture(autouse=True)
def nothing_goes_on():
    """A test that fails while it waits leaves its command running."""
    yield
    end_all_started()
