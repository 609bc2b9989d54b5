"""Room poincare."""

__all__: list[str] = []
