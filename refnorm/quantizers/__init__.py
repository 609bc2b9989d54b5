"""Room quantizers."""

__all__: list[str] = []
