import jaxtyping
import pytest


@pytest.fixture
def shapes_unchecked(monkeypatch):
    """What a user sees, who has no shape checks: our own errors, not jaxtyping's."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
