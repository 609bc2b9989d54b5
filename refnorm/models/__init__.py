"""Room models."""

__all__: list[str] = []
